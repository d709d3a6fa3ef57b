"""On a machine with no GPU autotune says so, whatever libraries are asked for."""

from __future__ import annotations

import pytest

from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.measuring.measurers import make_measurers
from sparseflow_trt.engines.measuring.medians import Effort
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.policies.policy import Library


@pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU: tests/gpu measures on it")
@pytest.mark.parametrize("libraries", [(), ("torch",), ("tensorrt", "torch")])
def test_no_gpu_no_measurement(libraries: tuple[Library, ...]) -> None:
    with pytest.raises(NotInstalledError, match="autotune measures on the GPU that the policy is for"):
        make_measurers(libraries, Effort())
