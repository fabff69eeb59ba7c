"""What holds of every plan, of whatever fleet, through whatever befalls it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fleet.fleets import doubles, fleet, gpu, node, spec
from tests.fleet.test_schedule import after

from nebula_router.fleet.placing.site import gpus_of
from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import Assignment, ModelSpec, NodeStatus, Pool, Role
from nebula_router.fleet.schedule import plan, wanted_replicas

NODES = ("a", "b", "c")
UIDS = ("m", "n", "o")

gpus = st.builds(gpu, st.just(0), st.sampled_from([24, 48, 80]), st.sampled_from([0, 1, 20]))


@st.composite
def node_of(draw: st.DrawFn, node_id: str) -> NodeStatus:
    found = draw(st.lists(gpus, max_size=4))
    numbered = [one.model_copy(update={"index": index}) for index, one in enumerate(found)]
    ports = draw(st.sampled_from([(10814, 10815), (10814, 10817), None]))
    return node(node_id, *numbered, ports=ports, draining=draw(st.booleans()), host=draw(st.sampled_from([None, "h"])))


pools = st.builds(
    Pool,
    replicas=st.integers(0, 3),
    gpus_per_replica=st.integers(0, 2),
    required_vram_mb=st.sampled_from([None, 1000, 22_000, 40_000]),
    node_id=st.sampled_from([None, None, None, *NODES]),
    port=st.sampled_from([None, None, None, 10815]),
    engine_args=st.sampled_from([{}, {"a": 1}]),
    force=st.just(False),
)


@st.composite
def spec_of(draw: st.DrawFn, uid: str) -> ModelSpec:
    roles = draw(st.sampled_from([(Role.UNIFIED,), (Role.PREFILL, Role.DECODE)]))
    return ModelSpec(model_uid=uid, model_name=uid, pools={role: draw(pools) for role in roles})


@st.composite
def fleets(draw: st.DrawFn) -> Snapshot:
    nodes = [draw(node_of(node_id)) for node_id in draw(st.sets(st.sampled_from(NODES)))]
    specs = [draw(spec_of(uid)) for uid in draw(st.sets(st.sampled_from(UIDS), min_size=1))]
    return fleet(nodes, *specs)


terms = st.fixed_dictionaries(
    {"strategy": st.sampled_from(["spread", "pack"]), "lost": st.sets(st.sampled_from(NODES), max_size=2)}
)
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def applied(now: Snapshot, how: dict[str, Any]) -> Snapshot:
    """The fleet with its plans written; nodes that are lost are not there."""
    present = {name: one for name, one in now.nodes.items() if name not in how["lost"]}
    now = replace(now, nodes=present)
    return after(now, plan(now, **how))


def is_new(a: Assignment, version: int) -> bool:
    return a.since_version == version and not a.draining


def check(before: Snapshot, now: Snapshot) -> None:
    """What holds after a step."""
    hosts = {name: one.host or name for name, one in now.nodes.items()}
    moved = [
        written.model_copy(update={"assignments": tuple(a for a in written.assignments if a.node_id in now.nodes)})
        for written in now.plans.values()
    ]
    assert doubles(moved) == []
    ports: list[tuple[str, int | None]] = [
        (hosts[a.node_id], a.port) for written in moved for a in written.assignments if a.port is not None
    ]
    fresh = [a for uid, w in now.plans.items() for a in w.assignments if before.plans.get(uid) != w and a.port]
    assert all(ports.count((hosts[a.node_id], a.port)) == 1 for a in fresh if is_new(a, 1) and a.node_id in hosts)
    for uid, written in now.plans.items():
        was = before.plans.get(uid)
        if written is was:
            continue
        for a in written.assignments:
            if not is_new(a, written.version):
                continue
            pool = now.specs[uid].pools[a.role]
            there = now.nodes[a.node_id]
            assert len(a.gpus) == gpus_of(pool)
            assert there.ports is None or (a.port is not None and there.ports[0] <= a.port <= there.ports[1])
            assert pool.node_id in {None, a.node_id}
            own = next((b for b in (was.assignments if was else ()) if b.replica_id == a.replica_id), None)
            for index in set(a.gpus) - set(own.gpus if own and own.node_id == a.node_id else ()):
                size = there.gpus[index]
                assert size.memory_total_mb - size.memory_used_mb >= (pool.required_vram_mb or 0)


@quick
@given(fleets(), terms)
def test_no_gpu_or_port_twice_and_never_over_memory(first: Snapshot, how: dict[str, Any]) -> None:
    first = replace(first, nodes={n: one for n, one in first.nodes.items() if n not in how["lost"]})
    check(first, after(first, plan(first, **how)))


@quick
@given(fleets(), terms, fleets(), terms)
def test_the_same_through_changes_of_nodes_and_models(
    first: Snapshot, how: dict[str, Any], second: Snapshot, then: dict[str, Any]
) -> None:
    now = applied(first, how)
    changed = replace(now, nodes=second.nodes, specs={**now.specs, **second.specs})
    changed = replace(changed, nodes={n: one for n, one in changed.nodes.items() if n not in then["lost"]})
    check(changed, after(changed, plan(changed, **then)))


@quick
@given(fleets(), terms, fleets(), terms)
def test_planning_again_changes_nothing(
    first: Snapshot, how: dict[str, Any], second: Snapshot, then: dict[str, Any]
) -> None:
    now = applied(first, how)
    now = applied(replace(now, nodes=second.nodes, specs={**now.specs, **second.specs}), then)
    assert [uid for uid, outcome in plan(now, **then).items() if outcome.changed] == []


@quick
@given(fleets(), terms, terms)
def test_what_runs_on_a_node_that_is_there_stays(first: Snapshot, how: dict[str, Any], then: dict[str, Any]) -> None:
    now = applied(first, how)
    for uid, written in applied(now, then).plans.items():
        later = {a.replica_id: a for a in written.assignments}
        for a in now.plans[uid].assignments:
            if a.node_id not in then["lost"]:
                assert later[a.replica_id] == a


@quick
@given(fleets(), terms)
def test_each_replica_that_is_wanted_has_a_place_or_a_reason(first: Snapshot, how: dict[str, Any]) -> None:
    now = replace(first, nodes={n: one for n, one in first.nodes.items() if n not in how["lost"]})
    for uid, outcome in plan(now, **how).items():
        wanted = sum(wanted_replicas(pool) for pool in now.specs[uid].pools.values())
        assert len(outcome.plan.assignments) + len(outcome.refusals) == wanted
        reasons = outcome.plan.reasons or {}
        assert all(len(text) > 10 for text in [*outcome.refusals.values(), *reasons.values()])
        assert set(reasons) == {str(a.replica_id) for a in outcome.plan.assignments} | {
            str(replica_id) for replica_id in outcome.refusals
        }
        for why in outcome.refusals.values():
            looked_at = {pool.node_id for pool in now.specs[uid].pools.values() if pool.node_id}
            assert any(f"{name}: " in why for name in now.nodes) or not now.nodes or looked_at - set(now.nodes)


@quick
@given(fleets(), terms, fleets())
def test_versions_grow_by_one(first: Snapshot, how: dict[str, Any], second: Snapshot) -> None:
    now = applied(first, how)
    later = applied(replace(now, nodes=second.nodes, specs={**now.specs, **second.specs}), how)
    for uid, written in later.plans.items():
        was = now.plans.get(uid)
        assert written.version - (was.version if was else 0) in ({1} if was is None else {0, 1})
        assert (was is not None and written.version == was.version) == (written == was)


@pytest.mark.parametrize("count", [40])
def test_a_large_fleet_is_planned(count: int) -> None:
    nodes = [node(f"n{i}", *(gpu(g, 80) for g in range(8))) for i in range(count)]
    models = [spec(f"m{i}", replicas=2, gpus_per_replica=4) for i in range(count)]
    outcomes = plan(fleet(nodes, *models))
    assert doubles([outcome.plan for outcome in outcomes.values()]) == []
    assert all(not outcome.refusals for outcome in outcomes.values())
