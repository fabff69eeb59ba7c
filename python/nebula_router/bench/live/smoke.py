"""One streamed completion, shown: does the server answer at all, and how fast?"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any, Final

from nebula_router.bench.error import BenchError
from nebula_router.bench.live.options import Options, flag
from nebula_router.bench.live.server import Server

TOKENS: Final = 100
PROMPT: Final = "The harbour was quiet that morning, and the old lighthouse keeper began to tell his story:"
TAKEN: Final = frozenset(
    {"smoke", "base_url", "host", "port", "model", "header", "request_timeout_sec", "as_json", "backend"}
)
"""Options that mean something to it."""
LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Smoke:
    """What came of one completion."""

    text: str
    usage: dict[str, Any]
    ttft_ms: float
    gaps_ms: tuple[float, ...]
    """Between one token and the next."""

    def figures(self) -> dict[str, Any]:
        """All of it, to be kept."""
        gaps = sorted(self.gaps_ms)
        return {
            "text": self.text,
            "usage": self.usage,
            "ttft_ms": self.ttft_ms,
            "mean_tpot_ms": fmean(gaps) if gaps else None,
            "std_tpot_ms": pstdev(gaps) if gaps else None,
            "p99_tpot_ms": gaps[math.ceil(0.99 * len(gaps)) - 1] if gaps else None,
        }


def check(options: Options, shape: Mapping[str, str]) -> None:
    """Refuses what means nothing to one completion.

    Raises:
        BenchError: There is such an option.
    """
    told = [flag(field) for field in sorted(options.model_fields_set - TAKEN)]
    told += [f"--{name.replace('_', '-')}" for name in shape]
    if told:
        raise BenchError(f"{told[0]}: --smoke asks one completion of its own; take one of the two")
    if options.backend == "openai-chat":
        raise BenchError("--backend openai-chat: --smoke asks for a completion; vllm and openai do")


def smoke(options: Options, server: Server) -> Smoke:
    """Asks for one completion and reads it to its end.

    Raises:
        BenchError: The reply is not as it must be.
    """
    body = {
        "model": options.model or server.first_model(),
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    with server.ask("/v1/completions", body) as reply:
        return _read(reply, start)


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures, to be read."""
    times = {name: figures[f"{name.replace(' ', '_')}_ms"] for name in ("ttft", "mean tpot", "std tpot", "p99 tpot")}
    shown = [f"{name:>9}: {ms:.2f} ms" for name, ms in times.items() if ms is not None]
    return [figures["text"].strip(), "", f"    usage: {json.dumps(figures['usage'])}", *shown]


def _read(reply: HTTPResponse, start: float) -> Smoke:
    text: list[str] = []
    times: list[float] = []
    usage: dict[str, Any] = {}
    finished = done = False
    while row := reply.readline(LINE_BYTES):
        now = time.perf_counter()
        if not row.startswith(b"data:"):
            continue
        data = row.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            done = True
            continue
        event = _event(data)
        for choice in event.get("choices") or []:
            finished = finished or choice.get("finish_reason") is not None
            if choice.get("text") or choice.get("finish_reason") is None:
                text.append(choice.get("text") or "")
                times.append(now)
        usage = event.get("usage") or usage
    got = usage.get("completion_tokens")
    for wrong, what in (
        (not times, "the stream holds no token"),
        (not done, "the stream ended without [DONE]"),
        (not finished, "nothing says why the reply ended"),
        (got != TOKENS, f"usage tells of {got} tokens, not {TOKENS}"),
    ):
        if wrong:
            raise BenchError(what)
    gaps = tuple((late - early) * 1e3 for early, late in pairwise(times))
    return Smoke("".join(text), usage, (times[0] - start) * 1e3, gaps)


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise BenchError(f"the stream holds no JSON: {data[:80].decode(errors='replace')}")
    if event.get("error"):
        raise BenchError(f"the stream tells of an error: {json.dumps(event['error'])[:300]}")
    return event
