"""Routing strategies: which of the instances that a policy likes equally gets the request."""

from __future__ import annotations

import random
from collections import OrderedDict
from hashlib import md5
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from nebula_router.control_plane.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.request import RequestMetadata

_USERS: Final = 10_000
"""Users whose instance is remembered."""


class Price(NamedTuple):
    """What a request costs on one engine, in tokens of prefill work, and the tokens of its prompt held there."""

    total: float
    overlap: int
    prompt: int


Prices: TypeAlias = "Callable[[RequestMetadata, str], Awaitable[Mapping[str, Price]]]"
"""Tells what a request for a model costs on each engine, by name; nothing where that cannot be told."""


class Pick(NamedTuple):
    """An instance, and why."""

    instance: ExecutionInstance
    reason: str


class Strategy(Protocol):
    """A way to pick one of the instances, of which there is at least one."""

    name: str

    async def pick(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """Return the instance that gets the request."""


class LoadBalanced:
    """The least loaded."""

    name = "load_balanced"

    async def pick(self, _: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """The one with the smallest share of its requests in use."""
        return _least_loaded(instances)


class RoundRobin:
    """One after the other."""

    name = "round_robin"

    def __init__(self) -> None:
        self._last = ""

    async def pick(self, _: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """The next by id after the last one; after the end, the first."""
        ordered = _by_id(instances)
        instance = next((each for each in ordered if each.instance_id > self._last), ordered[0])
        self._last = instance.instance_id
        return Pick(instance, "next in turn")


class Random:
    """Any."""

    name = "random"

    async def pick(self, _: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """One by chance."""
        return Pick(random.choice(instances), "by chance")  # noqa: S311 - no secret hangs on it


class Affinity:
    """A user stays on one instance."""

    name = "affinity"

    def __init__(self) -> None:
        self._homes: OrderedDict[str, str] = OrderedDict()

    async def pick(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """The user's instance; the least loaded for a new user, one whose instance cannot take it, or none."""
        user = request.user_id
        if user is None:
            return _least_loaded(instances)
        home = self._homes.get(user)
        found = next((instance for instance in instances if instance.instance_id == home), None)
        pick = Pick(found, "the user's instance") if found else _least_loaded(instances)
        self._homes[user] = pick.instance.instance_id
        self._homes.move_to_end(user)
        if len(self._homes) > _USERS:
            self._homes.popitem(last=False)
        return pick


class Locality:
    """Requests of one model and user meet on one instance, without anything to remember."""

    name = "locality"

    async def pick(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """The instance that the hash of model and user falls on."""
        ordered = _by_id(instances)
        key = f"{request.model_name or ''}:{request.user_id or ''}".encode()
        at = int(md5(key, usedforsecurity=False).hexdigest(), 16) % len(ordered)
        return Pick(ordered[at], "hash of model and user")


class Kv:
    """Where the router's core expects the answer soonest: by the prompt's tokens that are cached, and by load."""

    name = "kv"

    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    async def pick(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Pick:
        """The cheapest by the core's price; the least loaded where the core has none.

        A request without a model is priced for the least loaded instance's.
        """
        fallback = _least_loaded(instances)
        model = request.model_name or fallback.instance.model_name
        prices = await self._prices(request, model)
        priced = [each for each in instances if each.model_name == model and each.instance_id in prices]
        if not priced:
            return fallback._replace(reason=f"no price is known, {fallback.reason}")
        instance = min(priced, key=lambda each: (prices[each.instance_id].total, *_load(each)))
        price = prices[instance.instance_id]
        return Pick(instance, f"cost {price.total:.0f}, {price.overlap} of {price.prompt} prompt tokens cached")


_PLAIN: Final = {strategy.name: strategy for strategy in (LoadBalanced, RoundRobin, Random, Affinity, Locality)}


def strategy_of(name: str, prices: Prices) -> Strategy:
    """Return a strategy by name.

    Raises:
        ValueError: no strategy has the name.

    """
    if name == Kv.name:
        return Kv(prices)
    if name not in _PLAIN:
        raise unknown("routing strategy", name, [*_PLAIN, Kv.name])
    return _PLAIN[name]()


def _least_loaded(instances: Sequence[ExecutionInstance]) -> Pick:
    instance = min(instances, key=_load)
    return Pick(instance, f"lowest load, {instance.current_load:.2f}")


def _load(instance: ExecutionInstance) -> tuple[float, str]:
    return instance.current_load, instance.instance_id


def _by_id(instances: Sequence[ExecutionInstance]) -> list[ExecutionInstance]:
    return sorted(instances, key=lambda instance: instance.instance_id)
