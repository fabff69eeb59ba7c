import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from rich.console import Console
from tests.canned_gateway import Canned
from tests.e2e.process import free_port
from tests.e2e.wait import until

from nebula_router.cli import main
from nebula_router.top import Decision, Sample, Worker, series, shown, view

WITHIN_S = 30
LOAD = {"prefill_tokens": 12_000, "resident_tokens": 64_000, "running": 17, "kv_usage": 0.42}
EVENTS = {"connected": True, "generation": 1, "last_seq": 5, "lag_ms": 12.5, "age_ms": 2500.0, "gaps": 0, "losses": 0}
WORKERS: dict[str, Any] = {
    "workers": [
        {
            "name": "engine-b-with-a-long-name:8000",
            "url": "http://b:8000",
            "status": "ready",
            "ranks": [
                {
                    "rank": rank,
                    "load": LOAD,
                    "prediction": {"checked": 9, "error_mean": -1200.0, "error_std": 3400.0, "credit": 0.5},
                    "events": EVENTS,
                }
                for rank in (1, 0)
            ],
        },
        {
            "name": "a",
            "url": "http://a:8000",
            "status": "down",
            "ranks": [
                {"rank": 0, "load": LOAD | {"kv_usage": None}, "prediction": {"checked": 0}, "events": None},
            ],
        },
        {
            "name": "c",
            "url": "http://c:8000",
            "status": "ready",
            "ranks": [{"rank": 0, "events": {"connected": False}}],
        },
    ]
}
DECISIONS = {
    "decisions": [
        {"engine": "c", "rank": 0, "prompt_tokens": 1000, "cached_tokens": 750, "a later field": 1},
        {"engine": "c", "rank": 0, "prompt_tokens": 5000, "cached_tokens": None},
        {"engine": "a", "rank": 0, "prompt_tokens": 1000, "cached_tokens": 250},
        {"engine": None, "rank": None, "prompt_tokens": 10},
    ]
}
METRICS = """\
# TYPE nebula_requests counter
nebula_requests_total{path="/v1/completions",engine="c",status="200"} 40
nebula_requests_total{path="/v1/completions",engine="c",status="499"} 2
nebula_requests_total{path="/v1/completions",engine="",status="404"} 1
nebula_inflight_requests 1234
# EOF
"""


@pytest.fixture
def gateway() -> Canned:
    canned = Canned()
    canned.says("/workers", WORKERS)
    canned.says("/route/decisions", DECISIONS)
    canned.says("/metrics", METRICS)
    return canned


@pytest.fixture
def url(gateway: Canned) -> Iterator[str]:
    with gateway.served() as url:
        yield url


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["top", "--interval", "0.1", *arguments])
        return (caught.value.code, *capsys.readouterr())

    return call


Run = Callable[..., tuple[object, str, str]]


def at(seconds: float, **ended: float) -> Sample:
    workers = tuple(Worker.model_validate(worker) for worker in WORKERS["workers"])
    decisions = tuple(Decision.model_validate(decision) for decision in DECISIONS["decisions"])
    return Sample(seconds, workers, decisions, ended, 3)


def test_one_table_has_a_row_per_rank_in_a_stable_order_and_fits_100_columns(run: Run, url: str) -> None:
    status, out, err = run("--once", "--url", url)
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split("   ") == [url, "0.0 requests/s", "hit share 50 %", "1,234 in flight", "2 of 3 engines ready"]
    assert all(len(line) <= 100 for line in lines)
    assert [line.split() for line in lines[2:]] == [
        ["a", "0", "down", "17", "12,000", "-", "25", "0.0", "-", "-", "-", "1.00"],
        ["c", "0", "ready", "0", "0", "-", "75", "0.0", "off", "-", "-", "1.00"],
        [
            "engine-b-with-a-l…",
            "0",
            "ready",
            "17",
            "12,000",
            "42",
            "-",
            "0.0",
            "12ms",
            "2.5s",
            "-1,200",
            "±3,400",
            "0.50",
        ],
        [
            "engine-b-with-a-l…",
            "1",
            "ready",
            "17",
            "12,000",
            "42",
            "-",
            "0.0",
            "12ms",
            "2.5s",
            "-1,200",
            "±3,400",
            "0.50",
        ],
    ]


