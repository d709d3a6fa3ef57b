"""Casts of constants are folded into constants, and the model computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.exporters.retyping.cast_constants import fold_casts
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.model_file import read_model
from tests.conftest import Array, Models

RNG = np.random.default_rng(0)
W = RNG.standard_normal((64, 32)).astype(np.float32)


def cast(value: str, to: int, output: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [output], to=to)


def folded(path: Path) -> tuple[int, onnx.GraphProto]:
    """How many were folded, and the graph, after a check that it computes the same."""
    model = read_model(path)
    count = fold_casts(model.ir)
    save_model(model.ir, path.with_name("folded.onnx"))
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    runs = [_run(path.with_name(name), x) for name in (path.name, "folded.onnx")]
    for left, right in zip(*runs, strict=True):
        np.testing.assert_array_equal(left, right)
    return count, onnx.load(path.with_name("folded.onnx")).graph


def _run(path: Path, x: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(str(path), options).run(None, {"x": x}))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_weight_that_is_stored_in_another_float(stored: Any, models: Models) -> None:
    nodes = [cast("w", TensorProto.FLOAT, "v"), helper.make_node("MatMul", ["x", "v"], ["y"])]
    count, graph = folded(models.save(models.model(nodes, {"w": W.astype(stored)})))
    assert count == 1
    assert [node.op_type for node in graph.node] == ["MatMul"]
    assert [(t.name, t.data_type) for t in graph.initializer] == [("w", TensorProto.FLOAT)]


def test_what_several_read_is_one_constant(models: Models) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=models.tensor("w", W.astype(np.float16))),
        *(cast("w", TensorProto.FLOAT, f"v{i}") for i in range(2)),
        *(helper.make_node("MatMul", ["x", f"v{i}"], [f"m{i}"]) for i in range(2)),
        helper.make_node("Add", ["m0", "m1"], ["y"]),
    ]
    count, graph = folded(models.save(models.model(nodes)))
    assert count == 2
    assert [node.op_type for node in graph.node] == ["MatMul", "MatMul", "Add"]
    assert len(graph.initializer) == 1


def test_what_is_read_as_it_is_stored_too_keeps_its_name(models: Models) -> None:
    nodes = [
        cast("w", TensorProto.FLOAT, "v"),
        cast("w", TensorProto.DOUBLE, "d"),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    model = models.model(nodes, {"w": W.astype(np.float16)}, outputs=("y", "w", "d"))
    for output, dtype in zip(model.graph.output[1:], (TensorProto.FLOAT16, TensorProto.DOUBLE), strict=True):
        output.type.tensor_type.elem_type = dtype
    _, graph = folded(models.save(model))
    assert {t.name: t.data_type for t in graph.initializer}["w"] == TensorProto.FLOAT16
    assert [node.op_type for node in graph.node] == ["Cast", "MatMul"], "an output stays what a node makes"


def test_a_body_reads_a_constant_around_it(models: Models) -> None:
    def body(name: str, to: int) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        nodes = [cast("w", to, f"{name}_v"), cast(f"{name}_v", TensorProto.FLOAT, f"{name}_f")]
        return helper.make_graph(
            [*nodes, helper.make_node("MatMul", ["x", f"{name}_f"], [name])], name, [], [made]
        )

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        cast("m", TensorProto.BOOL, "c"),
        helper.make_node(
            "If", ["c"], ["y"], then_branch=body("a", TensorProto.FLOAT16),
            else_branch=body("b", TensorProto.FLOAT),
        ),
    ]  # fmt: skip
    count, graph = folded(models.save(models.model(nodes, {"w": W})))
    assert count == 4
    assert [t.data_type for t in graph.initializer] == [TensorProto.FLOAT] * len(graph.initializer)


def test_integers_activations_and_inputs_stay(models: Models) -> None:
    nodes = [
        cast("i", TensorProto.FLOAT, "v"),
        cast("x", TensorProto.FLOAT16, "h"),
        cast("h", TensorProto.FLOAT, "f"),
        cast("given", TensorProto.FLOAT, "g"),
        helper.make_node("MatMul", ["f", "v"], ["a"]),
        helper.make_node("Add", ["a", "g"], ["y"]),
    ]
    weights = {"i": np.ones((64, 32), np.int8), "given": np.ones(32, np.float16)}
    model = models.model(nodes, weights)
    model.graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT16, [32]))
    assert folded(models.save(model))[0] == 0


def test_a_value_beyond_the_type_is_infinite_as_a_cast_makes_it(models: Models) -> None:
    nodes = [cast("w", TensorProto.FLOAT16, "h"), cast("h", TensorProto.FLOAT, "v")]
    nodes.append(helper.make_node("MatMul", ["x", "v"], ["y"]))
    model = read_model(models.save(models.model(nodes, {"w": np.full((64, 2), 1e6, np.float32)})))
    assert fold_casts(model.ir) == 2
    (value,) = model.ir.graph.initializers.values()
    assert value.const_value is not None
    assert np.isinf(value.const_value.numpy()).all()
    assert value.dtype == ir.DataType.FLOAT
