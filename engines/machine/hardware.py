"""The GPUs of this machine, asked of the CUDA driver itself. Works, and answers "none", with no driver."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

# CUdevice_attribute, from cuda.h; the driver's interface never renumbers them.
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76

_DRIVER = Path("/sys/module/nvidia/version")

NO_GPU = "this machine has no NVIDIA GPU, or no driver for one"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver names it.
        compute_capability: Such as "9.0".
        memory_bytes: All of its memory.
        multiprocessors: How many it has.
        sparse_tensor_cores: Whether its tensor cores multiply 2:4 weights in hardware (from 8.0 on).
        driver_version: The newest CUDA that the driver supports, such as "13.0".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    multiprocessors: int
    sparse_tensor_cores: bool
    driver_version: str

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability as numbers, to compare."""
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)


def load_kernels_lazily() -> None:
    """Lets CUDA load a library's kernels when one is called, in this process and its children.

    So it is with CUDA 12.2 and later by itself. Before, TensorRT loads all of its kernels at the start of a
    build or run, and asks for this in its log. CUDA reads the variable once, when it is initialized. One that
    is set stays. (CUDA Programming Guide, "Lazy Loading".)
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA sees (CUDA_VISIBLE_DEVICES counts), none where there is no working driver."""
    load_kernels_lazily()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    if cuda.cuInit(0) != 0:
        return ()
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    found = (_gpu_at(cuda, index, driver) for index in range(count.value))
    return tuple(gpu for gpu in found if gpu is not None)


def driver_of(gpu: Gpu) -> str:
    """The version of NVIDIA's driver, "580.159.04", or, where that is hidden, which CUDA it is for."""
    return installed_driver() or f"for CUDA {gpu.driver_version}"


def installed_driver() -> str:
    """The version of NVIDIA's driver, as Linux or NVML says it; "" where both hide it, or there is none."""
    try:
        return _DRIVER.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # a container may hide it, and Windows' Linux has none
        return _driver_of_nvml()


def _driver_of_nvml() -> str:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    text = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return ""
    return text.value.decode(errors="replace")


def _gpu_at(cuda: ctypes.CDLL, index: int, driver: str) -> Gpu | None:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    answers = (
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        cuda.cuDeviceGetAttribute(ctypes.byref(count), _MULTIPROCESSOR_COUNT, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
    )
    if any(answers):
        return None
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
        multiprocessors=count.value,
        sparse_tensor_cores=major.value >= 8,
        driver_version=driver,
    )
