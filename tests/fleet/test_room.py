import pytest
from tests.fleet.fleets import endpoint, fleet, gpu, node

from nebula_router.fleet.placing.room import Room, free_mb, group
from nebula_router.fleet.records import Assignment, PlacementPlan


def at(node_id: str, *gpus: int, replica_id: int = 0, port: int | None = None) -> Assignment:
    return Assignment(replica_id=replica_id, node_id=node_id, gpu_indices=gpus, port=port)


def test_a_gpu_is_given_once() -> None:
    room = Room(fleet([node("a", gpu(0), gpu(1))]))
    assert room.book("x", at("a", 0))
    assert not room.book("y", at("a", 0, 1))
    assert room.book("y", at("a", 1))
    room.release("x", at("a", 0))
    assert room.book("z", at("a", 0))
    assert not room.book("w", at("a", 0, 0))


def test_a_gpu_that_two_nodes_see_is_one() -> None:
    twins = [node(name, gpu(0, uuid="GPU-1"), host="10.0.0.1") for name in ("a", "b")]
    room = Room(fleet(twins))
    assert room.book("x", at("a", 0))
    assert not room.book("y", at("b", 0))
    assert room.free_gpus(twins[1]) == []


def test_gpus_without_a_uuid_are_each_nodes_own() -> None:
    room = Room(fleet([node(name, gpu(0)) for name in ("a", "b")]))
    assert room.book("x", at("a", 0))
    assert room.book("y", at("b", 0))


def test_ports_are_a_machines() -> None:
    one, other, far = node("a", host="10.0.0.1"), node("b", host="10.0.0.1"), node("c", host="10.0.0.2")
    room = Room(fleet([one, other, far]))
    room.book("x", at("a", port=10814))
    assert room.free_port(other, ("y", 0)) == 10815
    assert room.free_port(far, ("y", 0)) == 10814
    assert room.port_owner(other, 10814, ("y", 0)) == ("x", 0)
    assert room.port_owner(one, 10814, ("x", 0)) is None


def test_a_port_that_an_engine_has_is_taken_whatever_its_placement_says() -> None:
    plan = PlacementPlan(model_uid="x", model_name="x", version=1)
    moved = endpoint(plan, at("a", port=10820))
    one = node("a")
    room = Room(fleet([one], endpoints={("x", 0): moved}))
    assert room.port_owner(one, 10820, ("y", 0)) == ("x", 0)
    full = node("d", ports=(10820, 10820), host="a")
    assert Room(fleet([one, full], endpoints={("x", 0): moved})).free_port(full, ("y", 0)) is None


def test_memory_that_its_own_engine_uses_is_free_for_a_replica() -> None:
    assert free_mb(gpu(0, 24, 22)) == 2 * 1024
    assert free_mb(gpu(0, 24, 22), own_mb=22 * 1024) == 24 * 1024
    assert free_mb(gpu(0, 24, 23), own_mb=22 * 1024) == 23 * 1024


def linked(*pairs: tuple[int, int], count: int) -> list[dict[int, int]]:
    links: list[dict[int, int]] = [{} for _ in range(count)]
    for a, b in pairs:
        links[a][b] = links[b][a] = 4
    return links


@pytest.mark.parametrize(
    ("pairs", "count", "chosen"),
    [
        ([(0, 2), (1, 3)], 2, (0, 2)),
        ([(1, 3)], 2, (1, 3)),
        ([], 2, (0, 1)),
        ([(0, 1), (2, 3), (1, 2), (0, 3), (0, 2), (1, 3)], 4, (0, 1, 2, 3)),
    ],
)
def test_gpus_with_links_go_together(pairs: list[tuple[int, int]], count: int, chosen: tuple[int, ...]) -> None:
    gpus = [gpu(i, links=links) for i, links in enumerate(linked(*pairs, count=4))]
    assert tuple(g.index for g in group(gpus, count)) == chosen


def test_without_links_gpus_of_one_size_and_neighbours_go_together() -> None:
    mixed = [gpu(0, 24), gpu(1, 80), gpu(2, 24), gpu(3, 24)]
    assert [g.index for g in group(mixed, 2)] == [2, 3]
    assert group(mixed, 5) == ()
