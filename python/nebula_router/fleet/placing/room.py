"""What of the nodes' GPUs and ports is taken while a plan is made. No I/O.

A GPU belongs to one replica at most. It is told apart by its uuid where that is known, so that two nodes which see the
same GPU of a machine do not get it twice; ports are a machine's, too. Invented GPUs have no
uuid: they are each node's own.

`memory_used_mb` of a node counts whoever uses a GPU, engines of this fleet too. A GPU that no placement has is used by
others, or by an engine that is on its way out: all of it counts as taken, so nothing starts into memory that is not
free yet. A GPU that a replica has already, and is to keep with other settings, has the replica's own engine in it: what
that was booked for does not count against it.
"""

from collections import Counter
from collections.abc import Collection
from typing import Final

from nebula_router.fleet.placing.snapshot import Replica, Snapshot
from nebula_router.fleet.records import Assignment, GpuStatus, NodeStatus

_UNKNOWN_PORTS: Final = (0, -1)


class Room:
    """GPUs and ports of a fleet, and which replicas have them."""

    def __init__(self, fleet: Snapshot) -> None:
        self._nodes = fleet.nodes
        self._hosts = fleet.hosts
        self._gpus: dict[str, Replica] = {}
        self._ports: dict[tuple[str, int], Replica] = {}
        self._counts: Counter[str] = Counter()
        self._in_use = {
            (self._host(endpoint.node_id), endpoint.port): replica
            for replica, endpoint in fleet.endpoints.items()
            if endpoint.port is not None
        }

    def book(self, model_uid: str, assignment: Assignment) -> bool:
        """Give a replica the GPUs and the port of its assignment; false, and nothing, where a GPU is taken."""
        replica = (model_uid, assignment.replica_id)
        gpus = {self._gpu(assignment.node_id, index) for index in assignment.gpus}
        if len(gpus) < len(assignment.gpus) or any(self._gpus.get(gpu, replica) != replica for gpu in gpus):
            return False
        self._gpus.update(dict.fromkeys(gpus, replica))
        if assignment.port is not None:
            self._ports.setdefault((self._host(assignment.node_id), assignment.port), replica)
        self._counts[assignment.node_id] += 1
        return True

    def release(self, model_uid: str, assignment: Assignment) -> None:
        """Take back what `book` gave to a replica."""
        replica = (model_uid, assignment.replica_id)
        self._gpus = {gpu: owner for gpu, owner in self._gpus.items() if owner != replica}
        self._ports = {port: owner for port, owner in self._ports.items() if owner != replica}
        self._counts[assignment.node_id] -= 1

    def gpu_owner(self, node_id: str, index: int) -> Replica | None:
        """The replica that has a GPU."""
        return self._gpus.get(self._gpu(node_id, index))

    def free_gpus(self, node: NodeStatus) -> list[GpuStatus]:
        """The node's GPUs that no replica has."""
        return [gpu for gpu in node.gpus if self.gpu_owner(node.node_id, gpu.index) is None]

    def replicas(self, node_id: str) -> int:
        """How many replicas are on the node."""
        return self._counts[node_id]

    def port_owner(self, node: NodeStatus, port: int, replica: Replica) -> Replica | None:
        """Which other replica has a port of the node's machine, or still uses it."""
        place = (self._host(node.node_id), port)
        owners = {self._ports.get(place), self._in_use.get(place)} - {None, replica}
        return next(iter(owners), None)

    def free_port(self, node: NodeStatus, replica: Replica) -> int | None:
        """The node's first port that no other replica has; none where all are taken, or none was announced."""
        first, last = node.ports or _UNKNOWN_PORTS
        return next((port for port in range(first, last + 1) if self.port_owner(node, port, replica) is None), None)

    def _gpu(self, node_id: str, index: int) -> str:
        node = self._nodes.get(node_id)
        uuid = next((gpu.uuid for gpu in node.gpus if gpu.index == index), None) if node else None
        return uuid or f"{node_id} {index}"

    def _host(self, node_id: str) -> str:
        return self._hosts.get(node_id, node_id)


def free_mb(gpu: GpuStatus, own_mb: int = 0) -> int:
    """Memory that is free of a GPU, what is booked for the asking replica itself not counted as used."""
    return max(0, gpu.memory_total_mb - max(0, gpu.memory_used_mb - own_mb))


def group(gpus: Collection[GpuStatus], count: int) -> tuple[GpuStatus, ...]:
    """The `count` of these GPUs that belong together: most NVLink links, then one size, then neighbours by index.

    Grown from each GPU in turn by the one that fits best. Cost: O(n^2 * count^2), n the GPUs of a node.
    """
    grown = [_grown(seed, gpus, count) for seed in gpus] if len(gpus) >= count > 0 else []
    return max(grown, key=_closeness, default=())


def _grown(seed: GpuStatus, gpus: Collection[GpuStatus], count: int) -> tuple[GpuStatus, ...]:
    found = [seed]
    while len(found) < count:
        left = (gpu for gpu in gpus if gpu not in found)
        found.append(max(left, key=lambda gpu: _closeness((*found, gpu))))
    return tuple(sorted(found, key=lambda gpu: gpu.index))


def _closeness(gpus: tuple[GpuStatus, ...]) -> tuple[int, int, int, int, int]:
    """Pairs that are linked, links, GPUs of another size (less is better), the span and the place of the indexes."""
    links = [(a.links or {}).get(b.index, 0) for a in gpus for b in gpus if a.index < b.index]
    sizes = len({gpu.memory_total_mb for gpu in gpus})
    indexes = [gpu.index for gpu in gpus]
    return sum(link > 0 for link in links), sum(links), -sizes, min(indexes) - max(indexes), -min(indexes)
