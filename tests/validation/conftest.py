"""Small models to compare: built here, so that the tests need no file and no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.model.model_file import OnnxModel, read_model

WIDTH = 8


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[int | str] | None]],
    outputs: Sequence[tuple[str, int, Sequence[int | str] | None]],
    weights: dict[str, Any] | None = None,
) -> Path:
    """Writes a model of opset 18."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _linear(path: Path, scale: float = 1.0, output: str = "y", poison: float | None = None) -> Path:
    """y = x @ w of shape (batch, 8) → (batch, 8), and the index of each row's maximum."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    weight[3, 5] *= scale
    bias = np.zeros(WIDTH, np.float32)
    if poison is not None:
        bias[2] = poison
    return _save(
        path,
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], [output]),
            helper.make_node("ArgMax", [output], ["best"], axis=1, keepdims=0),
        ],
        [("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [(output, TensorProto.FLOAT, ["batch", WIDTH]), ("best", TensorProto.INT64, ["batch"])],
        {"w": weight, "b": bias},
    )


def _embedding(path: Path) -> Path:
    """Token, type and position tables read the way exporters write it, and a mask."""
    rng = np.random.default_rng(1)
    tables = {
        "tokens": rng.standard_normal((11, WIDTH)).astype(np.float32),
        "types": rng.standard_normal((3, WIDTH)).astype(np.float32),
        "columns": rng.standard_normal((WIDTH, 5)).astype(np.float32),
        "last": np.array([-1], np.int64),
    }
    return _save(
        path,
        [
            helper.make_node("Cast", ["input_ids"], ["narrow"], to=TensorProto.INT32),
            helper.make_node("Unsqueeze", ["narrow", "last"], ["column"]),
            helper.make_node("Squeeze", ["column", "last"], ["row"]),
            helper.make_node("Gather", ["tokens", "row"], ["token"]),
            helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
            helper.make_node("Gather", ["columns", "column_ids"], ["columned"], axis=1),
            helper.make_node("Add", ["token", "type"], ["sum"]),
            helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask"]),
            helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["sum", "weights"], ["embedded"]),
        ],
        [("input_ids", TensorProto.INT64, ["batch", "seq"]),
         ("attention_mask", TensorProto.INT64, ["batch", "seq"]),
         ("token_type_ids", TensorProto.INT64, ["batch", "seq"]),
         ("column_ids", TensorProto.INT64, ["columns_read"])],
        [("embedded", TensorProto.FLOAT, ["batch", "seq", WIDTH]),
         ("columned", TensorProto.FLOAT, [WIDTH, "columns_read"])],
        tables,
    )  # fmt: skip


def _typed_ends(path: Path) -> Path:
    """A static model with an input of each odd type; BF16 goes in and comes out."""
    return _save(
        path,
        [
            helper.make_node("Cast", ["brain"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["half"], ["wide_half"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "wide_half"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["brain_out"], to=TensorProto.BFLOAT16),
            helper.make_node("Not", ["flag"], ["unflag"]),
            helper.make_node("Identity", ["pixel"], ["pixel_out"]),
        ],
        [
            ("brain", TensorProto.BFLOAT16, [2, 3]),
            ("half", TensorProto.FLOAT16, [2, 3]),
            ("flag", TensorProto.BOOL, [4]),
            ("pixel", TensorProto.UINT8, [2]),
        ],
        [
            ("brain_out", TensorProto.BFLOAT16, [2, 3]),
            ("unflag", TensorProto.BOOL, [4]),
            ("pixel_out", TensorProto.UINT8, [2]),
        ],
    )


@pytest.fixture
def linear() -> Callable[..., Path]:
    """Writes the model of `_linear`."""
    return _linear


@pytest.fixture
def save() -> Callable[..., Path]:
    """Writes a model of given nodes."""
    return _save


@pytest.fixture
def embedding(tmp_path: Path) -> OnnxModel:
    """The model of `_embedding`, read."""
    return read_model(_embedding(tmp_path / "embedding.onnx"))


@pytest.fixture
def typed_ends(tmp_path: Path) -> OnnxModel:
    """The model of `_typed_ends`, read."""
    return read_model(_typed_ends(tmp_path / "typed.onnx"))
