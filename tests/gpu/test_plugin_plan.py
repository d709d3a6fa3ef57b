"""Planned layers in the plugin, on a real TensorRT: built, held against FP32, timed, refitted, measured.

The environment variable SPARSEFLOW_PLUGIN names the compiled library (plugins/sparse_linear/README.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sparseflow_trt.errors import BuildError, ModelError

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import Manifest
    from sparseflow_trt.pipeline import BuildResult
    from sparseflow_trt.plans.plan import Plan

ENGINE = "engine (tensorrt)"
HIDDEN, INTERMEDIATE = 256, 512
Build = Callable[..., "BuildResult"]


@pytest.fixture(scope="module")
def library() -> Path:
    """The plugin's library."""
    found = os.environ.get("SPARSEFLOW_PLUGIN")
    if not found:
        pytest.skip("SPARSEFLOW_PLUGIN does not name the plugin's library")
    return Path(found)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x → relu(x · gate + bias) · (x · up) → · down, 2:4, in FP32 as given."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from sparseflow_trt.model.pattern import prune_2to4

    rng = np.random.default_rng(0)
    shapes = {"gate": (HIDDEN, INTERMEDIATE), "up": (HIDDEN, INTERMEDIATE), "down": (INTERMEDIATE, HIDDEN)}
    tensors = [
        numpy_helper.from_array(
            prune_2to4((rng.standard_normal(s) * s[0] ** -0.5).astype(np.float32), 0), name
        )
        for name, s in shapes.items()
    ]
    tensors.append(numpy_helper.from_array(rng.standard_normal(INTERMEDIATE).astype(np.float32), "bias"))
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["a"], "gate_proj"),
        helper.make_node("Add", ["a", "bias"], ["b"], "add"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("MatMul", ["x", "up"], ["d"], "up_proj"),
        helper.make_node("Mul", ["c", "d"], ["e"], "mul"),
        helper.make_node("MatMul", ["e", "down"], ["y"], "down_proj"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", HIDDEN]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], tensors)
    path = tmp_path_factory.mktemp("gated") / "gated.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def build_gated(gated: Path, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds it with two profiles or the first: `build_gated(change)` changes the plan of plugin layers."""
    from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
    from sparseflow_trt.pipeline import BuildOptions, build
    from sparseflow_trt.plans.profile_specs import ProfileSpec

    profiles = (
        ProfileSpec(name="small", axes={"m": (1, 16, 64)}),
        ProfileSpec(name="large", axes={"m": (65, 256, 512)}),
    )

    def make(
        change: Callable[[Plan], Plan] = lambda plan: plan, count: int = 2, **options: Any
    ) -> BuildResult:
        asked = PlanOptions(profiles=profiles[:count], precision="fp16", sparsity="plugin", plugin=True)
        plan = change(plan_for(*read(gated), asked, ""))
        output = tmp_path_factory.mktemp("plugin") / "gated.artifact"
        return build(gated, BuildOptions(output, plan, "tensorrt", plugin=library, **options))

    return make


@pytest.fixture(scope="module")
def built(build_gated: Build) -> BuildResult:
    """The artifact with all layers in the plugin."""
    return build_gated()


def change_layers(plan: Plan, **layers: dict[str, Any]) -> Plan:
    """The plan with what is said of single layers."""
    changed = tuple(p.model_copy(update=layers.get(p.name, {})) for p in plan.layers)
    return plan.model_copy(update={"layers": changed})


def dense_down(plan: Plan) -> Plan:
    """down in TensorRT's own dense kernels."""
    return change_layers(plan, down_proj={"sparsity": "dense"})


def joined(plan: Plan) -> Plan:
    """gate and up as one product."""
    together = {"joined": "gate_proj"}
    return change_layers(plan, gate_proj=together, up_proj=together)


def assert_agrees(manifest: Manifest) -> None:
    """Checks that the engine itself was run and agrees with FP32."""
    verdicts = {c.name: (c.verdict, c.reason) for c in manifest.validation.candidates}
    assert all(verdict == "pass" for verdict, _ in verdicts.values()), verdicts
    assert ENGINE in verdicts


def test_all_layers_run_in_the_plugin_and_agree_with_fp32(built: BuildResult, library: Path) -> None:
    from sparseflow_trt._files import sha256_of

    manifest = built.manifest
    assert_agrees(manifest)
    assert len(manifest.engine.outcomes) == 6
    assert {(o.plugin, o.sparse, o.precision) for o in manifest.engine.outcomes} == {(True, True, "Half")}
    assert [node.folded for node in manifest.graph.plugin] == [("add", "relu"), (), ()]
    record = manifest.engine.plugin
    assert record is not None
    assert record.sha256 == sha256_of(library) == sha256_of(built.artifact / record.file)
    assert record.versions["cuSPARSELt"].count(".") == 2


def test_gate_and_up_as_one_product(build_gated: Build) -> None:
    manifest = build_gated(joined).manifest
    assert_agrees(manifest)
    assert {o.layer: o.merged_with for o in manifest.engine.outcomes if o.profile == 0} == {
        "gate_proj": ("up_proj",),
        "up_proj": ("gate_proj",),
        "down_proj": (),
    }
    assert [node.layer for node in manifest.graph.plugin] == ["gate_proj || up_proj", "down_proj"]


def test_a_dense_copy_below_some_m(build_gated: Build) -> None:
    def change(plan: Plan) -> Plan:
        return change_layers(plan, **{p.name: {"dense_below_m": 64} for p in plan.layers})

    manifest = build_gated(change).manifest
    assert_agrees(manifest)
    assert {node.dense_below_m for node in manifest.graph.plugin} == {64}


def test_plugin_native_and_dense_layers_in_one_engine(build_gated: Build) -> None:
    manifest = build_gated(
        lambda plan: change_layers(plan, up_proj={"sparsity": "sparse"}, down_proj={"sparsity": "dense"})
    ).manifest
    assert_agrees(manifest)
    assert {o.layer for o in manifest.engine.outcomes if o.plugin} == {"gate_proj"}
    assert all(not o.tried_sparse for o in manifest.engine.outcomes if o.layer == "down_proj")


def test_it_duels_the_dense_engine(build_gated: Build) -> None:
    manifest = build_gated(margin=0.02).manifest
    duel = manifest.duel
    assert duel is not None
    assert {row.profile for row in duel.profiles} == {"small", "large"}
    assert (manifest.engine.plugin is not None) == (duel.ships == "sparse")
    assert_agrees(manifest)


def test_a_finished_artifact_is_timed_profiled_and_validated(built: BuildResult, gated: Path) -> None:
    from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
    from sparseflow_trt.building.timing import time_artifacts
    from sparseflow_trt.gains.profiling import profile_artifact

    timed = time_artifacts(built.artifact, built.artifact, 3, 5, layers=True)
    assert all(row.timing.p50 > 0 and row.timing.layers for row in timed)
    assert len(profile_artifact(built.artifact, runs=3)) == 2
    assert validate_artifact(built.artifact, gated, ValidationOptions()).verdict == "pass"


def test_refit_keeps_the_plugins_weights(build_gated: Build, gated: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    from sparseflow_trt.engines.protocol import EngineOptions
    from sparseflow_trt.refitting import RefitOptions, refit

    artifact = build_gated(dense_down, count=1, engine=EngineOptions(refit=True)).artifact

    def with_other(name: str) -> Path:
        proto = onnx.load(gated)
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), name))
        onnx.save(proto, tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    assert_agrees(refit(artifact, with_other("down"), RefitOptions(tmp_path / "down.artifact")).manifest)
    with pytest.raises(ModelError, match="keeps its weights"):
        refit(artifact, with_other("up"), RefitOptions(tmp_path / "up.artifact"))


def test_an_engine_with_refit_can_be_refitted_or_is_not_built(
    build_gated: Build, gated: Path, tmp_path: Path
) -> None:
    """TensorRT 8.6.0 cannot where both profiles run down by one kernel, which its own timing decides."""
    from sparseflow_trt.engines.protocol import EngineOptions
    from sparseflow_trt.refitting import RefitOptions, refit

    try:
        artifact = build_gated(dense_down, engine=EngineOptions(refit=True)).artifact
    except BuildError as error:
        assert "was built but cannot be refitted" in error.message
        assert "one profile" in error.hint
        return
    assert_agrees(refit(artifact, gated, RefitOptions(tmp_path / "again.artifact")).manifest)


def test_another_library_in_the_same_process_is_refused(
    built: BuildResult, library: Path, tmp_path: Path
) -> None:
    from sparseflow_trt.engines.plugin.library import load_library_here

    load_library_here(library)
    other = tmp_path / library.name
    other.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(BuildError, match="is not the plugin library that"):
        load_library_here(other)


def test_autotune_measures_the_plugin(library: Path) -> None:
    from sparseflow_trt.engines.measuring.curves import Curve, Request
    from sparseflow_trt.engines.measuring.medians import Effort
    from sparseflow_trt.engines.measuring.time_tensorrt import TensorRtMeasurer

    measurer = TensorRtMeasurer(Effort(), library)
    curve = Curve("tensorrt", "FP16", 2048, 1024, "gate_up")
    sparse = measurer.measure(Request(curve, 256)).pair
    plugin = measurer.measure(Request(replace(curve, kernel="plugin"), 256)).pair
    assert (sparse.sparse.kernel, plugin.sparse.kernel) == ("sparse", "plugin")
    assert plugin.dense.tactic == sparse.dense.tactic
    assert plugin.dense.us == pytest.approx(sparse.dense.us, rel=0.2)
    assert "plugin" in measurer.versions()
