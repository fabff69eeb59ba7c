"""Bodies that look like traffic and are the same bytes in every run, on every machine."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORDS = (  # noqa: SIM905 - prose reads better than two hundred quoted words
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they were "
    "one you her all their there would we him been has when who will more no if out so said what up its about into "
    "than them can only other new some could time these two may then do first any my now such like our over man me "
    "even most made after also did many before must through back years where much your way well down should because "
    "each just those people state good very make world still own see men work long get here between both life being "
    "under never engine prompt token cache router request answer question system please explain summarise translate"
).split()

VOCABULARY = 128_256
"""Of Llama 3."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many bodies there are, how large, and how much of each is shared with others."""

    bodies: int = 64
    systems: int = 8
    """Distinct system prompts: body `i` starts with number `i % systems`."""
    system_bytes: int = 3072
    user_bytes: int = 1024


def chat_bodies(model: str, shape: Shape | None = None, extra: Mapping[str, Any] | None = None) -> list[bytes]:
    """JSON bodies for `POST /v1/chat/completions`, ASCII only; `extra` adds fields to each."""
    shape = shape or Shape()
    systems = [_text(f"system {i}", shape.system_bytes) for i in range(shape.systems)]
    return [
        json.dumps(
            {
                "model": model,
                "messages": [
                    {"role": "system", "content": systems[i % shape.systems]},
                    {"role": "user", "content": _text(f"user {i}", shape.user_bytes)},
                ],
                **(extra or {}),
            },
        ).encode("ascii")
        for i in range(shape.bodies)
    ]


@dataclass(frozen=True, slots=True)
class TokenShape:
    """Conversations that grow, as token ids."""

    conversations: int = 16
    turns: int = 4
    """Each is sent once per turn, with everything before it in front."""
    systems: int = 8
    """Distinct beginnings: conversation `i` starts with number `i % systems`."""
    system_tokens: int = 512
    first_tokens: int = 850
    """Of the whole prompt in the first turn."""
    turn_tokens: int = 100
    """By which it grows each turn."""


def token_bodies(model: str, shape: TokenShape | None = None, extra: Mapping[str, Any] | None = None) -> list[bytes]:
    """JSON bodies for `POST /v1/completions` with token ids for a prompt, turn after turn of all conversations."""
    shape = shape or TokenShape()
    systems = [_tokens(f"system {i}", shape.system_tokens) for i in range(shape.systems)]
    longest = shape.first_tokens + (shape.turns - 1) * shape.turn_tokens
    talks = [
        systems[i % shape.systems] + _tokens(f"conversation {i}", longest - shape.system_tokens)
        for i in range(shape.conversations)
    ]
    lengths = [shape.first_tokens + turn * shape.turn_tokens for turn in range(shape.turns)]
    return [
        json.dumps({"model": model, "prompt": talk[:length], **(extra or {})}).encode("ascii")
        for length in lengths
        for talk in talks
    ]


def _tokens(seed: str, count: int) -> list[int]:
    rng = random.Random(seed)  # noqa: S311 - as below
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def _text(seed: str, size: int) -> str:
    """`size` bytes of words; two seeds differ from their first word on."""
    rng = random.Random(seed)  # noqa: S311 - must be the same every time, and hides nothing
    words = [seed]
    length = len(seed)
    while length < size:
        words.append(rng.choice(WORDS))
        length += 1 + len(words[-1])
    return " ".join(words)[:size]
