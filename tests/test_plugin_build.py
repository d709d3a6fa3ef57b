"""Whole builds with layers in the plugin. In TensorRT's place ONNX Runtime runs its nodes, written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import PluginRecord, check_files, read_manifest
from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
from sparseflow_trt.building.loading import engine_file
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.outcomes import join_outcomes
from sparseflow_trt.engines.plugin.library import copy_library
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, EngineOptions
from sparseflow_trt.errors import ArtifactError, BuildError, NotInstalledError
from sparseflow_trt.exporters.plugin.reference import expand_plugin_nodes
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.exporters.saving import plugin_nodes, save_model
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.target import GraphNeeds
from sparseflow_trt.pipeline import BuildOptions, BuildResult, build
from sparseflow_trt.plans.plan import Plan, read_plan
from tests.made_policies import make_points, make_policy
from tests.shared_libraries import write_library
from tests.troubled import save_transformer

if TYPE_CHECKING:
    from tests.conftest import Duels, Models

AXES = {"batch": (1, 4, 8)}
ALL = PlanOptions(axes=AXES, sparsity="plugin", plugin=True)
NAMES = {"gate_proj", "up_proj", "down_proj"}
CUSPARSELT = {"cuSPARSELt": "0.8.1"}


class StandIn:
    """A backend that takes the plugin's nodes, as TensorRT does."""

    name = "onnxruntime"

    def versions(self) -> dict[str, str]:
        """Of the stand-in."""
        return {"stand-in": "1"}

    def device(self) -> str:
        """Of the stand-in."""
        return "any CPU"

    def graph_needs(self) -> GraphNeeds:
        """As TensorRT 8.6's."""
        return GraphNeeds(17, spells_out=True, opts_out_dense=True, takes_plugin=True)

    def build(self, request: BuildRequest, on_progress: Any) -> BuiltEngine:
        """Builds with ONNX Runtime and says of each node what TensorRT's inspector would."""
        model = read_model(request.model)
        layers = tuple(
            LayerEvidence(node.name or "", "PluginV2", "Half", "", nodes=(node.name or "",))
            for node in plugin_nodes(model.ir)
        )
        assert bool(layers) == bool(request.plugin and request.plan.plugin_products)
        expand_plugin_nodes(model.ir)
        expanded = request.folder / "expanded.onnx"
        (write_twin if needs_twin(model) else write_expanded)(model, expanded)
        built = OnnxRuntimeBackend().build(replace(request, model=expanded), on_progress)
        library = copy_library(request.plugin, request.folder) if layers and request.plugin else None
        return replace(
            built,
            outcomes=join_outcomes(request.plan, layers),
            plugin=PluginRecord(file=library.name, sha256=request.plugin_sha256, versions=CUSPARSELT)
            if library
            else None,
        )


def write_expanded(model: OnnxModel, path: Path) -> None:
    """Writes a model whose plugin nodes are written out."""
    save_model(model.ir, path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds with the stand-in."""
    monkeypatch.setattr("sparseflow_trt.pipeline.backend_for", lambda _: (StandIn(), "It stands in."))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library in the place of the plugin's: nothing here loads it."""
    return write_library(tmp_path / "libsparseflow_linear24.so")


@pytest.fixture
def gated(models: Models) -> Callable[..., Path]:
    """x (batch, 64) → relu(x · gate + bias) · (x · up) → · down, all 2:4."""

    def weight(k: int, n: int, seed: int) -> np.ndarray[Any, Any]:
        values = np.random.default_rng(seed).standard_normal((k, n)) / np.sqrt(k)
        return prune_2to4(values.astype(np.float32), 0)

    def make(dtype: Any = np.float32) -> Path:
        tensors = {"gate": weight(64, 128, 0), "up": weight(64, 128, 1), "down": weight(128, 32, 2)}
        tensors["bias"] = np.random.default_rng(3).standard_normal(128).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "gate"], ["a"], name="gate_proj"),
            helper.make_node("Add", ["a", "bias"], ["b"], name="add"),
            helper.make_node("Relu", ["b"], ["c"], name="relu"),
            helper.make_node("MatMul", ["x", "up"], ["d"], name="up_proj"),
            helper.make_node("Mul", ["c", "d"], ["e"], name="mul"),
            helper.make_node("MatMul", ["e", "down"], ["y"], name="down_proj"),
        ]
        kinds = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}
        cast = {name: values.astype(dtype) for name, values in tensors.items()}
        return models.save(models.model(nodes, cast, dtype=kinds[np.dtype(dtype).name]))

    return make


