"""A scheduler's mind, with times that the test says."""

from dataclasses import replace
from typing import Any

from tests.fleet.fleets import doubles, endpoint, fleet, gpu, node, spec

from nebula_router.fleet.placing.decider import MOST_BYTES, Decider, Sizing
from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import (
    EndpointStatus,
    ModelRequest,
    ModelSpec,
    PlacementPlan,
    Record,
    model_request_key,
    placement_key,
    spec_key,
)
from nebula_router.fleet.settings import SchedulerSettings

TWO = [node("a", gpu(0), gpu(1)), node("b", gpu(0), gpu(1))]
NOW_MS = 1_700_000_000_000
SETTINGS = SchedulerSettings(interval_s=5, lost_after_s=10, settle_s=10, drain_grace_s=60, cooldown_s=60)


class World:
    """A fleet that a decider's writes change, and a clock."""

    def __init__(self, first: Snapshot, settings: SchedulerSettings = SETTINGS) -> None:
        self.fleet = first
        self.decider = Decider(settings)
        self.now = 1000.0

    def look(self, after_s: float = 0.0, sizings: dict[str, Sizing] | None = None) -> dict[str, bytes | None]:
        self.now += after_s
        values = self.decider.changes(self.fleet, sizings or {}, self.now, self.now_ms)
        plans, specs, requests = dict(self.fleet.plans), dict(self.fleet.specs), dict(self.fleet.requests)
        for key, value in values.items():
            kinds: list[tuple[dict[str, Any], type[Record], str]] = [
                (plans, PlacementPlan, "/placements/"),
                (specs, ModelSpec, "/models/"),
                (requests, ModelRequest, "/model_requests/"),
            ]
            for records, kind, prefix in kinds:
                if key.startswith(prefix):
                    name = key.split("/")[2]
                    if value is None:
                        records.pop(name, None)
                    else:
                        records[name] = kind.parsed(value, key)
        self.fleet = replace(self.fleet, plans=plans, specs=specs, requests=requests)
        return values

    def pass_s(self, seconds: float) -> list[str]:
        """Keys that are written while the time passes, a look per interval."""
        written: list[str] = []
        for _ in range(int(seconds // SETTINGS.interval_s)):
            written += self.look(SETTINGS.interval_s)
        return written

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(self.now * 1000)

    def without(self, *node_ids: str) -> None:
        self.fleet = replace(self.fleet, nodes={n: one for n, one in self.fleet.nodes.items() if n not in node_ids})

    def serve(self, **stats: Any) -> None:
        """Every replica serves, and tells these figures."""
        found = {}
        for uid, written in self.fleet.plans.items():
            for a in written.assignments:
                status = EndpointStatus.DRAINING if a.draining else EndpointStatus.READY
                found[uid, a.replica_id] = endpoint(written, a, status, read_at_ms=self.now_ms, **stats)
        self.fleet = replace(self.fleet, endpoints=found)

    def replicas(self, uid: str = "m") -> int:
        """Those that drain, too."""
        return len(self.fleet.plans[uid].assignments)

    def nodes_of(self, uid: str = "m") -> list[str]:
        return [a.node_id for a in self.fleet.plans[uid].assignments if not a.draining]


def test_a_lost_nodes_replicas_move_after_their_time() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.pass_s(20)
    assert world.nodes_of() == ["a", "b"]
    world.without("b")
    assert world.look() == {}
    assert world.pass_s(5) == []
    assert world.pass_s(5) == [placement_key("m")]
    assert world.nodes_of() == ["a", "a"]


def test_a_node_that_comes_back_in_time_keeps_its_replicas() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.pass_s(20)
    nodes = world.fleet.nodes
    world.without("b")
    world.pass_s(5)
    world.fleet = replace(world.fleet, nodes=nodes)
    world.pass_s(5)
    world.without("b")
    assert world.pass_s(5) == []
    assert world.nodes_of() == ["a", "b"]


def test_nobody_is_lost_just_after_the_start() -> None:
    written = World(fleet(TWO, spec("m", replicas=2)))
    written.look()
    world = World(written.fleet, SETTINGS.model_copy(update={"lost_after_s": 0.0}))
    world.without("b")
    assert world.pass_s(10) == []
    assert world.pass_s(5) == [placement_key("m")]


def test_after_an_outage_of_the_store_nodes_get_time_to_come_back() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.pass_s(20)
    nodes = world.fleet.nodes
    world.now += 120
    world.decider.doubt(world.now)
    world.without("a", "b")
    assert world.pass_s(5) == []
    world.fleet = replace(world.fleet, nodes=nodes)
    assert world.pass_s(60) == []
    assert world.nodes_of() == ["a", "b"]


def test_a_scheduler_that_slept_begins_to_count_again() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.pass_s(20)
    world.without("b")
    world.look()
    assert world.look(3600) == {}
    assert world.pass_s(10) == [placement_key("m")]


def test_what_is_due_is_known() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.pass_s(20)
    assert world.decider.next_at() is None
    world.without("b")
    world.look()
    assert world.decider.next_at() == world.now + 10


def test_a_smaller_pool_drains_and_goes_once_idle() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.look()
    world.serve(running=3, waiting=0)
    world.fleet = world.fleet.with_spec(spec("m", replicas=1))
    assert list(world.look()) == [placement_key("m")]
    assert world.replicas() == 2
    world.look(1)
    world.serve(running=3, waiting=0)
    assert world.pass_s(5) == []
    world.serve(running=0, waiting=0)
    assert world.pass_s(5) == [placement_key("m")]
    assert world.replicas() == 1
    assert world.pass_s(20) == []


def test_a_replica_that_is_never_idle_goes_after_its_grace() -> None:
    world = World(fleet(TWO, spec("m", replicas=2)))
    world.look()
    world.fleet = world.fleet.with_spec(spec("m", replicas=1))
    world.look()
    world.serve(running=1, waiting=0)
    world.look(1)
    for _ in range(11):
        world.serve(running=1, waiting=0)
        assert world.pass_s(5) == []
    world.serve(running=1, waiting=0)
    assert world.pass_s(5) == [placement_key("m")]


def test_a_replica_that_drains_without_a_spec_is_left_and_does_not_keep_the_scheduler_busy() -> None:
    world = World(fleet(TWO, spec("m")))
    world.look()
    (only,) = world.fleet.plans["m"].assignments
    draining = world.fleet.plans["m"].model_copy(update={"assignments": (only.model_copy(update={"draining": True}),)})
    world.fleet = replace(world.fleet, specs={}, plans={"m": draining})
    assert world.look() == {}
    assert world.decider.next_at() == world.now + 60
    assert world.look(61) == {}
    assert world.decider.next_at() is None


def test_load_adds_a_replica_and_its_absence_takes_it_away() -> None:
    world = World(fleet(TWO, spec("m", replicas=1, min_replicas=1, max_replicas=3)))
    world.look()
    world.serve(kv_usage=0.95, waiting=9, running=9)
    assert list(world.look(1)) == [spec_key("m"), placement_key("m")]
    assert world.nodes_of() == ["a", "b"]
    world.serve(kv_usage=0.95, waiting=9, running=9)
    assert world.look(1) == {}
    world.now += 60
    world.serve(kv_usage=0.05, waiting=0, running=1)
    assert list(world.look()) == [spec_key("m"), placement_key("m")]
    assert [a.draining for a in world.fleet.plans["m"].assignments] == [False, True]


def test_load_changes_nothing_where_that_is_off() -> None:
    off = SETTINGS.model_copy(update={"autoscale": False})
    world = World(fleet(TWO, spec("m", replicas=1, min_replicas=1, max_replicas=3)), off)
    world.look()
    world.serve(kv_usage=0.95, waiting=9, running=9)
    assert world.look(1) == {}


def status(world: World) -> Any:
    return world.fleet.requests["r"].status


def ask(world: World, wish: ModelSpec, at: Any = "Pending") -> None:
    request = ModelRequest(id="r", request=wish, status=at, created_at_ms=0)
    world.fleet = replace(world.fleet, requests={"r": request})


def test_a_request_is_scheduled_and_then_runs() -> None:
    world = World(fleet(TWO))
    ask(world, spec("m", replicas=2, required_vram_mb=1000))
    assert set(world.look()) == {model_request_key("r"), spec_key("m"), placement_key("m")}
    assert status(world) == "Scheduled"
    assert world.look(5) == {}
    world.serve()
    assert list(world.look(5)) == [model_request_key("r")]
    assert status(world) == "Running"


def test_a_request_that_fits_nowhere_fails_with_the_reason_and_leaves_nothing() -> None:
    world = World(fleet(TWO))
    ask(world, spec("m", required_vram_mb=100_000))
    assert list(world.look()) == [model_request_key("r")]
    assert status(world)["Failed"].startswith("it needs 1 GPU with 97.7 GiB each; a: the largest free GPU: 23.5")
    assert world.fleet.specs == {}


def test_a_request_whose_settings_are_wrong_fails_with_what_is_wrong() -> None:
    world = World(fleet(TWO))
    wish = spec("m")
    ask(world, wish)
    world.look(sizings={model_request_key("r"): Sizing(wish, "max-model-len = much: expected a whole number")})
    assert status(world) == {"Failed": "max-model-len = much: expected a whole number"}


def test_a_request_of_one_more_role_leaves_the_others() -> None:
    world = World(fleet(TWO, spec("m")))
    world.look()
    ask(world, ModelSpec.model_validate({"model_uid": "m", "model_name": "m", "pools": {"decode": {}}}))
    world.look()
    assert {role.value for role in world.fleet.specs["m"].pools} == {"unified", "decode"}
    assert len(world.nodes_of()) == 2


def test_unloading_ends_a_model_and_then_its_request() -> None:
    world = World(fleet(TWO, spec("m")))
    world.look()
    world.fleet = replace(world.fleet, revisions={spec_key("m"): 5})
    world.serve()
    ask(world, spec("m"), "Unloading")
    assert set(world.look()) == {spec_key("m"), placement_key("m")}
    world.fleet = replace(world.fleet, revisions={})
    assert world.fleet.plans["m"].assignments == ()
    assert world.fleet.plans["m"].version == 2
    assert world.look(5) == {}
    world.fleet = replace(world.fleet, endpoints={})
    assert list(world.look(5)) == [model_request_key("r")]
    assert world.fleet.requests == {}


def test_nothing_is_placed_while_a_placement_cannot_be_read() -> None:
    world = World(fleet(TWO, spec("m"), unreadable={"/placements/x": "/placements/x: not a PlacementPlan"}))
    assert world.look() == {}


def test_a_decision_is_never_larger_than_the_store_takes() -> None:
    many = [spec(f"m{i}", gpus_per_replica=0, engine_args={"text": "x" * 30_000}) for i in range(40)]
    world = World(fleet([node("a")], *many))
    sizes = []
    while values := world.look(1):
        sizes.append(sum(len(value or b"") for value in values.values()))
    assert max(sizes) <= MOST_BYTES
    assert len(sizes) < 10
    assert all(world.fleet.plans[one.model_uid].assignments for one in many)
    assert doubles(list(world.fleet.plans.values())) == []


def test_a_spec_whose_settings_are_wrong_leaves_what_runs() -> None:
    world = World(fleet(TWO, spec("m")))
    world.look()
    broken = spec("m", engine_args={"max-model-len": "much"})
    world.fleet = world.fleet.with_spec(broken)
    assert world.look(5, {spec_key("m"): Sizing(broken, "max-model-len = much: expected a whole number")}) == {}
    assert any("max-model-len = much" in text for _, text in world.decider.words)
    assert world.nodes_of() == ["a"]
