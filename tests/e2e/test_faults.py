import http.client
import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import httpx
import openai
import pytest
from tests.e2e.client import chat, openai_client, says
from tests.e2e.conftest import OpenGateway
from tests.e2e.engine import Engine
from tests.e2e.engine.engine import MODEL
from tests.e2e.gateway import ENGINE_HEADER, Gateway
from tests.e2e.process import free_port
from tests.e2e.wait import until

USERS = 16
REPLY_TOKENS = 128
ENOUGH_BEFORE = 2 * USERS
ENOUGH_AFTER = 4 * USERS

# Seconds of work: who asks for it and leaves, leaves early. Greedily, this model never stops by itself.
ENDLESS: dict[str, Any] = {"model": MODEL, "messages": says("Tell me all."), "temperature": 0, "max_tokens": 3500}


@dataclass(frozen=True)
class Told:
    """How one streamed request ended for the user who sent it."""

    began: float
    engine: str | None
    text: str
    finish: str | None
    error: Exception | None

    @property
    def whole(self) -> bool:
        """Every token of the model is one word, so none is missing."""
        return self.error is None and self.finish == "length" and len(self.text.split()) == REPLY_TOKENS

    @property
    def honest(self) -> bool:
        """Whole, or refused with a status, or ended by an error frame: never cut without a word."""
        cut = isinstance(self.error, openai.APIConnectionError)
        return self.whole or (isinstance(self.error, openai.APIError) and not cut)


@dataclass
class Crowd:
    """Users who send one streamed request after the other until it is enough."""

    gateway: Gateway
    told: list[Told] = field(default_factory=list)
    enough: Event = field(default_factory=Event)
    users: list[Future[None]] = field(default_factory=list)

    def join(self, pool: ThreadPoolExecutor, client: openai.OpenAI) -> None:
        self.users.append(pool.submit(self.be_a_user, client))

    def be_a_user(self, client: openai.OpenAI) -> None:
        while not self.enough.is_set():
            self.told.append(ask(client))

    def told_since(self, moment: float, count: int) -> bool:
        """Whether ``count`` requests that began after the moment have ended; raises what ended a user."""
        for user in self.users:
            if user.done():
                user.result()
        return sum(told.began >= moment for told in self.told) >= count


@dataclass(frozen=True)
class Outage:
    """What was seen while one of two engines was killed under load and brought back."""

    before: list[Told]
    after: list[Told]
    ledger: float
    prompt_tokens_after_restart: float


@pytest.fixture(scope="module")
def outage(open_gateway: OpenGateway, engines: tuple[Engine, Engine]) -> Iterator[Outage]:
    victim, survivor = engines
    with open_gateway([victim.url, survivor.url]) as gateway:
        gateway.await_engines(2)
        crowd = Crowd(gateway)
        try:
            killed = kill_under_load(crowd, victim)
            ledger = settled(gateway)
        finally:
            if not victim.running:
                victim.start()
                victim.await_ready()
        yield Outage(
            before=[told for told in crowd.told if told.began < killed],
            after=[told for told in crowd.told if told.began >= killed],
            ledger=ledger,
            prompt_tokens_after_restart=work_for(victim, gateway),
        )


def test_no_reply_is_cut_without_a_word(outage: Outage) -> None:
    assert [told for told in outage.before + outage.after if not told.honest] == []


def test_the_kill_hits_replies_on_their_way(outage: Outage) -> None:
    assert len({told.engine for told in outage.before if told.whole}) == 2
    assert [told for told in outage.before if told.error]


def test_what_had_not_begun_is_sent_to_the_other_engine(outage: Outage) -> None:
    refused = [told for told in outage.before + outage.after if isinstance(told.error, openai.APIStatusError)]
    assert refused == []


def test_the_other_engine_serves_all_that_begins_after_the_kill(outage: Outage) -> None:
    assert len(outage.after) >= ENOUGH_AFTER
    assert [told for told in outage.after if not told.whole] == []
    assert len({told.engine for told in outage.after}) == 1


def test_the_ledger_is_zero_after_an_outage(outage: Outage) -> None:
    assert outage.ledger == 0


