"""The settings of the fleet's daemons. They are part of the one tree in `nebula_router.config`."""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from nebula_router.kinds import Address, Flag, Group, Secret, StoreUrl, words

DEFAULT_ETCD: Final = "http://127.0.0.1:2379"
FAKE: Final = r"[1-9][0-9]{0,3}x[1-9][0-9]{0,6}(MiB|GiB)"
"""Invented GPUs of one size, like `2x24GiB`."""


class StoreSettings(Group):
    """Where the fleet is written down."""

    etcd_endpoints: Annotated[
        tuple[StoreUrl, ...],
        NoDecode,
        BeforeValidator(words),
        Flag("--etcd-endpoint", "--etcd-endpoints"),
    ] = Field(
        (),
        description=f"etcd, as http://host:port, several with commas. Without one {DEFAULT_ETCD}; a gateway that has "
        "engines or routers of its own then asks none.",
    )
    etcd_prefix: str = Field("/nebula", pattern=r"^(/[A-Za-z0-9._-]+)*$", description="What all keys begin with.")
    etcd_user: str | None = Field(None, min_length=1, description="User of etcd.")
    etcd_password: Annotated[Secret | None, Flag()] = Field(None, description="That user's password.")
    etcd_ca_file: str | None = Field(None, min_length=1, description="PEM file of the authorities to check etcd by.")
    etcd_cert_file: str | None = Field(None, min_length=1, description="PEM file of the certificate to show to etcd.")
    etcd_key_file: str | None = Field(None, min_length=1, description="PEM file of that certificate's key.")
    timeout_s: float = Field(3.0, ge=0.05, le=60, description="Longest wait for one answer of the store.")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints to ask, the default one where none is given."""
        return self.etcd_endpoints or (DEFAULT_ETCD,)


class RouterSettings(Group):
    """The routing data plane, where it is a process apart from the gateway (`nebula router`)."""

    listen: Annotated[Address, Flag("--listen", "--listen-addr")] = Field(
        "127.0.0.1:18081", description="Address to serve on, host:port."
    )


class NodeSettings(Group):
    """One machine's GPUs and the engines on them (`nebula node`)."""

    node_id: Annotated[str | None, Flag("--node-id")] = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="Name of the node; without one, the machine's host name.",
    )
    host: Annotated[str | None, Flag("--host")] = Field(
        None,
        min_length=1,
        description="Address by which gateways reach its engines; without one, that by which it reaches etcd.",
    )
    gpus: Annotated[str, Flag("--gpus")] = Field(
        "auto",
        pattern=rf"^(auto|none|fake:{FAKE}(,{FAKE})*)$",
        description="auto (those of NVML that CUDA_VISIBLE_DEVICES allows), none, or invented ones like "
        "fake:1x80GiB,2x24GiB.",
    )
    vllm_port: Annotated[int, Flag("--vllm-port")] = Field(
        10814, ge=1, le=65535, description="First port for engines; they take the first free ones from there."
    )
    port_count: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Ports from there on that engines may have; KV events "
        "and hand-offs have some of the four times as many after them.",
    )
    engine_host: str = Field("0.0.0.0", min_length=1, description="Address that engines listen on.")  # noqa: S104
    engine: Annotated[Literal["vllm", "sim", "podman", "docker"], Flag("--engine-type")] = Field(
        "vllm", description="What is started for a replica, where its placement does not say."
    )
    engine_command: Annotated[str | None, Flag("--engine-command")] = Field(
        None,
        min_length=1,
        description="Command in place of that, with {model}, {served}, {host}, {port}, {gpus}, {config} (a YAML file) "
        "and {args}.",
    )
    docker_image: Annotated[str, Flag("--docker-image")] = Field(
        "docker.io/vllm/vllm-openai:latest", min_length=1, description="Image for podman and docker."
    )
    model_cache: str | None = Field(
        None,
        min_length=1,
        description="Folder of models that containers get; without one, the Hugging Face cache of the node's user.",
    )
    on_stop: Literal["keep", "stop"] = Field(
        "keep",
        description="Whether engines run on when the node gets SIGTERM, for the next start to take over, or are "
        "drained and stopped. Ctrl-C always stops them.",
    )
    log_level: Annotated[Literal["debug", "info", "warn", "error"], Flag("--log-level")] = Field(
        "info", description="Least severe line of the node's own log."
    )
    state_dir: Annotated[str | None, Flag("--state-dir")] = Field(
        None,
        min_length=1,
        description="Folder for logs and what a restart must know, one below it per node; without one, "
        "$XDG_STATE_HOME/nebula or ~/.local/state/nebula.",
    )
    log_max_mb: int = Field(64, ge=1, le=65536, description="Size at which an engine's log is turned over.")
    log_keep: int = Field(3, ge=0, le=100, description="Old logs kept per replica.")
    heartbeat_s: float = Field(3.0, ge=0.05, le=60, description="Time between two announcements of the node.")
    lease_s: float = Field(10.0, ge=1, le=600, description="Time after which a node that fell silent is gone.")
    ready_timeout_s: float = Field(
        900.0, ge=1, le=86400, description="Longest start of an engine, from its process to its first healthy answer."
    )
    health_interval_s: float = Field(1.0, ge=0.05, le=60, description="Time between two looks at an engine's health.")
    health_failures: int = Field(
        5, ge=1, le=1000, description="Looks in a row without an answer after which an engine is started again."
    )
    stop_grace_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Time that an engine gets to end its requests, and then to end, before SIGKILL.",
    )
    restart_backoff_s: float = Field(
        1.0, ge=0.01, le=600, description="Wait before an engine that ended is started again; it doubles each time."
    )
    restart_backoff_max_s: float = Field(60.0, ge=0.01, le=3600, description="Longest such wait.")
    restart_cap: int = Field(
        10,
        ge=0,
        le=1000,
        description="Starts in a row that failed, after which a replica is given up until its plan changes; 0: never.",
    )


class SchedulerSettings(Group):
    """Who places models on nodes (`nebula scheduler`)."""

    interval_s: float = Field(5.0, ge=0.05, le=600, description="Time between two looks, where nothing changes sooner.")
    strategy: Literal["spread", "pack"] = Field(
        "spread", description="Whether replicas go to the emptiest nodes, or fill one node after the other."
    )
    lost_after_s: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Time after which replicas of a node that is gone move elsewhere; its lease is over by then.",
    )
    settle_s: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Time after its start, or after the store came back, in which no node is taken for gone; their "
        "lease is over by then if they are.",
    )
    drain_grace_s: float = Field(
        60.0, ge=0, le=86400, description="Longest time that a replica one too many gets to end its requests."
    )
    autoscale: bool = Field(True, description="Choose the number of replicas of models that have bounds for it.")
    scale_up_kv_usage: float = Field(0.8, ge=0, le=1, description="Mean KV cache use above which one replica is added.")
    scale_up_waiting: float = Field(5.0, ge=0, le=10_000, description="Mean waiting requests likewise.")
    scale_down_kv_usage: float = Field(
        0.4, ge=0, le=1, description="Mean KV cache use below which, with nobody waiting, one replica goes."
    )
    cooldown_s: float = Field(300.0, ge=0, le=86400, description="Least time between two such steps of one model.")
    vram_overhead_mb: int = Field(
        1536, ge=0, le=1_000_000, description="Memory of a GPU that an engine takes beside weights and KV cache."
    )
