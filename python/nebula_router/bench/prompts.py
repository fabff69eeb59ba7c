"""Chat bodies that look like traffic and are the same bytes in every run, on every machine."""

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


def _text(seed: str, size: int) -> str:
    """`size` bytes of words; two seeds differ from their first word on."""
    rng = random.Random(seed)  # noqa: S311 - must be the same every time, and hides nothing
    words = [seed]
    length = len(seed)
    while length < size:
        words.append(rng.choice(WORDS))
        length += 1 + len(words[-1])
    return " ".join(words)[:size]
