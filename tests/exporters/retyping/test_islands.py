"""Islands of a plan that mean nothing in a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.errors import PlanError
from sparseflow_trt.exporters.retyping.islands import check_islands, fp32_islands, islands_by_layer
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.sites import find_sites
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.planning import make_plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from tests.conftest import Models


@pytest.fixture
def model(models: Models) -> OnnxModel:
    """Two products, the second without a name, and a Softmax in an If."""
    body = helper.make_graph(
        [helper.make_node("Softmax", ["a"], ["s"], name="inner/softmax")],
        "then",
        [],
        [helper.make_tensor_value_info("s", 1, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("If", ["c"], ["b"], name="if", then_branch=body, else_branch=body),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    weights = {"w": np.zeros((64, 64), np.float32), "c": np.asarray(True)}
    return read_model(models.save(models.model(nodes, weights)))


def _plan(model: OnnxModel, *islands: str) -> Plan:
    plan = make_plan(read_layers(model), (), {}, None, "fp16")
    return plan.model_copy(update={"islands": islands})


def _spine(
    model: OnnxModel, islands: Collection[ir.Node], layers: Mapping[ir.Node, str]
) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(r.after, r.module, r.operators) for r in islands_by_layer(model.ir, islands, layers)]


def test_operators_nodes_and_layers_are_islands(model: OnnxModel) -> None:
    plan = _plan(model, "RMSNormalization", "Gelu", "first", "MatMul:y", "inner/softmax")
    check_islands(model.ir, plan)
    check_islands(model.ir, make_plan(read_layers(model), (), {}, None, "fp16"))


@pytest.mark.parametrize(
    ("island", "hint"),
    [
        ("LayerNorm", "Name an operator's type, or a node."),
        ("Softmaxx", "Did you mean Softmax"),
        ("firsst", "Did you mean first?"),
        ("softmax", "Did you mean Softmax"),
        ("", "Name an operator's type, or a node."),
    ],
)
def test_another_name_is_refused(island: str, hint: str, model: OnnxModel) -> None:
    with pytest.raises(PlanError) as caught:
        check_islands(model.ir, _plan(model, "Softmax", island))
    says = f"the plan's island '{island}' is neither an operator of ONNX nor a node of the model."
    assert caught.value.message == says
    assert caught.value.hint.startswith(hint)


def test_islands_are_found_behind_their_layer_in_the_graphs_order(model: OnnxModel) -> None:
    layers = {site.node: site.name for site in find_sites(model)}
    plan = _plan(model, "Softmax")
    islands = fp32_islands(model.ir, plan)
    assert _spine(model, islands, layers) == [("first", "inner", ("Softmax", "Softmax"))]
    assert _spine(model, islands, {}) == [("", "inner", ("Softmax", "Softmax"))]
    assert _spine(model, (), layers) == []


def test_islands_between_two_layers_are_told_apart_by_their_modules(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Softmax", ["a"], ["b"], name="node_Softmax_1"),
        helper.make_node("Softmax", ["b"], ["c"], name="node_Softmax_2"),
        helper.make_node("Softmax", ["c"], ["d"], name="/blocks.1/norm/Softmax"),
        helper.make_node("Softmax", ["d"], ["e"], name="node_Softmax_3"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="second"),
    ]
    model = models.model(nodes, {"w": np.zeros((64, 64), np.float32)})
    for node in model.graph.node[1:3]:
        scopes = node.metadata_props.add()
        scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'blocks.0.norm', 'softmax']"
    read = read_model(models.save(model))
    islands = fp32_islands(read.ir, _plan(read, "Softmax"))
    layers = {site.node: site.name for site in find_sites(read)}
    assert _spine(read, islands, layers) == [
        ("first", "blocks.0.norm", ("Softmax", "Softmax")),
        ("first", "/blocks.1/norm", ("Softmax",)),
        ("first", "", ("Softmax",)),
    ]
