"""Many concurrent streams through the gateway and simulated engines: no error, no lost byte, no leak.

Every stream carries a checksum that the engine computed, every gauge of load must be back at zero afterwards, and the
memory of the server must not grow.
"""

import asyncio
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import uvloop

from nebula_router.bench import net, process, prompts, stream
from nebula_router.bench.error import BenchError
from nebula_router.bench.histogram import Histogram
from nebula_router.bench.stream import Tally
from nebula_router.sim_settings import SimSettings

READY_S = 30.0
SAMPLE_S = 1.0
RAMP_S = 2.0
"""The streams begin one after the other over this time, at most over a tenth of all."""
SETTLE_S = 2.0
"""How long the gauges may take to show that the last stream is gone."""
WARM_S = 10.0
"""Until then, at most for a quarter of all, memory may grow as it likes: the first replies fill pools and caches."""
GROWTH_MB = 16.0
GROWTH_SHARE = 0.1
"""Memory is flat when it grows by no more than the larger of the two, from the first third of the time to the last."""
TICK_S = 0.05
MAX_TOKENS = 64
SHAPE = prompts.Shape(bodies=512, systems=8, system_bytes=1024, user_bytes=128)
"""Short, so that the engines decode most of the time: it is streams that are soaked, not prefill."""
GAUGES = ("nebula_running_requests", "nebula_prefill_tokens")
FILES_PER_STREAM = 3
"""In the server: the client's connection, and both ends of the engine's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked of whom."""

    streams: int
    seconds: float
    engines: int
    speed: float
    logs: Path | None = None

    @property
    def pace_s(self) -> float:
        """The modelled time between two chunks of a stream, when all engines only decode."""
        sim = SimSettings()
        running = min(self.streams / self.engines, sim.max_num_seqs)
        return _at(self.speed, sim.timing.step_base_us + running * sim.timing.decode_us_per_seq)

    @property
    def full_step_s(self) -> float:
        """The modelled time of a step that prefills as many tokens as it may: no gap should be much longer."""
        sim = SimSettings()
        return self.pace_s + _at(self.speed, sim.max_num_batched_tokens * sim.timing.prefill_us_per_token)


@dataclass(slots=True)
class Report:
    """What happened."""

    seconds: float
    tally: Tally
    rss_mb: list[float] = field(default_factory=list)
    """Of the server with its engines, each second after it got warm."""
    gauges: dict[str, float | None] = field(default_factory=dict)
    """At the end; None: the server does not show it."""
    client_lag_s: float = 0.0
    """The longest time that the client itself was too busy to read: no gap is known better than this."""
    server_ended: bool = False

    def faults(self) -> list[str]:
        """Why this run is no success; empty when it is one."""
        found = [f"{kind}: {count:,} requests" for kind, count in sorted(self.tally.errors.items())]
        if self.tally.requests == 0:
            found.append("no request ended")
        if self.server_ended:
            found.append("the server ended by itself")
        for name, value in self.gauges.items():
            if value is None:
                found.append(f"{name}: not in /metrics")
            elif value:
                found.append(f"{name}: {value:g} after the last stream, must be 0")
        grown = growth(self.rss_mb)
        if grown > max(GROWTH_MB, GROWTH_SHARE * min(self.rss_mb, default=0.0)):
            found.append(f"memory grew by {grown:.0f} MB from the first third to the last")
        return found


