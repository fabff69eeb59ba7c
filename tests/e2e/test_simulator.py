"""The simulator beside a real engine: the same conversations find the same blocks in both caches.

How long both take is shown at the end and asserted nowhere: `python -m pytest tests/e2e/test_simulator.py`.
"""

import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from threading import Condition
from typing import Any

import httpx
import pytest
from tests.e2e.engine import Engine, Environment
from tests.e2e.engine.engine import BLOCK, MODEL
from tests.e2e.process import Server

CONVERSATIONS = 25
TURNS = 8
AT_A_TIME = 6  # conversations that take turns; together they outgrow the cache
OPENINGS = 3  # shared beginnings, as system prompts are
IN_FLIGHT = 4

LIMITS = {
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 8,
    "max_model_len": 2048,
}
KV_BLOCKS = 160

STOP_WITHIN_S = 10
CALIBRATE_S = 60


@dataclass(frozen=True)
class Ask:
    """One turn of one conversation: the tokens that it adds, and the length of the reply."""

    conversation: int
    tokens: list[int]
    reply: int


@dataclass(frozen=True)
class Reply:
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float


OpenSim = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    chance = random.Random(7)
    openings = [tokens(chance, 70, 200) for _ in range(OPENINGS)]
    ahead = list(range(CONVERSATIONS))
    left = dict.fromkeys(ahead, TURNS)
    order: list[Ask] = []
    while any(left.values()):
        active = [one for one in ahead if left[one]][:AT_A_TIME]
        one = chance.choice(active)
        opening = openings[one % OPENINGS] if left[one] == TURNS else []
        order.append(Ask(one, opening + tokens(chance, 20, 200), chance.randint(4, 40)))
        left[one] -= 1
    return order


