"""An engine in a container that podman or docker runs in the foreground: it is a child like any other."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.waiting import within

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CACHE_INSIDE: Final = "/root/.cache/huggingface"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
_CLEAN_S: Final = 30.0

_log = logging.getLogger(__name__)


def name(node_id: str, key: str) -> str:
    """The container's name: one per replica and node, so that what was left of it can be found."""
    return f"nebula-{_UNSAFE.sub('-', node_id)}-{_UNSAFE.sub('-', key)}"


async def clean(command: Sequence[str]) -> None:
    """Run a command that ends what may be left of a container, if there is one; what it says does not matter."""
    if not command:
        return
    nowhere = asyncio.subprocess.DEVNULL
    try:
        cleaning = await asyncio.create_subprocess_exec(*command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    except OSError as error:
        _log.warning("%s: %s", command[0], error.strerror or error)
        return
    try:
        await within(_CLEAN_S, cleaning.wait())
    except asyncio.TimeoutError:
        _log.warning("`%s` takes more than %g s", " ".join(command), _CLEAN_S)
    finally:
        if cleaning.returncode is None:
            cleaning.kill()
            await cleaning.wait()


@dataclass(frozen=True, slots=True)
class Box:
    """A container."""

    tool: str
    """`podman` or `docker`."""
    image: str
    name: str
    model: str

    @property
    def cleanup(self) -> tuple[str, ...]:
        """The command that ends it, whether it is there or not."""
        return (self.tool, "rm", "--force", self.name)

    def command(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        passed: Sequence[str],
        devices: Sequence[str],
        cache: str | None,
    ) -> tuple[str, ...]:
        """The command that runs `vllm` with these words in it.

        The container shares the machine's network and IPC: ports are the node's to give out, and ranks share memory.

        Args:
            words: What comes after `vllm`.
            env: The environment of the command itself.
            passed: Names of it that the engine gets; their values stay off the command line, which everybody can read.
            devices: GPUs, as CUDA calls them.
            cache: Folder of models; without one, that of the node's user.
        """
        folder = cache or env.get("HF_HOME") or str(Path(env.get("HOME", "/root")) / ".cache" / "huggingface")
        mounts = [f"{folder}:{_CACHE_INSIDE}"]
        if Path(self.model).is_absolute():
            mounts.append(f"{self.model}:{self.model}:ro")
        argv = [self.tool, "run", "--rm", "--name", self.name, "--network", "host", "--ipc", "host"]
        argv += self._gpus(devices)
        argv += [word for name in passed for word in ("--env", name)]
        argv += [word for mount in mounts for word in ("--volume", mount)]
        return (*argv, "--entrypoint", "vllm", self.image, *words)

    def _gpus(self, devices: Sequence[str]) -> list[str]:
        if not devices:
            return []
        if self.tool == "docker":
            return ["--gpus", f'"device={",".join(devices)}"']  # the quotes are docker's own
        cdi = [word for device in devices for word in ("--device", f"nvidia.com/gpu={device}")]
        return [*cdi, "--security-opt", "label=disable"]
