from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.fleet.fleets import endpoint, fleet, gpu, node, spec

from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import Assignment, ModelSpec, PlacementPlan, Pool, Role
from nebula_router.fleet.schedule import Outcome, plan


def after(before: Snapshot, outcomes: Mapping[str, Outcome]) -> Snapshot:
    """The fleet once the plans are written."""
    return replace(before, plans={**before.plans, **{uid: outcome.plan for uid, outcome in outcomes.items()}})


def settle(before: Snapshot, **terms: Any) -> Snapshot:
    """The fleet once planned, where planning again changes nothing."""
    then = after(before, plan(before, **terms))
    assert not any(outcome.changed for outcome in plan(then, **terms).values())
    return then


def places(now: Snapshot, uid: str = "m") -> list[tuple[str, tuple[int, ...], int | None]]:
    return [(a.node_id, a.gpus, a.port) for a in now.plans[uid].assignments if not a.draining]


def refused(now: Snapshot, uid: str = "m", **terms: Any) -> str:
    """The one reason of a model that has no place at all."""
    outcome = plan(now, **terms)[uid]
    assert outcome.plan.assignments == ()
    (why,) = set(outcome.refusals.values())
    return why


FREE = "23.5 of 24.0 GiB are free"
NEXT = "2 are needed, the next largest"
TWO = [node("a", gpu(0), gpu(1)), node("b", gpu(0), gpu(1))]


def test_a_first_placement_has_everything_and_a_reason() -> None:
    now = settle(fleet([TWO[0]], spec("m", required_vram_mb=20_000, engine_args={"model": "x"})))
    (only,) = now.plans["m"].assignments
    assert (only.node_id, only.gpus, only.port, only.since_version) == ("a", (0,), 10814, 1)
    assert (only.required_vram_mb, only.engine_args) == (20_000, {"model": "x"})
    assert now.plans["m"].version == 1
    assert now.plans["m"].reasons == {"0": "on a, GPU 0 (23.5 of 24.0 GiB free), port 10814: the only node with room"}


def test_replicas_spread_over_nodes_or_fill_them() -> None:
    wish = fleet(TWO, spec("m", replicas=2))
    assert places(settle(wish)) == [("a", (0,), 10814), ("b", (0,), 10814)]
    assert places(settle(wish, strategy="pack"), "m") == [("a", (0,), 10814), ("a", (1,), 10815)]


def test_packing_takes_the_smallest_gpu_that_suffices() -> None:
    mixed = [node("a", gpu(0, 80), gpu(1, 24))]
    wish = fleet(mixed, spec("m", required_vram_mb=10_000))
    assert places(settle(wish, strategy="pack")) == [("a", (1,), 10814)]
    assert places(settle(wish)) == [("a", (0,), 10814)]


def test_what_is_there_stays_and_keeps_its_version() -> None:
    now = settle(fleet(TWO, spec("m", replicas=1)))
    more = settle(now.with_spec(spec("m", replicas=3)))
    assert more.plans["m"].version == 2
    assert [a.since_version for a in more.plans["m"].assignments] == [1, 2, 2]
    assert places(more)[0] == places(now)[0]


def test_an_assignment_without_a_version_gets_that_of_its_plan_before_the_next_one() -> None:
    written = PlacementPlan(
        model_uid="m",
        model_name="m",
        version=7,
        assignments=(Assignment(replica_id=0, node_id="a", gpu_index=1, port=10814),),
    )
    now = settle(fleet(TWO, spec("m", replicas=2), plans={"m": written}))
    assert now.plans["m"].version == 8
    assert [a.since_version for a in now.plans["m"].assignments] == [7, 8]


def test_a_lost_nodes_replicas_move_and_only_those() -> None:
    now = settle(fleet(TWO, spec("m", replicas=2)))
    gone = replace(now, nodes={"a": TWO[0]})
    assert not plan(gone)["m"].changed
    moved = settle(gone, lost={"b"})
    assert places(moved) == [("a", (0,), 10814), ("a", (1,), 10815)]
    assert [a.since_version for a in moved.plans["m"].assignments] == [1, 2]


def test_a_lost_nodes_replicas_stay_where_nothing_else_has_room() -> None:
    now = settle(fleet([node("a", gpu(0)), node("b", gpu(0))], spec("m", replicas=2)))
    outcome = plan(replace(now, nodes={"a": now.nodes["a"]}), lost={"b"})["m"]
    assert not outcome.changed
    assert outcome.refusals == {1: "it needs 1 GPU; a: its GPU is taken by m/0"}


def test_a_pinned_replica_waits_for_its_node() -> None:
    now = settle(fleet(TWO, spec("m", node_id="b")))
    away = replace(now, nodes={"a": TWO[0]})
    assert not plan(away, lost={"b"})["m"].changed


def test_new_settings_are_given_in_place() -> None:
    now = settle(fleet(TWO, spec("m", replicas=2, engine_args={"a": 1})))
    then = settle(now.with_spec(spec("m", replicas=2, engine_args={"a": 2})))
    assert places(then) == places(now)
    assert [(a.since_version, a.engine_args) for a in then.plans["m"].assignments] == [(2, {"a": 2})] * 2


