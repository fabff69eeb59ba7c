"""Where a replica can go: one node after the other is looked at, and says why not. No I/O."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from nebula_router.fleet.model.vram import MIB, UTILIZATION, gib, stored_need
from nebula_router.fleet.placing.room import Room, free_mb, group
from nebula_router.fleet.placing.snapshot import Replica
from nebula_router.fleet.records import Assignment, GpuStatus, NodeStatus, Pool

Strategy = Literal["spread", "pack"]

_NAMED: Final = 4
"""Replicas that a reason names, at most."""


@dataclass(frozen=True)
class Wanted:
    """A replica that needs a place."""

    replica: Replica
    pool: Pool
    beside: Collection[str] = ()
    """Nodes that have other replicas of the model, one entry for each."""
    before: Assignment | None = None
    """Where it is now, if anywhere: it stays on that node if it can."""

    @property
    def gpus(self) -> int:
        """How many GPUs it needs."""
        return gpus_of(self.pool)


@dataclass(frozen=True)
class Site:
    """A place for a replica."""

    node_id: str
    gpus: tuple[int, ...]
    port: int | None
    why: str


@dataclass(frozen=True)
class Refusal:
    """Why there is no place."""

    why: str


def gpus_of(pool: Pool) -> int:
    """GPUs of one replica."""
    return pool.tensor_parallel_size if pool.gpus_per_replica is None else pool.gpus_per_replica


def find_site(nodes: Iterable[NodeStatus], room: Room, wanted: Wanted, strategy: Strategy) -> Site | Refusal:
    """The best place for a replica, with the reason; or why each node has none.

    Cost: O(nodes), and for several GPUs what `group` costs on each.
    """
    known = sorted(nodes, key=lambda node: node.node_id)
    asked = [node for node in known if wanted.pool.node_id in {None, node.node_id}]
    if not asked:
        return Refusal(_nobody(wanted.pool.node_id, known))
    found: list[_Place] = []
    passed: list[str] = []
    for node in asked:
        place = _look(node, room, wanted)
        if isinstance(place, _Place):
            found.append(place)
        else:
            passed.append(f"{node.node_id}: {place.why}")
    if not found:
        need = stored_need(wanted.pool.vram)
        head = need.arithmetic() if need else _needs(wanted.pool)
        return Refusal("; ".join([head, *passed]))
    best = min(found, key=lambda place: _rank(place.node, room, wanted, strategy))
    gpus = _chosen(best, wanted, strategy)
    why = _where(best, gpus) + _because(wanted, len(found), strategy)
    return Site(best.node.node_id, tuple(gpu.index for gpu in gpus), best.port, "; ".join([why, *passed]))


@dataclass(frozen=True)
class _Place:
    """A node that has room."""

    node: NodeStatus
    gpus: tuple[GpuStatus, ...]
    """Those that would do, to choose from."""
    port: int | None


def _nobody(pin: str | None, known: list[NodeStatus]) -> str:
    names = ", ".join(node.node_id for node in known)
    if pin is None:
        return "no node has announced itself (`nebula node` starts one)"
    return f"node {pin} has not announced itself (known nodes: {names or 'none'})"


def _needs(pool: Pool) -> str:
    count = gpus_of(pool)
    if not count:
        return "it needs no GPU"
    memory = f" with {pool.required_vram_mb / 1024:.1f} GiB each" if pool.required_vram_mb else ""
    return f"it needs {count} GPU{'s' if count > 1 else ''}{memory}"


def _look(node: NodeStatus, room: Room, wanted: Wanted) -> _Place | Refusal:
    """The room on one node, or what is missing there."""
    before = _before(node, wanted)
    if node.draining and before is None:
        return Refusal("it is draining")
    gpus = _gpus(node, room, wanted)
    if isinstance(gpus, Refusal):
        return gpus
    port = _port(node, room, wanted)
    return port if isinstance(port, Refusal) else _Place(node, gpus, port)


def _before(node: NodeStatus, wanted: Wanted) -> Assignment | None:
    """What the replica has on this node now."""
    return wanted.before if wanted.before and wanted.before.node_id == node.node_id else None


def _gpus(node: NodeStatus, room: Room, wanted: Wanted) -> tuple[GpuStatus, ...] | Refusal:
    """The node's GPUs that would do, if there are enough of them."""
    count, before = wanted.gpus, _before(node, wanted)
    if count == 0:
        return ()
    free = room.free_gpus(node)
    if len(free) < count:
        return Refusal(_too_few(node, room, count))
    short = {gpu.index: _shortage(wanted.pool, gpu, before) for gpu in free}
    fit = [gpu for gpu in free if short[gpu.index] is None]
    if len(fit) >= count:
        return tuple(fit)
    if wanted.pool.force:
        return tuple(free)
    largest = max(free, key=lambda gpu: (short[gpu.index] is not None, free_mb(gpu), -gpu.index))
    head = "the largest free GPU"
    if fit:
        head = f"{len(fit)} of its {len(free)} free GPUs are large enough, {count} are needed, the next largest"
    return Refusal(f"{head}: {short[largest.index]}")


