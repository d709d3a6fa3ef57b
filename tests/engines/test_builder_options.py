"""The builder's options: real ones on TensorRT-RTX, and versions that lack one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from onnx import TensorProto

from sparseflow_trt.engines.builder_options import apply_options, build_failure
from sparseflow_trt.engines.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, EngineOptions
from sparseflow_trt.engines.tensorrt_rtx import TensorRtRtxBackend
from sparseflow_trt.errors import BuildError

Build = Callable[..., BuiltEngine]


@pytest.fixture
def build(save_model: Callable[..., Path], make_request: Callable[..., BuildRequest]) -> Build:
    def build_it(**options: Any) -> BuiltEngine:
        request = replace(make_request(save_model(), 8), options=EngineOptions(**options))
        return TensorRtRtxBackend().build(request, lambda progress: None)

    return build_it


def test_too_little_workspace_is_named(build: Build) -> None:
    with pytest.raises(BuildError) as caught:
        build(workspace=1)
    assert "could not build model.onnx, most likely for want of workspace" in caught.value.message
    assert "(the memory pool WORKSPACE is limited to 1 MiB): " in caught.value.message
    assert "Raise --workspace" in caught.value.hint


def test_enough_workspace_builds(build: Build) -> None:
    assert build(workspace=64).layers


@pytest.mark.parametrize("level", [0, 5])
def test_every_level_builds(build: Build, level: int) -> None:
    assert build(optimization_level=level).layers


@pytest.mark.parametrize("level", [-1, 6])
def test_a_level_that_there_is_not(build: Build, level: int) -> None:
    with pytest.raises(BuildError, match=f"has no optimization level {level}"):
        build(optimization_level=level)


def test_what_rtx_ignores_is_said(build: Build, tmp_path: Path) -> None:
    cache = tmp_path / "my.cache"
    notes = " ".join(build(timing_cache=cache, hardware_compatible=True).notes)
    assert "the timing cache my.cache was ignored." in notes
    assert "with or without --hardware-compatible." in notes
    assert not cache.exists()


def test_a_version_compatible_engine_needs_a_library_that_rtx_lacks(build: Build) -> None:
    with pytest.raises(BuildError, match="cannot make a version-compatible engine") as caught:
        build(version_compatible=True)
    assert "libnvinfer_lean" in caught.value.message
    assert "without --version-compatible" in caught.value.hint


def test_onnx_runtime_says_what_it_ignores(
    save_model: Callable[..., Path], make_request: Callable[..., BuildRequest]
) -> None:
    request = make_request(save_model(TensorProto.FLOAT), 8)
    assert OnnxRuntimeBackend().build(request, lambda progress: None).notes == ()
    asked = replace(request, options=EngineOptions(workspace=1, timing_cache=Path("c")))
    (note,) = OnnxRuntimeBackend().build(asked, lambda progress: None).notes
    assert note == "ONNX Runtime has no such options and ignores them: --workspace, --timing-cache."


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (EngineOptions(optimization_level=3), "TensorRT 8.4 has no --optimization-level."),
        (EngineOptions(version_compatible=True), "TensorRT 8.4 has no --version-compatible."),
        (EngineOptions(hardware_compatible=True), "TensorRT 8.4 has no --hardware-compatible."),
    ],
)
def test_a_version_without_an_option(options: EngineOptions, says: str) -> None:
    old = cast("ModuleType", SimpleNamespace(BuilderFlag=SimpleNamespace()))
    with pytest.raises(BuildError) as caught:
        apply_options(old, "TensorRT 8.4", SimpleNamespace(), options)
    assert caught.value.message == says


def test_flags_are_set_by_name() -> None:
    flags: list[str] = []
    limits: list[tuple[str, int]] = []
    module = SimpleNamespace(
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="vc"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="ws"),
        HardwareCompatibilityLevel=SimpleNamespace(NONE="none", AMPERE_PLUS="ampere"),
    )
    config = SimpleNamespace(
        builder_optimization_level=3,
        hardware_compatibility_level="none",
        set_flag=flags.append,
        set_memory_pool_limit=lambda pool, size: limits.append((pool, size)),
    )
    apply_options(cast("ModuleType", module), "TensorRT", config, EngineOptions())
    assert (flags, limits, config.builder_optimization_level) == ([], [], 3)
    everything = EngineOptions(4, 2, Path("c"), version_compatible=True, hardware_compatible=True)
    apply_options(cast("ModuleType", module), "TensorRT", config, everything)
    assert (flags, limits) == (["vc"], [("ws", 4 << 20)])
    assert (config.builder_optimization_level, config.hardware_compatibility_level) == (2, "ampere")


def test_a_failure_without_options_has_the_usual_hint() -> None:
    assert "most likely" not in build_failure("T", "m", EngineOptions(), "no workspace").message
    assert "most likely" not in build_failure("T", "m", EngineOptions(workspace=1), "a bad shape").message


def test_what_is_asked_for_is_plain_data() -> None:
    assert EngineOptions().asked() == {}
    asked = EngineOptions(workspace=1, timing_cache=Path("a/b"), version_compatible=True)
    assert asked.asked() == {"workspace": 1, "timing_cache": "a/b", "version_compatible": True}
    assert EngineOptions(optimization_level=0).asked() == {"optimization_level": 0}
