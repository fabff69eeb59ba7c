"""What the store holds: keys, and records as JSON. Fields that this version does not know are kept as they are.

======================================  =================  ========================================================
key, under the store's prefix           record             written by
======================================  =================  ========================================================
`/nodes/{node_id}/status`               `NodeStatus`       the node, every few seconds, under its lease
`/nodes/{node_id}/drain`                `NodeDrain`        whoever wants a node empty; it outlives the node
`/models/{model_uid}/spec`              `ModelSpec`        whoever asks for a model
`/placements/{model_uid}`               `PlacementPlan`    a scheduler, by compare-and-swap alone
`/endpoints/{model_uid}/{replica_id}`   `EndpointInfo`     the node that runs the replica, under its lease
`/model_requests/{id}`                  `ModelRequest`     whoever asks; a scheduler moves its status
======================================  =================  ========================================================

Times are Unix time in milliseconds, memory is in MiB (`_mb`).
"""

import re
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

NODES: Final = "/nodes/"
MODELS: Final = "/models/"
PLACEMENTS: Final = "/placements/"
ENDPOINTS: Final = "/endpoints/"
MODEL_REQUESTS: Final = "/model_requests/"

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

R = TypeVar("R", bound="Record")


class RecordError(ValueError):
    """A stored value that is not the record which its key promises."""


def checked_id(text: str) -> str:
    """The text, if it can name a node or a model in a key.

    Raises:
        ValueError: It is empty, too long, or has a character that a key or a file name had better not have.
    """
    if _ID.fullmatch(text) is None:
        raise ValueError(
            f"{text!r} cannot be a name here: letters, digits, '.', '_' and '-', at most 128, beginning with a letter "
            "or digit"
        )
    return text


Id = Annotated[str, AfterValidator(checked_id)]


class Record(BaseModel):
    """A stored record: frozen; unknown fields stay, so that an older version does not drop what a newer one wrote."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def stored(self) -> bytes:
        """The record as it is stored; fields without a value are left out."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def parsed(cls, value: bytes, key: str) -> Self:
        """The record in a stored value.

        Raises:
            RecordError: It is none of this kind; the message names the key and every field that is wrong.
        """
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
            raise RecordError(f"{key}: not a {cls.__name__}: {wrong}") from None


class Role(str, Enum):
    """What an engine does of a request."""

    UNIFIED = "unified"
    PREFILL = "prefill"
    DECODE = "decode"


class GpuStatus(Record):
    """One GPU of a node, as it was when the node last said so."""

    index: int = Field(ge=0)
    memory_total_mb: int = Field(ge=0)
    memory_used_mb: int = Field(0, ge=0)
    temperature_c: int | None = None
    utilization_gpu: int | None = None
    uuid: str | None = None
    name: str | None = None
    links: dict[int, int] | None = None
    """NVLink links to other GPUs of the node, by their index; none where unknown."""


class NodeStatus(Record):
    """A machine that runs engines. Its lease ends with it: no record, no node."""

    node_id: Id
    last_heartbeat_ms: int
    gpus: tuple[GpuStatus, ...] = ()
    api_addr: str | None = None
    host: str | None = None
    """Where its engines can be reached."""
    ports: tuple[int, int] | None = None
    """First and last port that its engines may have."""
    version: str | None = None
    errors: dict[str, str] | None = None
    """Why a replica does not run, by `model_uid/replica_id`."""
    draining: bool = False
    """Whether it gets no new replicas, by its own word; a `NodeDrain` says the same from outside."""


class NodeDrain(Record):
    """Somebody's wish that a node gets no new replicas. The node rewrites its own record, so this has its own key."""

    node_id: Id
    since_ms: int


class Assignment(Record):
    """One replica on one node."""

    replica_id: int = Field(ge=0)
    node_id: Id
    engine_config_path: str | None = None
    port: int | None = Field(None, ge=1, le=65535)
    """The port that it should have; the node takes the next free one where that is taken."""
    gpu_index: int | None = None
    gpu_indices: tuple[int, ...] | None = None
    extra_args: tuple[str, ...] | None = None
    engine_type: str | None = None
    docker_image: str | None = None
    role: Role = Role.UNIFIED
    engine_args: dict[str, Any] | None = None
    """The engine's settings as its YAML has them; without them the node reads `engine_config_path`."""
    env: dict[str, str] | None = None
    required_vram_mb: int | None = None
    """What it takes of each of its GPUs."""
    since_version: int | None = None
    """Plan version in which the assignment took its present form; without it, that of the plan."""
    draining: bool = False
    """Whether the replica gets no new requests; it goes with a later plan."""

    @property
    def gpus(self) -> tuple[int, ...]:
        """The node's GPUs that it has, by index."""
        if self.gpu_indices is not None:
            return self.gpu_indices
        return () if self.gpu_index is None else (self.gpu_index,)


