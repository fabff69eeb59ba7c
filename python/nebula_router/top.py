"""`nebula top`: what each rank of a running gateway does now, again and again."""

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from pydantic import Field
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nebula_router.remote import Answer, Load, Remote, RemoteError

TIMEOUT_S: Final = 5
WIDTH: Final = 100
"""What the table takes."""
RECENT: Final = 500
"""Decisions that hit shares are made of."""
ABSENT: Final = "-"
_SERIES: Final = re.compile(
    r'(?P<name>\w+)(?:\{(?P<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? '
    r"(?P<value>[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|Inf|NaN))"
)
_ENGINE: Final = re.compile(r'(?:^|,)engine="((?:[^"\\]|\\.)*)"')
_READY: Final = "ready"
_STYLES: Final = {_READY: "green", "down": "red", "silent": "yellow", "draining": "cyan"}
_SECOND_MS: Final = 1000
_MINUTE_MS: Final = 60 * _SECOND_MS


class Prediction(Answer):
    """How the overlaps that were believed compare with what the engine reported, in tokens."""

    checked: int = 0
    error_mean: float | None = None
    error_std: float | None = None
    credit: float = 1.0


class Events(Answer):
    """The KV events of a rank."""

    connected: bool
    lag_ms: float | None = None
    age_ms: float | None = None
    gaps: int = 0
    losses: int = 0


class WorkerRank(Answer):
    """One data-parallel rank."""

    rank: int
    load: Load = Load()
    prediction: Prediction = Prediction()
    events: Events | None = None


class Worker(Answer):
    """One engine."""

    name: str
    status: str
    ranks: tuple[WorkerRank, ...] = Field(())


class Workers(Answer):
    """Every engine."""

    workers: tuple[Worker, ...]


class Decision(Answer):
    """One request that was routed."""

    engine: str | None = None
    rank: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int | None = None


class Decisions(Answer):
    """The newest of them, the newest first."""

    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Sample:
    """What the gateway said at one time."""

    at_s: float
    """On this process's monotonic clock."""
    workers: tuple[Worker, ...]
    decisions: tuple[Decision, ...]
    ended: Mapping[str, float]
    """Requests that have ended so far, by engine; under no name those that reached none."""
    in_flight: int


@dataclass(frozen=True)
class Row:
    """One rank."""

    engine: str
    rank: int
    status: str
    running: int
    prefill_tokens: float
    kv_usage: float | None
    hit_share: float | None
    """Of the prompt tokens of recent requests, those that the engine had cached, where it tells."""
    requests_per_s: float | None
    """Ended since the sample before; of an engine with several ranks, by their share of the recent decisions."""
    events: str | None
    """`off` while the stream is broken."""
    lag_ms: float | None
    age_ms: float | None
    checked: int
    error_mean: float | None
    error_std: float | None
    credit: float


@dataclass(frozen=True)
class View:
    """Everything that is shown."""

    url: str
    requests_per_s: float | None
    hit_share: float | None
    in_flight: int
    ranks: tuple[Row, ...]


