import random
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, takewhile

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.e2e.client import openai_client
from tests.e2e.conftest import OpenGateway
from tests.e2e.engine import Engine
from tests.e2e.engine.engine import BLOCK, MODEL
from tests.e2e.gateway import Gateway

USERS = 8
TURNS = 10
WORDS = ["harbour", "light", "ships", "late", "salt", "stories", "from", "the", "other", "shore", "and", "home"]


@dataclass(frozen=True)
class Turn:
    prompt: list[int]
    reply: list[int]

    def held_for(self, prompt: Sequence[int]) -> int:
        """How many tokens of the next turn's prompt an engine holds that computed this turn.

        Whole blocks only, never the prompt's last token, nor the reply's: that one was sampled, not computed.
        """
        known = [*self.prompt, *self.reply[:-1]]
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, prompt, strict=False)))
        return min(alike, len(prompt) - 1) // BLOCK * BLOCK


@dataclass(frozen=True)
class Shares:
    """Parts of all prompt tokens: those served from a cache, and those that perfect stickiness would have served."""

    served: float
    ideal: float


@pytest.fixture(scope="module")
def sticky(gateway: Gateway, engines: tuple[Engine, Engine], figures: list[str]) -> Shares:
    found = shares(gateway, engines)
    figures.append(f"prompt tokens served from cache: {found.served:.3f} by kv, {found.ideal:.3f} at best")
    return found


@pytest.fixture(scope="module")
def in_turns(open_gateway: OpenGateway, engines: tuple[Engine, Engine], figures: list[str]) -> Shares:
    with open_gateway([engine.url for engine in engines], policy="round_robin") as gateway:
        gateway.await_engines(len(engines))
        found = shares(gateway, engines)
    figures.append(f"prompt tokens served from cache: {found.served:.3f} by round robin, {found.ideal:.3f} at best")
    return found


def test_conversations_find_their_cache(sticky: Shares) -> None:
    assert sticky.served >= 0.9 * sticky.ideal


def test_conversations_find_more_cache_than_round_robin(sticky: Shares, in_turns: Shares) -> None:
    assert sticky.served > in_turns.served


def test_nothing_is_left_of_conversations_that_ended(sticky: Shares, gateway: Gateway) -> None:
    assert sticky.served > 0
    assert gateway.ledger() == 0


def shares(gateway: Gateway, engines: Sequence[Engine]) -> Shares:
    """What all users' conversations, held at the same time, found in the engines' caches."""

    def totals() -> tuple[float, float]:
        return (
            sum(engine.total("vllm:prefix_cache_hits_total") for engine in engines),
            sum(engine.total("vllm:prefix_cache_queries_total") for engine in engines),
        )

    hits, queries = totals()
    with openai_client(gateway.url) as client, ThreadPoolExecutor(USERS) as users:
        talks = list(users.map(lambda user: converse(client, user), range(USERS)))
    hits, queries = (now - before for now, before in zip(totals(), (hits, queries), strict=True))
    # Each prompt was computed by exactly one engine: none was lost, none was sent twice.
    assert queries == sum(len(turn.prompt) for talk in talks for turn in talk)
    held = sum(before.held_for(turn.prompt) for talk in talks for before, turn in pairwise(talk))
    return Shares(served=hits / queries, ideal=held / queries)


def converse(client: openai.OpenAI, user: int) -> list[Turn]:
    """One user's conversation, begun with words that nobody said before.

    The lengths differ, so that the users overtake each other and no policy profits from a fixed order.
    """
    chance = random.Random(user)
    messages: list[ChatCompletionMessageParam] = []
    turns: list[Turn] = []
    for _ in range(TURNS):
        text = " ".join(chance.choices(WORDS, k=chance.randint(60, 140)))
        messages.append({"role": "user", "content": text if messages else f"{uuid.uuid4().hex} {text}"})
        reply = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            temperature=0,
            max_tokens=chance.randint(8, 64),
            extra_body={"return_token_ids": True},
        )
        (choice,) = reply.choices
        assert choice.message.content
        messages.append({"role": "assistant", "content": choice.message.content})
        turns.append(Turn((reply.model_extra or {})["prompt_token_ids"], (choice.model_extra or {})["token_ids"]))
    return turns
