"""Nodes of one name, which plans tell apart and ONNX Runtime refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.exporters.fp32_reference import needs_fp32_reference
from sparseflow_trt.exporters.node_names import has_twins, name_nodes
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.sites import find_sites

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Models


@pytest.fixture
def twins(models: Models) -> Path:
    """Two products and a Relu of one name, and a Relu of none."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="mm"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="mm"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="mm"),
    ]
    weights = {"w": np.ones((64, 64), np.float32)}
    return models.save(models.model(nodes, weights, {"x": ("batch", 64)}))


def test_layers_get_the_names_that_plans_know_and_others_what_is_left(twins: Path) -> None:
    model = read_model(twins)
    assert has_twins(model.ir.graph)
    assert needs_fp32_reference(model)
    sites = find_sites(model)
    name_nodes(model.ir.graph, sites)
    assert [node.name for node in model.ir.graph] == ["mm#3", "mm", "Relu:c", "mm#2"]
    assert [site.name for site in sites] == [site.name for site in find_sites(model)] == ["mm", "mm#2"]
    assert not has_twins(model.ir.graph)
