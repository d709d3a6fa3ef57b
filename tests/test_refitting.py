"""An artifact's engine with other weights: what is refused, and what is written.

TensorRT needs a GPU (tests/gpu has its own part). Here an artifact of TensorRT-RTX is turned into one that
says it is TensorRT's, and where a test goes on to the end a copy of its engine stands for the refitted one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.artifacts.manifest import check_files, read_manifest, write_manifest
from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, EngineOptions
from sparseflow_trt.errors import (
    EXIT_NOT_SPARSE,
    ArtifactError,
    ModelError,
    NotInstalledError,
    NotSparseError,
    PlanError,
)
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.refitting import RefitOptions, built_with, refit

if TYPE_CHECKING:
    from tests.conftest import Array, Models

pytestmark = pytest.mark.usefixtures("one_builder")

PLAN = PlanOptions(axes={"batch": (1, 4, 8)}, sparsity="force")
KERNEL = "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn"
Save = Callable[..., Path]


def weight(k: int, n: int, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal((k, n)) / np.sqrt(k), np.float32)


@pytest.fixture
def save(models: Models) -> Save:
    """Saves x (batch, 64) through up_proj and down_proj; both are 2:4 but for those named in `dense`.

    Behind them is a layer whose mask is still multiplied with its weight.
    """

    def make(name: str, seed: int, dense: tuple[str, ...] = (), n: int = 128, act: str = "Relu") -> Path:
        nodes = [
            helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
            helper.make_node(act, ["a"], ["b"], name="act"),
            helper.make_node("MatMul", ["b", "down"], ["c"], name="down_proj"),
            helper.make_node("Mul", ["head", "mask"], ["masked"], name="masked"),
            helper.make_node("MatMul", ["c", "masked"], ["y"], name="head"),
        ]
        weights = {"up": weight(64, n, seed), "down": weight(n, 32, seed + 1)}
        kept = {key: w if key in dense else prune_2to4(w, 0) for key, w in weights.items()}
        mask = np.tile(np.asarray([[1], [1], [0], [0]], np.float32), (8, 8))
        kept |= {"head": weight(32, 8, seed + 2), "mask": mask}
        return models.save(models.model(nodes, kept, {"x": ("batch", 64)}, opset=17), name)

    return make


@pytest.fixture
def artifact(save: Save, tmp_path: Path) -> Path:
    """An artifact that says it is a refittable one of TensorRT, with a sparse kernel in up_proj."""
    result = build(save("old.onnx", 0), BuildOptions(tmp_path / "old.artifact", PLAN, "tensorrt-rtx"))
    up, down = result.manifest.engine.outcomes
    outcomes = (up.model_copy(update={"sparse": True, "tactic": KERNEL}), down)
    return change_engine(result.artifact, backend="tensorrt", options={"refit": True}, outcomes=outcomes)


def change_engine(folder: Path, **update: Any) -> Path:
    manifest = read_manifest(folder)
    write_manifest(manifest.model_copy(update={"engine": manifest.engine.model_copy(update=update)}), folder)
    return folder


def refit_to(artifact: Path, model: Path, name: str = "new.artifact") -> Any:
    return refit(artifact, model, RefitOptions(artifact.with_name(name), command="refit it"))


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"backend": "onnxruntime"}, "holds an engine of onnxruntime: only TensorRT's are refitted."),
        ({"options": {"strip_plan": True}}, "cannot be refitted: it was built without --refit."),
    ],
)
def test_an_artifact_that_was_not_built_for_it(
    artifact: Path, save: Save, update: Mapping[str, Any], says: str
) -> None:
    change_engine(artifact, **update)
    (artifact / "model.onnx").unlink()  # nothing is read for that: there may be gigabytes of it
    with pytest.raises(ArtifactError, match=says):
        refit_to(artifact, save("new.onnx", 5))


def test_the_engine_is_loaded_as_it_was_built(artifact: Path) -> None:
    assert built_with(read_manifest(artifact), artifact) == EngineOptions(refit=True)
    change_engine(
        artifact, options={"refit": True, "strip_plan": True, "version_compatible": True, "workspace": 9}
    )
    expected = EngineOptions(refit=True, strip_plan=True, version_compatible=True)
    assert built_with(read_manifest(artifact), artifact) == expected


def test_a_sparse_kernel_wants_2to4_weights(artifact: Path, save: Save) -> None:
    with pytest.raises(NotSparseError) as caught:
        refit_to(artifact, save("new.onnx", 5, dense=("up", "down")))
    assert caught.value.exit_code == EXIT_NOT_SPARSE
    assert caught.value.message.startswith(
        f"layer 'up_proj' runs the sparse kernel {KERNEL}, and its new weights are not 2:4: 100% of 2048 "
    )
    assert caught.value.message.endswith("hold more than two non-zeros. The same holds of 1 more.")
    assert "sparseflow-trt prune" in caught.value.hint


def test_a_layer_that_is_planned_sparse_does_too(artifact: Path, save: Save) -> None:
    said = "layer 'down_proj' is planned sparse, and its new weights are not"
    with pytest.raises(NotSparseError, match=said):
        refit_to(artifact, save("new.onnx", 5, dense=("down",)))
    assert not artifact.with_name("new.artifact").exists()


def test_a_sparse_kernel_that_was_planned_dense_is_guarded_too(artifact: Path, save: Save) -> None:
    text = (artifact / "plan.yaml").read_text().replace("sparsity: sparse", "sparsity: dense")
    (artifact / "plan.yaml").write_text(text)
    manifest = read_manifest(artifact)
    from sparseflow_trt._files import sha256_of

    files = {**manifest.files, "plan.yaml": sha256_of(artifact / "plan.yaml")}
    write_manifest(manifest.model_copy(update={"files": files}), artifact)
    with pytest.raises(NotSparseError, match="layer 'up_proj' runs the sparse kernel"):
        refit_to(artifact, save("new.onnx", 5, dense=("up",)))
    with pytest.raises(NotInstalledError):  # down_proj may be anything
        refit_to(artifact, save("new.onnx", 5, dense=("down",)))


def test_a_model_with_other_layers_is_refused(artifact: Path, save: Save) -> None:
    with pytest.raises(PlanError, match="the artifact's plan does not fit the model in 2 layer"):
        refit_to(artifact, save("new.onnx", 5, n=256))


def test_without_tensorrt_it_is_said_what_is_missing(artifact: Path, save: Save) -> None:
    before = sorted(artifact.parent.iterdir())
    with pytest.raises(NotInstalledError, match="TensorRT is not installed") as caught:
        refit_to(artifact, save("new.onnx", 5))
    assert "on the machine that the engine was built on" in caught.value.hint
    assert {p.name for p in artifact.parent.iterdir()} == {p.name for p in before} | {"new.onnx"}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[BuildRequest, Path, Path]]:
    """TensorRT's refit as a copy of the engine's file; gives what it was asked."""
    asked: list[tuple[BuildRequest, Path, Path]] = []

    def copy(self: Any, request: BuildRequest, engine: Path, model: Path, on_progress: Any) -> BuiltEngine:
        asked.append((request, engine, model))
        file = request.folder / "model.engine"
        shutil.copyfile(engine, file)
        return BuiltEngine(
            file,
            (file,),
            "tensorrt",
            {"tensorrt": "8.6.0"},
            "a GPU",
            0.5,
            "It stands in.",
            "",
            notes=("Note.",),
        )

    monkeypatch.setattr(TensorRtBackend, "unavailable", lambda self: "")
    monkeypatch.setattr(TensorRtBackend, "refit", copy)
    return asked


def test_a_refitted_artifact_is_whole(
    artifact: Path, save: Save, stand_in: list[tuple[BuildRequest, Path, Path]]
) -> None:
    old = read_manifest(artifact)
    result = refit_to(artifact, save("new.onnx", 5))

    ((request, engine, model),) = stand_in
    assert (engine, model) == (artifact / "model.engine", artifact / "model.onnx")
    assert (request.sparse, request.options) == (True, EngineOptions(refit=True))
    new = read_manifest(result.artifact)
    check_files(new, result.artifact)
    assert new == result.manifest
    assert {p.name for p in result.artifact.iterdir()} == {p.name for p in artifact.iterdir()}
    assert (new.model.file, new.command, new.status) == ("new.onnx", "refit it", "pass")
    assert new.build_key != old.build_key
    assert new.plan_sha256 == old.plan_sha256
    assert new.layers[0].mask_hash != old.layers[0].mask_hash, "other zeros fit a sparse kernel as well"
    assert new.engine.outcomes == old.engine.outcomes, "what the builder measured stays"
    assert new.engine.options == {"refit": True}
    assert new.engine.notes[0].startswith("The engine of old.artifact with other weights: ")
    assert new.engine.notes[-1] == "Note."
    assert new.notes == old.notes and "multiply their weight by a mask" in new.notes[0]
    assert new.masks_apart == old.masks_apart == ("head",)
    assert [c.verdict for c in new.validation.candidates] == ["pass", "not run"]
    assert {"read", "plan", "rewrite", "backend", "validate"} <= set(new.seconds)


def test_the_typed_graphs_have_to_be_the_same(artifact: Path, save: Save, stand_in: list[Any]) -> None:
    with pytest.raises(ModelError, match=r"it has node 'act' \(Sigmoid\) where that has node 'act' \(Relu\)"):
        refit_to(artifact, save("new.onnx", 5, act="Sigmoid"))
    assert stand_in == []


def test_an_artifact_may_take_its_own_place(artifact: Path, save: Save, stand_in: list[Any]) -> None:
    result = refit_to(artifact, save("new.onnx", 5), artifact.name)
    assert (result.artifact, read_manifest(artifact).model.file) == (artifact, "new.onnx")
    check_files(read_manifest(artifact), artifact)


def test_outputs_that_differ_do_not_take_the_place(artifact: Path, save: Save, stand_in: list[Any]) -> None:
    from sparseflow_trt.validation.tolerances import parse_tolerances

    strict = ValidationOptions(tolerances=parse_tolerances(["atol=0,rtol=0,cosine=1"]))
    options = replace(RefitOptions(artifact), validation=strict)
    result = refit(artifact, save("new.onnx", 5), options)
    assert result.manifest.status == "fail"
    assert (result.artifact.name, read_manifest(artifact).status) == ("old.artifact.failed", "pass")
