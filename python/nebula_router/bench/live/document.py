"""A run as the core's load generator reads it."""

import json
from typing import Any, Final

from nebula_router.bench.error import BenchError
from nebula_router.bench.live.dataset import Dataset
from nebula_router.bench.live.options import Options
from nebula_router.bench.live.pace import pace
from nebula_router.bench.live.server import Server

METRICS: Final = (
    "ttft",
    "tpot",
    "itl",
    "e2el",
    "ttft_from_send",
    "e2el_from_send",
    "client_queue_time",
    "generator_lag",
)
"""What is measured, by vLLM's names where it measures the same."""
OBJECTIVES: Final = ("ttft", "tpot", "e2el")
"""Metrics that an objective can be set for."""
STREAMED: Final = ("ttft", "tpot", "itl", "ttft_from_send")
"""Metrics that whole replies do not have."""
CONNECT_TIMEOUT_MS: Final = 10_000
_PATHS: Final = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


def document(options: Options, server: Server, model: str, asked: Dataset) -> dict[str, Any]:
    """Everything that the core has to know. It holds secrets: it is neither shown nor kept.

    Raises:
        BenchError: Options that contradict each other.
    """
    run = {
        "base_url": server.url,
        "endpoint": endpoint(options),
        "path": path(options),
        "headers": list(server.headers.items()),
        "session_header": options.session_header,
        "model": model,
        "body": extra_body(options),
        "stream": options.streaming,
        "ignore_eos": options.ignore_eos,
        "checksum": options.checksum,
        **pace(options),
        "timeout_ms": max(1, round(options.request_timeout_sec * 1e3)),
        "connect_timeout_ms": CONNECT_TIMEOUT_MS,
        "ready_timeout_ms": round(options.ready_check_timeout_sec * 1e3),
        "warmups": options.num_warmups,
        "percentiles": percentiles(options),
        "seed": options.seed,
    }
    return {"run": run, "source": asked.source}


def endpoint(options: Options) -> str:
    """Which of OpenAI's APIs the backend speaks: `chat` or `completions`."""
    return "chat" if options.backend == "openai-chat" else "completions"


def path(options: Options) -> str:
    """The path that is asked.

    Raises:
        BenchError: It is that of another API than the backend's.
    """
    usual = _PATHS[endpoint(options)]
    given = options.endpoint or usual
    is_chat = given.rstrip("/").endswith("chat/completions")
    if is_chat != (endpoint(options) == "chat"):
        right = "openai-chat" if is_chat else "vllm or openai"
        raise BenchError(f"--endpoint {given}: --backend {options.backend} asks {usual}; {right} asks the other one")
    return given


def extra_body(options: Options) -> dict[str, Any]:
    """Further fields of every request.

    Raises:
        BenchError: It is no JSON object.
    """
    try:
        fields = json.loads(options.extra_body or "{}")
    except ValueError as error:
        raise BenchError(f"--extra-body: is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BenchError('--extra-body: expected a JSON object, such as {"temperature": 0}')
    return fields


def percentiles(options: Options) -> list[float]:
    """The percentiles that are wanted.

    Raises:
        BenchError: One that is none.
    """
    try:
        wanted = [float(word) for word in options.metric_percentiles.split(",")]
    except ValueError:
        wanted = [-1.0]
    if not all(0 <= one <= 100 for one in wanted):  # noqa: PLR2004 - per cent
        raise BenchError(f"--metric-percentiles {options.metric_percentiles}: expected numbers like 50,90,99")
    return wanted


def metrics(options: Options) -> list[str]:
    """The metrics that are shown.

    Raises:
        BenchError: One that is not measured.
    """
    wanted = [word.strip() for word in options.percentile_metrics.split(",")]
    for word in wanted:
        if word not in METRICS:
            raise BenchError(f"--percentile-metrics {word}: is not measured; {', '.join(METRICS)} are")
        if word in STREAMED and not options.streaming and options.told("percentile_metrics"):
            raise BenchError(f"--percentile-metrics {word}: whole replies have none; take --streaming")
    return wanted


def objectives(options: Options) -> dict[str, float]:
    """Milliseconds that a good request does not exceed, by metric.

    Raises:
        BenchError: A metric that requests do not have, or no time.
    """
    goals: dict[str, float] = {}
    for goal in options.goodput:
        name, _, time = goal.partition(":")
        try:
            goals[name] = float(time)
        except ValueError:
            goals[name] = -1.0
        if name not in OBJECTIVES or not 0 <= goals[name] < float("inf"):
            known = ", ".join(OBJECTIVES)
            raise BenchError(f"--goodput {goal}: expected METRIC:MILLISECONDS like ttft:200, of {known}")
        if name in STREAMED and not options.streaming:
            raise BenchError(f"--goodput {goal}: whole replies have no {name}; take --streaming")
    return goals
