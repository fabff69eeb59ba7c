"""From a job to the command that runs its engine: arguments, environment, and where the engine can be met."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nebula_router.fleet.engine import container
from nebula_router.fleet.engine.engine_args import EngineArgs, EngineConfigError, EngineFlag
from nebula_router.fleet.engine.ports import PortNeeds
from nebula_router.fleet.engine.sim_args import sim_words
from nebula_router.fleet.records import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nebula_router.fleet.engine.job import Job
    from nebula_router.fleet.engine.ports import Ports
    from nebula_router.fleet.gpu import Gpus
    from nebula_router.fleet.settings import NodeSettings

EVENTS: Final = "kv-events-config"
TRANSFER: Final = "kv-transfer-config"
_SIDE_HOST: Final = "VLLM_NIXL_SIDE_CHANNEL_HOST"
_SIDE_PORT: Final = "VLLM_NIXL_SIDE_CHANNEL_PORT"
_OURS: Final = ("host", "port", "uds", "model", "model-tag", "served-model-name")
"""Flags that the node decides; what a YAML says of them is read, not passed on."""
_SECRETS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_LEAST_SECRET: Final = 6
_FIELDS: Final = ("model", "served", "host", "port", "gpus", "config", "args")


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started, and where it is then."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    ports: Ports
    names: tuple[str, ...]
    """Names that it should answer to."""
    checks_names: bool
    """Whether an engine that answers to none of them is another one."""
    owns_port: bool = False
    """Whether it is the process itself that listens: not where it is in a container."""
    events: str | None = None
    events_replay: str | None = None
    events_topic: str | None = None
    learns_events: bool = True
    """Whether the engine itself may be asked where they are: not where it dials whoever listens to them."""
    side_channel: str | None = None
    api_key: str | None = field(default=None, repr=False)
    config: str | None = field(default=None, repr=False)
    """What the file of `{config}` must hold before the start."""
    cleanup: tuple[str, ...] = ()
    """A command that ends what may be left of it, before a start and after its end."""

    def hidden(self, text: str) -> str:
        """The text without the secrets that the engine was given."""
        for name, value in self.env.items():
            if len(value) >= _LEAST_SECRET and any(word in name.upper() for word in _SECRETS):
                text = text.replace(value, "***")
        return text.replace(self.api_key, "***") if self.api_key else text


@dataclass(frozen=True)
class Machine:
    """Where engines are started: what is the same for all of them."""

    settings: NodeSettings
    host: str
    """By which others reach its engines."""
    gpus: Gpus
    node_id: str
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    ties: bool = False
    """Whether engines end with this process, even where it is killed."""

    @property
    def near(self) -> str:
        """Where the node itself meets its engines."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared
        return everywhere.get(self.settings.engine_host, self.settings.engine_host)

    def launch(self, job: Job, told: EngineArgs, ports: Ports, folder: Path) -> Launch:
        """The start of the job's engine. `folder` is the replica's own.

        Raises:
            EngineConfigError: It cannot be started so; the message says why, and what would be right.
        """
        kind = job.engine(self.settings)
        if told.has("config"):
            raise EngineConfigError("--config: name the file as the assignment's engine_config_path instead")
        args = _full(job, told, ports)
        names = _names(job, told)
        env = self._env(job, ports)
        common: dict[str, Any] = {
            "ports": ports,
            "names": names,
            "api_key": _api_key(args, env),
            **self._places(kind, args, env),
        }
        model = told.value("model") or told.value("model-tag") or job.model_name
        if kind == "sim":
            argv = (sys.executable, "-m", "nebula_router", "sim", *self._sim(job, args, names, ports))
            return Launch(argv, env, checks_names=True, owns_port=True, **common)
        if kind == "command":
            return self._template(model, args, env, folder / "engine.yaml", common)
        words = (*self._serve(model, args, names, ports),)
        if kind == "vllm":
            return Launch((_vllm(env), *words), env, checks_names=True, owns_port=True, **common)
        devices = self._devices(job)
        box = container.Box(kind, job.image(self.settings), container.name(self.node_id, job.key), model)
        argv = box.command(words, env, self._passed(job, env), devices, self.settings.model_cache)
        return Launch(argv, env, checks_names=True, cleanup=box.cleanup, **common)

    def needs(self, job: Job, told: EngineArgs) -> PortNeeds:
        """The ports that the job's engine asks for.

        Raises:
            EngineConfigError: The number of its ranks is none.
        """
        env = job.assignment.env or {}
        return PortNeeds(
            preferred=job.assignment.port,
            events=_wants_events(told),
            side=(job.hands_off or told.has(TRANSFER)) and _SIDE_PORT not in env and job.engine(self.settings) != "sim",
            ranks=ranks(told),
        )

    def _serve(self, model: str, args: EngineArgs, names: tuple[str, ...], ports: Ports) -> tuple[str, ...]:
        own = ("--host", self.settings.engine_host, "--port", str(ports.engine), "--served-model-name", *names)
        return ("serve", model, *args.words(), *own)

    def _sim(self, job: Job, args: EngineArgs, names: tuple[str, ...], ports: Ports) -> tuple[str, ...]:
        host = self.settings.engine_host
        listen = f"[{host}]:{ports.engine}" if ":" in host else f"{host}:{ports.engine}"
        return sim_words(args, job.key, names, listen)

    def _template(
        self, model: str, args: EngineArgs, env: Mapping[str, str], config: Path, common: dict[str, Any]
    ) -> Launch:
        """The command of the settings. A word that is only `{args}` or `{served}` becomes as many as there are."""
        names, ports = common["names"], common["ports"]
        template = self.settings.engine_command or ""
        lists = {"{args}": args.words(), "{served}": names}
        values = {
            "model": model,
            "served": ",".join(names),
            "host": self.settings.engine_host,
            "port": str(ports.engine),
            "gpus": env.get("CUDA_VISIBLE_DEVICES", ""),
            "config": str(config),
            "args": shlex.join(args.words()),
        }
        argv: list[str] = []
        try:
            for word in shlex.split(template):
                argv += lists[word] if word in lists else [word.format_map(values)]
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(f"{{{name}}}" for name in _FIELDS)
            text = f"node.engine_command: {error}; known are {known}, and a brace itself is {{{{"
            raise EngineConfigError(text) from None
        told = any(word in template for word in ("{args}", "{config}"))
        untold = {} if told else {"events": None, "events_replay": None, "events_topic": None}
        text = json.dumps({flag.name: _yaml(flag) for flag in args.flags}, indent=1)
        return Launch(tuple(argv), env, checks_names=False, config=text, **{**common, **untold})

    def _env(self, job: Job, ports: Ports) -> dict[str, str]:
        """The node's environment without its own settings, then what the engine needs, then the assignment's."""
        env = {name: value for name, value in self.environment.items() if not name.startswith("NEBULA_")}
        assignment = job.assignment
        if assignment.gpus or assignment.gpu_indices is not None:
            env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # by which NVML counts
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices(job))
        if ports.side is not None:
            env |= {_SIDE_HOST: self.host, _SIDE_PORT: str(ports.side)}
        return env | (assignment.env or {})

    def _devices(self, job: Job) -> tuple[str, ...]:
        """What CUDA calls the job's GPUs; all of the node's where it names none."""
        if not job.assignment.gpus:
            own = [gpu.index for gpu in self.gpus.read()] if job.assignment.gpu_indices is None else []
            return tuple(device for index in own if (device := self.gpus.device(index)) is not None)
        found: list[str] = []
        for index in job.assignment.gpus:
            device = self.gpus.device(index)
            if device is None:
                there = ", ".join(str(gpu.index) for gpu in self.gpus.read()) or "none"
                raise EngineConfigError(f"GPU {index} is none of this node's: it has {there}")
            found.append(device)
        return tuple(found)

    def _passed(self, job: Job, env: Mapping[str, str]) -> tuple[str, ...]:
        """Names in the environment that a container gets."""
        own = {*(job.assignment.env or {}), *(name for name in env if name.startswith(("VLLM_", "NCCL_", "UCX_")))}
        return tuple(sorted(own | ({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"} & env.keys())))

    def _places(self, kind: str, args: EngineArgs, env: Mapping[str, str]) -> dict[str, Any]:
        """Where its KV events and its hand-offs are met."""
        events = args.document(EVENTS) or {}
        is_on = bool(events.get("enable_kv_cache_events")) and events.get("publisher", "zmq") == "zmq"
        endpoint = events.get("endpoint", "tcp://*:5557")
        places: dict[str, Any] = {
            "events": reachable(endpoint, self.host) if is_on else None,
            "events_replay": reachable(events.get("replay_endpoint"), self.host) if is_on else None,
            "events_topic": str(events.get("topic") or "") or None if is_on else None,
            "learns_events": _binds(endpoint),
        }
        if _SIDE_PORT not in env or kind == "sim":
            return {**places, "side_channel": None}
        return {**places, "side_channel": f"{_bracketed(env.get(_SIDE_HOST, self.host))}:{env[_SIDE_PORT]}"}


def ranks(args: EngineArgs) -> int:
    """Data-parallel ranks behind the engine's one address.

    Raises:
        EngineConfigError: Their number is none.
    """
    if args.has("data-parallel-rank") or args.has("data-parallel-external-lb"):
        return 1
    return args.number("data-parallel-size-local", args.number("data-parallel-size", 1))


def reachable(endpoint: object, host: str) -> str | None:
    """The endpoint as others reach it; none for one that the engine dials itself, and for a port that is not known."""
    if not isinstance(endpoint, str) or not endpoint.startswith("tcp://"):
        return None
    port = endpoint.rpartition(":")[2]
    if not _binds(endpoint) or not port.isdecimal() or port == "0":
        return None
    return f"tcp://{_bracketed(host)}:{port}"


def _binds(endpoint: object) -> bool:
    """Whether the engine listens there; else it dials it, by vLLM's rule. One address of its own counts as dialled."""
    return isinstance(endpoint, str) and ("*" in endpoint or "::" in endpoint or "//0.0.0.0:" in endpoint)


def _full(job: Job, told: EngineArgs, ports: Ports) -> EngineArgs:
    """What the engine is told, with what the node adds: KV events, and a connector to one of a pair."""
    flags = list(told.without(*_OURS).flags)
    if ports.events is not None:
        own = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{ports.events}",
            "replay_endpoint": f"tcp://*:{ports.replay}",
        }
        flags.append(EngineFlag(EVENTS, (json.dumps(own),)))
    if job.hands_off and not told.has(TRANSFER):
        role = "kv_producer" if job.assignment.role is Role.PREFILL else "kv_consumer"
        flags.append(EngineFlag(TRANSFER, (json.dumps({"kv_connector": "NixlConnector", "kv_role": role}),)))
    return EngineArgs(tuple(flags))


def _wants_events(told: EngineArgs) -> bool:
    """Unless its own arguments speak of them, or it caches no prefixes to tell of."""
    has_cache = not told.has("enable-prefix-caching") or told.value("enable-prefix-caching") is not None
    return has_cache and not told.has(EVENTS)


def _names(job: Job, told: EngineArgs) -> tuple[str, ...]:
    """Names that the engine answers to: the model's own first, which is what replies say."""
    own = told.values("served-model-name")
    return tuple(dict.fromkeys((job.model_name, job.model_uid, *own)))


def _api_key(args: EngineArgs, env: Mapping[str, str]) -> str | None:
    return next(iter(args.values("api-key")), None) or env.get("VLLM_API_KEY") or None


def _vllm(env: Mapping[str, str]) -> str:
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which("vllm", path=env.get("PATH")) or (str(beside) if beside.exists() else None)
    if found is None:
        raise EngineConfigError(
            f"no program `vllm` on PATH or beside {sys.executable}: install vLLM there, or set node.engine or "
            "node.engine_command"
        )
    return found


def _yaml(flag: EngineFlag) -> object:
    if not flag.values:
        return True
    return flag.values[0] if len(flag.values) == 1 else list(flag.values)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
