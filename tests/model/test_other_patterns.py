"""What is told of weights that are not 2:4 along K: another pattern, many zeros, NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import NOT_SPARSE, SPARSE, only_layer, random_weight

if TYPE_CHECKING:
    from tests.conftest import Models


@pytest.mark.parametrize(
    ("zeros", "groups", "otherwise"),
    [
        (0.1, "95%", ""),  # INT8 weights that nobody pruned have as many
        (0.5, "31%", "; 50% of the weight is zero"),
        (0.9, "0.37%", "; 90% of the weight is zero"),
    ],
)
def test_a_weight_that_was_pruned_another_way_says_how_much_of_it_is_zero(
    zeros: float, groups: str, otherwise: str, models: Models
) -> None:
    weight = random_weight(256, 1024)
    weight[np.random.default_rng(1).random(weight.shape) < zeros] = 0
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    layer = only_layer(models.save(models.model([node], {"w": weight}, {"x": ("b", 256)})))
    assert layer.reason == f"{groups} of 65536 groups hold more than two non-zeros{otherwise}"


@pytest.mark.parametrize("kernel", [(3, 3), (5,), (2, 2, 2)])
def test_a_conv_that_is_2to4_along_its_flattened_kernel_is_told(
    kernel: tuple[int, ...], models: Models
) -> None:
    weight = random_weight(32, 16, *kernel)
    flattened = prune_2to4(weight.reshape(32, -1), 1).reshape(weight.shape)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    x = ("b", 16, *(8 for _ in kernel))
    layer = only_layer(models.save(models.model([node], {"w": flattened}, {"x": x})))
    assert layer.state is NOT_SPARSE
    told = "it is 2:4 along its flattened kernel, not along its input channels"
    assert (layer.otherwise, layer.reason.partition("; ")[2]) == (told, told)


def test_a_conv_of_one_place_is_2to4_along_its_flattened_kernel_as_along_its_channels(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weight = prune_2to4(random_weight(32, 16), 1).reshape(32, 16, 1, 1)
    layer = only_layer(models.save(models.model([node], {"w": weight}, {"x": ("b", 16, 8, 8)})))
    assert layer.state is SPARSE


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_that_holds_nan_says_in_how_many_places(dtype: Any, models: Models) -> None:
    """As a scale that is 0 / 0 for each pruned element makes it."""
    weight = prune_2to4(random_weight(64, 32), 0).astype(dtype)
    weight[:4, :3] = np.nan
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = models.model([node], {"w": weight}, {"x": ("b", 64)})
    layer = only_layer(models.save(model))
    assert layer.reason == (
        "0.59% of 512 groups hold more than two non-zeros; it holds NaN in 12 place(s), which count as "
        "non-zeros; 50% of the weight is zero"
    )
    dense = only_layer(models.save(models.model([node], {"w": np.full((64, 32), np.nan, dtype)})))
    assert dense.found == "it holds NaN in 2048 place(s), which count as non-zeros"
    assert not dense.otherwise, "it was not pruned"
