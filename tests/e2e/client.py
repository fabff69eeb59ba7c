"""What a user's program does: the ``openai`` library, and what it makes of a reply."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam
from tests.e2e.engine.engine import MODEL

Prompt = str | list[int]


@dataclass(frozen=True)
class Reply:
    """What must be the same, whichever way the reply came."""

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(compare=False)


Ask = Callable[..., Reply]


def openai_client(url: str) -> openai.OpenAI:
    """A client that shows every failure: nothing is tried twice."""
    return openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        timeout=60,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def says(text: str) -> list[ChatCompletionMessageParam]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat(client: openai.OpenAI, text: str, tokens: int = 32) -> Reply:
    """A chat reply in one piece."""
    reply = client.chat.completions.create(model=MODEL, messages=says(text), temperature=0, max_tokens=tokens)
    choice = reply.choices[0]
    return whole(choice.message.content or "", choice.finish_reason, reply.usage)


def chat_streamed(client: openai.OpenAI, text: str, tokens: int = 32) -> Reply:
    """The same, token by token."""
    with client.chat.completions.create(
        model=MODEL,
        messages=says(text),
        temperature=0,
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    return assembled(
        (chunk.id, [(choice.delta.content, choice.finish_reason) for choice in chunk.choices], chunk.usage)
        for chunk in chunks
    )


def completion(client: openai.OpenAI, prompt: Prompt, tokens: int = 32) -> Reply:
    """A completion in one piece."""
    reply = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=tokens)
    choice = reply.choices[0]
    return whole(choice.text, choice.finish_reason, reply.usage)


def completion_streamed(client: openai.OpenAI, prompt: Prompt, tokens: int = 32) -> Reply:
    """The same, token by token."""
    with client.completions.create(
        model=MODEL,
        prompt=prompt,
        temperature=0,
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    return assembled(
        (chunk.id, [(choice.text, choice.finish_reason) for choice in chunk.choices], chunk.usage) for chunk in chunks
    )


Chunk = tuple[str, list[tuple[str | None, str | None]], CompletionUsage | None]


def assembled(chunks: Iterable[Chunk]) -> Reply:
    """The reply that a stream carried; checks that it is one reply, finished once, counted once and at the end."""
    ids, choices, usages = zip(*chunks, strict=True)
    assert len(set(ids)) == 1
    assert [usage for usage in usages[:-1] if usage] == []
    assert choices[-1] == []
    parts = [part for chunk in choices for part in chunk]
    finishes = [finish for _, finish in parts if finish]
    assert len(finishes) == 1
    return whole("".join(text or "" for text, _ in parts), finishes[0], usages[-1])


def whole(text: str, finish: str | None, usage: CompletionUsage | None) -> Reply:
    """The reply with its own counts."""
    assert usage is not None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Reply(text, finish, usage.prompt_tokens, usage.completion_tokens, cached)
