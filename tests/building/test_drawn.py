"""A model that draws random numbers is no measure, and no step is blamed for what it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.builds import builder_in, dense_weight

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from sparseflow_trt.artifacts.verdict import Validation
    from tests.conftest import Models

TRAINING = {"half": np.array(0.5, np.float32), "training": np.array(True)}


def _built(models: Models, folder: Path, node: onnx.NodeProto, more: Any = None) -> Validation:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
        node,
        helper.make_node("Add", ["a", "drawn"], ["y"], name="add"),
    ]
    path = models.save(models.model(nodes, {"w": dense_weight(64, 32), **(more or {})}))
    return builder_in(folder)(path, backend="onnxruntime").manifest.validation


@pytest.mark.parametrize(
    ("node", "more", "how", "instead"),
    [
        (
            helper.make_node("RandomNormalLike", ["a"], ["drawn"], name="it"),
            {},
            "it has no seed",
            "Give the model its noise as an input.",
        ),
        (
            helper.make_node("Dropout", ["a", "half", "training"], ["drawn"], name="it"),
            TRAINING,
            "it is in training mode",
            "Export the model in eval mode.",
        ),
    ],
)
def test_what_draws_is_named(
    node: onnx.NodeProto, more: Any, how: str, instead: str, models: Models, tmp_path: Path
) -> None:
    found = _built(models, tmp_path, node, more)
    assert found.verdict == "fail"
    assert found.attribution is not None
    assert (found.attribution.blamed, found.attribution.reason) == (
        "",
        f"No step is to blame: 'it' ({node.op_type}) draws random numbers ({how}), so no two "
        f"runs of the model are the same. {instead}",
    )


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("RandomNormalLike", ["a"], ["drawn"], name="noise", seed=1.0),
        helper.make_node("Dropout", ["a", "half"], ["drawn"], name="drop"),
    ],
)
def test_what_gives_the_same_each_time_is_a_measure(
    node: onnx.NodeProto, models: Models, tmp_path: Path
) -> None:
    found = _built(models, tmp_path, node, {"half": TRAINING["half"]})
    assert found.verdict == "pass", found.reason


@pytest.mark.parametrize(("name", "told"), [("in1", True), ("attention_mask", False)])
def test_inputs_of_which_nothing_is_known_are_named_where_it_fails(
    name: str, told: bool, models: Models, tmp_path: Path
) -> None:
    # in FP16 the fill is infinite, and zero times that is NaN
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Cast", [name], ["bits"], to=1),
        helper.make_node("Mul", ["bits", "fill"], ["masked"]),
        helper.make_node("Mul", ["masked", "fill"], ["far"]),
        helper.make_node("Add", ["a", "far"], ["y"]),
    ]
    weights = {"w": dense_weight(64, 32), "fill": np.array(-1e4, np.float32)}
    model = models.model(nodes, weights, inputs={"x": ["batch", 64], name: ["batch", 32]})
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    path = models.save(model)
    found = builder_in(tmp_path)(path, backend="onnxruntime").manifest.validation
    assert found.verdict == "fail"
    assert found.attribution is not None
    said = (
        f"The model does not say which values '{name}' may have, so 0 and 1 were drawn: give real ones with "
        "--inputs"
    )
    assert (said in found.attribution.reason) is told