class PlacementPlan(Record):
    """Where a model's replicas are to run. `version` grows by one with each change."""

    request_id: str | None = None
    model_uid: Id
    model_name: str
    version: int = Field(ge=1)
    assignments: tuple[Assignment, ...] = ()
    reasons: dict[str, str] | None = None
    """Why each replica is where it is, or why one is not, by replica id."""

    @cached_property
    def by_replica(self) -> dict[int, Assignment]:
        """The assignments by their replica's id."""
        return {assignment.replica_id: assignment for assignment in self.assignments}

    def since(self, assignment: Assignment) -> int:
        """The plan version from which an endpoint of the assignment is current."""
        return self.version if assignment.since_version is None else assignment.since_version


class EndpointStatus(str, Enum):
    """Whether an endpoint can be used."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"


class EngineStats(Record):
    """What a node read of an engine's metrics."""

    kv_usage: float | None = None
    """Share of the KV cache in use, 0 to 1; the fullest rank's."""
    waiting: int | None = None
    running: int | None = None
    ttft_ms: float | None = None
    """Mean time to first token since the last heartbeat."""
    read_at_ms: int | None = None


class EndpointInfo(Record):
    """A replica's engine as its node announces it."""

    model_uid: Id
    replica_id: int = Field(ge=0)
    plan_version: int = Field(ge=0)
    """The plan version that the engine was started, or left running, for."""
    node_id: Id
    endpoint_kind: Literal["native_http", "grpc_shim"] = "native_http"
    api_flavor: str = "openai"
    status: EndpointStatus
    last_heartbeat_ms: int
    grpc_target: str | None = None
    base_url: str | None = None
    role: Role = Role.UNIFIED
    port: int | None = None
    served_names: tuple[str, ...] = ()
    """Names by which the engine itself knows its model."""
    ranks: int = Field(1, ge=1)
    events: str | None = None
    """Where rank 0 publishes KV events, `tcp://host:port`; none where it does not."""
    events_replay: str | None = None
    events_topic: str | None = None
    side_channel: str | None = None
    """`host:port` of the hand-off handshake (NIXL) of rank 0."""
    stats: EngineStats | None = None

    def is_current(self, plan: PlacementPlan | None) -> bool:
        """Whether the plan still means this replica, where and as it runs: all others are leftovers.

        An endpoint that is newer than the plan is current too where the plan has it: news of the two come separately.
        """
        assignment = None if plan is None else plan.by_replica.get(self.replica_id)
        return (
            plan is not None
            and assignment is not None
            and assignment.node_id == self.node_id
            and self.plan_version >= plan.since(assignment)
        )


class Pool(Record):
    """The replicas of one role of a model, and what each of them is."""

    replicas: int = Field(1, ge=0)
    min_replicas: int | None = Field(None, ge=0)
    max_replicas: int | None = Field(None, ge=0)
    """With both bounds, the scheduler chooses within them by load; else `replicas` stands."""
    target_ttft_ms: float | None = None
    engine_config_path: str | None = None
    engine_args: dict[str, Any] = {}
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    engine_type: str | None = None
    docker_image: str | None = None
    tensor_parallel_size: int = Field(1, ge=1)
    gpus_per_replica: int | None = Field(None, ge=0)
    """Tensor x pipeline x data parallel, or as given; none counts `tensor_parallel_size`."""
    required_vram_mb: int | None = Field(None, ge=0)
    """Memory that a replica takes of each of its GPUs."""
    vram: dict[str, Any] | None = None
    """How that came about, term by term, to show to people."""
    node_id: Id | None = None
    port: int | None = Field(None, ge=1, le=65535)
    force: bool = False
    """Whether it is placed even where it does not fit."""
    scaled_at_ms: int | None = None
    """When a scheduler last changed `replicas` by load."""


class ModelSpec(Record):
    """A model that somebody wants to run. `pools` is by role."""

    model_uid: Id
    model_name: str
    pools: dict[Role, Pool]


class ModelRequest(Record):
    """What somebody asked for, and how far that is. `status` is a word, or `{"Failed": "why"}`."""

    id: Id
    request: ModelSpec
    status: Literal["Pending", "Scheduled", "Running", "Unloading"] | dict[Literal["Failed"], str]
    created_at_ms: int


def node_key(node_id: str) -> str:
    """Where a node's status is."""
    return f"{NODES}{node_id}/status"


def drain_key(node_id: str) -> str:
    """Where the wish is that a node be drained."""
    return f"{NODES}{node_id}/drain"


def spec_key(model_uid: str) -> str:
    """Where a model's spec is."""
    return f"{MODELS}{model_uid}/spec"


def placement_key(model_uid: str) -> str:
    """Where a model's placement is."""
    return f"{PLACEMENTS}{model_uid}"


def endpoint_key(model_uid: str, replica_id: int) -> str:
    """Where an endpoint is."""
    return f"{ENDPOINTS}{model_uid}/{replica_id}"


def model_request_key(request_id: str) -> str:
    """Where a request for a model is."""
    return f"{MODEL_REQUESTS}{request_id}"