@pytest.fixture
def run(tmp_path: Path, library: Path) -> Callable[..., BuildResult]:
    """Builds a model."""

    def build_it(path: Path, plan: Plan | PlanOptions = ALL, **options: Any) -> BuildResult:
        return build(path, BuildOptions(tmp_path / "out", plan, **{"plugin": library, **options}))

    return build_it


def with_joined(path: Path) -> Plan:
    """The plan with gate and up as one product."""
    plan = plan_for(*read(path), ALL, "")
    layers = (
        p if p.name == "down_proj" else p.model_copy(update={"joined": "gate_proj"}) for p in plan.layers
    )
    return plan.model_copy(update={"layers": tuple(layers)})


@pytest.mark.usefixtures("stand_in")
def test_a_build_folds_validates_and_keeps_the_library(
    run: Callable[..., BuildResult], gated: Callable[..., Path], library: Path
) -> None:
    result = run(gated())
    manifest = read_manifest(result.artifact)
    check_files(manifest, result.artifact)
    assert manifest.status == "pass"
    assert [c.name for c in manifest.validation.candidates] == [
        "typed model, the plugin's nodes written out, rounded as typed, CPU", "engine (onnxruntime)",
    ]  # fmt: skip
    assert {layer.sparsity for layer in manifest.layers} == {"plugin"}
    assert [(n.layer, n.folded) for n in manifest.graph.plugin] == [
        ("gate_proj", ("add", "relu")), ("up_proj", ()), ("down_proj", ()),
    ]  # fmt: skip
    assert all(o.plugin and o.sparse and o.tactic == "SparseFlowLinear24" for o in manifest.engine.outcomes)
    plugin = manifest.engine.plugin
    assert plugin is not None
    assert (plugin.sha256, plugin.versions) == (sha256_of(library), CUSPARSELT)
    assert engine_file(result.artifact, manifest.engine).plugin == result.artifact / plugin.file
    assert "Planned for the plugin" in (result.artifact / "report.html").read_text(encoding="utf-8")
    typed = onnx.load(result.artifact / "model.onnx", load_external_data=False)
    assert [n.op_type for n in typed.graph.node].count("SparseFlowLinear24") == 3
    first = typed.graph.output[0].type.tensor_type.shape.dim[0]
    assert first.dim_param == "batch"


@pytest.mark.usefixtures("stand_in")
def test_joined_layers_are_one_node_and_compute_the_same(
    run: Callable[..., BuildResult], gated: Callable[..., Path]
) -> None:
    path = gated()
    manifest = run(path, with_joined(path)).manifest
    assert manifest.status == "pass"
    assert [(n.layer, n.n, n.folded) for n in manifest.graph.plugin] == [
        ("gate_proj || up_proj", 256, ("add",)), ("down_proj", 32, ()),
    ]  # fmt: skip
    assert {o.layer: o.merged_with for o in manifest.engine.outcomes} == {
        "gate_proj": ("up_proj",), "up_proj": ("gate_proj",), "down_proj": (),
    }  # fmt: skip


@pytest.mark.usefixtures("stand_in")
def test_a_bf16_model_is_validated_through_its_twin(
    run: Callable[..., BuildResult], gated: Callable[..., Path]
) -> None:
    manifest = run(gated(ml_dtypes.bfloat16), replace(ALL, precision="bf16")).manifest
    assert manifest.status == "pass"
    assert {node.dtype for node in manifest.graph.plugin} == {"BF16"}


@pytest.mark.usefixtures("stand_in")
def test_errors_are_told_by_layer_too(run: Callable[..., BuildResult], gated: Callable[..., Path]) -> None:
    path = gated()
    manifest = run(path, with_joined(path), validation=ValidationOptions(per_layer=True)).manifest
    assert manifest.status == "pass"


@pytest.mark.usefixtures("stand_in")
def test_nothing_is_built_again_but_with_another_library(
    run: Callable[..., BuildResult], gated: Callable[..., Path], library: Path
) -> None:
    path = gated()
    assert not run(path).unchanged
    assert run(path).unchanged
    library.write_bytes(library.read_bytes() + b"another")
    assert not run(path).unchanged


@pytest.mark.usefixtures("stand_in")
def test_a_finished_artifact_is_validated_again_and_a_changed_library_is_refused(
    run: Callable[..., BuildResult], gated: Callable[..., Path]
) -> None:
    path = gated()
    artifact = run(path).artifact
    assert validate_artifact(artifact, path, ValidationOptions()).verdict == "pass"
    (artifact / "libsparseflow_linear24.so").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"libsparseflow_linear24\.so is not the file that was built"):
        validate_artifact(artifact, path, ValidationOptions())


