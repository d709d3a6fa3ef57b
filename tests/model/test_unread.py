"""Nodes that nothing reads, as a head that was cut off a model leaves them behind."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.prunable import choose_weights
from tests.builds import BATCH, builder_in, sparse_weight
from tests.graphs import SPARSE, layers_of

if TYPE_CHECKING:
    from pathlib import Path

    from sparseflow_trt.engines.backends.choose import BackendName
    from tests.conftest import Models


def _with_heads_cut_off(models: Models) -> Path:
    def branch(nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        return helper.make_graph(nodes, "body", [], out)

    inside = [
        helper.make_node("MatMul", ["x", "w"], ["t"], name="read"),
        helper.make_node("MatMul", ["t", "w"], ["cut"], name="cut"),
    ]
    branches = {
        "then_branch": branch(inside, "t"),
        "else_branch": branch([helper.make_node("Identity", ["x"], ["e"])], "e"),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="read"),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["head"], name="head", transB=1),
        helper.make_node("If", ["c"], ["z"], name="if", **branches),
        helper.make_node("If", ["c"], ["no"], name="unread", **branches),
    ]
    weights = {"w": sparse_weight(64, 64), "c": np.array(True)}
    return models.save(models.model(nodes, weights, outputs=["y", "z"]))


def test_they_are_no_layers(models: Models) -> None:
    layers = layers_of(_with_heads_cut_off(models))
    assert [layer.name for layer in layers] == ["read", "if/then_branch/read"]
    assert layers[0].shared_with == ("if/then_branch/read",)
    assert layers[0].state is SPARSE


def test_a_weight_that_they_too_read_is_pruned(models: Models) -> None:
    choice = choose_weights(read_model(_with_heads_cut_off(models)))
    assert [weight.layers for weight in choice.taken] == [("read", "if/then_branch/read")]
    assert not choice.conflicts, "the head's K lies on the other axis, and no engine has the head"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_model_with_them_is_built_sparse(backend: BackendName, models: Models, tmp_path: Path) -> None:
    path = _with_heads_cut_off(models)
    result = builder_in(tmp_path)(path, replace(BATCH, sparsity="force"), backend=backend)
    assert result.manifest.status == "pass", result.manifest.validation.reason
    assert {layer.sparsity for layer in result.manifest.layers} == {"sparse"}
