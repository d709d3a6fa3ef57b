"""Which node is said to be the first that FP16 cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.pipeline import BuildOptions, build
from tests.troubled import save_transformer

if TYPE_CHECKING:
    from tests.conftest import Models

FP16 = PlanOptions(precision="fp16", axes={"batch": (1, 2, 2), "seq": (4, 8, 16)})


@pytest.mark.parametrize(
    ("trouble", "node"), [("score", "'b1.scores' (MatMul)"), ("norm", "'b1.down' (MatMul)")]
)
def test_a_build_in_fp16_says_what_overflows_first(
    models: Models, tmp_path: Path, trouble: str, node: str
) -> None:
    path = save_transformer(models, trouble)  # type: ignore[arg-type]
    found = build(path, BuildOptions(tmp_path / "a", FP16, "onnxruntime")).manifest.validation
    assert found.verdict == "fail"
    for reason in (found.reason, found.candidates[0].reason):
        assert "The first to overflow in FP16 is " + node in reason
        assert "FP16 ends at 65504" in reason
        assert "--precision auto" in reason


def test_a_mask_that_overflows_and_vanishes_is_not_blamed(models: Models, tmp_path: Path) -> None:
    """A fill of -65504 beside a negative score is -inf in FP16, and 0 behind the Softmax: no harm."""
    weights = {
        "w": np.eye(64, dtype=np.float32),
        "mask": np.where(np.arange(64) < 8, 0, -65504).astype(np.float32),
        "minus": np.full(64, -64, np.float32),
        "large": np.full((64, 8), 1e5, np.float32),
        "small": np.asarray(np.float32(2.0**-16)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="scores"),
        helper.make_node("Add", ["a", "minus"], ["b"], name="lower"),
        helper.make_node("Add", ["b", "mask"], ["c"], name="masked"),
        helper.make_node("Softmax", ["c"], ["p"], name="softmax"),
        helper.make_node("Mul", ["p", "forty"], ["q"], name="up"),
        helper.make_node("MatMul", ["q", "large"], ["d"], name="culprit"),
        helper.make_node("Mul", ["d", "small"], ["y"], name="down"),
    ]
    weights["forty"] = np.asarray(np.float32(40))
    path = models.save(models.model(nodes, weights))
    options = PlanOptions(precision="fp16", axes={"batch": (1, 2, 4)})
    found = build(path, BuildOptions(tmp_path / "a", options, "onnxruntime")).manifest.validation
    assert "is 'culprit' (MatMul)" in found.candidates[0].reason


def test_what_fails_for_another_reason_overflows_nowhere(models: Models, tmp_path: Path) -> None:
    path = save_transformer(models, "rounding")
    found = build(path, BuildOptions(tmp_path / "a", FP16, "onnxruntime")).manifest.validation
    assert found.verdict == "fail"
    assert "overflow" not in found.reason


def test_an_integer_that_overflows_is_named_without_its_size(models: Models, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["a"]),
        helper.make_node("Cast", ["a"], ["i"], to=TensorProto.INT32, name="integers"),
        helper.make_node("Neg", ["i"], ["n"], name="negative"),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT, name="floats"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="fc"),
    ]
    weights = {"large": np.asarray(np.float32(1e6)), "w": np.eye(64, dtype=np.float32) / 1e6}
    path = models.save(models.model(nodes, weights))
    options = PlanOptions(precision="fp16", axes={"batch": (1, 2, 4)})
    found = build(path, BuildOptions(tmp_path / "a", options, "onnxruntime")).manifest.validation
    assert "The first to overflow in FP16 is 'negative' (Neg): FP16 ends at 65504" in found.reason
