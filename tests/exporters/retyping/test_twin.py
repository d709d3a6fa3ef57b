"""The CPU twin of a half-precision model: it runs where BF16 does not, and rounds where the model would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.plans.planning import make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Array, Models

X = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)


def _weight(*shape: int) -> Array:
    return (np.random.default_rng(0).standard_normal(shape) / 8).astype(np.float32)


def _rounded(values: Array) -> Array:
    result: Array = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return result


def _twin_of(models: Models, nodes: Sequence[onnx.NodeProto], weights: dict[str, Array]) -> Array:
    """What the twin of the BF16 model gives for X; the BF16 model itself has to be one that does not run."""
    path = models.save(models.model(nodes, weights, {"x": ("batch", 64)}))
    plan = make_plan(read_layers(read_model(path)), (), {}, None, "bf16")
    typed = models.folder / "typed.onnx"
    apply_plan(read_model(path), plan, typed)
    model = read_model(typed)
    assert needs_twin(model)
    twin = models.folder / "twin.onnx"
    write_twin(model, twin)
    onnx.checker.check_model(str(twin), full_check=True)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        _run(typed)
    return _run(twin)


def _run(path: Path) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": X})[0]
    return result


def test_rounds_each_tensor_once(models: Models) -> None:
    w = _weight(64, 32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "a"], ["y"])]
    product = _rounded(_rounded(X) @ _rounded(w))
    np.testing.assert_array_equal(_twin_of(models, nodes, {"w": w}), _rounded(product + product))


def test_shapes_are_filled_in_the_type_that_runs(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["c"],
                         value=models.tensor("v", np.array([0.3], np.float32))),
        helper.make_node("Mul", ["a", "c"], ["y"]),
    ]  # fmt: skip
    w = _weight(64, 32)
    expected = _rounded(_rounded(_rounded(X) @ _rounded(w)) * _rounded(np.asarray(0.3, np.float32)))
    np.testing.assert_array_equal(_twin_of(models, nodes, {"w": w}), expected)


@pytest.mark.parametrize("bodies", [("then", "else"), ("main", "main")])  # the graph around is "main"
def test_bodies_of_if_read_values_from_around_them(models: Models, bodies: tuple[str, str]) -> None:
    def output(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32])

    then = helper.make_graph([helper.make_node("Relu", ["a"], ["t"])], bodies[0], [], [output("t")])
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["e"])], bodies[1], [], [output("e")])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Abs", ["a"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["cond"]),
        helper.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    w = _weight(64, 32)
    a = _rounded(_rounded(X) @ _rounded(w))
    given = _twin_of(models, nodes, {"w": w, "zero": np.asarray(np.float32(0))})
    np.testing.assert_array_equal(given, _rounded(a + np.maximum(a, 0)))


def test_values_may_be_named_as_those_of_the_twin(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Neg", ["a"], ["a_wide"]),
        helper.make_node("Abs", ["a_wide"], ["a_f32"]),
        helper.make_node("Add", ["a_f32", "a"], ["y"]),
    ]
    w = _weight(64, 32)
    a = _rounded(_rounded(X) @ _rounded(w))
    np.testing.assert_array_equal(_twin_of(models, nodes, {"w": w}), _rounded(np.abs(a) + a))


def test_quantized_weights_are_scaled_to_bf16(models: Models) -> None:
    q = np.random.default_rng(0).integers(-127, 127, (64, 32)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    scale = np.asarray(np.float32(0.01))
    expected = _rounded(_rounded(X) @ _rounded(q * _rounded(scale)))
    np.testing.assert_array_equal(_twin_of(models, nodes, {"q": q, "scale": scale}), expected)


def test_a_chain_of_fp16_nodes_is_rounded_and_overflows_in_between(models: Models) -> None:
    """As ONNX Runtime's CPU runs such a chain itself it is FP32 from end to end."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "s"], ["y"])]
    w, s = np.full((64, 8), 1e4, np.float32), np.asarray(np.float32(2.0**-14))
    path = models.save(models.model(nodes, {"w": w, "s": s}, {"x": ("batch", 64)}))
    plan = make_plan(read_layers(read_model(path)), (), {}, None, "fp16")
    typed = models.folder / "typed.onnx"
    apply_plan(read_model(path), plan, typed)
    twin = models.folder / "twin.onnx"
    write_twin(read_model(typed), twin)
    half = np.float16
    with np.errstate(over="ignore"):
        expected = ((X.astype(half).astype(np.float32) @ w).astype(half) * half(s)).astype(np.float32)
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(_run(twin), expected)
    assert np.isfinite(_run(typed)).all()  # should that change, no twin of FP16 is needed any more


def test_others_need_none(models: Models) -> None:
    assert not needs_twin(read_model(models.matmul(_weight(64, 8))))
    assert needs_twin(read_model(models.matmul(_weight(64, 8).astype(np.float16))))
    assert needs_twin(read_model(models.matmul(_weight(64, 8).astype(ml_dtypes.bfloat16))))


def test_what_only_moves_values_reads_weights_as_they_are_stored(models: Models) -> None:
    """A table is not widened for the rows that are gathered, nor a weight before it is transposed."""
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"]),
    ]
    weights = {"table": _weight(8, 64), "w": _weight(16, 64)}
    got = _twin_of(models, nodes, weights)
    twin = onnx.load(models.folder / "twin.onnx").graph
    read = {node.op_type: list(node.input) for node in twin.node}
    stored = {tensor.name: tensor.data_type for tensor in twin.initializer}
    assert stored[read["Gather"][0]] == stored[read["Transpose"][0]] == TensorProto.BFLOAT16
    rows = _rounded(weights["table"])[X.astype(np.int64)]
    np.testing.assert_allclose(got, _rounded(rows @ _rounded(weights["w"]).T), rtol=1e-2)
