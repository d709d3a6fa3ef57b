"""Zero positions of a file against those of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pytorch.masks import array_of, check_masks

if TYPE_CHECKING:
    from tests.conftest import Models

torch = pytest.importorskip("torch")


def test_a_zero_elsewhere_is_found(models: Models) -> None:
    weight = prune_2to4(np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32), 1)
    nodes = [
        helper.make_node("Transpose", ["fc.weight"], ["t"], "transpose"),
        helper.make_node("MatMul", ["x", "t"], ["y"], "fc"),
    ]
    model = read_model(models.save(models.model(nodes, {"fc.weight": weight}), "m.onnx"))
    layers = read_layers(model)
    same = check_masks(model, layers, {"fc.weight": torch.from_numpy(weight)})
    assert (same.compared, same.sparse, same.changed, same.foreign) == (1, 1, (), ())
    moved = weight.copy()
    group = moved[3, 4:8]
    group[np.flatnonzero(group == 0)[0]] = 1.0
    assert check_masks(model, layers, {"fc.weight": torch.from_numpy(moved)}).changed == ("fc.weight",)
    scaled = torch.from_numpy(weight * 2)  # values are not what a mask is about
    assert not check_masks(model, layers, {"fc.weight": scaled}).changed
    assert check_masks(model, layers, {"other": torch.from_numpy(weight)}).foreign == ("fc",)
    assert check_masks(model, layers, {"fc.weight": torch.from_numpy(weight.T.copy())}).foreign == ("fc",)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_tensor_as_an_array(dtype: str) -> None:
    tensor = torch.tensor([[1.5, -2.0], [0.0, 3.25]], dtype=getattr(torch, dtype))
    array = array_of(tensor)
    assert array.dtype.name == dtype
    assert array.astype(np.float32).tolist() == [[1.5, -2.0], [0.0, 3.25]]
