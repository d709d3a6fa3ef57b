"""Following a node's input to its constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.trace import MASK_APART, passes_through, trace_weight
from sparseflow_trt.model.weights import TracedWeight, Untraceable

if TYPE_CHECKING:
    from tests.conftest import Models


def _trace(
    models: Models, nodes: Any, weights: dict[str, Any], opset: int = 21
) -> TracedWeight | Untraceable:
    last = helper.make_node("MatMul", ["x", "v"], ["y"], name="mm")
    model = read_model(models.save(models.model([*nodes, last], weights, opset=opset)))
    (node,) = (n for n in model.ir.graph if n.name == "mm")
    return trace_weight(node.inputs[1])


@pytest.mark.parametrize(
    ("target", "allow_zero", "shape"),
    [
        ([32, 64], 0, (32, 64)), ([-1], 0, (2048,)), ([0, -1], 0, (64, 32)), ([2, -1, 32], 0, (2, 32, 32)),
        ([0, 0, 1], 0, (64, 32, 1)),
    ],
)  # fmt: skip
def test_reshape(models: Models, target: list[int], allow_zero: int, shape: tuple[int, ...]) -> None:
    node = helper.make_node("Reshape", ["w", "shape"], ["v"], allowzero=allow_zero)
    weights = {"w": np.ones((64, 32), np.float32), "shape": np.array(target, np.int64)}
    traced = _trace(models, [node], weights)
    assert isinstance(traced, TracedWeight)
    assert traced.operand_shape == shape


@pytest.mark.parametrize(("target", "allow_zero"), [([0, 7], 1), ([0, -1], 0)])
def test_reshape_of_nothing(models: Models, target: list[int], allow_zero: int) -> None:
    node = helper.make_node("Reshape", ["w", "shape"], ["v"], allowzero=allow_zero)
    weights = {"w": np.ones((0, 7), np.float32), "shape": np.array(target, np.int64)}
    traced = _trace(models, [node], weights)
    assert isinstance(traced, TracedWeight)
    assert np.prod(traced.operand_shape) == 0


def test_a_shape_that_is_computed_is_named(models: Models) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["w", "shape"], ["v"], name="r"),
    ]
    traced = _trace(models, nodes, {"w": np.ones((64, 32), np.float32)})
    assert traced == Untraceable("dynamic weight: the shape of Reshape 'r' is not constant")
    nodes[1] = helper.make_node("Squeeze", ["w", "shape"], ["v"])
    traced = _trace(models, nodes, {"w": np.ones((64, 32), np.float32)})
    assert traced == Untraceable("dynamic weight: the shape of Squeeze 'v' is not constant")


def test_a_zero_point_that_is_computed_is_named(models: Models) -> None:
    nodes = [
        helper.make_node("Relu", ["z"], ["zz"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zz"], ["v"], name="dq"),
    ]
    weights = {
        "w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32), "z": np.ones((), np.int8)
    }  # fmt: skip
    traced = _trace(models, nodes, weights)
    assert traced == Untraceable("dynamic weight: the zero point of DequantizeLinear 'dq' is not constant")


def test_a_zero_point_of_another_type_is_refused(models: Models) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"])]
    weights = {
        "w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32), "z": np.full((), 200, np.uint8)
    }  # fmt: skip
    with pytest.raises(ValueError, match="has a zero point of UINT8 for INT8"):
        _trace(models, nodes, weights)


def test_zero_points_are_compared_by_what_they_say(models: Models) -> None:
    keys = []
    for zeros in ([1] * 32, list(range(32)), list(range(32)), list(range(1, 33))):
        nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"])]
        weights = {
            "w": np.ones((64, 32), np.int8), "s": np.ones(32, np.float32), "z": np.array(zeros, np.int8)
        }  # fmt: skip
        traced = _trace(models, nodes, weights)
        assert isinstance(traced, TracedWeight)
        keys.append(traced.zero_key)
    assert keys[0] == 1  # one for all
    assert keys[1] == keys[2] != keys[3]


def test_a_constant_may_be_a_list_of_numbers(models: Models) -> None:
    nodes = [helper.make_node("Constant", [], ["v"], value_floats=[1.0] * 64)]
    traced = _trace(models, nodes, {})
    assert isinstance(traced, TracedWeight)
    assert (traced.name, traced.operand_shape) == ("v", (64,))


def test_an_input_that_is_left_out() -> None:
    assert trace_weight(None) == Untraceable("dynamic weight: the input is left out")


def test_only_known_operators_are_passed_through(models: Models) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Identity", ["x"], ["c"], domain="mine"),
        helper.make_node("QuantizeLinear", ["x", "s"], ["d"], domain="com.microsoft"),
        helper.make_node("Cast", ["x"], ["y"], domain="com.microsoft"),
    ]  # fmt: skip
    model = read_model(models.save(models.model(nodes, {"s": np.ones((), np.float32)})))
    assert [passes_through(node) for node in model.ir.graph] == [True, False, False, True, False]


@pytest.mark.parametrize(("kept", "apart"), [(0, True), (1, False)])
@pytest.mark.parametrize("inputs", [["mask", "w", "other"], ["mask", "other", "w"]])
def test_a_mask_that_a_where_applies_is_apart_where_it_leaves_zeros(
    inputs: list[str], kept: float, apart: bool, models: Models
) -> None:
    weights = {"mask": np.ones((64, 32), bool), "w": np.ones((64, 32), np.float32)}
    weights["other"] = np.full((), kept, np.float32)  # as masked_fill writes it
    traced = _trace(models, [helper.make_node("Where", inputs, ["v"], name="pick")], weights)
    assert isinstance(traced, Untraceable)
    assert (traced.reason == MASK_APART) is apart
    assert traced.computed
