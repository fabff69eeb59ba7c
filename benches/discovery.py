"""How soon a change of a large fleet reaches a gateway, and what that costs the requests that it serves meanwhile.

A real etcd holds 1,000 endpoints of one model; 100 times a second one goes and another one comes, as when replicas
move. Each has a loopback address of its own, so that its first health probe shows when the gateway took it in: the
delay is the time from the store's answer to `put` until that probe, so it holds the whole way, connection included.
Requests of another model are sent by wrk, with and without the changes.

    python benches/discovery.py --seconds 20 --json
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nebula_router.bench import load
from nebula_router.bench.net import free_port
from nebula_router.fleet.open import open_store
from nebula_router.fleet.records import (
    Assignment,
    EndpointInfo,
    EndpointStatus,
    PlacementPlan,
    endpoint_key,
    placement_key,
)
from nebula_router.fleet.settings import StoreSettings
from nebula_router.fleet.store import Store, StoreError

MODEL = "fleet"
PROBE_MS = 10_000
WITHIN_S = 60.0
BODY = json.dumps(
    {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "hello " * 100}]}
).encode()


class Engines:
    """All of them: one server on every loopback address, which notes when each was asked first."""

    def __init__(self) -> None:
        self.first_seen: dict[str, float] = {}
        self.port = 0

    async def serve(self) -> asyncio.Server:
        """Return the server once it listens."""
        server = await asyncio.start_server(self._answer, "0.0.0.0", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                now = time.perf_counter()
                target, host = head.split(b" ", 2)[1], head.lower().partition(b"\r\nhost: ")[2].partition(b":")[0]
                self.first_seen.setdefault(host.decode(), now)
                if target == b"/v1/models":
                    card = {"id": MODEL, "object": "model", "root": MODEL, "max_model_len": 1024}
                    status, body = b"200 OK", json.dumps({"object": "list", "data": [card]}).encode()
                else:
                    status, body = (b"200 OK" if target == b"/health" else b"404 Not Found"), b"{}"
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def address(number: int) -> str:
    """Return the loopback address of the endpoint of that number."""
    return f"127.{1 + number // 62_500}.{number // 250 % 250 + 1}.{number % 250 + 1}"


class Fleet:
    """The records of the endpoints, in the store."""

    def __init__(self, store: Store, engines: Engines, size: int) -> None:
        self.store, self.engines, self.size = store, engines, size
        self.next = size

    async def fill(self) -> None:
        """Write the placement and every endpoint."""
        assignments = tuple(Assignment(replica_id=n, node_id="node") for n in range(self.size))
        plan = PlacementPlan(model_uid=MODEL, model_name=MODEL, version=1, assignments=assignments)
        await self.store.put(placement_key(MODEL), plan.stored())
        for number in range(self.size):
            await self._put(number, number)

    async def change(self) -> tuple[str, float]:
        """Move one replica to a new address, and return that with the time of the store's answer."""
        number, self.next = self.next, self.next + 1
        await self._put(number % self.size, number)
        return address(number), time.perf_counter()

    async def _put(self, replica: int, number: int) -> None:
        endpoint = EndpointInfo(
            model_uid=MODEL,
            replica_id=replica,
            plan_version=1,
            node_id="node",
            status=EndpointStatus.READY,
            last_heartbeat_ms=0,
            base_url=f"http://{address(number)}:{self.engines.port}",
            served_names=(MODEL,),
            events="off",
        )
        await self.store.put(endpoint_key(MODEL, replica), endpoint.stored())


