"""What the driver says of a GPU that is being measured: its L2 cache, its clocks under load.

Asked of libcuda and NVML themselves, so that it is the same whichever library runs the kernels. Nothing is
set: clocks are measured as they are found.
"""

from __future__ import annotations

import ctypes
import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from sparseflow_trt._schema import Record
from sparseflow_trt.errors import NotInstalledError

# From cuda.h and nvml.h; neither interface renumbers them.
_L2_CACHE_SIZE = 38
_CLOCK_SM = 1
_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}


class ClockState(Record):
    """The state of a GPU's clocks at one time.

    Attributes:
        sm_mhz: The clock of its multiprocessors.
        max_mhz: The highest one that it has.
        held_back: What keeps it from that one, in words.
    """

    sm_mhz: int
    max_mhz: int
    held_back: tuple[str, ...] = ()


def l2_bytes() -> int:
    """The size of the first visible GPU's L2 cache.

    Raises:
        NotInstalledError: There is no GPU, or no driver for one.
    """
    cuda, size = _first_gpu(), ctypes.c_int()
    if cuda is None or cuda.cuDeviceGetAttribute(ctypes.byref(size), _L2_CACHE_SIZE, 0):
        raise NotInstalledError(
            "this machine has no NVIDIA GPU to measure on, or no driver for one.",
            "Run it on the machine whose GPU the policy is for; `sparseflow-trt doctor` says what is there.",
        )
    return size.value


def clock_reader() -> Callable[[], ClockState | None]:
    """A function that reads the clocks of the first visible GPU; where nothing tells them, it gives None."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return lambda: None
    cuda, handle, bus = _first_gpu(), ctypes.c_void_p(), ctypes.create_string_buffer(32)
    if (
        cuda is None
        or cuda.cuDeviceGetPCIBusId(bus, len(bus), 0)
        or nvml.nvmlInit_v2()
        or nvml.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(handle))
    ):
        return lambda: None

    def read() -> ClockState | None:
        clock, highest, reasons = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_ulonglong()
        answers = (
            nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM, ctypes.byref(clock)),
            nvml.nvmlDeviceGetMaxClockInfo(handle, _CLOCK_SM, ctypes.byref(highest)),
            nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle, ctypes.byref(reasons)),
        )
        if any(answers):
            return None
        words = tuple(word for bit, word in _REASONS.items() if reasons.value & bit)
        return ClockState(sm_mhz=clock.value, max_mhz=highest.value, held_back=words)

    return read


def describe_clocks(states: Iterable[ClockState | None]) -> str:
    """Many readings in one sentence, for a policy; "not recorded" where there is none."""
    known = [state for state in states if state is not None]
    if not known:
        return "not recorded"
    clocks = [state.sm_mhz for state in known]
    counts = Counter(word for state in known for word in state.held_back)
    held = ", ".join(f"{word} {count / len(known):.0%}" for word, count in counts.most_common())
    return (
        f"SM {statistics.median_low(clocks)} MHz ({min(clocks)} to {max(clocks)}, at most "
        f"{known[0].max_mhz}) in {len(known)} readings under load, as found; held back: {held or 'never'}"
    )


def _first_gpu() -> ctypes.CDLL | None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if cuda.cuInit(0) else cuda
