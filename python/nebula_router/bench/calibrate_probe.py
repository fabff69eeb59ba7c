"""Probes: requests whose steps are known, so that the time of a step can be told from what a client sees."""

import asyncio
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import mean, median

from nebula_router.bench.calibrate_client import Client, Stream
from nebula_router.bench.calibrate_engine import Engine

SHORTEST = 16
"""Tokens of the shortest prompt."""
LENGTHS = 10
"""Prompt lengths, in equal ratios."""
STEADY_STEPS = 24
"""Steps in which all streams of a probe decode together."""
WINDOW = 8
"""Tokens over which a stream's pace is measured: chunks that came late or together even out."""
FILL = 0.8
"""Share of the KV cache that a probe may take: nothing is preempted or evicted meanwhile. A cache of unknown size holds
one longest request: vLLM does not start with less."""
TOKENS = range(100, 5000)
"""Ids that every vocabulary has."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the time of a probe is made of: how often each coefficient counts."""

    requests: int = 0
    """1 where a whole request is timed, with all that HTTP adds to its steps."""
    steps: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    """Pairs of a prompt token and a token before it."""
    decode_seqs: float = 0.0
    resident_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine does in one step, and how much of it is probed."""

    max_num_batched_tokens: int
    max_num_seqs: int
    streams: int
    """Largest batch to probe."""
    longest: int = 16_384
    """Tokens of the longest prompt to probe."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """One request alone, its first token timed: the steps that compute its prompt."""

    tokens: int
    """To compute."""
    prefix: tuple[int, ...] = ()
    """Whole blocks before them that the cache holds by then."""

    @property
    def label(self) -> str:
        """What is timed, in words."""
        cached = f" after {len(self.prefix):,} cached" if self.prefix else ""
        return f"prefill {self.tokens:,} tokens{cached}"

    def work(self, budget: int, cached: int | None = None) -> Work:
        """Its steps; a prompt longer than `budget` takes several."""
        before = len(self.prefix) if cached is None else cached
        new = self.tokens + len(self.prefix) - before
        return Work(
            requests=1,
            steps=math.ceil(new / budget),
            prefill_tokens=new,
            # Summed over the steps, each with its own tokens before it, as nebula_sim::timing counts them.
            prefill_pairs=new * before + new * new / 2,
        )

    async def take(self, client: Client, model: str, budget: int) -> tuple[float, Work]:
        """Seconds to the first token, and the work that was done in them."""
        if self.prefix:
            await client.complete(model, [*self.prefix, *fresh(1)], 1)
        stream = await client.complete(model, [*self.prefix, *fresh(self.tokens)], 1)
        return stream.ttft_s, self.work(budget, stream.cached_tokens)


@dataclass(frozen=True, slots=True)
class Decode:
    """Streams side by side, timed while all of them decode: one step per token."""

    prompts: tuple[tuple[int, ...], ...] = field(repr=False)
    """The same each time, so that the cache spares computing them again."""
    tokens: int
    """Of each reply."""

    @property
    def label(self) -> str:
        """What is timed, in words."""
        streams = f"{len(self.prompts)} stream{'s' if len(self.prompts) > 1 else ''}"
        return f"decode {streams} of {len(self.prompts[0]):,} tokens"

    async def take(self, client: Client, model: str, budget: int) -> tuple[float, Work] | None:  # noqa: ARG002
        """Seconds of a step, and its work; None if the streams were never seen to decode together."""
        asked = (client.complete(model, prompt, self.tokens) for prompt in self.prompts)
        return steady(await asyncio.gather(*asked))


Probe = Prefill | Decode


def plan(engine: Engine, limits: Limits) -> list[Probe]:
    """What to ask of an engine, cheap probes first, prefills and decodes in turn."""
    longest = min(engine.max_model_len - 1, limits.longest)
    if engine.kv_tokens is not None:
        longest = min(longest, int(engine.kv_tokens * FILL))
    prefills = sorted(_prefills(engine, longest), key=lambda probe: probe.tokens + len(probe.prefix))
    decodes = sorted(_decodes(engine, longest, limits), key=lambda probe: len(probe.prompts) * len(probe.prompts[0]))
    return [probe for pair in zip_longest(prefills, decodes) for probe in pair if probe is not None]


def _prefills(engine: Engine, longest: int) -> Iterator[Prefill]:
    for tokens in geometric(SHORTEST, longest, LENGTHS):
        yield Prefill(tokens)
    if not engine.prefix_caching or engine.block_size is None:
        return
    cached = fresh(longest)
    for share in (0.25, 0.5, 0.9):
        prefix = int(longest * share) // engine.block_size * engine.block_size
        room = longest - prefix
        for tokens in sorted({min(SHORTEST, room), min(SHORTEST * SHORTEST, room)}):
            if prefix and tokens > 0:
                yield Prefill(tokens, cached[:prefix])


def _decodes(engine: Engine, longest: int, limits: Limits) -> Iterator[Decode]:
    room = (engine.kv_tokens or engine.max_model_len) * FILL
    most = min(limits.streams, limits.max_num_seqs)
    for context in sorted({min(SHORTEST, longest), longest // 8, longest // 2} - {0}):
        # Batches share their prompts: the larger ones find those of the smaller ones in the cache.
        prompts: tuple[tuple[int, ...], ...] = ()
        for seqs in [2**power for power in range(most.bit_length())]:
            tokens = STEADY_STEPS + math.ceil(seqs * context / limits.max_num_batched_tokens)
            if context + tokens <= engine.max_model_len and seqs * (context + tokens) <= room:
                prompts += tuple(fresh(context) for _ in range(seqs - len(prompts)))
                yield Decode(prompts, tokens)


def steady(streams: Sequence[Stream]) -> tuple[float, Work] | None:
    """Seconds of one step while all `streams` decode, and its work; None if there was no such time."""
    begin = max(stream.tokens[0][1] for stream in streams)
    end = min(stream.tokens[-1][1] for stream in streams)
    paces: list[float] = []
    resident = 0.0
    for stream in streams:
        inside = [(count, at) for count, at in stream.tokens if begin <= at <= end]
        if not inside:
            return None
        # The step that gives token number n reads the prompt and all but the last of the n - 1 tokens before it.
        resident += stream.prompt_tokens + mean((inside[0][0], inside[-1][0])) - 2
        count, since = inside[0]
        for later, at in inside:
            if later - count >= WINDOW and at > since:
                paces.append((at - since) / (later - count))
                count, since = later, at
    if not paces:
        return None
    return median(paces), Work(steps=1, decode_seqs=len(streams), resident_tokens=resident)


def geometric(first: int, last: int, count: int) -> list[int]:
    """Up to `count` whole numbers from `first` to `last`, in equal ratios."""
    if last <= first:
        return [last] if last > 0 else []
    ratio = (last / first) ** (1 / (count - 1))
    return sorted({round(first * ratio**i) for i in range(count)})


def fresh(tokens: int) -> tuple[int, ...]:
    """A prompt that nobody asked before."""
    return tuple(random.choices(TOKENS, k=tokens))  # noqa: S311 - unlike others, not secret