def _chosen(place: _Place, wanted: Wanted, strategy: Strategy) -> tuple[GpuStatus, ...]:
    """Those that it has, else the largest or the smallest, else those that belong together."""
    before = _before(place.node, wanted)
    mine = tuple(gpu for gpu in place.gpus if before is not None and gpu.index in before.gpus)
    if len(mine) == wanted.gpus:
        return mine
    if wanted.gpus > 1:
        return group(place.gpus, wanted.gpus)
    sign = 1 if strategy == "pack" else -1
    return (min(place.gpus, key=lambda gpu: (sign * free_mb(gpu), gpu.index)),)


def _where(place: _Place, gpus: tuple[GpuStatus, ...]) -> str:
    at = ", ".join(f"{gpu.index} ({_memory(gpu)})" for gpu in gpus)
    words = [f"on {place.node.node_id}"]
    words += [f"GPU{'s' if len(gpus) > 1 else ''} {at}"] if gpus else []
    words += [f"port {place.port}"] if place.port else []
    return ", ".join(words)


def _too_few(node: NodeStatus, room: Room, count: int) -> str:
    have = len(node.gpus)
    if not have:
        return "it has no GPU (--gpus 0 places an engine that needs none)"
    if have < count:
        return f"it has {have} GPU{'s' if have > 1 else ''}, {count} are needed"
    free = len(room.free_gpus(node))
    if have == 1:
        return f"its GPU is taken by {_owners(node, room)}"
    if not free:
        return f"its {have} GPUs are taken by {_owners(node, room)}"
    return f"{free} of its {have} GPUs are free, the others are taken by {_owners(node, room)}"


def _shortage(pool: Pool, gpu: GpuStatus, before: Assignment | None) -> str | None:
    """Why the GPU is too small for a replica; none where it is not, or nobody knows what it needs."""
    own = 0
    if before is not None and gpu.index in before.gpus:
        own = max(before.required_vram_mb or 0, ceil(gpu.memory_total_mb * UTILIZATION))
    free = free_mb(gpu, own)
    need = stored_need(pool.vram)
    if need is not None and need.total_mb == pool.required_vram_mb:
        return need.shortage(gpu.memory_total_mb, free)
    if pool.required_vram_mb is not None and pool.required_vram_mb > free:
        return f"{gib(free * MIB)} of {gib(gpu.memory_total_mb * MIB)} GiB are free"
    return None


def _port(node: NodeStatus, room: Room, wanted: Wanted) -> int | Refusal | None:
    pinned, before = wanted.pool.port, _before(node, wanted)
    if pinned is not None:
        owner = room.port_owner(node, pinned, wanted.replica)
        if owner is not None:
            return Refusal(f"port {pinned} is taken by {owner[0]}/{owner[1]}")
        if node.ports and not node.ports[0] <= pinned <= node.ports[1] and not wanted.pool.force:
            return Refusal(f"port {pinned} is not of its engines' ports, {node.ports[0]} to {node.ports[1]}")
        return pinned
    if before is not None and before.port and room.port_owner(node, before.port, wanted.replica) is None:
        return before.port
    port = room.free_port(node, wanted.replica)
    if port is None and node.ports:
        return Refusal(f"all its ports, {node.ports[0]} to {node.ports[1]}, are taken")
    return port


def _rank(node: NodeStatus, room: Room, wanted: Wanted, strategy: Strategy) -> tuple[object, ...]:
    """Less is better. Where it is comes first; replicas of one model part, or keep together."""
    stays = wanted.before is not None and wanted.before.node_id == node.node_id
    siblings = sum(node_id == node.node_id for node_id in wanted.beside)
    free = room.free_gpus(node) if wanted.gpus else []
    if strategy == "pack":
        return (not stays, len(free), -room.replicas(node.node_id), node.node_id)
    memory = sum(free_mb(gpu) for gpu in free)
    others = room.replicas(node.node_id)
    return (not stays, siblings, -len(free), -memory, others, len(node.gpus) if not wanted.gpus else 0, node.node_id)


def _because(wanted: Wanted, found: int, strategy: Strategy) -> str:
    forced = ", though it may not fit (--force)" if wanted.pool.force else ""
    if wanted.pool.node_id is not None:
        return f": as asked{forced}"
    if found == 1:
        return f": the only node with room{forced}"
    word = "fullest" if strategy == "pack" else "emptiest"
    return f": the {word} of {found} nodes with room{forced}"


def _owners(node: NodeStatus, room: Room) -> str:
    owners = sorted({owner for gpu in node.gpus if (owner := room.gpu_owner(node.node_id, gpu.index))})
    named = ", ".join(f"{uid}/{replica}" for uid, replica in owners[:_NAMED])
    return named + (f" and {len(owners) - _NAMED} more" if len(owners) > _NAMED else "")


def _memory(gpu: GpuStatus) -> str:
    return f"{gib(free_mb(gpu) * MIB)} of {gib(gpu.memory_total_mb * MIB)} GiB free"
