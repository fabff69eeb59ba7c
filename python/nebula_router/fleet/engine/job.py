"""What a node is asked to run: one replica of a model, and what of that matters to a running engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nebula_router.fleet.engine.engine_args import EngineArgs, EngineConfigError
from nebula_router.fleet.engine.engine_config import read_engine_config
from nebula_router.fleet.records import Role

if TYPE_CHECKING:
    from nebula_router.fleet.records import Assignment, PlacementPlan
    from nebula_router.fleet.settings import NodeSettings

ENGINE_TYPES: Final = ("vllm", "sim", "podman", "docker")
_MATTERS: Final = {
    *("engine_config_path", "engine_args", "extra_args", "env", "role"),
    *("port", "gpu_index", "gpu_indices"),
}
"""What of an assignment an engine is started by; a change of anything else leaves it alone."""


@dataclass(frozen=True, slots=True)
class Job:
    """An assignment with what its plan says of it."""

    model_uid: str
    model_name: str
    plan_version: int
    assignment: Assignment

    @classmethod
    def of(cls, plan: PlacementPlan, assignment: Assignment) -> Job:
        """The job of one of the plan's assignments."""
        return cls(plan.model_uid, plan.model_name, plan.version, assignment)

    @property
    def key(self) -> str:
        """`model_uid/replica_id`: its name on its node."""
        return f"{self.model_uid}/{self.assignment.replica_id}"

    def engine(self, settings: NodeSettings) -> str:
        """The kind of engine: one of `ENGINE_TYPES`, or `command`.

        Raises:
            EngineConfigError: The assignment names another one.
        """
        named = self.assignment.engine_type
        if named is None:
            return settings.engine if settings.engine_command is None else "command"
        if named not in ENGINE_TYPES:
            raise EngineConfigError(f"engine_type {named!r}: known are {', '.join(ENGINE_TYPES)}")
        return named

    def image(self, settings: NodeSettings) -> str:
        """The image of a container."""
        return self.assignment.docker_image or settings.docker_image

    def digest(self, settings: NodeSettings) -> str:
        """A hash of what a running engine would have to be started again for. Holds no secret in the clear."""
        own = self.assignment.model_dump(mode="json", include=_MATTERS, exclude_none=True)
        try:
            engine = self.engine(settings)
        except EngineConfigError:
            engine = self.assignment.engine_type or ""
        how = [engine]
        if engine == "command":
            how.append(settings.engine_command or "")
        if engine in {"podman", "docker"}:
            how.append(self.image(settings))
        text = json.dumps([self.model_uid, self.model_name, how, own], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def told(self) -> EngineArgs:
        """What the engine is told: its YAML's settings, then the extra arguments. Blocks where a file is read.

        Raises:
            EngineConfigError: The file or an argument cannot be made sense of.
        """
        settings = self.assignment.engine_args
        if settings is None and self.assignment.engine_config_path is not None:
            settings = _read_here(self.assignment.engine_config_path)
        return EngineArgs.of(settings or {}, self.assignment.extra_args or ())

    @property
    def hands_off(self) -> bool:
        """Whether it is one of a prefill and decode pair."""
        return self.assignment.role is not Role.UNIFIED


def _read_here(path: str) -> dict[str, Any]:
    try:
        return read_engine_config(Path(path))
    except EngineConfigError as error:
        raise EngineConfigError(f"{error}; the node reads it on its own machine") from None
