"""Quantiles of many durations in little memory."""

import math
from dataclasses import dataclass, field

STEP = math.log(1.02)
"""A bucket is 2% wide: that is how exact a quantile is."""
SHORTEST_S = 1e-6


@dataclass(slots=True)
class Histogram:
    """Counts durations in buckets of equal ratio."""

    count: int = 0
    longest_s: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    def record(self, seconds: float) -> None:
        """Adds one duration."""
        bucket = math.ceil(math.log(max(seconds, SHORTEST_S)) / STEP)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.longest_s = max(self.longest_s, seconds)

    def quantile(self, share: float) -> float:
        """The duration that `share` (0 to 1) of all do not exceed; 0 when there are none."""
        left = share * self.count
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(math.exp(bucket * STEP), self.longest_s)
        return self.longest_s

    def figures(self) -> dict[str, float]:
        """What is told of it, in seconds."""
        return {"p50": self.quantile(0.5), "p99": self.quantile(0.99), "longest": self.longest_s}
