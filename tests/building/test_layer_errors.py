"""What each layer adds to an error: laws on real graphs, run by the ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.artifacts.verdict import LayerError, Validation
from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.backends.choose import BackendName
from sparseflow_trt.exporters.retyping.probe import common_values
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.validation import layer_errors as module
from sparseflow_trt.validation.runners import UnsupportedError

if TYPE_CHECKING:
    from tests.conftest import Array, Models

LAYERS = ValidationOptions(per_layer=True)


def _weight(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return np.asarray(values, np.float32)


def _validation(
    path: Path, precision: Any = "fp16", validation: ValidationOptions = LAYERS, **options: Any
) -> Validation:
    plan = PlanOptions(axes={"batch": (2, 4, 8)}, precision=precision, **options)
    backend: BackendName = "tensorrt-rtx" if precision == "bf16" else "onnxruntime"
    asked = BuildOptions(path.parent / "out", plan, backend, validation)
    return build(path, asked).manifest.validation


def _layers(validation: Validation, step: str = "precision") -> dict[str, LayerError]:
    assert validation.attribution is not None
    return {layer.layer: layer for layer in validation.attribution.layers if layer.step == step}


def _attention(models: Models, gain: float) -> onnx.ModelProto:
    """Scores of `gain` times what they should be, with a mask, a softmax and a product behind it."""
    nodes = [
        helper.make_node("MatMul", ["x", "qw"], ["q"], name="query"),
        helper.make_node("MatMul", ["x", "kw"], ["k"], name="key"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Mul", ["s", "down"], ["scaled"], name="scale"),
        helper.make_node("Greater", ["scaled", "limit"], ["seen"], name="see"),
        helper.make_node("Where", ["seen", "zero", "fill"], ["mask"], name="mask"),
        helper.make_node("Add", ["scaled", "mask"], ["masked"], name="add_mask"),
        helper.make_node("Softmax", ["masked"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "x"], ["c"], name="context"),
        helper.make_node("MatMul", ["c", "ow"], ["y"], name="out"),
    ]
    scalars: dict[str, Any] = {"down": 1 / gain, "limit": -0.3, "zero": 0.0, "fill": np.finfo(np.float32).min}
    weights = {
        "qw": _weight(64, 64) * gain, "kw": _weight(64, 64, seed=1), "ow": _weight(64, 64, seed=2),
        **{name: np.asarray(np.float32(value)) for name, value in scalars.items()},
    }  # fmt: skip
    return models.model(nodes, weights)


def test_only_what_rounds_adds_an_error(models: Models) -> None:
    found = _layers(_validation(models.save(_attention(models, 1.0))))
    assert "turn" not in found  # it moves elements
    assert {"query", "key", "scores", "context", "out"} <= set(found)
    for layer in found.values():
        assert layer.own is not None
        assert layer.own < 2**-10  # of one operator: its inputs are the same, one rounding of each output
        assert layer.nonfinite == 0
    assert (found["out"].accumulated or 0) > (found["out"].own or 0)


def test_a_clipped_mask_is_no_error_and_is_counted(models: Models) -> None:
    found = _layers(_validation(models.save(_attention(models, 1.0))))
    assert found.get("mask", found["add_mask"]).saturated > 0
    assert (found["add_mask"].own or 0) < 2**-10
    assert found["add_mask"].nonfinite == 0


def test_an_overflow_is_pinned_to_the_layer_that_makes_it(models: Models) -> None:
    """Scores of 1e6 are beyond FP16; what comes behind them is NaN in the whole model, and not to blame."""
    validation = _validation(models.save(_attention(models, 1e6)))
    assert validation.verdict == "fail"
    assert validation.attribution is not None
    assert validation.attribution.blamed == "precision"
    reason = validation.attribution.reason
    assert "Among the layers, 'query' (MatMul) is the first to produce NaN or infinity" in reason
    found = _layers(validation)
    first = validation.attribution.layers[0]
    assert (first.layer, first.own, first.nonfinite > 0) == ("query", None, True)
    assert found["context"].nonfinite == 0
    assert found["context"].accumulated_nonfinite > 0
    assert found["context"].own is not None


def _mlp(models: Models, weights: dict[str, Array], name: str = "model.onnx") -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("MatMul", ["b", "mid"], ["c"], name="mid"),
        helper.make_node("Relu", ["c"], ["d"], name="act2"),
        helper.make_node("MatMul", ["d", "down"], ["y"], name="down"),
    ]
    return models.save(models.model(nodes, weights), name)


def test_pruning_is_pinned_to_the_layer_that_was_pruned(models: Models) -> None:
    weights = {"up": _weight(64, 64), "mid": _weight(64, 64, seed=1), "down": _weight(64, 64, seed=2)}
    dense = _mlp(models, weights, "dense.onnx")
    path = _mlp(models, {**weights, "mid": prune_2to4(weights["mid"], 0)})
    asked = ValidationOptions(per_layer=True, dense_model=dense)
    validation = _validation(path, "fp16", asked, sparsity="force")
    assert validation.attribution is not None
    assert validation.attribution.blamed == "pruning"
    found = _layers(validation, "pruning")
    assert list(found) == ["mid"]  # what comes behind it passes the error on, and adds none
    assert found["mid"].own == found["mid"].accumulated
    assert set(_layers(validation)) == {"up", "mid", "down"}  # the precision's


def test_parts_of_a_graph_give_what_the_whole_gives(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.save(_attention(models, 1.0))
    whole = _layers(_validation(path))
    monkeypatch.setattr(module, "_CHUNK", 1)
    parts = _layers(_validation(path, validation=ValidationOptions(per_layer=True, seed=0)))
    assert parts == whole


def test_bf16_runs_as_its_twin(models: Models) -> None:
    weights = {name: _weight(64, 64, seed=i) for i, name in enumerate(("up", "mid", "down"))}
    found = _layers(_validation(_mlp(models, weights), "bf16"))
    assert set(found) == {"up", "mid", "down"}
    assert all(2**-11 < (layer.own or 0) < 2**-7 for layer in found.values())


def test_a_branch_is_one_layer(models: Models) -> None:
    """A subgraph reads values around it: those are given, too."""
    inside = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w2"], ["inner"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["same"])],
        "else",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="before"),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Less", ["sum", "huge"], ["small"]),
        helper.make_node("If", ["small"], ["b"], name="branch", then_branch=inside, else_branch=other),
        helper.make_node("MatMul", ["b", "w3"], ["y"], name="after"),
    ]
    weights = {f"w{i}": _weight(64, 64, seed=i) for i in (1, 2, 3)} | {"huge": np.asarray(np.float32(1e9))}
    found = _layers(_validation(models.save(models.model(nodes, weights))))
    assert {"before", "branch", "after"} <= set(found)
    assert all((layer.own or 0) < 2**-9 for layer in found.values())


def test_layers_that_cannot_be_measured_fail_no_build(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs cut in pieces may be what the ONNX Runtime has no kernel for; the comparison stands."""

    def refuse(path: Path) -> Any:
        raise UnsupportedError(f"no kernel in {path.name}.")

    weights = {name: _weight(64, 64, seed=i) for i, name in enumerate(("up", "mid", "down"))}
    path = _mlp(models, weights)
    monkeypatch.setattr(module, "open_session", refuse)
    validation = _validation(path)
    assert validation.verdict == "pass"
    assert _layers(validation) == {}
    assert validation.attribution is not None
    reason = validation.attribution.reason
    assert "The layers of step 'precision' could not be measured: no kernel in " in reason


def test_models_with_nothing_in_common_have_no_layers(models: Models) -> None:
    def one(value: str) -> Path:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], [value], name="mm"),
            helper.make_node("Relu", [value], [f"{value}_out"]),
        ]
        model = models.model(nodes, {"w": _weight(64, 64)}, outputs=[f"{value}_out"])
        return models.save(model, f"{value}.onnx")

    assert common_values(one("a"), one("b")) == ()
    assert _names(common_values(one("a"), one("a"))) == ["a", "a_out"]


def _names(values: Sequence[Any]) -> list[str]:
    return [value.name for value in values]
