"""What a run of the core's simulator gives, as the core writes it; times are virtual."""

from typing import TypedDict


class Spread(TypedDict):
    """How a quantity is spread over requests, or over tokens."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Goodput(TypedDict):
    """Requests that met the objective in time to first token and in mean time between tokens."""

    share: float
    requests_per_s: float


class Summary(TypedDict):
    """The figures of a run."""

    ttft_ms: Spread
    itl_ms: Spread
    e2e_ms: Spread
    hit_share: float
    """Of all prompt tokens, those that came from a cache."""
    goodput: Goodput
    imbalance: float
    """Time in steps of the busiest engine, as a multiple of the mean."""
    preemptions: int
    duration_s: float
    """From the first arrival to the last token."""
    drain_s: float
    """From the last arrival to the last token."""
    busy_share: float
    """Share of the time that engines were in a step."""
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class EngineShare(TypedDict):
    """One engine's part of the work."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    busy_s: float
    preemptions: int


class Requests(TypedDict):
    """One value per request in each column, in order of arrival."""

    arrival_ms: list[float]
    engine: list[int]
    prompt: list[int]
    cached: list[int]
    predicted: list[int]
    output: list[int]
    ttft_ms: list[float]
    itl_ms: list[float]
    e2e_ms: list[float]


class Series(TypedDict):
    """The hit share of the requests that arrived in each stretch of time, by the stretch's end."""

    t_s: list[float]
    hit_share: list[float]


class Report(TypedDict):
    """All of a run."""

    policy: str
    engines: int
    sessions: int
    """Conversations of the workload."""
    requests: int
    summary: Summary
    per_engine: list[EngineShare]
    per_request: Requests
    series: Series
