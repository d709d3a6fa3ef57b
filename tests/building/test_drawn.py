"""A model that draws random numbers is no measure, and no step is blamed for what it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

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
        f"No step is to blame: 'it' ({node.op_type}) draws random numbers ({how}), so that no two runs of "
        f"the model are the same. {instead}",
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
