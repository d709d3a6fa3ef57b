"""What of measuring through TensorRT runs without a GPU: its model, its plan, and what its points say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from sparseflow_trt.engines.backends.child import run_build
from sparseflow_trt.engines.evidence.outcomes import LayerOutcome
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.measuring import time_tensorrt
from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.single_products import (
    numpy_type,
    plan_product,
    write_plugin_product,
    write_product,
)
from sparseflow_trt.engines.measuring.time_tensorrt import TensorRtMeasurer, told_tactic
from sparseflow_trt.engines.protocol import BuildRequest
from sparseflow_trt.engines.tensorrt.api import version_of
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.exporters.plugin.nodes import put_into_plugin
from sparseflow_trt.exporters.saving import plugin_nodes
from sparseflow_trt.model.graph import SparsityState, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.plan import check_plan
from sparseflow_trt.policies.policy import Dtype, Kernel


def product(tmp_path: Path, dtype: Dtype) -> tuple[Request, np.ndarray, Path]:
    request = Request(Curve("tensorrt", dtype, 128, 64, "gate_up"), 24)
    drawn = np.random.default_rng(0).standard_normal((64, 128)).astype(numpy_type(dtype))
    weight = prune_2to4(drawn, 0)
    write_product(tmp_path / "model.onnx", request, weight)
    return request, weight, tmp_path / "model.onnx"


@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_the_model_is_one_sparse_product_that_its_plan_fits(tmp_path: Path, dtype: Dtype) -> None:
    request, _, path = product(tmp_path, dtype)
    onnx.checker.check_model(str(path), full_check=True)
    (layer,) = layers = read_layers(read_model(path))
    assert (layer.n, layer.k, layer.m.evaluate({}), layer.dtype) == (128, 64, 24, dtype)
    assert layer.state is SparsityState.SPARSE
    kernels: tuple[Kernel, ...] = ("dense", "sparse", "plugin")
    for kernel in kernels:
        plan = plan_product(request, kernel)
        check_plan(plan, layers)
        assert plan.wants_sparse is (kernel == "sparse")
        assert bool(plan.plugin_products) is (kernel == "plugin")


def test_the_model_multiplies_by_the_weight(tmp_path: Path) -> None:
    request, weight, path = product(tmp_path, "FP16")
    x = np.random.default_rng(1).standard_normal((request.m, 64)).astype(np.float16)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    assert np.allclose(y, x.astype(np.float32) @ weight.astype(np.float32), atol=0.05)


@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_the_plugins_model_is_the_same_product(tmp_path: Path, dtype: Dtype) -> None:
    request, weight, path = product(tmp_path, dtype)
    write_plugin_product(tmp_path / "plugin.onnx", request, weight)
    onnx.checker.check_model(str(tmp_path / "plugin.onnx"))
    typed = read_model(path)
    put_into_plugin(typed, ["product"])
    (made,), (expected,) = (
        [{a.name: a.value for a in n.attributes.values()} for n in plugin_nodes(m)]
        for m in (read_model(tmp_path / "plugin.onnx").ir, typed.ir)
    )
    assert made.keys() == expected.keys()
    for name, value in made.items():
        if hasattr(value, "numpy"):
            assert value.dtype == expected[name].dtype
            assert value.numpy().tobytes() == expected[name].numpy().tobytes()
        else:
            assert value == expected[name]


@pytest.mark.skipif(version_of("tensorrt-rtx") is None, reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_a_builder_takes_the_model_with_its_fixed_shapes(tmp_path: Path, dtype: Dtype) -> None:
    request, _, path = product(tmp_path, dtype)
    asked = BuildRequest(path, plan_product(request, "sparse"), tmp_path, sparse=True)
    outcome = run_build("tensorrt-rtx", asked, tmp_path / "engine", lambda progress: None)
    assert outcome.version
    assert (tmp_path / "engine").stat().st_size > 1000


def test_a_sparse_point_says_what_ran() -> None:
    sparse = LayerOutcome("product", 0, tactic="sm90_xmma_sparse_gemm", sparse=True, best_sparse_ms=0.1)
    dense = LayerOutcome("product", 0, tactic="sm90_xmma_gemm", best_sparse_ms=0.157, best_dense_ms=0.150)
    assert told_tactic(sparse) == "sm90_xmma_sparse_gemm"
    assert told_tactic(dense) == (
        "sm90_xmma_gemm (a dense tactic; in the builder's log: best sparse tactic 157.0 µs, "
        "best dense tactic 150.0 µs)"
    )
    assert told_tactic(LayerOutcome("product", 0)) == "not told (a dense tactic)"


@pytest.mark.parametrize("with_plugin", [False, True])
@pytest.mark.parametrize("wins", [False, True])
def test_dense_engines_are_kept_for_the_plugin_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_plugin: bool, wins: bool
) -> None:
    """A long run without one had filled the disk with engines that nobody asks for again."""
    built: list[Kernel] = []

    class Backend:
        unavailable = staticmethod(lambda: "")

        def build(self, asked: BuildRequest, on_progress: object) -> SimpleNamespace:
            kernel = asked.plan.layers[0].sparsity
            built.append(kernel)
            (asked.folder / "model.engine").write_text(kernel)
            outcome = LayerOutcome("product", 0, sparse=kernel == "plugin" or (kernel == "sparse" and wins))
            return SimpleNamespace(file=asked.folder / "model.engine", outcomes=(outcome,))

    timed: list[tuple[str, str]] = []

    def time_nothing(
        _: object, request: Request, weight: object, dense: Any, sparse: Any
    ) -> tuple[None, None]:
        timed.append((dense.file.read_text(), sparse.file.read_text()))
        return None, None

    monkeypatch.setattr(time_tensorrt, "TensorRtBackend", Backend)
    for name in ("load_flavour", "require", "l2_bytes", "clock_reader", "load_library"):
        monkeypatch.setattr(time_tensorrt, name, lambda *_: None)
    monkeypatch.setattr(TensorRtMeasurer, "_time", time_nothing)
    measurer = TensorRtMeasurer(plugin=tmp_path / "lib.so" if with_plugin else None)
    curve = Curve("tensorrt", "FP16", 128, 64, "gate_up")
    measurer.measure(Request(curve, 24))
    kept = list(Path(measurer._kept.name).iterdir())
    dense: Kernel = "dense" if wins else "sparse"  # a sparse build that took a dense kernel is as good
    assert timed == [(dense, "sparse")]
    assert len(kept) == with_plugin
    if with_plugin:
        measurer.measure(Request(replace(curve, kernel="plugin"), 24))
        assert timed[1:] == [(dense, "plugin")]
        assert built == ["sparse", *(["dense"] if wins else []), "plugin"]


@pytest.mark.skipif(
    version_of("tensorrt") is not None and bool(find_gpus()), reason="TensorRT can be measured here"
)
def test_without_tensorrt_or_a_gpu_it_says_so() -> None:
    with pytest.raises(NotInstalledError):
        TensorRtMeasurer()
