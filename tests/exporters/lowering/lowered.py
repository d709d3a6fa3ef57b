"""Lowers a model and runs both, for the tests of `lower` and its rules."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.exporters.lowering.lower import lower_to_opset17
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.model_file import read_model

Array = npt.NDArray[Any]


F32, F16, BF16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64


node = helper.make_node


# Python 3.10's last ONNX Runtime, 1.23, fails on models that are compared with here, before they are lowered:
# a reduction over nothing, Resize with axes, FP16 scales (another result), and much of opset 23 and later.
OLD_RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 31)


runs_as_given = pytest.mark.skipif(OLD_RUNTIME, reason="this ONNX Runtime does not run the model as given")


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Any]],
    opset: int = 20,
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    out: int = F32,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
        [helper.make_tensor_value_info(name, out, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def lower(model: onnx.ModelProto, folder: Path) -> tuple[dict[str, int], Path, Path]:
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    read = read_model(before)
    lowered = lower_to_opset17(read.ir)
    save_model(read.ir, after)
    onnx.checker.check_model(str(after), full_check=True)
    assert read_model(after).opset == 17
    return lowered, before, after


def run_model(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def check_same(
    model: onnx.ModelProto, feeds: Mapping[str, Array], folder: Path, tolerance: float = 1e-5
) -> tuple[dict[str, int], onnx.ModelProto]:
    """Lowers a model, and checks that it is valid ONNX and has the same outputs."""
    lowered, before, after = lower(model, folder)
    for expected, got in zip(run_model(before, feeds), run_model(after, feeds), strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        wide = np.asarray(expected, np.float64)
        np.testing.assert_allclose(np.asarray(got, np.float64), wide, tolerance, tolerance)
    return lowered, onnx.load(after)


def numbers(*shape: int, kind: Any = np.float32) -> Array:
    values = np.random.default_rng(zlib.crc32(repr(shape).encode())).standard_normal(shape)
    return np.asarray(values, kind)


def types_in(model: onnx.ModelProto) -> set[int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