async def measure(size: int, rate: float, seconds: int, connections: int) -> dict[str, object]:
    """Run it all and return the figures."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        etcd_url, gateway_port, sim_port = f"http://127.0.0.1:{free_port()}", free_port(), free_port()
        await stack.enter_async_context(process(folder, *etcd(folder, etcd_url)))
        engines = Engines()
        await stack.enter_async_context(await engines.serve())
        sim = ("sim", "--port", str(sim_port), "--speed", "0")
        await stack.enter_async_context(process(folder, sys.executable, "-m", "nebula_router", *sim))
        store = open_store(StoreSettings(etcd_endpoints=(etcd_url,)))
        stack.push_async_callback(store.close)
        fleet = Fleet(store, engines, size)
        await eventually(fleet.fill, "etcd")
        gateway = (
            *("gateway", "--listen", f"127.0.0.1:{gateway_port}", "--engine", f"http://127.0.0.1:{sim_port}"),
            *("--etcd-endpoint", etcd_url, "--probe-interval-ms", str(PROBE_MS), "--no-log-requests"),
        )
        await stack.enter_async_context(process(folder, sys.executable, "-m", "nebula_router", *gateway))
        await eventually(lambda: all_seen(engines, size), "the gateway to take in the fleet")
        await asyncio.sleep(2)
        lua = folder / "chat.lua"
        lua.write_text(load.script("/v1/chat/completions", [BODY]))
        quiet = await asyncio.to_thread(load.send, gateway_port, lua, connections, seconds)
        requests = asyncio.create_task(asyncio.to_thread(load.send, gateway_port, lua, connections, seconds))
        under_load = await changes(fleet, rate, seconds)
        busy = await requests
        alone = await changes(fleet, rate, seconds)
        return {
            "endpoints": size,
            "changes_per_s": rate,
            "delay_ms": summary(under_load),
            "delay_without_requests_ms": summary(alone),
            "requests_quiet": figures(quiet),
            "requests_during_changes": figures(busy),
        }


async def changes(fleet: Fleet, rate: float, seconds: int) -> list[float]:
    """Make the changes at an even pace, and return how long each took to arrive, in ms."""
    made: list[tuple[str, float]] = []
    began = time.perf_counter()
    for turn in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + turn / rate - time.perf_counter()))
        made.append(await fleet.change())
    seen = fleet.engines.first_seen
    await eventually(lambda: arrived(made, seen), "the last change to arrive")
    return [max(0.0, seen[host] - at) * 1000 for host, at in made]


async def arrived(made: list[tuple[str, float]], seen: dict[str, float]) -> None:
    """Raise unless every change has arrived."""
    missing = sum(host not in seen for host, _ in made)
    if missing:
        raise LookupError(f"{missing} changes have not arrived")


async def all_seen(engines: Engines, size: int) -> None:
    """Raise unless every endpoint was asked."""
    if len(engines.first_seen) < size:
        raise LookupError(f"{len(engines.first_seen)} of {size} endpoints were asked")


async def eventually(attempt: Callable[[], Awaitable[None]], what: str) -> None:
    """Try until it works.

    Raises:
        TimeoutError: it never did.
    """
    deadline = time.monotonic() + WITHIN_S
    while error := await failure(attempt):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {error}")
        await asyncio.sleep(0.05)


async def failure(attempt: Callable[[], Awaitable[None]]) -> Exception | None:
    """Return what went wrong."""
    try:
        await attempt()
    except (LookupError, StoreError) as error:
        return error
    return None


@asynccontextmanager
async def process(folder: Path, *command: str) -> AsyncIterator[None]:
    """Run a command for a while, its output in the folder."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".log") as out:
        child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield
    finally:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 10)
        except asyncio.TimeoutError:
            child.kill()
            await child.wait()


def etcd(folder: Path, url: str) -> tuple[str, ...]:
    """Return the command of an etcd of one member."""
    if shutil.which("etcd") is None:
        raise SystemExit("etcd is missing: apt-get install etcd-server")
    peer = f"http://127.0.0.1:{free_port()}"
    return (
        *("etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"),
        "--unsafe-no-fsync",
    )


def summary(delays: list[float]) -> dict[str, float]:
    """Return the quantiles."""
    cuts = statistics.quantiles(delays, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1), "max": round(max(delays), 1), "changes": len(delays)}


def figures(sample: load.Sample) -> dict[str, float]:
    """Return what matters of a run of wrk."""
    return {
        "requests_per_s": round(sample.rate),
        "p50_ms": round(sample.p50_ms, 2),
        "p99_ms": round(sample.p99_ms, 2),
        "failed": sample.failed,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=1, help="of the requests")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    result = asyncio.run(measure(asked.endpoints, asked.rate, asked.seconds, asked.connections))
    if asked.json:
        print(json.dumps(result, indent=2))  # noqa: T201
        return
    for name, value in result.items():
        shown = value if not isinstance(value, dict) else "  ".join(f"{key} {figure}" for key, figure in value.items())
        print(f"{name:27} {shown}")  # noqa: T201


if __name__ == "__main__":
    main()
