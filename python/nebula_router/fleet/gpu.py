"""A machine's GPUs: those of NVML, or invented ones."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from nebula_router.fleet.records import GpuStatus
from nebula_router.fleet.settings import FAKE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MIB: Final = 1 << 20
_SWITCH: Final = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
_MAX_LINKS: Final = 18  # NVML_NVLINK_MAX_LINKS

_log = logging.getLogger(__name__)


class Gpus(Protocol):
    """The GPUs that a node may use."""

    def read(self) -> tuple[GpuStatus, ...]:
        """Return how they are now. It may block for milliseconds."""
        ...

    def device(self, index: int) -> str | None:
        """Return what `CUDA_VISIBLE_DEVICES` calls the GPU; none where the node has no such GPU."""
        ...


def open_gpus(wanted: str, visible: str | None) -> Gpus:
    """The GPUs of `node.gpus`: `auto`, `none`, or `fake:` with sizes.

    Args:
        wanted: The setting.
        visible: `CUDA_VISIBLE_DEVICES` of the node, which leaves out all GPUs that it does not name.

    Raises:
        ValueError: `wanted` is something else.
    """
    if wanted == "none":
        return FakeGpus(())
    if wanted.startswith("fake:"):
        return FakeGpus(_fakes(wanted.removeprefix("fake:"), visible))
    if wanted == "auto":
        return _nvml(visible)
    raise ValueError(f"GPUs {wanted!r}: expected auto, none, or sizes like fake:2x24GiB")


class FakeGpus:
    """GPUs that are said to be there."""

    def __init__(self, gpus: Sequence[GpuStatus]) -> None:
        self._gpus = tuple(gpus)

    def read(self) -> tuple[GpuStatus, ...]:
        """Return them, always the same."""
        return self._gpus

    def device(self, index: int) -> str | None:
        """Return the index, as text."""
        return str(index) if any(gpu.index == index for gpu in self._gpus) else None


class NvmlGpus:
    """The GPUs that NVML tells of. A GPU that stops answering is left out until it answers again."""

    def __init__(self, nvml: Any, devices: Sequence[_Device]) -> None:  # noqa: ANN401 - pynvml has no types
        self._nvml = nvml
        self._devices = tuple(devices)
        self._links = _links(nvml, self._devices)
        self._silent: set[int] = set()

    def read(self) -> tuple[GpuStatus, ...]:
        """Return how they are now."""
        return tuple(status for device in self._devices if (status := self._status(device)) is not None)

    def device(self, index: int) -> str | None:
        """Return the index as text, or the UUID of a slice of a GPU."""
        return next((device.name for device in self._devices if device.index == index), None)

    def _status(self, device: _Device) -> GpuStatus | None:
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(device.handle)
        except nvml.NVMLError as error:
            if device.index not in self._silent:
                _log.warning("GPU %d does not answer: %s", device.index, error)
                self._silent.add(device.index)
            return None
        self._silent.discard(device.index)
        utilization = self._asked(nvml.nvmlDeviceGetUtilizationRates, device.handle)
        return GpuStatus(
            index=device.index,
            memory_total_mb=memory.total // _MIB,
            memory_used_mb=memory.used // _MIB,
            temperature_c=self._asked(nvml.nvmlDeviceGetTemperature, device.handle, nvml.NVML_TEMPERATURE_GPU),
            utilization_gpu=None if utilization is None else utilization.gpu,
            uuid=_text(self._asked(nvml.nvmlDeviceGetUUID, device.handle)),
            name=_text(self._asked(nvml.nvmlDeviceGetName, device.handle)),
            links=self._links.get(device.index),
        )

    def _asked(self, function: Any, *arguments: Any) -> Any:  # noqa: ANN401 - pynvml has no types
        """The answer, or none where this GPU does not tell (a slice has no temperature)."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


@dataclass(frozen=True)
class _Device:
    index: int
    name: str
    """In CUDA_VISIBLE_DEVICES."""
    uuid: str
    handle: Any


def _fakes(text: str, visible: str | None) -> list[GpuStatus]:
    sizes: list[int] = []
    for part in text.split(","):
        if re.fullmatch(FAKE, part.strip()) is None:
            raise ValueError(f"GPUs fake:{text}: expected sizes like fake:2x24GiB or fake:1x80GiB,2x24GiB")
        count, _, size = part.strip().partition("x")
        sizes += [int(size[:-3]) * (1024 if size.endswith("GiB") else 1)] * int(count)
    # No uuid: that would make those of two invented machines the same GPUs.
    gpus = [GpuStatus(index=index, memory_total_mb=size, name="fake") for index, size in enumerate(sizes)]
    devices = [_Device(gpu.index, str(gpu.index), "", gpu) for gpu in gpus]
    return [device.handle for device in _visible(devices, visible)]