def test_the_same_settings_from_another_file_are_no_change() -> None:
    now = settle(fleet(TWO, spec("m", engine_args={"a": 1}, engine_config_path="/here.yaml")))
    there = now.with_spec(spec("m", engine_args={"a": 1}, engine_config_path="/there.yaml"))
    assert not plan(there)["m"].changed
    unread = settle(fleet(TWO, spec("m", engine_config_path="/here.yaml")))
    assert plan(unread.with_spec(spec("m", engine_config_path="/there.yaml")))["m"].changed


def test_the_memory_of_its_own_engine_does_not_keep_new_settings_out() -> None:
    now = settle(fleet([node("a", gpu(0))], spec("m", required_vram_mb=20_000)))
    busy = replace(now, nodes={"a": node("a", gpu(0, 24, 22.5))})
    then = settle(busy.with_spec(spec("m", required_vram_mb=21_000, engine_args={"a": 2})))
    assert places(then) == [("a", (0,), 10814)]
    assert then.plans["m"].version == 2


def test_new_settings_that_fit_nowhere_leave_the_replica_as_it_is() -> None:
    now = settle(fleet(TWO, spec("m")))
    outcome = plan(now.with_spec(spec("m", gpus_per_replica=4)))["m"]
    assert not outcome.changed
    assert "4 are needed" in outcome.refusals[0]


def test_new_settings_wait_for_a_missing_node() -> None:
    now = settle(fleet(TWO, spec("m")))
    away = replace(now, nodes={"b": TWO[1]})
    outcome = plan(away.with_spec(spec("m", engine_args={"a": 1})))["m"]
    assert not outcome.changed
    assert outcome.refusals == {0: "its node a is missing; new settings wait for it"}


def test_a_replica_moves_to_the_node_that_it_is_pinned_to() -> None:
    now = settle(fleet(TWO, spec("m")))
    then = settle(now.with_spec(spec("m", node_id="b", port=10820)))
    assert places(then) == [("b", (0,), 10820)]


def test_a_smaller_pool_drains_what_serves_least() -> None:
    now = settle(fleet(TWO, spec("m", replicas=3)))
    written = now.plans["m"]
    ready = {
        ("m", 0): endpoint(written, written.assignments[0], running=1, waiting=0),
        ("m", 1): endpoint(written, written.assignments[1], running=5, waiting=0),
        ("m", 2): endpoint(written, written.assignments[2], running=9, waiting=0),
    }
    then = settle(replace(now, endpoints=ready).with_spec(spec("m", replicas=1)))
    assert [(a.replica_id, a.draining) for a in then.plans["m"].assignments] == [(0, True), (1, True), (2, False)]
    assert [a.since_version for a in then.plans["m"].assignments] == [1, 1, 1]
    last = settle(then, gone={("m", 0)})
    assert [a.replica_id for a in last.plans["m"].assignments] == [1, 2]


def test_a_drained_replica_is_replaced_under_another_id() -> None:
    now = settle(fleet(TWO, spec("m")))
    written = now.plans["m"]
    drained = written.model_copy(
        update={"version": 2, "assignments": (written.assignments[0].model_copy(update={"draining": True}),)}
    )
    then = settle(replace(now, plans={"m": drained}))
    assert [(a.replica_id, a.draining, a.node_id) for a in then.plans["m"].assignments] == [
        (0, True, "a"),
        (1, False, "b"),
    ]


def test_a_draining_node_keeps_what_it_has_and_gets_nothing() -> None:
    now = settle(fleet(TWO, spec("m")))
    drains = replace(now, nodes={"a": node("a", gpu(0), gpu(1), draining=True)})
    assert "it is draining" in "".join(plan(drains.with_spec(spec("m", replicas=2)))["m"].refusals.values())
    assert places(settle(drains)) == [("a", (0,), 10814)]


def test_roles_are_pools_of_their_own() -> None:
    both = ModelSpec(
        model_uid="m", model_name="m", pools={Role.PREFILL: Pool(replicas=1), Role.DECODE: Pool(replicas=2)}
    )
    now = settle(fleet(TWO, both))
    assert [(a.replica_id, a.role) for a in now.plans["m"].assignments] == [
        (0, Role.PREFILL),
        (1, Role.DECODE),
        (2, Role.DECODE),
    ]
    without = settle(now.with_spec(spec("m", Role.DECODE, replicas=2)))
    assert [a.draining for a in without.plans["m"].assignments] == [True, False, False]


def test_a_plan_without_a_spec_is_left_alone_and_what_it_has_is_taken() -> None:
    by_hand = PlacementPlan(
        model_uid="hand",
        model_name="hand",
        version=3,
        assignments=(Assignment(replica_id=0, node_id="a", gpu_indices=(0,), port=10814),),
    )
    now = fleet([TWO[0]], spec("m"), plans={"hand": by_hand})
    outcomes = plan(now)
    assert set(outcomes) == {"m"}
    assert places(settle(now)) == [("a", (1,), 10815)]