def test_an_engine_that_comes_back_gets_work(outage: Outage) -> None:
    assert outage.prompt_tokens_after_restart > 0


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "in one piece"])
def test_a_client_that_leaves_ends_its_request(
    *, stream: bool, gateway: Gateway, engines: tuple[Engine, Engine]
) -> None:
    def running() -> float:
        return sum(engine.total("vllm:num_requests_running") for engine in engines)

    body = {**ENDLESS, "stream": stream}
    user = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    user.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    if stream:
        response = user.getresponse()
        assert response.read1()
        until("the request to run", lambda: running() == 1, 10)
        assert gateway.total("nebula_running_requests") == 1
        response.close()
    else:
        until("the request to run", lambda: running() == 1, 10)
    user.close()
    until("the engines to be idle", lambda: running() == 0, 1)
    assert settled(gateway) == 0


def test_an_openai_stream_that_is_closed_early_leaves_nothing(client: openai.OpenAI, gateway: Gateway) -> None:
    for _ in range(4):
        with client.chat.completions.create(**ENDLESS, stream=True) as stream:
            assert next(stream).choices
    assert settled(gateway) == 0


def test_an_engine_that_is_down_at_the_start_costs_nobody_a_reply(
    open_gateway: OpenGateway, engines: tuple[Engine, Engine]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with open_gateway([nobody, engines[1].url]) as gateway, openai_client(gateway.url) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        for _ in range(8):
            assert chat(client, uuid.uuid4().hex, 4).finish == "length"


def test_without_any_engine_the_gateway_says_when_to_come_back(open_gateway: OpenGateway) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with open_gateway([nobody], ready_path="/health") as gateway, openai_client(gateway.url) as client:
        with pytest.raises(openai.InternalServerError) as refusal:
            chat(client, "Hello")
        assert refusal.value.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert int(refusal.value.response.headers["retry-after"]) > 0
        assert httpx.get(f"{gateway.url}/ready", trust_env=False).status_code == httpx.codes.SERVICE_UNAVAILABLE


def test_a_gateway_that_is_asked_to_end_finishes_its_streams(
    open_gateway: OpenGateway, engines: tuple[Engine, Engine]
) -> None:
    with open_gateway([engine.url for engine in engines]) as gateway, openai_client(gateway.url) as client:
        stream = client.completions.create(model=MODEL, prompt="The end", temperature=0, max_tokens=1000, stream=True)
        assert next(stream).choices
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(gateway.close)
            finishes = [choice.finish_reason for chunk in stream for choice in chunk.choices]
            assert finishes[-1] == "length"
            assert code.result() == 0


def kill_under_load(crowd: Crowd, victim: Engine) -> float:
    """Kills the engine while it streams, lets the crowd go on for a while; gives back when it was dead."""
    with openai_client(crowd.gateway.url) as client, ThreadPoolExecutor(USERS) as pool:
        try:
            for _ in range(USERS):
                crowd.join(pool, client)
            until("replies before the kill", lambda: crowd.told_since(0, ENOUGH_BEFORE), 60)
            until("work on the engine", lambda: victim.total("vllm:num_requests_running") >= 4, 10)
            victim.kill()
            killed = time.monotonic()
            until("replies after the kill", lambda: crowd.told_since(killed, ENOUGH_AFTER), 60)
        finally:
            crowd.enough.set()
    return killed


def ask(client: openai.OpenAI) -> Told:
    """Sends a new prompt and reads its reply to the end, whatever the end is."""
    began, engine, text, finish = time.monotonic(), None, "", None
    try:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=says(f"{uuid.uuid4().hex} {'Count the waves. ' * 30}"),
            temperature=0,
            max_tokens=REPLY_TOKENS,
            stream=True,
        )
        engine = answer.headers.get(ENGINE_HEADER)
        with answer.parse() as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
    except (openai.APIError, httpx.TransportError) as error:
        return Told(began, engine, text, finish, error)
    return Told(began, engine, text, finish, None)


def settled(gateway: Gateway) -> float:
    """What is left in the gateway's ledger a moment after the last reply ended."""
    try:
        until("an empty ledger", lambda: gateway.ledger() == 0, 1)
    except TimeoutError:
        return gateway.ledger()
    return 0


def work_for(engine: Engine, gateway: Gateway) -> float:
    """The prompt tokens that reach a restarted engine, as soon as any do."""
    with openai_client(gateway.url) as client:

        def reached() -> float:
            chat(client, uuid.uuid4().hex, 1)
            return engine.total("vllm:prompt_tokens_total")

        return until(f"work for {engine.name}", reached, 30)
