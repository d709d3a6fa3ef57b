"""What is asked of the GPU's driver, where there is none, too."""

from __future__ import annotations

import os

import pytest

from sparseflow_trt.engines.machine.hardware import find_gpus, installed_driver


@pytest.mark.parametrize(("given", "then"), [(None, "LAZY"), ("EAGER", "EAGER")])
def test_kernels_are_loaded_when_they_are_called_unless_one_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, then: str
) -> None:
    monkeypatch.setenv("CUDA_MODULE_LOADING", given or "")  # what it is now comes back at the end
    if given is None:
        monkeypatch.delenv("CUDA_MODULE_LOADING")
    find_gpus()
    assert os.environ["CUDA_MODULE_LOADING"] == then


@pytest.mark.skipif(bool(find_gpus()), reason="there is a driver")
def test_without_a_driver_it_has_no_version() -> None:
    assert installed_driver() == ""
