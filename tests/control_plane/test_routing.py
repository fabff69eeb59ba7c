"""Strategies, types of instances, parallelism: who gets a request, without any engine."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from nebula_router.control_plane import (
    DecodingConfig,
    ExecutionInstance,
    ExecutionInstanceType,
    ParallelismType,
    PDSeparationConfig,
    PrefillingConfig,
    RequestMetadata,
)
from nebula_router.control_plane.fleet import Fleet
from nebula_router.control_plane.policies import policy_of
from nebula_router.control_plane.routing import Price, strategy_of
from nebula_router.control_plane.scheduler import Scheduler

GENERAL, PREFILLING, DECODING, HYBRID = ExecutionInstanceType
LONG_PROMPT = "x" * 4 * 900


def on(name: str, load: float = 0.0, **fields: Any) -> ExecutionInstance:
    active = round(load * 100)
    return ExecutionInstance(name, name, 1, **{"model_name": "m"} | fields, current_load=load, active_requests=active)


def asked(**fields: Any) -> RequestMetadata:
    own: dict[str, Any] = {"prompt": "x", "max_tokens": 100}
    return RequestMetadata("r", **own | fields)


class Desk:
    """A scheduler over instances that are well."""

    def __init__(
        self,
        *instances: ExecutionInstance,
        strategy: str = "load_balanced",
        pd: PDSeparationConfig | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        self.prices = prices or {}
        self.fleet = Fleet(3)
        for instance in instances:
            self.fleet.add(instance)
        for member in self.fleet.members:
            member.health.recovered()
        self.scheduler = Scheduler(policy_of("fifo"), strategy_of(strategy, self.priced), pd or PDSeparationConfig())

    async def priced(self, _: RequestMetadata, model: str) -> Mapping[str, Price]:
        self.priced_model = model
        return {name: Price(price, 0, 10) for name, price in self.prices.items()}

    def send(self, request: RequestMetadata | None = None) -> str | None:
        """The instance that gets the request, which is booked on it."""
        placement = asyncio.run(self.scheduler.place(request or asked(), self.fleet.members, 0.0))
        if placement is None:
            return None
        placement.instance.book(placement.phase)
        return placement.instance.instance_id


def test_load_balanced_picks_the_smallest_share_in_use() -> None:
    assert Desk(on("a", 0.5), on("b", 0.2), on("c", 0.3)).send() == "b"
    small = on("small", max_concurrent_requests=2)
    desk = Desk(small, on("big", max_concurrent_requests=10))
    assert Counter(desk.send() for _ in range(6)) == {"small": 1, "big": 5}


def test_round_robin_takes_turns_whatever_the_load() -> None:
    desk = Desk(on("a", 0.9), on("b"), on("c"), strategy="round_robin")
    assert [desk.send() for _ in range(5)] == ["a", "b", "c", "a", "b"]
    desk.fleet.remove("c")
    assert desk.send() == "a"


def test_random_uses_every_instance() -> None:
    desk = Desk(*(on(name, max_concurrent_requests=1000) for name in "abc"), strategy="random")
    assert {desk.send() for _ in range(200)} == {"a", "b", "c"}


def test_affinity_keeps_a_user_on_one_instance_while_it_has_room() -> None:
    a = on("a")
    desk = Desk(a, on("b", 0.1), strategy="affinity")
    ann = asked(user_id="ann")
    assert [desk.send(ann) for _ in range(20)] == ["a"] * 20
    assert desk.send(asked(user_id="bob")) == "b"
    assert desk.send() == "b", "nobody in particular goes where there is least to do"
    a.is_healthy = False
    assert desk.send(ann) == "b"
    a.is_healthy = True
    assert desk.send(ann) == "b"


def test_locality_sends_a_model_and_user_to_one_place_and_users_to_several() -> None:
    desk = Desk(*(on(name, max_concurrent_requests=1000) for name in "abcd"), strategy="locality")
    homes = {user: {desk.send(asked(user_id=f"{user}")) for _ in range(3)} for user in range(40)}
    assert all(len(home) == 1 for home in homes.values())
    assert len({name for home in homes.values() for name in home}) == 4


def test_kv_picks_the_lowest_price_of_those_that_can_take_it() -> None:
    full = on("full", 1.0)
    desk = Desk(full, on("a", 0.4), on("b", 0.2), strategy="kv", prices={"full": 1.0, "a": 5.0, "b": 9.0})
    assert desk.send() == "a"
    assert desk.priced_model == "m"


def test_kv_without_prices_picks_the_least_loaded() -> None:
    assert Desk(on("a", 0.4), on("b", 0.2), strategy="kv").send() == "b"


def test_the_requests_model_matters() -> None:
    desk = Desk(on("a", 0.5, model_name="big"), on("b", model_name="small"))
    assert desk.send(asked(model_name="big")) == "a"
    assert desk.send(asked()) == "b"
    assert desk.send(asked(model_name="other")) is None


def test_the_preferred_instance_is_taken_while_it_has_room() -> None:
    a = on("a", 0.9)
    desk = Desk(a, on("b"))
    assert desk.send(asked(preferred_instance_id="a")) == "a"
    a.is_healthy = False
    assert desk.send(asked(preferred_instance_id="a")) == "b"


def test_instances_that_are_spread_as_the_hint_says_come_first() -> None:
    both = on("both", 0.6, tensor_parallel_size=2, data_parallel_size=2)
    desk = Desk(on("one"), on("tp", 0.5, tensor_parallel_size=4), both)
    assert desk.send(asked(parallelism_hint=ParallelismType.TENSOR_PARALLEL)) == "tp"
    assert desk.send(asked(parallelism_hint=ParallelismType.HYBRID)) == "both"
    assert desk.send(asked(parallelism_hint=ParallelismType.PIPELINE_PARALLEL)) == "one"


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        ({"prompt": "x" * 4 * 801, "max_tokens": 5000}, PREFILLING),
        ({"prompt": "x" * 4 * 800, "max_tokens": 5000}, DECODING),
        ({"prompt": "x" * 4 * 41, "max_tokens": 10}, PREFILLING),
        ({"prompt": "x" * 4 * 40, "max_tokens": 10}, DECODING),
        ({"prompt": [1] * 801, "max_tokens": 5000}, PREFILLING),
        ({"prompt": None, "messages": [{"role": "user", "content": LONG_PROMPT}]}, PREFILLING),
        ({"prompt": None, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, DECODING),
    ],
)
def test_a_long_prompt_is_prefilling_by_either_threshold(fields: dict[str, Any], phase: ExecutionInstanceType) -> None:
    assert PDSeparationConfig().phase(asked(**fields)) is phase


def test_a_phase_goes_by_load_among_the_instances_of_its_type() -> None:
    desk = Desk(
        on("p1", 0.5, instance_type=PREFILLING),
        on("p2", 0.3, instance_type=PREFILLING),
        on("d1", 0.2, instance_type=DECODING),
        on("d2", 0.1, instance_type=DECODING),
        on("general"),
    )
    assert desk.send(asked(prompt=LONG_PROMPT)) == "p2"
    assert desk.send(asked()) == "d2"


def test_a_phase_falls_back_to_general_instances_and_then_to_any() -> None:
    prefilling, decoding, general = on("p", instance_type=PREFILLING), on("d", instance_type=DECODING), on("g", 0.5)
    desk = Desk(prefilling, decoding, general)
    prefilling.is_healthy = False
    assert desk.send(asked(prompt=LONG_PROMPT)) == "g"
    general.is_healthy = False
    assert desk.send(asked(prompt=LONG_PROMPT)) == "d"
    assert Desk(on("h", 0.5, instance_type=HYBRID), on("g")).send(asked(prompt=LONG_PROMPT)) == "h"


def test_adaptive_separation_leaves_a_type_that_is_busy_and_threshold_only_one_that_is_full() -> None:
    fleet = [on("p", 0.85, instance_type=PREFILLING), on("g", 0.1)]
    assert Desk(*fleet).send(asked(prompt=LONG_PROMPT)) == "g"
    assert Desk(*fleet, pd=PDSeparationConfig("threshold")).send(asked(prompt=LONG_PROMPT)) == "p"
    with pytest.raises(ValueError, match="known are adaptive, threshold"):
        PDSeparationConfig("ml")


def test_without_separation_the_types_do_not_matter() -> None:
    desk = Desk(on("p", 0.5, instance_type=PREFILLING), on("d", 0.2, instance_type=DECODING))
    desk.scheduler = Scheduler(policy_of("fifo"), strategy_of("load_balanced", desk.priced), None)
    assert desk.send(asked(prompt=LONG_PROMPT)) == "d"


def test_an_instance_takes_so_many_of_a_phase() -> None:
    instance = on("a", prefilling_config=PrefillingConfig(1), decoding_config=DecodingConfig(2))
    desk = Desk(instance)
    assert [desk.send(asked(prompt=LONG_PROMPT)) for _ in range(2)] == ["a", None]
    assert [desk.send(asked()) for _ in range(3)] == ["a", "a", None]
    assert (instance.prefilling_active_requests, instance.decoding_active_requests) == (1, 2)
    instance.release(PREFILLING)
    assert desk.send(asked(prompt=LONG_PROMPT)) == "a"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"instance_id": "a"}, "this id is taken"),
        ({"host": "h"}, "http://h:1 is instance a"),
        ({"instance_id": "two words"}, "two words"),
        ({"port": 0}, "http://host:port"),
        ({"data_parallel_size": 0}, "ranks"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests"),
    ],
)
def test_an_instance_that_cannot_be_is_refused(fields: dict[str, Any], says: str) -> None:
    own: dict[str, Any] = {"instance_id": "b", "host": "i", "port": 1, "model_name": "m"}
    fleet = Fleet(3)
    fleet.add(ExecutionInstance("a", "h", 1, "m"))
    with pytest.raises(ValueError, match=says):
        fleet.add(ExecutionInstance(**own | fields))
    assert [instance.instance_id for instance in fleet.instances] == ["a"]


def test_an_ipv6_host_gets_its_brackets() -> None:
    assert ExecutionInstance("a", "::1", 8000, "m").url == "http://[::1]:8000"