def soak(plan: Plan, tick: Callable[[float, str], None]) -> Report:
    """Runs the plan; `tick` is told the seconds since the start and what there is to say, several times a second.

    Raises:
        BenchError: when the server does not start.
    """
    _allow_files(plan.streams * FILES_PER_STREAM + 256)
    port = net.free_port()
    command = [sys.executable, "-m", "nebula_router", "up", "--sim", str(plan.engines)]
    command += ["--listen", f"{net.HOST}:{port}", "--speed", str(plan.speed)]
    log = plan.logs / "up.log" if plan.logs else None
    with process.started("nebula up", command, log) as child:
        child.await_ready(partial(net.complaint, port, "/ready"), READY_S)
        bodies = _bodies(port)
        report = uvloop.run(flood(port, bodies, plan, Watch(child.usage, tick)))
        report.server_ended = child.popen.poll() is not None
        if not report.server_ended:
            report.gauges = _settled(port)
    return report


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is asked for memory and who is told of progress, while streams flow."""

    usage: Callable[[], process.Usage]
    tick: Callable[[float, str], None]


async def flood(port: int, bodies: Sequence[bytes], plan: Plan, watch: Watch) -> Report:
    """Keeps `plan.streams` streams open on `port` for `plan.seconds`, and reads the last ones to their end."""
    tally = Tally()
    report = Report(plan.seconds, tally)
    messages = [stream.message(port, body) for body in bodies]
    ramp = min(RAMP_S, plan.seconds / 10)
    begin = time.monotonic()
    until = begin + plan.seconds

    async def user(number: int) -> None:
        await asyncio.sleep(ramp * number / plan.streams)
        first = number % len(messages)
        await stream.converse(port, messages[first:] + messages[:first], until, tally)

    watchers = [
        asyncio.create_task(_sample(watch.usage, begin + min(WARM_S, plan.seconds / 4), until, report)),
        asyncio.create_task(_tick(watch.tick, begin, report)),
    ]
    try:
        await asyncio.gather(*(user(number) for number in range(plan.streams)))
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
    report.seconds = time.monotonic() - begin
    return report


def growth(samples: Sequence[float]) -> float:
    """The mean of the last third minus the mean of the first; 0 where there are fewer than three."""
    third = len(samples) // 3
    return mean(samples[-third:]) - mean(samples[:third]) if third else 0.0


def gauge(metrics: str, name: str) -> float | None:
    """The sum of a gauge over all its labels, from Prometheus text; None when it is not there."""
    lines = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)", metrics, re.MULTILINE)
    return sum(float(value) for value in lines) if lines else None


def describe(plan: Plan, report: Report) -> list[tuple[str, str]]:
    """The result in lines: a name, and what there is to say."""
    tally, seconds, rss = report.tally, report.seconds, report.rss_mb
    ttft, gaps = (_quantiles(histogram) for histogram in (tally.ttft, tally.gaps))
    pace = f"{plan.pace_s * 1e3:,.0f} ms, {plan.full_step_s * 1e3:,.0f} ms in a step full of prefill"
    lag = f"the client itself was late by up to {report.client_lag_s * 1e3:,.0f} ms"
    memory = "not measured"
    if rss:
        memory = f"{rss[0]:.0f} MB at first, {max(rss):.0f} MB at most, {growth(rss):+.1f} MB from first third to last"
    gauges = ", ".join(f"{name} {'absent' if value is None else f'{value:g}'}" for name, value in report.gauges.items())
    return [
        ("streams", f"{plan.streams:,} at once on {plan.engines} engines, {seconds:.1f} s"),
        ("requests", f"{tally.requests:,}, each checked to the last byte; {sum(tally.errors.values()):,} failed"),
        ("chunks", f"{tally.chunks:,}: {tally.chunks / seconds:,.0f}/s, {tally.body_bytes / seconds / 1e6:,.1f} MB/s"),
        ("first byte", ttft),
        ("between chunks", gaps),
        ("modelled pace", f"{pace}; {lag}"),
        ("server's memory", memory),
        ("gauges at the end", gauges or "not read"),
    ]


def figures(report: Report) -> dict[str, Any]:
    """The result for scripts."""
    return {
        "seconds": report.seconds,
        "requests": report.tally.requests,
        "errors": report.tally.errors,
        "chunks_per_s": report.tally.chunks / report.seconds,
        "ttft_s": report.tally.ttft.figures(),
        "gap_s": report.tally.gaps.figures(),
        "client_lag_s": report.client_lag_s,
        "rss_mb": report.rss_mb,
        "rss_growth_mb": growth(report.rss_mb),
        "gauges": report.gauges,
        "faults": report.faults(),
    }


def _quantiles(histogram: Histogram) -> str:
    seen = histogram.figures()
    return ", ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in seen.items())


async def _sample(usage: Callable[[], process.Usage], begin: float, until: float, report: Report) -> None:
    await asyncio.sleep(begin - time.monotonic())
    while time.monotonic() < until:
        report.rss_mb.append((await asyncio.to_thread(usage)).rss_mb)
        await asyncio.sleep(SAMPLE_S)


async def _tick(tick: Callable[[float, str], None], begin: float, report: Report) -> None:
    tally = report.tally
    while True:
        before = time.monotonic()
        elapsed = before - begin
        failed = sum(tally.errors.values())
        tick(elapsed, f"{tally.running:,} streams · {tally.requests:,} ended · {failed:,} errors")
        await asyncio.sleep(TICK_S)
        report.client_lag_s = max(report.client_lag_s, time.monotonic() - before - TICK_S)


def _bodies(port: int) -> list[bytes]:
    model = json.loads(net.ask(port, "/v1/models").body)["data"][0]["id"]
    options = {"stream": True, "max_tokens": MAX_TOKENS, "stream_options": {"include_usage": True}}
    return prompts.chat_bodies(model, SHAPE, options)


def _settled(port: int) -> dict[str, float | None]:
    """The gauges, as soon as they are zero or `SETTLE_S` have passed."""
    until = time.monotonic() + SETTLE_S
    while True:
        metrics = net.ask(port, "/metrics").body.decode()
        gauges = {name: gauge(metrics, name) for name in GAUGES}
        if not any(gauges.values()) or time.monotonic() > until:
            return gauges
        time.sleep(process.POLL_S)


def _allow_files(needed: int) -> None:
    """Raises the soft limit of open files, which the server inherits, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(f"{needed} open files are needed and {hard} allowed; raise the limit: ulimit -Hn {needed}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _at(speed: float, modelled_us: float) -> float:
    """Modelled microseconds in seconds of the clock; at speed 0 nothing is waited for."""
    return modelled_us / 1e6 / speed if speed else 0.0
