"""Models that differ in their weights alone, and those that differ in more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparseflow_trt.engines.tensorrt.same_graph import changed_weights, check_same_graph, named_weights
from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import OnnxModel, read_model

if TYPE_CHECKING:
    from tests.conftest import Models

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture
def read(models: Models) -> Callable[..., OnnxModel]:
    """Reads a model with an initializer, a Constant node, an If with a weight, and a shape; changed first."""

    def make(change: Change = lambda proto: None) -> OnnxModel:
        then = helper.make_graph(
            [helper.make_node("Mul", ["c", "inner"], ["t"], name="scale")],
            "then",
            [],
            [helper.make_tensor_value_info("t", 1, None)],
            [numpy_helper.from_array(np.full(1, 2, np.float32), "inner")],
        )
        other = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["e"], name="same")],
            "else",
            [],
            [helper.make_tensor_value_info("e", 1, None)],
        )
        held = numpy_helper.from_array(np.full(1, 3, np.float32))
        proto = models.model(
            [
                helper.make_node("Constant", [], ["k"], name="constant", value=held),
                helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
                helper.make_node("LeakyRelu", ["a"], ["b"], name="act", alpha=0.5),
                helper.make_node("Mul", ["b", "k"], ["m"], name="mul"),
                helper.make_node("Reshape", ["m", "shape"], ["c"], name="reshape"),
                helper.make_node("If", ["yes"], ["y"], name="if", then_branch=then, else_branch=other),
            ],
            {"w": np.ones((64, 32), np.float32), "shape": np.array([-1, 32]), "yes": np.array(True)},
        )
        change(proto)
        return read_model(models.save(proto, f"{len(list(models.folder.iterdir()))}.onnx"))

    return make


def set_initializer(name: str, values: Any) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def then_of(proto: onnx.ModelProto) -> onnx.GraphProto:
    graph: onnx.GraphProto = next(a.g for a in proto.graph.node[-1].attribute if a.name == "then_branch")
    return graph


def test_a_model_is_one_graph_with_itself(read: Callable[..., OnnxModel]) -> None:
    check_same_graph(read(), read())
    assert changed_weights(read(), read()) == ()
    assert set(named_weights(read())) == {"w", "shape", "yes", "k", "inner"}


def replace_constant(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.full(1, 4, np.float32)))


def replace_inner(proto: onnx.ModelProto) -> None:
    inner = numpy_helper.from_array(np.full(1, np.nan, np.float32), "inner")
    then_of(proto).initializer[0].CopyFrom(inner)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (set_initializer("w", np.zeros((64, 32), np.float32)), "w"),
        (set_initializer("w", np.where(np.eye(64, 32) > 2, 0, 1).astype(np.float32) * -0.0), "w"),
        (replace_constant, "k"),
        (replace_inner, "inner"),
    ],
)
def test_weights_may_differ_wherever_they_are(
    read: Callable[..., OnnxModel], change: Change, name: str
) -> None:
    check_same_graph(read(), read(change))
    assert changed_weights(read(), read(change)) == (name,)
    assert changed_weights(read(change), read(change)) == (), "NaN is the same weight as itself"


def rename_node(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].name = "other"


def add_node(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["a"], ["z"], name="more"))


def add_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("c", 1, None))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename_node, "it has node 'other' (MatMul) where that has node 'mm' (MatMul)."),
        (add_node, "it has node 'more' (Identity) where that has output 'y'."),
        (add_output, "it has output 'c' where that has nothing."),
        (
            lambda p: setattr(p.graph.node[2].attribute[0], "f", 0.25),
            "node 'act' (LeakyRelu) is not the same",
        ),
        (lambda p: p.graph.node[3].input.__setitem__(0, "a"), "node 'mul' (Mul) is not the same."),
        (lambda p: setattr(then_of(p).node[0], "op_type", "Add"), "it has node 'scale' (Add) where that has"),
        (set_initializer("w", np.ones((64, 16), np.float32)), "constant 'w' is not the same."),
        (set_initializer("w", np.ones((64, 32), np.float16)), "constant 'w' is not the same."),
        (set_initializer("shape", np.array([32, -1])), "constant 'shape' (INT64) has other values."),
        (set_initializer("yes", np.array(False)), "constant 'yes' (BOOL) has other values."),
    ],
)
def test_anything_else_may_not(read: Callable[..., OnnxModel], change: Change, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_same_graph(read(), read(change))
    assert caught.value.message.startswith("the new model's graph is not the one that was built: ")
    assert says in caught.value.message


def test_what_is_missing_is_named(read: Callable[..., OnnxModel]) -> None:
    with pytest.raises(ModelError, match=r"it lacks output 'c'\."):
        check_same_graph(read(add_output), read())


def test_documentation_and_metadata_may_differ(read: Callable[..., OnnxModel]) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].doc_string = "exported on another day"
        proto.graph.node[1].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="line 2")
        proto.producer_name = "someone"

    check_same_graph(read(), read(change))


def test_weights_in_a_plugins_attributes_cannot_be_exchanged(models: Models) -> None:
    def make(value: float, name: str) -> OnnxModel:
        held = numpy_helper.from_array(np.full(4, value, np.float16), "values")
        proto = models.model([helper.make_node("Lin", ["x"], ["y"], name="in", domain="d", values=held)], {})
        proto.opset_import.append(helper.make_opsetid("d", 1))
        return read_model(models.save(proto, name))

    check_same_graph(make(1, "a.onnx"), make(1, "b.onnx"))
    with pytest.raises(ModelError, match="node 'in' has other values in its attribute 'values'"):
        check_same_graph(make(1, "a.onnx"), make(2, "c.onnx"))
