"""The builder's options on a real TensorRT: small engines, each built, run and held against its reference."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sparseflow_trt.artifacts.manifest import NAME
from sparseflow_trt.engines.evidence.tactics import is_sparse_tactic
from sparseflow_trt.engines.tensorrt.like import compare_tactics
from sparseflow_trt.errors import ArtifactError, BuildError, NotSparseError

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import Manifest
    from sparseflow_trt.engines.evidence.timings import LayerTimings
    from sparseflow_trt.pipeline import BuildResult

ENGINE = "engine (tensorrt)"
Build = Callable[..., "BuildResult"]


@pytest.fixture(scope="module")
def build_mlp(mlp_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the small MLP with one profile, in FP16, sparsity forced, and these options of the builder."""
    from sparseflow_trt.building.plan_options import PlanOptions
    from sparseflow_trt.engines.protocol import EngineOptions
    from sparseflow_trt.pipeline import BuildOptions, build

    plan = PlanOptions(axes={"m": (1, 16, 64)}, precision="fp16", sparsity="force")

    def make(**options: Any) -> BuildResult:
        output = tmp_path_factory.mktemp("options") / "mlp.artifact"
        return build(mlp_model, BuildOptions(output, plan, "tensorrt", engine=EngineOptions(**options)))

    return make


@pytest.fixture(scope="module")
def cached(build_mlp: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildResult, Path]:
    """A build with a new timing cache, and that."""
    cache = tmp_path_factory.mktemp("cache") / "timing.cache"
    return build_mlp(timing_cache=cache), cache


@pytest.fixture(scope="module")
def refittable(build_mlp: Build) -> BuildResult:
    """A build whose weights can be exchanged."""
    return build_mlp(refit=True)


def assert_runs(manifest: Manifest) -> None:
    """Checks that the engine itself was run and agrees with its reference."""
    verdicts = {
        candidate.name: (candidate.verdict, candidate.reason) for candidate in manifest.validation.candidates
    }
    assert verdicts[ENGINE][0] == "pass", verdicts


def other_weights(model: Path, output: Path, sparse: bool = True) -> Path:
    """The model with other weights, 2:4 with other zeros or not at all."""
    import onnx
    from onnx import numpy_helper

    from sparseflow_trt.model.pattern import prune_2to4

    proto = onnx.load(model)
    rng = np.random.default_rng(7)
    for tensor in proto.graph.initializer:
        shape = tuple(tensor.dims)
        values = (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(prune_2to4(values, 0) if sparse else values, tensor.name))
    onnx.save(proto, output)
    return output


def has_lean_runtime() -> bool:
    """Whether the library is there that a version-compatible engine brings along."""
    import tensorrt

    name = f"libnvinfer_lean.so.{tensorrt.__version__.split('.')[0]}"
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def test_workspace_and_level(build_mlp: Build) -> None:
    manifest = build_mlp(workspace=64, optimization_level=0).manifest
    assert manifest.engine.options == {"workspace": 64, "optimization_level": 0}
    assert_runs(manifest)


def test_hardware_compatible(build_mlp: Build) -> None:
    assert_runs(build_mlp(hardware_compatible=True, optimization_level=0).manifest)


def test_version_compatible(build_mlp: Build) -> None:
    if not has_lean_runtime():  # as in the wheel of 8.6.0
        with pytest.raises(BuildError, match="cannot make a version-compatible engine"):
            build_mlp(version_compatible=True, optimization_level=0)
        return
    assert_runs(build_mlp(version_compatible=True, optimization_level=0).manifest)


def test_a_timing_cache_saves_time_and_keeps_the_tactics(
    build_mlp: Build, cached: tuple[BuildResult, Path]
) -> None:
    first, cache = cached
    assert cache.stat().st_size > 1000
    second = build_mlp(timing_cache=cache)
    refused = [note for note in second.manifest.engine.notes if "was not used" in note]
    if refused:
        pytest.skip(refused[0])
    assert second.manifest.engine.build_seconds < first.manifest.engine.build_seconds
    compared = compare_tactics("first", first.manifest.engine.layers, second.manifest.engine.layers)
    assert compared.startswith("All "), compared


def test_a_refitted_engine_follows_the_new_model(
    refittable: BuildResult, mlp_model: Path, tmp_path: Path
) -> None:
    from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
    from sparseflow_trt.refitting import RefitOptions, refit

    assert_runs(refittable.manifest)
    new_model = other_weights(mlp_model, tmp_path / "new.onnx")
    new = refit(refittable.artifact, new_model, RefitOptions(tmp_path / "new.artifact"))
    assert_runs(new.manifest)
    assert new.manifest.files["model.engine"] != refittable.manifest.files["model.engine"]
    compared = compare_tactics("old", refittable.manifest.engine.layers, new.manifest.engine.layers)
    assert compared.startswith("All "), compared
    with pytest.raises(ArtifactError, match="was built from another model"):
        validate_artifact(new.artifact, mlp_model, ValidationOptions())
    # it is still refittable: back again
    back = refit(new.artifact, mlp_model, RefitOptions(tmp_path / "back.artifact"))
    assert_runs(back.manifest)


