"""Tiny models and requests for the backends' tests, and a model of a GPU for those of timing."""

from __future__ import annotations

import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.engines.protocol import BuildRequest
from sparseflow_trt.engines.timing import turns
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from tests.engines.timing.modelled_gpu import Gpu

_NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
K, N = 64, 128


@pytest.fixture(autouse=True)
def temporary_files_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs of failed builds are kept on purpose; here they go with the test's folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """Saves `second(x @ w)` of one type, with a weight that may have a type of its own."""

    def save(
        dtype: int = TensorProto.FLOAT16,
        second: str = "Relu",
        weight: int | None = None,
        external: bool = False,
    ) -> Path:
        values = np.random.default_rng(0).standard_normal((K, N)).astype(_NUMPY[weight or dtype])
        tensor = helper.make_tensor("w", weight or dtype, (K, N), values.tobytes(), raw=True)
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["xw"], name="project"),
                helper.make_node(second, ["xw"], ["y"], name="after"),
            ],
            "tiny",
            [helper.make_tensor_value_info("x", dtype, ["batch", K])],
            [helper.make_tensor_value_info("y", dtype, ["batch", N])],
            [tensor],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / "model.onnx"
        onnx.save(model, path, save_as_external_data=external, location="model.data", size_threshold=0)
        return path

    return save


@pytest.fixture
def make_request(tmp_path: Path) -> Callable[..., BuildRequest]:
    """A request with one profile for each largest batch size given."""

    def make(model: Path, *batches: int, name: str = "x", k: int = K, sparse: bool = False) -> BuildRequest:
        ranges = [ShapeRange(min=(1, k), opt=(most // 2, k), max=(most, k)) for most in batches]
        profiles = tuple(Profile(name=f"to{shapes.max[0]}", inputs={name: shapes}) for shapes in ranges)
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        plan = Plan(precision="keep", policy="none", profiles=profiles, layers=())
        return BuildRequest(model, plan, folder, sparse)

    return make


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A model of a GPU, whose host's clock is the one that is read."""
    made = Gpu()
    monkeypatch.setattr(turns, "time", types.SimpleNamespace(perf_counter=lambda: made.host))
    return made
