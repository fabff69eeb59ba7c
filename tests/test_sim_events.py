import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any, NamedTuple, TypeAlias
from urllib.error import URLError
from urllib.request import Request, urlopen

import msgpack  # type: ignore[import-untyped]
import pytest
import zmq

from nebula_router.core import Sim
from nebula_router.sim_settings import SimSettings

BLOCK = 16
PATIENCE_S = 20.0
Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"


class Batch(NamedTuple):
    topic: bytes
    seq: int
    ts: float
    events: list[Any]
    rank: int


@contextmanager
def simulated(events: dict[str, Any] | None = None, **settings: Any) -> Iterator[str]:
    """The URL of an engine that publishes on free ports."""
    config = {"enable_kv_cache_events": True, "endpoint": "tcp://*:0", "replay_endpoint": "tcp://*:0"} | (events or {})
    given = {"listen": "127.0.0.1:0", "speed": 0, "kv_events_config": json.dumps(config)} | settings
    sim = Sim(SimSettings.model_validate(given).core_json())
    try:
        yield sim.url
    finally:
        sim.stop()


def call(url: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    """What the engine answers in JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url + path, data, {"Content-Type": "application/json", **headers})
    with urlopen(request, timeout=PATIENCE_S) as reply:
        return json.loads(reply.read() or b"null")


def complete(url: str, prompt: list[int], max_tokens: int = 1, **more: Any) -> Any:
    body = {"prompt": prompt, "max_tokens": max_tokens, "return_token_ids": True, **more}
    return call(url, "/v1/completions", body)


def source(url: str, rank: int = 0) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = call(url, "/kv_event_sources")
    return sources[str(rank)]


def batch(frames: list[bytes]) -> Batch:
    topic, seq, payload = frames
    ts, events, rank = msgpack.unpackb(payload)
    return Batch(topic, int.from_bytes(seq, "big"), ts, events, rank)


def replayed(context: Context, url: str, start: int = 0, rank: int = 0) -> list[Batch]:
    """The batches that the engine still has, from `start` on."""
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(source(url, rank)["replay_endpoint"])
        socket.send_multipart([b"", start.to_bytes(8, "big")])
        batches: list[Batch] = []
        while socket.poll(int(PATIENCE_S * 1000)):
            delimiter, *frames = socket.recv_multipart()
            assert delimiter == b""
            if int.from_bytes(frames[-2], "big", signed=True) == -1:
                assert frames[0] == frames[-1] == b""
                return batches
            batches.append(batch(frames))
    raise AssertionError("the end did not come")


def first(socket: "zmq.Socket[bytes]", url: str) -> Batch:
    """The first batch that a new subscriber gets; the engine is given work until one comes."""
    deadline = time.monotonic() + PATIENCE_S
    prompt = time.monotonic_ns() % 1_000_000_000
    while time.monotonic() < deadline:
        prompt += 1000
        complete(url, list(range(prompt, prompt + 16)))
        if socket.poll(20):
            return batch(socket.recv_multipart())
    raise AssertionError("no batch came")


def is_up(url: str) -> bool:
    try:
        call(url, "/health")
    except (URLError, OSError):
        return False
    return True


def binds(socket: "zmq.Socket[bytes]", endpoint: str) -> bool:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError:
        return False
    return True


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def context() -> Iterator[Any]:
    with zmq.Context() as made:
        made.linger = 0
        yield made


def test_another_client_reads_the_events(context: Context) -> None:
    with simulated({"topic": "kv@tiny"}) as url:
        prompt = list(range(100, 100 + 3 * BLOCK + 5))
        reply = complete(url, prompt, 30, cache_salt="pepper")["choices"][0]["token_ids"]
        batches = replayed(context, url)
        assert [b.seq for b in batches] == list(range(len(batches)))
        assert {(b.topic, b.rank) for b in batches} == {(b"kv@tiny", 0)}
        events = [event for b in batches for event in b.events]
        tokens = [token for event in events for token in event["token_ids"]]
        whole = prompt + reply
        assert tokens == whole[: (len(whole) - 1) // BLOCK * BLOCK]
        parents = [None, *(event["block_hashes"][-1] for event in events[:-1])]
        assert [event["parent_block_hash"] for event in events] == parents
        assert events[0] == {
            "type": "BlockStored",
            "block_hashes": events[0]["block_hashes"],
            "parent_block_hash": None,
            "token_ids": prompt[: 3 * BLOCK],
            "block_size": BLOCK,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": [["pepper"], None, None],
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        call(url, "/reset_prefix_cache", {})
        complete(url, prompt)
        assert [event["type"] for event in replayed(context, url)[-1].events] == ["AllBlocksCleared", "BlockStored"]


@pytest.mark.parametrize("hashes", ["int", "bytes"])
@pytest.mark.parametrize("encoding", ["map", "array"])
def test_each_way_to_write_them(encoding: str, hashes: str, context: Context) -> None:
    with simulated(kv_events_encoding=encoding, kv_events_hashes=hashes) as url:
        complete(url, list(range(2 * BLOCK)))
        [event] = replayed(context, url)[0].events
        if encoding == "array":
            kind, names, parent, tokens, size, *rest = event
            assert rest == [None, "GPU", None, [None, None], 0]
        else:
            kind, names, parent, tokens, size = list(event.values())[:5]
        assert (kind, parent, tokens, size) == ("BlockStored", None, list(range(2 * BLOCK)), BLOCK)
        wide = isinstance(names[0], bytes)
        assert wide == (hashes == "bytes")
        assert len({len(name) for name in names} if wide else {32} | set(names)) in {1, 3}


def test_subscribers_in_other_processes_come_late_stall_and_die(context: Context) -> None:
    reader = """if True:
        import sys, zmq
        socket = zmq.Context().socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(sys.argv[1])
        print("up", flush=True)
        last = None
        while True:
            seq = int.from_bytes(socket.recv_multipart()[1], "big")
            assert last is None or seq == last + 1, (last, seq)
            if seq >= int(sys.argv[2]):
                break
            last = seq
    """
    with simulated() as url, context.socket(zmq.SUB) as socket:
        endpoint = source(url)["endpoint"]
        readers = [Popen([sys.executable, "-c", reader, endpoint, "400"], stdout=PIPE) for _ in range(4)]
        try:
            for process in readers:
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
            socket.subscribe(b"")
            socket.connect(endpoint)
            seen = first(socket, url).seq
            readers[0].kill()
            for prompt in range(420):
                complete(url, list(range(prompt * 100, prompt * 100 + BLOCK)))
            while seen < 400:
                assert socket.poll(int(PATIENCE_S * 1000))
                seq = batch(socket.recv_multipart()).seq
                assert seq == seen + 1
                seen = seq
            assert [process.wait(PATIENCE_S) for process in readers[1:]] == [0, 0, 0]
        finally:
            for process in readers:
                process.kill()
                process.communicate()


def test_an_engine_dials_a_subscriber_that_is_bound(context: Context) -> None:
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    with simulated({"endpoint": endpoint, "replay_endpoint": None}) as url:
        assert source(url)["endpoint"] == endpoint
        before = first(socket, url).seq
        socket.close(0)
        socket = context.socket(zmq.SUB)
        socket.subscribe(b"")
        until(lambda: binds(socket, endpoint))
        assert first(socket, url).seq > before
        socket.close(0)


def test_a_restart_starts_over_without_a_clear(context: Context) -> None:
    with simulated() as url, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(source(url)["endpoint"])
        first(socket, url)
        for prompt in range(50):
            complete(url, list(range(prompt * 100, prompt * 100 + BLOCK)))
        before = replayed(context, url)[-1].seq
        assert call(url, "/sim/restart", {"down_ms": 50}) == {"success": True}
        until(lambda: is_up(url))
        while socket.poll(50):
            socket.recv_multipart()
        again = first(socket, url)
        assert again.seq < before
        kept = replayed(context, url)
        assert kept[0].seq == 0
        assert {event["type"] for b in kept for event in b.events} == {"BlockStored"}


def test_ranks_publish_apart(context: Context) -> None:
    with simulated(data_parallel_size=2) as url:
        prompt = list(range(2 * BLOCK))
        for rank in ("1", "0", "1"):
            body = {"prompt": prompt, "max_tokens": 1}
            call(url, "/v1/completions", body, **{"X-data-parallel-rank": rank})
        assert [len(replayed(context, url, rank=rank)) for rank in (0, 1)] == [1, 2]
        assert [replayed(context, url, rank=rank)[0].rank for rank in (0, 1)] == [0, 1]
        assert source(url, 0)["endpoint"] != source(url, 1)["endpoint"]


def test_a_port_that_is_taken_is_named(context: Context) -> None:
    with context.socket(zmq.REP) as taken:
        port = taken.bind_to_random_port("tcp://0.0.0.0")
        with (
            pytest.raises(ValueError, match=rf"cannot publish KV events on tcp://\*:{port}: Address already in use"),
            simulated({"endpoint": f"tcp://*:{port}"}),
        ):
            pass


def test_a_fault_that_is_not_known_is_named() -> None:
    with (
        pytest.raises(ValueError, match=r"faults hold `explode`: unknown fault kind `explode`; known are refuse, "),
        simulated(faults=("explode",)),
    ):
        pass