def test_the_old_engine_does_not_compute_the_new_model(
    refittable: BuildResult, mlp_model: Path, tmp_path: Path
) -> None:
    """What the test above shows is the exchange, not a tolerance that lets anything pass."""
    from sparseflow_trt.artifacts.manifest import read_manifest
    from sparseflow_trt.building.artifact_validation import Shipped, ValidationOptions, input_sets, validate
    from sparseflow_trt.model.model_file import read_model
    from sparseflow_trt.plans.plan import read_plan
    from sparseflow_trt.refitting import RefitOptions, refit

    new_model = other_weights(mlp_model, tmp_path / "new.onnx")
    new = refit(refittable.artifact, new_model, RefitOptions(tmp_path / "new.artifact")).artifact
    shutil.copyfile(refittable.artifact / "model.engine", new / "model.engine")
    model, plan, options = read_model(new_model), read_plan(new / "plan.yaml"), ValidationOptions()
    manifest = read_manifest(new)
    shipped = Shipped(plan, new, manifest.graph, manifest.engine)
    inputs = input_sets(model, plan, options)
    found = validate(model, None, shipped, inputs, options, lambda progress: None, tmp_path)
    assert {c.name: c.verdict for c in found.candidates}[ENGINE] == "fail"


def test_weights_that_are_not_2to4_are_refused(
    refittable: BuildResult, mlp_model: Path, tmp_path: Path
) -> None:
    from sparseflow_trt.refitting import RefitOptions, refit

    dense = other_weights(mlp_model, tmp_path / "dense.onnx", sparse=False)
    with pytest.raises(NotSparseError, match=r"layer 'up_proj' .* and its new weights are not 2:4"):
        refit(refittable.artifact, dense, RefitOptions(tmp_path / "dense.artifact"))
    assert not (tmp_path / "dense.artifact").exists()


def test_an_engine_that_was_not_built_for_it_is_refused(
    cached: tuple[BuildResult, Path], mlp_model: Path, tmp_path: Path
) -> None:
    from sparseflow_trt.refitting import RefitOptions, refit

    with pytest.raises(ArtifactError, match="it was built without --refit"):
        refit(cached[0].artifact, mlp_model, RefitOptions(tmp_path / "new.artifact"))


def test_refit_and_version_compatible_exclude_each_other_in_8_6(build_mlp: Build) -> None:
    import tensorrt

    if not tensorrt.__version__.startswith("8."):
        pytest.skip("TensorRT 10 and later take both")
    with pytest.raises(BuildError, match="does not take --refit together with the other options"):
        build_mlp(refit=True, version_compatible=True)


def test_a_stripped_engine_runs_with_the_weights_of_its_model(build_mlp: Build) -> None:
    import tensorrt

    if not hasattr(tensorrt.BuilderFlag, "STRIP_PLAN"):
        with pytest.raises(BuildError, match="has no --strip-plan"):
            build_mlp(strip_plan=True)
        return
    stripped, whole = build_mlp(strip_plan=True), build_mlp()
    assert_runs(stripped.manifest)
    sizes = [(built.artifact / "model.engine").stat().st_size for built in (stripped, whole)]
    assert sizes[0] < sizes[1] / 2


def test_like_gives_the_same_tactics(build_mlp: Build, cached: tuple[BuildResult, Path]) -> None:
    first = cached[0]
    again = build_mlp(like=first.artifact).manifest
    assert_runs(again)
    assert again.engine.notes[-1].startswith("All "), again.engine.notes


def test_a_tactic_that_the_builder_would_not_take_can_be_asked_for(
    build_mlp: Build, cached: tuple[BuildResult, Path], tmp_path: Path
) -> None:
    """The best tactic of the other kind (sparse for dense), put into a copy of an artifact's evidence."""
    import tensorrt

    if not hasattr(tensorrt, "IAlgorithmSelector") or hasattr(tensorrt.BuilderFlag, "EDITABLE_TIMING_CACHE"):
        pytest.skip("an editable timing cache, not the evidence, is what this TensorRT goes by")
    first = cached[0]
    runs = {layer.name: layer for layer in first.manifest.engine.layers}
    timed = next(t for t in timings_of(first, tmp_path) if t.best_sparse and t.best_dense and t.layer in runs)
    is_sparse = is_sparse_tactic(runs[timed.layer].tactic)
    other = timed.best_dense if is_sparse else timed.best_sparse
    assert other is not None
    edited = tmp_path / "edited.artifact"
    shutil.copytree(first.artifact, edited)
    data = json.loads((edited / NAME).read_text())
    for layer in data["engine"]["layers"]:
        if layer["name"] == timed.layer:
            layer.update(tactic=other.tactic, tactic_id=other.hash)
    (edited / NAME).write_text(json.dumps(data))
    layers = {layer.name: layer for layer in build_mlp(like=edited).manifest.engine.layers}
    assert int(layers[timed.layer].tactic_id, 16) == int(other.hash, 16), layers[timed.layer]
    assert is_sparse_tactic(layers[timed.layer].tactic) is not is_sparse


def timings_of(built: BuildResult, folder: Path) -> tuple[LayerTimings, ...]:
    """What another build of the same typed model times: the artifact has the tactics' names, not numbers."""
    from sparseflow_trt.engines.backends.child import run_build
    from sparseflow_trt.engines.protocol import BuildRequest
    from sparseflow_trt.plans.plan import read_plan

    plan = read_plan(built.artifact / "plan.yaml")
    request = BuildRequest(built.artifact / "model.onnx", plan, folder, sparse=True)
    return run_build("tensorrt", request, folder / "timed.engine", lambda progress: None).timings


def test_an_artifact_of_another_driver_is_refused(
    build_mlp: Build, cached: tuple[BuildResult, Path], tmp_path: Path
) -> None:
    edited = tmp_path / "edited.artifact"
    shutil.copytree(cached[0].artifact, edited)
    data = json.loads((edited / NAME).read_text())
    data["engine"]["device"] += "9"
    (edited / NAME).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="its device is "):
        build_mlp(like=edited)
