"""The nodes that multiply by a weight: in branches, loops and functions of a model, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.sites import find_sites
from tests.graphs import NOT_ELIGIBLE, NOT_SPARSE, SPARSE, layers_of, random_weight

if TYPE_CHECKING:
    from tests.conftest import Models


def _body(nodes: list[onnx.NodeProto], output: str, inputs: Any = (), weights: Any = ()) -> onnx.GraphProto:
    out = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "body", list(inputs), out, list(weights))


def test_layers_in_branches_with_weights_from_outside_and_inside(models: Models) -> None:
    inside = models.tensor("inner", prune_2to4(random_weight(64, 32), 0))
    then = _body([helper.make_node("MatMul", ["x", "outer"], ["t"], name="mm")], "t")
    other = _body([helper.make_node("MatMul", ["x", "inner"], ["e"], name="mm")], "e", weights=[inside])
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["x", "outer"], ["z"], name="mm"),
    ]
    weights = {"outer": random_weight(64, 32), "c": np.array(True)}
    layers = {
        layer.name: layer
        for layer in layers_of(models.save(models.model(nodes, weights, outputs=["y", "z"])))
    }
    assert set(layers) == {"if/then_branch/mm", "if/else_branch/mm", "mm"}
    assert layers["if/then_branch/mm"].state is NOT_SPARSE
    assert layers["if/then_branch/mm"].shared_with == ("mm",)
    assert layers["if/else_branch/mm"].state is SPARSE


def test_layers_in_a_loop(models: Models) -> None:
    def info(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, None)

    nodes = [
        helper.make_node("MatMul", ["state", "w"], ["next"], name="mm"),
        helper.make_node("MatMul", ["x", "state"], ["each"], name="dynamic"),
        helper.make_node("Identity", ["go"], ["go_on"]),
    ]
    inputs = [info("i", TensorProto.INT64), info("go", TensorProto.BOOL), info("state", TensorProto.FLOAT)]
    outputs = [info("go_on", TensorProto.BOOL), *(info(v, TensorProto.FLOAT) for v in ("next", "each"))]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    loop = helper.make_node("Loop", ["n", "", "x"], ["y", "each"], name="loop", body=body)
    weights = {"w": random_weight(64, 64), "n": np.array(3, np.int64)}
    static, dynamic = layers_of(models.save(models.model([loop], weights, outputs=["y", "each"])))
    assert (static.name, static.state) == ("loop/body/mm", NOT_SPARSE)
    assert (dynamic.name, dynamic.state) == ("loop/body/dynamic", NOT_ELIGIBLE)


def test_layers_in_functions_of_the_model(models: Models) -> None:
    inside = models.tensor("k", prune_2to4(random_weight(32, 16), 0))
    function = helper.make_function(
        "mine", "Linear", ["a", "b"], ["c"],
        [
            helper.make_node("Constant", [], ["k"], value=inside),
            helper.make_node("MatMul", ["a", "b"], ["h"], name="outside"),
            helper.make_node("MatMul", ["h", "k"], ["c"], name="inside"),
        ],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Linear", ["x", "w"], ["y"], domain="mine", name="first"),
        helper.make_node("Linear", ["x", "w"], ["z"], domain="mine", name="second"),
    ]
    model = models.model(nodes, {"w": random_weight(64, 32)}, outputs=["y", "z"], functions=[function])
    layers = layers_of(models.save(model))
    assert [(layer.state, layer.weight_shape) for layer in layers] == [
        (NOT_SPARSE, (64, 32)),
        (SPARSE, (32, 16)),
    ] * 2
    assert len({layer.name for layer in layers}) == 4
    assert all(len(layer.shared_with) == 1 for layer in layers)


def test_a_function_that_cannot_be_inlined_is_named(models: Models) -> None:
    wrong = helper.make_node("MatMul", ["a", "b"], ["c"])
    function = helper.make_function("mine", "F", ["a"], ["c"], [wrong], [helper.make_opsetid("", 21)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    with pytest.raises(ModelError, match="a function of the model cannot be inlined: "):
        layers_of(models.save(models.model(nodes, functions=[function])))


def test_functions_that_call_each_other_are_refused(models: Models) -> None:
    functions = [
        helper.make_function("mine", a, ["p"], ["q"], [helper.make_node(b, ["p"], ["q"], domain="mine")],
                             [helper.make_opsetid("mine", 1)])
        for a, b in (("F", "G"), ("G", "F"))
    ]  # fmt: skip
    nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    with pytest.raises(ModelError, match="a function of the model cannot be inlined: Cyclic"):
        layers_of(models.save(models.model(nodes, functions=functions)))


def test_names_are_unique(models: Models) -> None:
    names = ["mm", "mm#2", "mm", "mm", ""]
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], name=n) for i, n in enumerate(names)]
    path = models.save(models.model(nodes, {"w": random_weight(64, 32)}, outputs=[f"y{i}" for i in range(5)]))
    assert [layer.name for layer in layers_of(path)] == ["mm", "mm#2", "mm#3", "mm#4", "MatMul:y4"]


def test_finding_sites_twice_finds_the_same(models: Models) -> None:
    model = read_model(models.matmul(random_weight(64, 32)))
    assert [site.name for site in find_sites(model)] == [site.name for site in find_sites(model)]
