"""Who is measured: the gateway, other routers, no router at all, and the floors.

Each runs as its users start it: default log level, default health checks; flags only for what must differ.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nebula_router.bench import net
from nebula_router.bench.error import BenchError
from nebula_router.bench.install import Package
from nebula_router.bench.result import Part
from nebula_router.bench.upstream import MODEL

VLLM_ROUTER = Package("vllm-router", "0.1.17")
SGLANG_ROUTER = Package("sglang-router", "0.3.2")

Command = tuple[str, ...]

FILES: Final = Path(__file__).parent / "data" / "model"
"""A tokenizer of 2,048 tokens and a ChatML template: what a model's folder has of both."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One row of the table."""

    name: str
    about: str
    command: Callable[[int, Sequence[str]], Command] | None
    """Given the port to listen on and the engines' URLs; None: the load goes straight to the first engine."""
    routes: bool = True
    """Whether it sends requests on to the engines; the floors answer themselves."""
    package: Package | None = None
    parts: tuple[Part, ...] = tuple(Part)
    """What it can be sent."""


def _nebula(policy: str, *more: str) -> Callable[[int, Sequence[str]], Command]:
    def command(port: int, engines: Sequence[str]) -> Command:
        flags = [*(flag for url in engines for flag in ("--engine", url)), *more]
        listen = f"{net.HOST}:{port}"
        return (sys.executable, "-m", "nebula_router", "gateway", "--listen", listen, *flags, "--policy", policy)

    return command


def _peer(package: Package, module: str, policy: str) -> Callable[[int, Sequence[str]], Command]:
    """vllm-router and sglang-router have a common ancestor, and so the same flags."""

    def command(port: int, engines: Sequence[str]) -> Command:
        where = ("--host", net.HOST, "--port", str(port), "--prometheus-port", str(net.free_port()))
        return (str(package.python), "-m", module, *where, "--policy", policy, "--worker-urls", *engines)

    return command


def _floor(app: str) -> Callable[[int, Sequence[str]], Command]:
    def command(port: int, _engines: Sequence[str]) -> Command:
        return (sys.executable, "-m", "nebula_router.bench.floor", app, str(port))

    return command


DIRECT = "direct"
NEBULA = "nebula-kv"
EXACT = "nebula-exact"
REFERENCE = "vllm-router-cache_aware"
"""Ratios in the table are to this one."""
SGLANG = "sglang-router-cache_aware"

ENTRANTS = (
    Entrant(DIRECT, "no router: straight to one engine", None, routes=False),
    Entrant(NEBULA, "this gateway", _nebula("kv")),
    Entrant(
        EXACT,
        "this gateway, which tokenises every prompt by the model's own files",
        _nebula("kv", "--model-assets", f"{MODEL}={FILES}"),
        parts=(Part.REQUESTS,),
    ),
    Entrant("nebula-round_robin", "this gateway", _nebula("round_robin")),
    Entrant(
        REFERENCE,
        VLLM_ROUTER.requirement,
        _peer(VLLM_ROUTER, "vllm_router.launch_router", "cache_aware"),
        package=VLLM_ROUTER,
    ),
    Entrant(
        "vllm-router-round_robin",
        VLLM_ROUTER.requirement,
        _peer(VLLM_ROUTER, "vllm_router.launch_router", "round_robin"),
        package=VLLM_ROUTER,
    ),
    Entrant(
        SGLANG,
        f"{SGLANG_ROUTER.requirement}, approximate, on text; refuses token ids with 422",
        _peer(SGLANG_ROUTER, "sglang_router.launch_router", "cache_aware"),
        package=SGLANG_ROUTER,
        parts=(Part.REQUESTS, Part.STREAMS),
    ),
    Entrant(
        "floor-starlette",
        "granian + Starlette: parses the body, then answers",
        _floor("starlette"),
        routes=False,
        parts=(Part.REQUESTS,),
    ),
    Entrant("floor-asgi", "the same without Starlette", _floor("asgi"), routes=False, parts=(Part.REQUESTS,)),
)


def select(only: Sequence[str]) -> list[Entrant]:
    """The entrants whose names start with one of `only`, all if it is empty, in the table's order.

    Raises:
        BenchError: naming the nearest known name.
    """
    names = [entrant.name for entrant in ENTRANTS]
    for wanted in only:
        if not any(name.startswith(wanted) for name in names):
            near = difflib.get_close_matches(wanted, names, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise BenchError(f"nobody here is called {wanted}; {meant}Known: {', '.join(names)}")
    return [entrant for entrant in ENTRANTS if not only or entrant.name.startswith(tuple(only))]
