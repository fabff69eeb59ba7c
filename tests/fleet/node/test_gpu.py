import sys
from types import SimpleNamespace
from typing import Any

import pytest

from nebula_router.fleet.gpu import open_gpus
from nebula_router.fleet.settings import NodeSettings

GIB = 1 << 30


class Nvml:
    """What pynvml looks like on a machine with four GPUs, the last one cut in two; the second one is sick."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As NVML raises."""

    def __init__(self) -> None:
        self.sick: set[str] = set()

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's name

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 4

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"GPU-{index}aa"

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:  # noqa: N802
        return handle.encode()

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return f"Model of {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        if handle in self.sick:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=80 * GIB, used=3 * GIB)

    def nvmlDeviceGetTemperature(self, handle: str, _: int) -> int:  # noqa: N802
        if handle.startswith("MIG"):
            raise self.NVMLError("Not Supported")
        return 40

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=int(handle[4:5] == "0") * 7)

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:  # noqa: N802
        return (1, 1) if handle == "GPU-3aa" else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, _: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _: str, number: int) -> str:  # noqa: N802
        if number > 1:
            raise self.NVMLError("Not Found")
        return f"MIG-{number}bb"

    def nvmlDeviceGetPciInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(busId=handle.encode())

    def nvmlDeviceGetNvLinkState(self, handle: str, link: int) -> int:  # noqa: N802
        if handle == "GPU-3aa" or link > 3:
            raise self.NVMLError("Not Supported")
        return int(link < 2)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: str, _: int) -> int:  # noqa: N802
        return 0 if handle in {"GPU-0aa", "GPU-1aa"} else 2

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: str, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(busId=b"GPU-1aa" if handle == "GPU-0aa" else b"GPU-0aa")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """No machine that runs these tests need have a GPU."""
    own = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", own)
    return own


def test_gpus_are_as_nvml_tells_them(nvml: Nvml) -> None:
    gpus = open_gpus("auto", None)
    first, *others = gpus.read()
    assert first.model_dump() == {
        "index": 0,
        "memory_total_mb": 81920,
        "memory_used_mb": 3072,
        "temperature_c": 40,
        "utilization_gpu": 7,
        "uuid": "GPU-0aa",
        "name": "Model of GPU-0aa",
        "links": {1: 2},
    }
    assert [gpu.index for gpu in others] == [1, 2, 3]
    assert others[2].links is None
    assert (gpus.device(3), gpus.device(4)) == ("3", None)
    nvml.sick.add("GPU-1aa")
    assert [gpu.index for gpu in gpus.read()] == [0, 2, 3]
    nvml.sick.clear()
    assert [gpu.index for gpu in gpus.read()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("0,0", [0]),
        ("0,9,1", [0]),
        ("GPU-1", [1]),
        ("GPU-1aa, GPU-0aa", [1, 0]),
        ("GPU-", []),
        ("MIG-1bb,MIG-0bb", [5, 4]),
        ("all", []),
    ],
)
@pytest.mark.usefixtures("nvml")
def test_cuda_visible_devices_is_honoured(visible: str, indices: list[int]) -> None:
    gpus = open_gpus("auto", visible)
    assert [gpu.index for gpu in gpus.read()] == indices
    assert all(gpus.device(index) is not None for index in indices)


@pytest.mark.usefixtures("nvml")
def test_a_slice_goes_by_its_uuid() -> None:
    gpus = open_gpus("auto", "MIG-1bb")
    (own,) = gpus.read()
    assert (own.uuid, own.temperature_c, gpus.device(own.index)) == ("MIG-1bb", None, "MIG-1bb")
    assert gpus.device(0) is None


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    class Bare(Nvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise self.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", Bare())
    assert open_gpus("auto", None).read() == ()
    assert "no GPUs: NVML: Driver Not Loaded" in caplog.text
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpus("auto", None).read() == ()
    assert "nvidia-ml-py" in caplog.text


def test_gpus_may_be_invented() -> None:
    gpus = open_gpus("fake:1x80GiB,2x24576MiB", None)
    assert [(gpu.index, gpu.memory_total_mb) for gpu in gpus.read()] == [(0, 81920), (1, 24576), (2, 24576)]
    assert (gpus.device(2), gpus.device(3)) == ("2", None)
    assert open_gpus("none", "0").read() == ()


def test_invented_gpus_are_narrowed_as_real_ones_are() -> None:
    assert [gpu.index for gpu in open_gpus("fake:3x24GiB", "2,0").read()] == [2, 0]
    assert open_gpus("fake:3x24GiB", "").read() == ()


def test_invented_gpus_of_two_nodes_are_not_the_same() -> None:
    assert [gpu.uuid for gpu in open_gpus("fake:2x24GiB", None).read()] == [None, None]


@pytest.mark.parametrize("wrong", ["all", "fake:", "fake:2", "fake:0x24GiB", "fake:2x24GB", "fake:2x24GiB,"])
def test_other_words_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="GPUs"):
        open_gpus(wrong, None)
    with pytest.raises(ValueError, match="gpus"):
        NodeSettings(gpus=wrong)
