"""What people are told of a fleet, and what they may order: documents that become JSON and tables."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nebula_router.fleet.records import Role

ReplicaWord = Literal["ready", "starting", "unhealthy", "draining", "drained", "planned", "failed", "lost", "unplaced"]
ModelWord = Literal["ready", "partial", "starting", "failed", "stopped", "unloading"]
NodeWord = Literal["ready", "draining", "lost"]


class Document(BaseModel):
    """What a gateway or the command line answers with; fields that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ReplicaRow(Document):
    """One replica: planned, running, or left over from an older plan."""

    model_uid: str
    replica_id: int
    role: Role = Role.UNIFIED
    node_id: str | None = None
    """None where no node has room for it."""
    gpus: tuple[int, ...] = ()
    port: int | None = None
    base_url: str | None = None
    status: ReplicaWord
    """Its endpoint's; else `planned` (not announced yet), `drained`, `failed`, `lost` (with its node), `unplaced`."""
    current: bool = True
    """Whether the plan means it as it is; a leftover gets no requests."""
    draining: bool = False
    """Whether it gets no new requests by the plan's word."""
    plan_version: int | None = None
    """Of its endpoint; without one, of the plan."""
    required_vram_mb: int | None = None
    kv_usage: float | None = None
    waiting: int | None = None
    running: int | None = None
    ttft_ms: float | None = None
    why: str | None = None
    """Why it does not run, else why it is where it is."""

    @property
    def name(self) -> str:
        """As people call it."""
        return f"{self.model_uid}/{self.replica_id}"

    @property
    def serves(self) -> bool:
        """Whether it gets new requests."""
        return self.status == "ready" and self.current and not self.draining


class PoolRow(Document):
    """The replicas of one role of a model."""

    role: Role
    wanted: int
    ready: int
    min_replicas: int | None = None
    max_replicas: int | None = None


class ModelRow(Document):
    """One model, with what is wanted and what there is."""

    model_uid: str
    model_name: str
    status: ModelWord
    wanted: int
    ready: int
    plan_version: int | None = None
    pools: tuple[PoolRow, ...] = ()
    request: str | None = None
    """How far the last request for it is, where one is kept."""
    why: str | None = None
    """What keeps it from being ready."""


class GpuRow(Document):
    """One GPU of a node."""

    index: int
    name: str | None = None
    memory_total_mb: int
    memory_used_mb: int
    booked_mb: int = 0
    """Of its replicas, by their plans."""
    utilization_gpu: int | None = None
    temperature_c: int | None = None
    replicas: tuple[str, ...] = ()


class NodeRow(Document):
    """One machine."""

    node_id: str
    status: NodeWord
    host: str | None = None
    version: str | None = None
    heartbeat_age_ms: int | None = None
    ports: tuple[int, int] | None = None
    gpus: tuple[GpuRow, ...] = ()
    replicas: tuple[str, ...] = ()
    errors: dict[str, str] = {}


class Models(Document):
    """Every model."""

    models: tuple[ModelRow, ...]


class Nodes(Document):
    """Every node."""

    nodes: tuple[NodeRow, ...]


class Placements(Document):
    """Every replica."""

    replicas: tuple[ReplicaRow, ...]


class FleetStatus(Document):
    """The whole fleet in brief."""

    wanted: int
    ready: int
    models: tuple[ModelRow, ...] = ()
    nodes: tuple[NodeRow, ...] = ()
    problems: tuple[str, ...] = ()
    """What somebody should look at, one sentence each."""


class Done(Document):
    """What an order led to."""

    text: str
    """One sentence on what was written."""
    model_uid: str | None = None
    request_id: str | None = None
    notes: tuple[str, ...] = ()
    """What whoever gave the order had better know."""
    refused: dict[str, str] = {}
    """Replicas that have no room, each with why."""


class Order(BaseModel):
    """What somebody asks for; a name that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ScaleOrder(Order):
    """How many replicas a model is to have."""

    replicas: int | None = Field(None, ge=0, le=10_000)
    role: Role | None = None
    """Needed where the model has several pools."""
    min_replicas: int | None = Field(None, ge=0, le=10_000)
    max_replicas: int | None = Field(None, ge=0, le=10_000)


class DrainOrder(Order):
    """Whether a replica gets no new requests."""

    replica_id: int = Field(ge=0)
    on: bool = True


class NodeDrainOrder(Order):
    """Whether a node is to be emptied."""

    on: bool = True
