"""Runs of the core's simulator, side by side: the core lets go of the interpreter while it computes."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, Final, TypeVar

import orjson

from nebula_router.core import Simulation
from nebula_router.simulate.plan import Plan
from nebula_router.simulate.report import Report
from nebula_router.sources import ConfigError

SLICES: Final = 100
"""Parts that a run is cut into, to say how far it is and to stop when told."""
_TOO_LONG: Final = re.compile(r"request \d+ .* has (?P<tokens>\d+) tokens of prompt and reply, an engine takes \d+")
_ENGINE: Final = "sim: "
"""Begins what an engine's settings are refused with."""
_T = TypeVar("_T")

Say = Callable[[int, int], None]
"""Told how many more requests have ended, and how many there are in one run."""


class Stopped(Exception):  # noqa: N818 - an event, not an error
    """Another run failed, or the user wants no more."""


class Runner:
    """Runs a plan's workload against fleets."""

    def __init__(self, plan: Plan, say: Say) -> None:
        """Keep the plan; `say` is called from many threads."""
        self.notes: tuple[str, ...] = ()
        """What was assumed while the workload was read; the same in every run."""
        self._plan = plan
        self._say = say
        self._stop = Event()

    def run(self, engines: int, speed: float, policy: str) -> Report:
        """What becomes of the workload.

        Raises:
            ConfigError: The core refuses the trace, the engine, or a request that no engine could hold.
            Stopped: Another run failed.
        """
        trace = self._plan.trace
        try:
            simulation = Simulation(self._plan.document(engines, speed, policy), trace.text if trace else None)
            total = simulation.total
            self.notes = tuple(simulation.notes)
            done = 0
            while done < total:
                if self._stop.is_set():
                    raise Stopped
                before, done = done, simulation.advance(-(-total // SLICES))
                if done == before:
                    raise RuntimeError(f"{policy}: {total - done} requests never end")
                self._say(done - before, total)
        except ValueError as error:
            raise ConfigError(_refusal(self._plan, str(error))) from None
        report: Report = orjson.loads(simulation.report())
        return report

    def each(self, tasks: Iterable[Callable[[], _T]]) -> list[_T]:
        """What the tasks give, in their order; the first that fails stops all.

        Raises:
            ConfigError: A run was refused.
        """
        jobs = self._plan.options.jobs or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                _raise_first(futures)
                return [future.result() for future in futures]
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._stop.clear()


def _raise_first(futures: Iterable[Future[_T]]) -> None:
    for future in futures:
        error = future.exception() if future.done() and not future.cancelled() else None
        if error is not None:
            raise error


def _refusal(plan: Plan, reason: str) -> str:
    """The core's refusal, with the flags that would help."""
    too_long = _TOO_LONG.match(reason)
    if too_long:
        return f"{too_long[0]}: {_room(plan.engine, int(too_long['tokens']))} would do"
    if reason.startswith(_ENGINE):
        name, _, why = reason.removeprefix(_ENGINE).partition(" ")
        return f"{_flag(name)}: {why}"
    name, _, why = reason.partition(": ")
    if name in type(plan.workload).model_fields:
        return f"{_flag(name)}: {why}"
    if plan.trace is None or reason.startswith("settings of "):
        return reason
    return f"--trace {plan.trace.name}: {reason}"


def _room(engine: Mapping[str, Any], tokens: int) -> str:
    """The flags of an engine that holds a request of so many tokens."""
    held = (engine["kv_blocks"] - 1) * engine["block_size"]
    flags = [f"--max-model-len {tokens}"] if engine["max_model_len"] < held else []
    if tokens > held:
        flags.append(f"--kv-blocks {-(-tokens // engine['block_size']) + 1}")
    return " and ".join(flags)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
