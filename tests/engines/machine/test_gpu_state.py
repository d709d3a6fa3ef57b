"""Clocks in words; and on a machine with no GPU its absence is said, and no clock is made up."""

from __future__ import annotations

import pytest

from sparseflow_trt.engines.machine.gpu_state import (
    ClockState,
    clock_reader,
    describe_clocks,
    l2_bytes,
)
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.errors import NotInstalledError

no_gpu = pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU: tests/gpu asks it")


def test_readings_are_told_in_one_sentence() -> None:
    states = [
        ClockState(sm_mhz=1980, max_mhz=1980),
        ClockState(sm_mhz=1755, max_mhz=1980, held_back=("power cap",)),
        None,
        ClockState(sm_mhz=1965, max_mhz=1980, held_back=("power cap", "thermal slowdown")),
        ClockState(sm_mhz=1980, max_mhz=1980),
    ]
    assert describe_clocks(states) == (
        "SM 1965 MHz (1755 to 1980, at most 1980) in 4 readings under load, as found; "
        "held back: power cap 50%, thermal slowdown 25%"
    )


def test_a_clock_that_nothing_holds_back_and_one_that_nobody_read() -> None:
    assert describe_clocks([ClockState(sm_mhz=1980, max_mhz=1980)]).endswith("held back: never")
    assert describe_clocks([None, None]) == describe_clocks([]) == "not recorded"


@no_gpu
def test_without_a_gpu() -> None:
    with pytest.raises(NotInstalledError, match="has no NVIDIA GPU"):
        l2_bytes()
    assert clock_reader()() is None
