"""What came of a run, for people: a block like that of `vllm bench serve`."""

from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.text import Text

WIDTH: Final = 50
LATE_MS: Final = 1.0
"""A generator that is later than this, at its 99th percentile, measures itself."""
BUSY: Final = 0.9
"""The same of the one core that it runs on."""
QUEUED_MS: Final = 1.0
"""Requests that wait longer than this before they are sent, on average, need to be told of."""
_TITLES: Final = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
    "ttft_from_send": ("Time to First Token from its Sending", "TTFT from send"),
    "e2el_from_send": ("End-to-end Latency from its Sending", "E2EL from send"),
    "client_queue_time": ("Client-side Queueing", "Client Queue Time"),
    "generator_lag": ("Delay by the Generator", "Generator Lag"),
}


def show(console: Console, line: dict[str, Any], shown: list[str]) -> None:
    """Prints the block of a result, and what must be said beside it."""
    for row in block(line, shown):
        console.print(row, markup=False, highlight=False, soft_wrap=True)
    for style, remark in remarks(line, shown):
        console.print(Text(remark, style), soft_wrap=True)


def block(line: dict[str, Any], shown: list[str]) -> Iterator[str]:
    """The lines of the block."""
    yield " Serving Benchmark Result ".center(WIDTH, "=")
    rate = line["request_rate"]
    cached = line["cached_share"]
    told: dict[str, object] = {
        "Successful requests:": line["completed"],
        "Failed requests:": line["failed"],
        "Skipped turns:": line["skipped"] or None,
        "Maximum request concurrency:": line["max_concurrency"],
        "Request rate configured (RPS):": None if rate == "inf" else float(rate),
        "Benchmark duration (s):": line["duration"],
        "Total input tokens:": line["total_input_tokens"],
        "Total generated tokens:": line["total_output_tokens"],
        "Cached share of input tokens (%):": None if cached is None else 100 * cached,
        "Request throughput (req/s):": line["request_throughput"],
        "Request goodput (req/s):": line["request_goodput"],
        "Output token throughput (tok/s):": line["output_throughput"],
        "Peak output token throughput (tok/s):": float(line["max_output_tokens_per_s"]) or None,
        "Peak concurrent requests:": line["max_concurrent_requests"],
        "Total token throughput (tok/s):": line["total_token_throughput"],
        "Streams with a right checksum:": line["checksums_verified"] or None,
    }
    yield from (_row(name, value) for name, value in told.items() if value is not None)
    for name in shown:
        metric = line["metrics"].get(name)
        if metric is None:
            continue
        title, short = _TITLES[name]
        yield title.center(WIDTH, "-")
        yield _row(f"Mean {short} (ms):", metric["mean"])
        yield _row(f"Median {short} (ms):", metric["median"])
        for percentile, value in metric["percentiles"]:
            yield _row(f"P{percentile:g} {short} (ms):", value)
    yield "=" * WIDTH


def remarks(line: dict[str, Any], shown: list[str]) -> Iterator[tuple[str, str]]:
    """What must be said beside the block, with its style."""
    for kind, faults in line["errors"].items():
        yield "red", f"FAILED {kind}: {faults['count']} requests, the first: {faults['example']}"
    if line["interrupted"]:
        yield "yellow", "interrupted: the figures are of what was answered until then"
    if line["failed_warmups"]:
        yield "yellow", f"{line['failed_warmups']} warm-up requests failed"
    if line["completed"] > line["with_usage"]:
        without = line["completed"] - line["with_usage"]
        yield "yellow", f"{without} replies told no usage: their output tokens are events, their input tokens unknown"
    queued, sent = line["metrics"].get("client_queue_time"), line["metrics"].get("ttft_from_send")
    if queued and queued["mean"] > QUEUED_MS and sent and "ttft_from_send" not in shown:
        late = f"requests waited {queued['mean']:.1f} ms on average before they were sent, which counts"
        yield "", f"{late}; from their sending: mean TTFT {sent['mean']:.2f} ms, median {sent['median']:.2f} ms"
    lag = line["metrics"].get("generator_lag")
    if lag is not None and lag["p99"] > LATE_MS:
        yield "yellow", f"the generator itself was late, one request in a hundred by {lag['p99']:.1f} ms and more"
    if line["generator_cpu_cores"] > BUSY:
        cores = line["generator_cpu_cores"]
        yield "yellow", f"the generator used {cores:.2f} cores: at more than {BUSY:g} it may be what is measured"
    for note in line["notes"]:
        yield "", note


def _row(name: str, value: object) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<40} {shown:<9}".rstrip()