def top(remote: Remote, interval_s: float, *, once: bool, as_json: bool) -> None:
    """Shows the ranks every `interval_s` until it is interrupted; once, where nobody watches.

    Raises:
        RemoteError: The gateway refuses; or it is not there and nobody watches.
    """
    console = Console()
    if as_json or once or not console.is_terminal:
        console.width = max(console.width, WIDTH)
        before = sample(remote)
        time.sleep(interval_s)
        found = view(remote.url, before, sample(remote))
        if as_json:
            sys.stdout.write(json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n")
        else:
            console.print(shown(found))
        return
    with Live(console=console, auto_refresh=False) as live:
        for frame in frames(remote, interval_s):
            live.update(frame, refresh=True)


def frames(remote: Remote, interval_s: float) -> Iterator[Group]:
    """One picture per interval. A gateway that goes away stays in sight as it last was, and is asked again.

    Raises:
        RemoteError: The gateway refuses, and will not change its mind.
    """
    before: Sample | None = None
    last: View | None = None
    while True:
        try:
            now = sample(remote)
            before, last = now, view(remote.url, before, now)
            yield shown(last)
        except RemoteError as error:
            if not error.passing:
                raise
            before = None
            note = Text(f"{error}. Asked again every {interval_s:g} s; Ctrl-C ends this.", "yellow")
            pictures: list[RenderableType] = [Text("The last answer:", "dim"), shown(last)] if last else []
            yield Group(note, *pictures)
        time.sleep(interval_s)


def sample(remote: Remote) -> Sample:
    """What the gateway says now.

    Raises:
        RemoteError: It does not answer.
    """
    workers = remote.read(Workers, "/workers").workers
    decisions = remote.read(Decisions, f"/route/decisions?limit={RECENT}").decisions
    ended: defaultdict[str, float] = defaultdict(float)
    in_flight = 0.0
    for name, engine, value in series(remote.text("/metrics")):
        if name == "nebula_requests_total":
            ended[engine] += value
        elif name == "nebula_inflight_requests":
            in_flight = value
    return Sample(time.monotonic(), workers, decisions, ended, round(in_flight))


def series(page: str) -> Iterator[tuple[str, str, float]]:
    """Name, engine and value of each line of a page of metrics; no engine where it is of none."""
    for line in page.splitlines():
        found = _SERIES.match(line)
        if found is not None:
            engine = _ENGINE.search(found["labels"] or "")
            yield found["name"], re.sub(r"\\(.)", r"\1", engine[1]) if engine else "", float(found["value"])


def view(url: str, before: Sample | None, now: Sample) -> View:
    """The figures of `now`; rates where there is a sample before it."""
    rows = [
        _row(worker, rank, now.decisions, _rate(before, now, (worker.name,)))
        for worker in now.workers
        for rank in worker.ranks
    ]
    rows.sort(key=lambda row: (row.engine, row.rank))
    rate = _rate(before, now, {*now.ended, *(before.ended if before else ())})
    return View(url, rate, _hit_share(now.decisions), now.in_flight, tuple(rows))


def _row(worker: Worker, rank: WorkerRank, decisions: Sequence[Decision], engine_rate: float | None) -> Row:
    of_engine = [decision for decision in decisions if decision.engine == worker.name]
    own = [decision for decision in of_engine if decision.rank == rank.rank]
    share = 1.0 if len(worker.ranks) == 1 else len(own) / len(of_engine) if of_engine else 0.0
    events, prediction = rank.events, rank.prediction
    return Row(
        engine=worker.name,
        rank=rank.rank,
        status=worker.status,
        running=rank.load.running,
        prefill_tokens=rank.load.prefill_tokens,
        kv_usage=rank.load.kv_usage,
        hit_share=_hit_share(own),
        requests_per_s=None if engine_rate is None else engine_rate * share,
        events=None if events is None else "on" if events.connected else "off",
        lag_ms=events.lag_ms if events else None,
        age_ms=events.age_ms if events else None,
        checked=prediction.checked,
        error_mean=prediction.error_mean if prediction.checked else None,
        error_std=prediction.error_std if prediction.checked else None,
        credit=prediction.credit,
    )


def _rate(before: Sample | None, now: Sample, engines: Iterable[str]) -> float | None:
    """Requests per second that ended between two samples; None where the gateway began anew between them."""
    if before is None or now.at_s <= before.at_s:
        return None
    ended = sum(now.ended.get(engine, 0.0) - before.ended.get(engine, 0.0) for engine in engines)
    return None if ended < 0 else ended / (now.at_s - before.at_s)


def _hit_share(decisions: Iterable[Decision]) -> float | None:
    told = [(it.cached_tokens, it.prompt_tokens) for it in decisions if it.cached_tokens is not None]
    prompt = sum(tokens for _, tokens in told)
    return sum(cached for cached, _ in told) / prompt if prompt else None


def shown(found: View) -> Group:
    """A head line, and a row per rank."""
    ready = len({row.engine for row in found.ranks if row.status == _READY})
    head = (
        f"{found.url}   {_number(found.requests_per_s, 1)} requests/s   hit share {_percent(found.hit_share)} %   "
        f"{found.in_flight:,} in flight   {ready} of {len({row.engine for row in found.ranks})} engines ready"
    )
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("\nengine", no_wrap=True, max_width=18)
    for heading in ("\nrank", "\nstatus", "\nrunning", "prefill\ntokens", "KV\n%", "hit\n%", "\nreq/s"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "\nstatus" else "right")
    for heading in ("events\nlag", "\nage", "predicted - cached\ntokens", "\ncredit"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in found.ranks:
        table.add_row(
            Text(row.engine),
            str(row.rank),
            Text(row.status, _STYLES.get(row.status, "")),
            f"{row.running:,}",
            f"{row.prefill_tokens:,.0f}",
            _percent(row.kv_usage),
            _percent(row.hit_share),
            _number(row.requests_per_s, 1),
            Text("off", "red") if row.events == "off" else _time(row.lag_ms),
            _time(row.age_ms),
            _error(row),
            f"{row.credit:.2f}",
        )
    return Group(Text(head, "bold", no_wrap=True, overflow="ellipsis"), table)


def _error(row: Row) -> str:
    if row.error_mean is None:
        return ABSENT
    return f"{row.error_mean:+,.0f}" + (f" ±{row.error_std:,.0f}" if row.error_std is not None else "")


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share * 100:.0f}"


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}"


def _time(ms: float | None) -> str:
    if ms is None:
        return ABSENT
    if ms < _SECOND_MS:
        return f"{ms:.0f}ms"
    return f"{ms / _SECOND_MS:.1f}s" if ms < _MINUTE_MS else f"{ms / _MINUTE_MS:.0f}min"