def _nvml(visible: str | None) -> Gpus:
    try:
        import pynvml  # noqa: PLC0415 - a machine without it, or without a driver, has no GPUs
    except ImportError as error:
        _log.warning("no GPUs: %s (package nvidia-ml-py)", error)
        return FakeGpus(())
    try:
        pynvml.nvmlInit()
        devices = _visible(_devices(pynvml), visible)
    except (pynvml.NVMLError, OSError) as error:
        _log.warning("no GPUs: NVML: %s", error)
        return FakeGpus(())
    if not devices:
        _log.warning("no GPUs: CUDA_VISIBLE_DEVICES=%s leaves none", visible)
    return NvmlGpus(pynvml, devices)


def _devices(nvml: Any) -> list[_Device]:  # noqa: ANN401 - pynvml has no types
    """All whole GPUs, then the slices that they are cut into (MIG), which count on from there."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    whole = [
        _Device(index, str(index), _text(nvml.nvmlDeviceGetUUID(handle)) or "", handle)
        for index, handle in enumerate(handles)
    ]
    slices: list[_Device] = []
    for handle in handles:
        try:
            most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if nvml.nvmlDeviceGetMigMode(handle)[0] else 0
        except nvml.NVMLError:
            most = 0
        for number in range(most):
            try:
                own = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except nvml.NVMLError:
                continue  # there may be fewer than the most
            uuid = _text(nvml.nvmlDeviceGetUUID(own)) or ""
            slices.append(_Device(len(whole) + len(slices), uuid, uuid, own))
    return whole + slices


def _visible(devices: Sequence[_Device], visible: str | None) -> list[_Device]:
    """The devices that `CUDA_VISIBLE_DEVICES` names, by index, UUID or the beginning of one.

    Without it, all whole GPUs. As in CUDA, it ends with the first word that is no device.
    """
    if visible is None:
        return [device for device in devices if device.name.isdecimal()]
    found: dict[int, _Device] = {}
    for word in filter(None, (word.strip() for word in visible.split(","))):
        uuid = word if word.startswith(("GPU-", "MIG-")) else None
        named = [d for d in devices if (d.uuid.startswith(uuid) if uuid else d.name == word)]
        if len(named) != 1:
            _log.warning("CUDA_VISIBLE_DEVICES=%s: %r is no GPU here; it ends before that", visible, word)
            break
        found[named[0].index] = named[0]
    return list(found.values())


def _links(nvml: Any, devices: Iterable[_Device]) -> dict[int, dict[int, int]]:  # noqa: ANN401 - pynvml has no types
    """NVLink links between GPUs, by index. Those to a switch reach every GPU that is on one."""
    whole = [device for device in devices if device.name.isdecimal()]
    at = {bus: d.index for d in whole if (bus := _bus(nvml, d.handle)) is not None}
    direct: dict[int, dict[int, int]] = {}
    switched: dict[int, int] = {}
    for device in whole:
        for link in range(_MAX_LINKS):
            try:
                if not nvml.nvmlDeviceGetNvLinkState(device.handle, link):
                    continue
                if nvml.nvmlDeviceGetNvLinkRemoteDeviceType(device.handle, link) == _SWITCH:
                    switched[device.index] = switched.get(device.index, 0) + 1
                    continue
                peer = at.get(_text(nvml.nvmlDeviceGetNvLinkRemotePciInfo(device.handle, link).busId) or "")
            except nvml.NVMLError:
                break  # this GPU has no such link
            if peer is not None:
                own = direct.setdefault(device.index, {})
                own[peer] = own.get(peer, 0) + 1
    for index, links in switched.items():
        others = {peer: min(links, theirs) for peer, theirs in switched.items() if peer != index}
        direct.setdefault(index, {}).update(others)
    return direct


def _bus(nvml: Any, handle: Any) -> str | None:  # noqa: ANN401 - pynvml has no types
    try:
        return _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    """Older versions of pynvml give bytes."""
    return value.decode() if isinstance(value, bytes) else value
