"""When requests are sent."""

import math
from typing import Any, Final

from nebula_router.bench.error import BenchError
from nebula_router.bench.live.options import Options

TIMED: Final = ("mooncake", "decisions")
"""Datasets that say when each request was asked."""
_PAUSED: Final = ("multi_turn", "agents", "sharegpt")


def pace(options: Options) -> dict[str, Any]:
    """The part of the core's document that says when requests are sent: `pace` and `max_concurrency`.

    Raises:
        BenchError: Options that contradict each other, or that nothing depends on.
    """
    rate = options.request_rate
    if rate is None or math.isinf(rate):
        rate = None
    timed = _timed(options)
    if rate is None and options.told("burstiness"):
        raise BenchError("--burstiness: shapes the arrivals of a --request-rate, and there is none")
    if options.told("speed") and not timed and options.dataset_name not in _PAUSED:
        raise BenchError(
            f"--speed: {options.dataset_name} holds neither times nor pauses; --request-rate sets the pace"
        )
    if timed:
        return {"pace": {"kind": "trace"}, "max_concurrency": options.max_concurrency}
    if rate is not None:
        shape = None if math.isinf(options.burstiness) else options.burstiness
        kind = {"kind": "rate", "per_second": rate, "burstiness": shape}
        return {"pace": kind, "max_concurrency": options.max_concurrency}
    if options.max_concurrency is not None:
        return {"pace": {"kind": "users", "users": options.max_concurrency}, "max_concurrency": None}
    return {"pace": {"kind": "at_once"}, "max_concurrency": None}


def _timed(options: Options) -> bool:
    """Whether the times of the file count."""
    holds = options.dataset_name in TIMED
    if not options.told("self_timed"):
        return holds and not options.told("request_rate")
    if options.self_timed and not holds:
        raise BenchError(f"--self-timed: {options.dataset_name} holds no times; {' and '.join(TIMED)} do")
    if options.self_timed and options.told("request_rate"):
        raise BenchError("--request-rate: --self-timed takes the times of the file; give one of the two")
    return options.self_timed
