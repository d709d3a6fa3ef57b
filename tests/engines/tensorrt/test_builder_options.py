"""The builder's options: real ones on TensorRT-RTX, and versions that lack one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from onnx import TensorProto

from sparseflow_trt.engines.backends.child import run_build
from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.backends.tensorrt_rtx import TensorRtRtxBackend
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, EngineOptions
from sparseflow_trt.engines.tensorrt.builder_options import (
    apply_options,
    build_failure,
    spare_library_handles,
)
from sparseflow_trt.errors import BuildError

Build = Callable[..., BuiltEngine]

TRT_10 = SimpleNamespace(
    BuilderFlag=SimpleNamespace(
        VERSION_COMPATIBLE="vc", REFIT="refit", REFIT_IDENTICAL="identical", STRIP_PLAN="strip"
    )
)


class Flags:
    """The flags of a configuration. Of `exclusive` ones the first stays, as it does in TensorRT."""

    def __init__(self, exclusive: Collection[str] = ()) -> None:
        self.on: set[str] = set()
        self.exclusive = exclusive

    def set_flag(self, flag: str) -> None:
        if not (flag in self.exclusive and self.on.intersection(self.exclusive)):
            self.on.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.on.discard(flag)

    def get_flag(self, flag: str) -> bool:
        return flag in self.on


@pytest.fixture
def build(save_model: Callable[..., Path], make_request: Callable[..., BuildRequest]) -> Build:
    def build_it(**options: Any) -> BuiltEngine:
        request = replace(make_request(save_model(), 8), options=EngineOptions(**options))
        return TensorRtRtxBackend().build(request, lambda progress: None)

    return build_it


def test_too_little_workspace_is_named(build: Build) -> None:
    with pytest.raises(BuildError) as caught:
        build(workspace=1)
    assert (
        "could not build model.onnx, most likely because the workspace is too small" in caught.value.message
    )
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


@pytest.mark.parametrize(
    "asked", [{"refit": True}, {"strip_plan": True}, {"refit": True, "strip_plan": True}]
)
def test_rtx_makes_weights_exchangeable_only_with_a_gpu(build: Build, asked: dict[str, bool]) -> None:
    with pytest.raises(BuildError, match="only where it finds a GPU of its own: ") as caught:
        build(**asked)
    assert "or without --refit and --strip-plan" in caught.value.hint


def test_rtx_has_no_tactics_to_ask_for(
    save_model: Callable[..., Path], make_request: Callable[..., BuildRequest], tmp_path: Path
) -> None:
    request = replace(make_request(save_model(), 8), options=EngineOptions(like=tmp_path))
    with pytest.raises(BuildError, match=r"TensorRT-RTX [\d.]+ has no --like"):
        run_build("tensorrt-rtx", request, request.folder / "e", lambda progress: None)


def test_tf32_is_off_unless_asked_for() -> None:
    module = cast("ModuleType", SimpleNamespace(BuilderFlag=SimpleNamespace(TF32="tf32")))
    for asked in (False, True):
        config = Flags()
        config.set_flag("tf32")  # TensorRT's default
        apply_options(module, "TensorRT", config, EngineOptions(tf32=asked))
        assert config.get_flag("tf32") == asked
    without = cast("ModuleType", SimpleNamespace(BuilderFlag=SimpleNamespace()))
    apply_options(without, "TensorRT 99", Flags(), EngineOptions())
    with pytest.raises(BuildError, match="TensorRT 99 has no --tf32"):
        apply_options(without, "TensorRT 99", Flags(), EngineOptions(tf32=True))
    assert EngineOptions(tf32=True).asked() == {"tf32": True}, "what a manifest and a build's key hold"


def test_rtx_takes_tf32_and_says_what_it_means(build: Build) -> None:
    said = "Whether FP32 products run in TF32 is TensorRT-RTX's choice at the first run."
    assert said in build(tf32=True).notes
    assert said not in build().notes


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
        (EngineOptions(refit=True), "TensorRT 8.4 has no --refit."),
        (EngineOptions(strip_plan=True), "TensorRT 8.4 has no --strip-plan."),
    ],
)
def test_a_version_without_an_option(options: EngineOptions, says: str) -> None:
    old = cast("ModuleType", SimpleNamespace(BuilderFlag=SimpleNamespace()))
    with pytest.raises(BuildError) as caught:
        apply_options(old, "TensorRT 8.4", SimpleNamespace(), options)
    assert caught.value.message == says


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (EngineOptions(refit=True), {"refit"}),
        (EngineOptions(strip_plan=True), {"strip", "identical"}),
        (EngineOptions(refit=True, strip_plan=True), {"strip", "refit"}),
    ],
)
def test_what_is_stripped_can_be_put_back(options: EngineOptions, flags: set[str]) -> None:
    config = Flags()
    apply_options(cast("ModuleType", TRT_10), "TensorRT 10", config, options)
    assert config.on == flags


def test_flags_that_exclude_each_other_are_refused() -> None:
    both = EngineOptions(version_compatible=True, refit=True)
    apply_options(cast("ModuleType", TRT_10), "TensorRT 10", Flags(), both)
    with pytest.raises(BuildError, match=r"TensorRT 8\.6 does not take --refit together with the other"):
        apply_options(cast("ModuleType", TRT_10), "TensorRT 8.6", Flags({"vc", "refit"}), both)


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
        get_flag=flags.__contains__,
        set_memory_pool_limit=lambda pool, size: limits.append((pool, size)),
    )
    apply_options(cast("ModuleType", module), "TensorRT", config, EngineOptions())
    assert (flags, limits, config.builder_optimization_level) == ([], [], 3)
    everything = EngineOptions(4, 2, Path("c"), version_compatible=True, hardware_compatible=True)
    apply_options(cast("ModuleType", module), "TensorRT", config, everything)
    assert (flags, limits) == (["vc"], [("ws", 4 << 20)])
    assert (config.builder_optimization_level, config.hardware_compatibility_level) == (2, "ampere")


def test_a_failure_without_options_has_the_usual_hint() -> None:
    assert "most likely" not in build_failure("T", "m", EngineOptions(), (), "no workspace").message
    assert "most likely" not in build_failure("T", "m", EngineOptions(workspace=1), (), "a bad shape").message


def test_what_is_asked_for_is_plain_data() -> None:
    assert EngineOptions().asked() == {}
    asked = EngineOptions(workspace=1, timing_cache=Path("a/b"), version_compatible=True)
    assert asked.asked() == {"workspace": 1, "timing_cache": "a/b", "version_compatible": True}
    assert EngineOptions(optimization_level=0).asked() == {"optimization_level": 0}


class Sources:
    """A configuration with tactic sources."""

    def __init__(self) -> None:
        self.sources = 0b1111

    def get_tactic_sources(self) -> int:
        return self.sources

    def set_tactic_sources(self, sources: int) -> None:
        self.sources = sources


@pytest.mark.parametrize(("kinds", "left"), [(("MATRIX",), 0b1111), (("MATRIX", "PLUGIN_V2"), 0b1000)])
def test_a_network_with_plugins_loads_no_library_for_their_handles(kinds: tuple[str, ...], left: int) -> None:
    trt = SimpleNamespace(
        LayerType=SimpleNamespace(MATRIX="MATRIX", PLUGIN_V2="PLUGIN_V2"),
        TacticSource=SimpleNamespace(CUBLAS=0, CUBLAS_LT=1, CUDNN=2, JIT_CONVOLUTIONS=3),
    )
    network = SimpleNamespace(num_layers=len(kinds), get_layer=lambda i: SimpleNamespace(type=kinds[i]))
    config = Sources()
    spare_library_handles(cast("ModuleType", trt), network, config)
    assert config.sources == left
