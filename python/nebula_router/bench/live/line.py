"""One line of JSON per run, with everything that is needed to repeat it.

What vLLM keeps has vLLM's names. Secrets are not in it: of headers there are the names alone.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import nebula_router
from nebula_router.bench import machine
from nebula_router.bench.error import BenchError
from nebula_router.bench.live.dataset import Dataset
from nebula_router.bench.live.document import objectives
from nebula_router.bench.live.options import Options, flag
from nebula_router.bench.live.play import Played
from nebula_router.bench.live.server import pairs

KEPT: Final = "live"
"""Marks the lines of this benchmark among others."""


def line(options: Options, shape: Mapping[str, str], asked: Dataset, model: str, played: Played) -> dict[str, Any]:
    """The result of a run."""
    report = played.report
    place = machine.describe()
    seconds = report["duration_s"] or 1e-9
    tokens_in, tokens_out = report["prompt_tokens"], report["output_tokens"]
    known = report["prompt_tokens_with_cached"]
    rate = "inf" if options.request_rate is None else str(options.request_rate)
    return {
        "benchmark": KEPT,
        "version": nebula_router.__version__,
        "date": place.when,
        "label": options.label or options.backend,
        "endpoint_type": options.backend,
        "base_url": options.server,
        "model_id": model,
        "num_prompts": report["requested"],
        "request_rate": rate,
        "burstiness": str(options.burstiness),
        "max_concurrency": options.max_concurrency,
        "duration": report["duration_s"],
        "completed": report["completed"],
        "failed": report["failed"],
        "skipped": report["skipped"],
        "interrupted": played.interrupted,
        "failed_warmups": report["failed_warmups"],
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "with_usage": report["with_usage"],
        "cached_tokens": report["cached_tokens"] if report["with_cached"] else None,
        "cached_share": report["cached_tokens"] / known if known else None,
        "request_throughput": report["completed"] / seconds,
        "request_goodput": _goodput(report["requests"], objectives(options), seconds),
        "output_throughput": tokens_out / seconds,
        "total_token_throughput": (tokens_in + tokens_out) / seconds,
        "max_output_tokens_per_s": report["peak_chunks_per_second"],
        "max_concurrent_requests": report["peak_inflight"],
        "checksums_verified": report["verified"],
        **_flat(report["metrics"]),
        "metrics": report["metrics"],
        "errors": report["errors"],
        "notes": report["notes"],
        "generator_cpu_cores": round(played.cpu_cores, 3),
        "machine": asdict(replace(place, command=command(options, shape))),
        "options": _options(options),
        "metadata": pairs("--metadata", options.metadata),
        "source": asked.source,
        "dataset": asked.file,
        "itl": report["itl"],
        "requests": report["requests"],
    }


def command(options: Options, shape: Mapping[str, str]) -> str:
    """What to type to repeat the run; the values of headers are left to whoever does."""
    words = ["nebula", "bench"]
    for name, value in _told(options).items():
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name).removeprefix('--')}")
        elif isinstance(value, list):
            words += [word for one in value for word in (flag(name), str(one))]
        else:
            words += [flag(name), str(value)]
    for name, given in shape.items():
        words += [f"--{name.replace('_', '-')}", given]
    return shlex.join(words)


def save(options: Options, result: dict[str, Any]) -> Path | None:
    """Appends the result to its file, if it is to be kept; where that is.

    Raises:
        BenchError: The file cannot be written to.
    """
    if not options.save_result:
        return None
    file = Path(options.result_dir or ".") / (options.result_filename or _file_name(result))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as held:
            held.write(json.dumps(result, separators=(",", ":")) + "\n")
    except OSError as error:
        raise BenchError(f"{file}: cannot be written: {error.strerror}") from None
    return file


def read(file: Path) -> list[dict[str, Any]]:
    """The runs in a file of results, in its order.

    Raises:
        BenchError: It cannot be read, or a line of it is no result of this benchmark.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'is no text'}") from None
    runs: list[dict[str, Any]] = []
    for number, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            run = json.loads(row)
        except ValueError:
            run = None
        if not isinstance(run, dict) or run.get("benchmark") != KEPT:
            raise BenchError(f"{file}, line {number}: is no result; `nebula bench --save-result` writes one per line")
        runs.append(run)
    if not runs:
        raise BenchError(f"{file}: holds no result; `nebula bench --save-result` writes one per line")
    return runs


def _goodput(requests: dict[str, list[Any]], goals: dict[str, float], seconds: float) -> float | None:
    """Requests per second that met every objective; one token alone has no time per token, which is good."""
    if not goals:
        return None
    columns = [[(value or 0) / 1e3 <= goal for value in requests[f"{name}_us"]] for name, goal in goals.items()]
    return sum(map(all, zip(*columns, strict=True))) / seconds


def _flat(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The metrics by the names that vLLM gives them."""
    flat: dict[str, float] = {}
    for name, metric in metrics.items():
        flat |= {f"{statistic}_{name}_ms": metric[statistic] for statistic in ("mean", "median", "std")}
        flat |= {f"p{percentile:g}_{name}_ms": value for percentile, value in metric["percentiles"]}
    return flat


def _told(options: Options) -> dict[str, Any]:
    told = options.model_dump(mode="json", exclude_unset=True)
    if "header" in told:
        told["header"] = [f"{name}=…" for name in pairs("--header", options.header)]
    return told


def _options(options: Options) -> dict[str, Any]:
    """Every option, told or not."""
    return options.model_dump(mode="json") | _told(options)


def _file_name(result: dict[str, Any]) -> str:
    stamp = result["date"].replace(":", "").replace("-", "")[:15]
    cap = "" if result["max_concurrency"] is None else f"-concurrency{result['max_concurrency']}"
    model = result["model_id"].split("/")[-1]
    return f"{result['label']}-{result['request_rate']}qps{cap}-{model}-{stamp}.json"