def test_two_plans_that_have_one_gpu_are_parted() -> None:
    def written(uid: str) -> PlacementPlan:
        return PlacementPlan(
            model_uid=uid,
            model_name=uid,
            version=1,
            assignments=(Assignment(replica_id=0, node_id="a", gpu_indices=(0,), port=10814),),
        )

    now = settle(fleet([TWO[0]], spec("m"), spec("n"), plans={"m": written("m"), "n": written("n")}))
    assert places(now, "m") == [("a", (0,), 10814)]
    assert places(now, "n") == [("a", (1,), 10815)]


@pytest.mark.parametrize(
    ("pool", "nodes", "why"),
    [
        ({"node_id": "c"}, TWO, "node c has not announced itself (known nodes: a, b)"),
        ({}, [], "no node has announced itself (`nebula node` starts one)"),
        ({}, [node("a")], "it needs 1 GPU; a: it has no GPU (--gpus 0 places an engine that needs none)"),
        ({"gpus_per_replica": 4}, [TWO[0]], "it needs 4 GPUs; a: it has 2 GPUs, 4 are needed"),
        ({}, [node("a", gpu(0), draining=True)], "it needs 1 GPU; a: it is draining"),
        (
            {"required_vram_mb": 30_000},
            TWO,
            f"it needs 1 GPU with 29.3 GiB each; a: the largest free GPU: {FREE}; b: the largest free GPU: {FREE}",
        ),
        (
            {"required_vram_mb": 30_000, "gpus_per_replica": 2},
            [node("a", gpu(0), gpu(1, 48))],
            f"it needs 2 GPUs with 29.3 GiB each; a: 1 of its 2 free GPUs are large enough, {NEXT}: {FREE}",
        ),
        ({"port": 9000}, [TWO[0]], "it needs 1 GPU; a: port 9000 is not of its engines' ports, 10814 to 10877"),
    ],
)
def test_a_refusal_says_why_of_each_node(pool: dict[str, Any], nodes: list[Any], why: str) -> None:
    assert refused(fleet(nodes, spec("m", **pool))) == why


def test_memory_that_others_use_is_not_free() -> None:
    assert "2.0 of 24.0 GiB are free" in refused(fleet([node("a", gpu(0, 24, 22))], spec("m", required_vram_mb=4096)))


def test_ports_run_out_and_conflict() -> None:
    small = node("a", gpu(0), gpu(1), ports=(10814, 10814))
    now = settle(fleet([small], spec("m")))
    assert refused(now.with_spec(spec("n")), "n") == "it needs 1 GPU; a: all its ports, 10814 to 10814, are taken"
    assert refused(now.with_spec(spec("n", port=10814)), "n") == "it needs 1 GPU; a: port 10814 is taken by m/0"
    silent = node("b", gpu(0), ports=None)
    assert places(settle(fleet([silent], spec("m")))) == [("b", (0,), None)]


def test_force_overrides_memory_and_never_a_gpu() -> None:
    wish = spec("m", required_vram_mb=80_000, force=True)
    now = settle(fleet([node("a", gpu(0, 24), gpu(1, 48))], wish))
    assert places(now) == [("a", (1,), 10814)]
    assert "--force" in (now.plans["m"].reasons or {})["0"]
    taken = settle(fleet([node("a", gpu(0))], spec("m")))
    assert "taken by m/0" in refused(taken.with_spec(spec("n", force=True)), "n")


def test_an_engine_without_a_gpu_goes_where_there_is_least() -> None:
    nodes = [node("a", gpu(0)), node("b"), node("c")]
    now = settle(fleet(nodes, spec("m", replicas=3, gpus_per_replica=0)))
    assert [place[0] for place in places(now)] == ["b", "c", "a"]
    assert all(place[1] == () for place in places(now))


def test_a_larger_model_is_placed_before_a_smaller_one() -> None:
    now = settle(fleet([TWO[0]], spec("a_small"), spec("b_large", gpus_per_replica=2)))
    assert places(now, "b_large") == [("a", (0, 1), 10814)]
    assert now.plans["a_small"].assignments == ()
    assert "taken by b_large/0" in (now.plans["a_small"].reasons or {})["0"]


def test_a_refusal_is_written_once_whatever_its_figures() -> None:
    now = settle(fleet([node("a", gpu(0, 24, 1))], spec("m", required_vram_mb=30_000)))
    later = replace(now, nodes={"a": node("a", gpu(0, 24, 2))})
    assert not plan(later)["m"].changed
    mended = settle(replace(now, nodes={"a": node("a", gpu(0, 80, 2))}))
    assert mended.plans["m"].version == 2


def test_bounds_hold_the_number_of_replicas() -> None:
    now = settle(fleet(TWO, spec("m", replicas=1, min_replicas=2, max_replicas=3)))
    assert len(places(now)) == 2
    assert len(places(settle(fleet(TWO, spec("m", replicas=9, min_replicas=2, max_replicas=3))))) == 3