@pytest.mark.usefixtures("stand_in")
def test_a_plan_with_plugin_layers_needs_the_library(
    run: Callable[..., BuildResult], gated: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(NotInstalledError, match=r"gives 3 layer\(s\) to the plugin.*'gate_proj'") as caught:
        run(gated(), plugin=None)
    assert "--plugin LIB" in caught.value.hint
    with pytest.raises(NotInstalledError, match=r"no plugin library .*absent\.so"):
        run(gated(), plugin=tmp_path / "absent.so")


@pytest.mark.usefixtures("stand_in")
def test_a_layer_that_goes_to_the_plugin_in_the_precision_that_is_found(
    run: Callable[..., BuildResult], models: Models, library: Path
) -> None:
    given = read_model(save_transformer(models, "norm"))  # FP16 does not hold b1.down, BF16 does
    path = prune_model(given, models.folder / "sparse.onnx").output
    timed = make_points("down", 32, 64, dict.fromkeys((1, 4, 16, 64), 2.0), "BF16")
    points = [p if p.kernel == "dense" else p.model_copy(update={"kernel": "plugin"}) for p in timed]
    axes = {"batch": (1, 2, 2), "seq": (4, 8, 16)}
    plan = PlanOptions(policy=make_policy(points), axes=axes, precision="auto", plugin=True)
    result = run(path, plan)
    assert [(p.layers, p.dtype) for p in result.manifest.graph.plugin] == [(("b1.down",), "BF16")]
    assert result.manifest.engine.plugin is not None
    assert run(path, plan).unchanged
    library.write_bytes(library.read_bytes() + b"another")
    assert not run(path, plan).unchanged
    with pytest.raises(NotInstalledError, match=r"gives 1 layer\(s\) to the plugin.*'b1.down'"):
        run(path, plan, plugin=None)


@pytest.mark.usefixtures("stand_in")
def test_the_library_is_hashed_once_for_a_build(
    run: Callable[..., BuildResult],
    gated: Callable[..., Path],
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    for module in ("pipeline", "engines.plugin.library"):
        monkeypatch.setattr(f"sparseflow_trt.{module}.sha256_of", counted)
    run(gated(), replace(ALL, precision="auto"))
    assert hashed.count(library) == 1


@pytest.mark.usefixtures("stand_in")
def test_a_library_that_changes_during_a_build_is_refused(
    run: Callable[..., BuildResult],
    gated: Callable[..., Path],
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_it = StandIn.build

    def compile_meanwhile(self: StandIn, request: BuildRequest, on_progress: Any) -> BuiltEngine:
        library.write_bytes(library.read_bytes() + b"another")
        return build_it(self, request, on_progress)

    monkeypatch.setattr(StandIn, "build", compile_meanwhile)
    with pytest.raises(ArtifactError, match="changed while the engine was built"):
        run(gated())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (EngineOptions(version_compatible=True), "--version-compatible"),
        (EngineOptions(hardware_compatible=True), "--hardware-compatible"),
    ],
)
def test_options_that_the_plugin_does_not_have_are_refused(
    run: Callable[..., BuildResult], gated: Callable[..., Path], options: EngineOptions, named: str
) -> None:
    with pytest.raises(BuildError, match=f"{named} does not work for engines with layers in the plugin"):
        run(gated(), engine=options)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_backend_that_takes_no_plugin_runs_its_layers_dense_and_says_so(
    run: Callable[..., BuildResult], gated: Callable[..., Path], backend: str
) -> None:
    result = run(gated(), backend=backend, plugin=None)
    (note,) = (n for n in result.manifest.engine.notes if "planned for the plugin" in n)
    assert note.startswith("3 layer(s) are planned for the plugin, which ")
    assert result.manifest.graph.plugin == ()
    assert not any(o.plugin for o in result.manifest.engine.outcomes)
    typed = onnx.load(result.artifact / "model.onnx", load_external_data=False)
    assert "SparseFlowLinear24" not in [n.op_type for n in typed.graph.node]


def test_a_duel_holds_the_plugin_against_dense(
    run: Callable[..., BuildResult], gated: Callable[..., Path], duels: Duels
) -> None:
    duels.speedups = {"default": 0.5}
    result = run(gated(), margin=0.02)
    plan = read_plan(result.artifact / "plan.yaml")
    assert [{p.sparsity for p in plan.layers} for plan in duels.plans] == [{"plugin"}, {"dense"}]
    assert {p.sparsity for p in plan.layers} == {"dense"}
    assert all(p.reason.startswith("dense ships: sparse was 0.500×") for p in plan.layers)
    assert not plan.plugin_products
