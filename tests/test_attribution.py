"""Builds with the unpruned model beside: restored weights, errors by step, what other commands make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparseflow_trt.artifacts.manifest import read_manifest
from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.errors import ArtifactError, ModelError
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, BuildResult, build

if TYPE_CHECKING:
    from tests.conftest import Array, Duels, Models

BATCH = PlanOptions(axes={"batch": (1, 4, 8)}, sparsity="force")


def _weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"up": (64, 128), "down": (128, 64)}
    return {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}


def _save(models: Models, weights: dict[str, Array], name: str) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("MatMul", ["b", "down"], ["y"], name="down_proj"),
    ]
    return models.save(models.model(nodes, weights), name)


@pytest.fixture
def dense(models: Models) -> Path:
    return _save(models, _weights(), "dense.onnx")


@pytest.fixture
def pruned(models: Models) -> Path:
    return _save(models, {n: prune_2to4(w, 0) for n, w in _weights().items()}, "model.onnx")


def _build(pruned: Path, dense: Path | None, down: str = "dense", **options: Any) -> BuildResult:
    model, layers = read(pruned)
    plan = plan_for(model, layers, BATCH, "")
    changed = [p.model_copy(update={"sparsity": down}) if p.name == "down_proj" else p for p in plan.layers]
    plan = plan.model_copy(update={"layers": tuple(changed)})
    validation = ValidationOptions(dense_model=dense)
    return build(pruned, BuildOptions(pruned.parent / "out", plan, "onnxruntime", validation, **options))


def _weight(result: BuildResult, name: str) -> Array:
    model = onnx.load(result.artifact / "model.onnx")
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_what_runs_dense_ships_its_unpruned_weights(pruned: Path, dense: Path) -> None:
    result = _build(pruned, dense)
    manifest = read_manifest(result.artifact)
    assert manifest.status == "pass"
    assert manifest.dense_model is not None
    assert manifest.dense_model.file == "dense.onnx"
    (record,) = manifest.graph.restored
    assert (record.layer, record.route, record.elements) == ("down_proj", "restored", 64 * 64)
    np.testing.assert_array_equal(_weight(result, "down"), _weights()["down"].astype(np.float16))
    np.testing.assert_array_equal(_weight(result, "up"), prune_2to4(_weights()["up"], 0).astype(np.float16))


def test_the_reference_is_the_weights_that_ship(pruned: Path, dense: Path) -> None:
    """Against the model as given the outputs would be off by what pruning of down_proj cost."""
    attribution = _build(pruned, dense).manifest.validation.attribution
    assert attribution is not None
    assert [step.name for step in attribution.steps] == ["pruning", "precision", "engine"]
    assert attribution.unrestored is not None
    assert attribution.blamed == "pruning"
    pairs = zip(attribution.unrestored.outputs, attribution.steps[0].outputs, strict=True)
    assert all((a.accumulated or 0) > (b.accumulated or 1) > 0.1 for a, b in pairs)
    assert all((o.error or 1) < 1e-3 for o in attribution.steps[1].outputs)
    assert "With the restored weights, output 'y'" in attribution.reason


def test_all_dense_costs_nothing(pruned: Path, dense: Path) -> None:
    model, layers = read(pruned)
    plan = plan_for(model, layers, PlanOptions(axes=BATCH.axes, sparsity="off"), "")
    asked = BuildOptions(pruned.parent / "out", plan, "onnxruntime", ValidationOptions(dense_model=dense))
    attribution = build(pruned, asked).manifest.validation.attribution
    assert attribution is not None
    assert attribution.blamed == "precision"
    assert {o.error for o in attribution.steps[0].outputs} == {0.0}


def test_nothing_pruned_dense_restores_nothing(pruned: Path, dense: Path) -> None:
    result = _build(pruned, dense, down="sparse")
    assert result.manifest.graph.restored == ()
    attribution = result.manifest.validation.attribution
    assert attribution is not None
    assert attribution.unrestored is None
    assert [check.read for check in result.manifest.graph.mask_checks][-1] == 2


def test_precisions_are_searched_for_on_the_weights_that_ship(models: Models) -> None:
    """The unpruned model's second product overflows FP16, and the pruned one's does not."""
    weights = _weights()
    weights["down"][0] = 4e4
    dense = _save(models, weights, "dense.onnx")
    weights["down"][0] = 0
    pruned = _save(models, {n: prune_2to4(w, 0) for n, w in weights.items()}, "model.onnx")
    plan = PlanOptions(axes=BATCH.axes, sparsity="off", precision="auto")
    for unpruned, expected in ((None, "fp16"), (dense, "fp32")):
        validation = ValidationOptions(dense_model=unpruned)
        asked = BuildOptions(pruned.parent / "out", plan, "onnxruntime", validation, force=True)
        manifest = build(pruned, asked).manifest
        assert manifest.status == "pass"
        assert manifest.layers[1].precision == expected, unpruned


def test_the_unpruned_model_is_part_of_what_decides_a_build(
    models: Models, pruned: Path, dense: Path
) -> None:
    assert not _build(pruned, dense).unchanged
    assert _build(pruned, dense).unchanged
    other = {name: w * np.where(w < 0, 1.25, 1).astype(np.float32) for name, w in _weights().items()}
    _save(models, other, "dense.onnx")
    assert not _build(pruned, dense).unchanged
    assert not _build(pruned, None).unchanged


def test_validate_asks_for_the_model_that_weights_are_from(models: Models, pruned: Path, dense: Path) -> None:
    artifact = _build(pruned, dense).artifact
    with pytest.raises(ArtifactError, match=r"1 layer\(s\) of .* have weights of .* 'dense.onnx'"):
        validate_artifact(artifact, pruned, ValidationOptions())
    assert validate_artifact(artifact, pruned, ValidationOptions(dense_model=dense)).verdict == "pass"
    other = _save(models, _weights(1), "other.onnx")
    with pytest.raises(ArtifactError, match="weights of another unpruned model than"):
        validate_artifact(artifact, pruned, ValidationOptions(dense_model=other))


def test_validate_measures_pruning_of_an_artifact_that_was_built_without(pruned: Path, dense: Path) -> None:
    artifact = _build(pruned, None).artifact
    plain = validate_artifact(artifact, pruned, ValidationOptions()).attribution
    assert plain is not None
    assert [step.name for step in plain.steps] == ["precision", "engine"]
    found = validate_artifact(artifact, pruned, ValidationOptions(dense_model=dense)).attribution
    assert found is not None
    assert (found.blamed, found.unrestored) == ("pruning", None)


def test_a_half_precision_model_is_measured_in_fp32(models: Models, dense: Path) -> None:
    half = _save(models, {n: prune_2to4(w, 0) for n, w in _weights().items()}, "full.onnx")
    model = onnx.load(half)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(models.tensor(tensor.name, numpy_helper.to_array(tensor).astype(np.float16)))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    path = models.save(model, "half.onnx")
    found = _build(path, dense).manifest
    assert found.graph.restored[0].route == "restored"
    assert found.status == "pass"


def test_another_model_is_refused_and_nothing_is_written(models: Models, pruned: Path) -> None:
    other = _save(models, _weights(1), "other.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx is another model"):
        _build(pruned, other)
    assert not (pruned.parent / "out").exists()


def test_a_duel_restores_what_each_engine_runs_dense(duels: Duels, pruned: Path, dense: Path) -> None:
    duels.speedups = dict.fromkeys(("default:opt", "default"), 0.5)
    result = _build(pruned, dense, down="sparse", margin=0.02)
    assert result.manifest.duel is not None
    assert result.manifest.duel.ships == "dense"
    assert [r.layer for r in result.manifest.graph.restored] == ["up_proj", "down_proj"]
    np.testing.assert_array_equal(_weight(result, "up"), _weights()["up"].astype(np.float16))
    assert result.manifest.status == "pass"
    attribution = result.manifest.validation.attribution
    assert attribution is not None
    assert {o.error for o in attribution.steps[0].outputs} == {0.0}


def test_an_older_manifest_is_read(pruned: Path) -> None:
    path = _build(pruned, None).artifact / "manifest.json"
    data = json.loads(path.read_text())
    del data["validation"]["attribution"], data["dense_model"]
    del data["graph"]["restored"], data["graph"]["mask_checks"]
    path.write_text(json.dumps(data))
    assert read_manifest(path.parent).validation.attribution is None