@pytest.fixture(scope="module")
def engine(environment: Environment, folder: Path, servers: list[Server]) -> Iterator[Engine]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in LIMITS.items()]
    engine = Engine(environment, "engine-small", folder, [*options, f"--num-gpu-blocks-override={KV_BLOCKS}"])
    servers.append(engine)
    try:
        engine.start()
        engine.await_ready()
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def open_sim(folder: Path) -> OpenSim:
    """``with open_sim("--speed", "0") as sim``: a simulated engine of the same size."""
    size = {**LIMITS, "block_size": BLOCK, "kv_blocks": KV_BLOCKS}
    flags = [word for name, value in size.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    @contextmanager
    def opened(*more: str) -> Iterator[Server]:
        sim = Server(f"sim-{uuid.uuid4().hex[:8]}", folder)
        command = [sys.executable, "-m", "nebula_router", "sim", "--port", str(sim.port), "--model", MODEL]
        try:
            sim.launch([*command, *flags, *more], clean_environment())
            sim.await_ok("/health", STOP_WITHIN_S)
            yield sim
        finally:
            sim.stop(STOP_WITHIN_S)

    return opened


@pytest.fixture(scope="module")
def calibration(engine: Engine, folder: Path) -> Path:
    """What `nebula bench calibrate` makes of the real engine."""
    file = folder / "calibration.json"
    command = Server("calibrate", folder)
    command.launch(
        [
            *(sys.executable, "-m", "nebula_router.bench", "calibrate", "--base-url", engine.url, "--out", str(file)),
            *("--max-num-batched-tokens", str(LIMITS["max_num_batched_tokens"])),
            *("--max-num-seqs", str(LIMITS["max_num_seqs"]), "--seconds", str(CALIBRATE_S)),
        ],
        clean_environment(),
    )
    assert command.process is not None
    try:
        assert command.process.wait(3 * CALIBRATE_S) == 0, command.tail()
    finally:
        command.kill()
    return file


@pytest.fixture(scope="module")
def real(engine: Engine, asks: list[Ask]) -> list[Reply]:
    return converse(engine.url, asks)


def test_a_conversation_finds_the_same_blocks(real: list[Reply], asks: list[Ask], open_sim: OpenSim) -> None:
    with open_sim("--speed", "0") as sim:
        simulated = converse(sim.url, asks)
    assert cached(simulated) == cached(real)


def test_blocks_were_evicted_meanwhile(real: list[Reply], asks: list[Ask]) -> None:
    turns: dict[int, list[Reply]] = {}
    for ask, reply in zip(asks, real, strict=True):
        turns.setdefault(ask.conversation, []).append(reply)
    # Never evicted, all blocks of a turn but its last token's are there for the next.
    held = [
        (before.prompt_tokens + len(before.tokens) - 1) // BLOCK * BLOCK > after.cached_tokens
        for conversation in turns.values()
        for before, after in pairwise(conversation)
    ]
    assert 10 < sum(held) < len(held) - 10


def test_a_calibrated_simulator_finds_the_same_blocks(
    real: list[Reply], asks: list[Ask], open_sim: OpenSim, calibration: Path, figures: list[str]
) -> None:
    with open_sim("--calibration", str(calibration)) as sim:
        simulated = converse(sim.url, asks)
    figures.append(compared("one at a time", real, simulated, calibration))
    assert cached(simulated) == cached(real)


def test_conversations_side_by_side_find_about_the_same_blocks(
    engine: Engine, asks: list[Ask], open_sim: OpenSim, calibration: Path, figures: list[str]
) -> None:
    real = converse(engine.url, asks, IN_FLIGHT)
    with open_sim("--calibration", str(calibration)) as sim:
        simulated = converse(sim.url, asks, IN_FLIGHT)
    figures.append(compared(f"{IN_FLIGHT} in flight", real, simulated, calibration))
    # Who is a little faster evicts first: the order of events is not the same, nor must it be.
    assert sum(cached(simulated)) == pytest.approx(sum(cached(real)), rel=0.02)


def converse(url: str, asks: Sequence[Ask], in_flight: int = 1) -> list[Reply]:
    """The replies to all asks, in their order.

    They are sent in that order, too, as far as each waits for the reply before it in its conversation. A salt of its
    own keeps this run from what the engine computed before.
    """
    salt = uuid.uuid4().hex
    said: dict[int, list[int]] = {}
    replies: dict[int, Reply] = {}
    waiting = list(enumerate(asks))
    busy: set[int] = set()
    changed = Condition()

    def user() -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while True:
                with changed:
                    changed.wait_for(lambda: not waiting or any(ask.conversation not in busy for _, ask in waiting))
                    if not waiting:
                        return
                    at, ask = next((at, ask) for at, ask in waiting if ask.conversation not in busy)
                    waiting.remove((at, ask))
                    busy.add(ask.conversation)
                    prompt = said.get(ask.conversation, []) + ask.tokens
                try:
                    reply = complete(client, url, prompt, ask.reply, salt)
                    replies[at] = reply
                    said[ask.conversation] = prompt + reply.tokens
                except BaseException:
                    waiting.clear()
                    raise
                finally:
                    with changed:
                        busy.remove(ask.conversation)
                        changed.notify_all()

    with ThreadPoolExecutor(in_flight) as users:
        for one in [users.submit(user) for _ in range(in_flight)]:
            one.result()
    return [replies[at] for at in range(len(asks))]


def complete(client: httpx.Client, url: str, prompt: list[int], length: int, salt: str) -> Reply:
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": length,
        "temperature": 0,
        "ignore_eos": True,
        "cache_salt": salt,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply: list[int] = []
    usage: dict[str, Any] = {}
    asked, first = time.perf_counter(), 0.0
    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                first = first or time.perf_counter()
                reply += choice["token_ids"]
    assert len(reply) == length
    assert usage["prompt_tokens"] == len(prompt)
    details = usage["prompt_tokens_details"] or {}
    return Reply(reply, len(prompt), details.get("cached_tokens") or 0, first - asked)


def cached(replies: Sequence[Reply]) -> list[int]:
    return [reply.cached_tokens for reply in replies]


def compared(how: str, real: Sequence[Reply], simulated: Sequence[Reply], calibration: Path) -> str:
    """The mean time to first token of both, for people."""
    measured, predicted = (mean(reply.ttft_s for reply in replies) * 1e3 for replies in (real, simulated))
    found = json.loads(calibration.read_text())
    return (
        f"mean TTFT, {len(real)} requests, {how}: {measured:.2f} ms real, {predicted:.2f} ms simulated "
        f"({predicted / measured - 1:+.0%}); calibrated with an error of {found['fit']['error_p50']:.0%} at the median"
    )


def tokens(chance: random.Random, fewest: int, most: int) -> list[int]:
    return [chance.randrange(10, 8000) for _ in range(chance.randint(fewest, most))]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("NEBULA_")}