def test_json_is_one_document(run: Run, url: str, gateway: Canned) -> None:
    status, out, _ = run("--json", "--url", url)
    document = json.loads(out)
    assert status == 0
    assert (document["url"], document["in_flight"], document["hit_share"]) == (url, 1234, 0.5)
    assert [(row["engine"], row["rank"]) for row in document["ranks"]][:2] == [("a", 0), ("c", 0)]
    assert {path.partition("?")[0] for path, _, _ in gateway.asked} == {"/workers", "/route/decisions", "/metrics"}


def test_rates_are_of_the_time_between_two_samples() -> None:
    found = view("u", at(10, c=100, a=5), at(12, c=120, a=5, **{"": 4}))
    assert found.requests_per_s == 12
    assert {row.engine: row.requests_per_s for row in found.ranks} == {
        "a": 0.0,
        "c": 10.0,
        "engine-b-with-a-long-name:8000": 0.0,
    }
    assert view("u", None, at(10, c=100)).requests_per_s is None
    assert view("u", at(10, c=100), at(12, c=1)).requests_per_s is None, "a gateway that began anew has no rate"


def test_an_engine_with_ranks_gives_each_its_share_of_the_decisions() -> None:
    worker = Worker.model_validate({"name": "e", "status": "ready", "ranks": [{"rank": 0}, {"rank": 1}]})
    decisions = [Decision(engine="e", rank=rank, prompt_tokens=1) for rank in (0, 1, 1, 1)]

    def sampled(seconds: float, ended: float) -> Sample:
        return Sample(seconds, (worker,), tuple(decisions), {"e": ended}, 0)

    found = view("u", sampled(0, 0), sampled(1, 8))
    assert [row.requests_per_s for row in found.ranks] == [2.0, 6.0]


def test_engine_names_in_metrics_may_hold_any_sign() -> None:
    page = 'x_total{path="/a,b",engine="a\\"b\\\\c}",status="200"} 3.0\nplain 2\n# TYPE x counter\nno number\n<html>\n'
    assert list(series(page)) == [("x_total", 'a"b\\c}', 3.0), ("plain", "", 2.0)]


def test_a_fleet_without_engines_is_shown(gateway: Canned) -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(shown(view("u", None, Sample(0, (), (), {}, 0))))
    assert "0 of 0 engines ready" in captured.get()
    assert gateway.asked == []


def test_a_gateway_that_is_not_there_ends_a_single_look(run: Run) -> None:
    status, out, err = run("--once", "--url", f"http://127.0.0.1:{free_port()}")
    assert (status, out) == (2, "")
    assert "no gateway answers on" in err
    assert "--url" in err


class Terminal:
    """``nebula top`` as a person runs it."""

    def __init__(self, url: str) -> None:
        self.seen = b""
        self._own, others = pty.openpty()
        # What runs in the background may have been told to ignore the signal.
        default = ["env", "--default-signal=INT"]
        self.process = subprocess.Popen(
            [*default, sys.executable, "-m", "nebula_router", "top", "--interval", "0.1", "--url", url],
            stdin=others,
            stdout=others,
            stderr=others,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "LINES": "40"},
        )
        os.close(others)
        os.set_blocking(self._own, False)

    def shows(self, words: str) -> None:
        """Returns once it shows the words, after all that was waited for before."""

        def found() -> bool:
            with suppress(OSError):  # nothing is there yet, or nothing comes any more
                self.seen += os.read(self._own, 1 << 16)
            text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self.seen)
            return words.encode() in b" ".join(text.split())

        until(f"the words {words!r}", found, WITHIN_S)
        self.seen = b""

    def interrupted(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(WITHIN_S)
        finally:
            os.close(self._own)


def test_it_outlives_the_gateway_and_ends_with_ctrl_c(gateway: Canned) -> None:
    port = free_port()
    with gateway.served(port) as url:
        terminal = Terminal(url)
        try:
            terminal.shows("1,234 in flight")
        except BaseException:
            terminal.process.kill()
            raise
    try:
        terminal.shows("no gateway answers on")
        gateway.says("/metrics", "nebula_inflight_requests 77\n")
        with gateway.served(port):
            terminal.shows("77 in flight")
        assert terminal.interrupted() == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_a_refusal_ends_it(run: Run, url: str, gateway: Canned) -> None:
    gateway.says("/workers", {"error": {"message": "the admin token is needed"}}, 401)
    status, _, err = run("--once", "--url", url)
    assert status == 2
    assert "NEBULA_GATEWAY__ADMIN_TOKEN" in err
