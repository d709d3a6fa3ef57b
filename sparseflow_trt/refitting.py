"""An artifact's engine with another model's weights: checked, refitted, validated, written as an artifact."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from sparseflow_trt._clock import Clock
from sparseflow_trt._files import temporary_folder
from sparseflow_trt._paths import AnyPath, GivenPath, with_paths
from sparseflow_trt._version import __version__
from sparseflow_trt.artifacts.artifact import build_key, check_place, hash_arrays, record_model
from sparseflow_trt.artifacts.manifest import EngineRecord, Manifest, check_files, read_manifest
from sparseflow_trt.building.artifact_validation import (
    Shipped,
    ValidationOptions,
    check_tolerances,
    input_sets,
    read_unpruned,
    validate,
)
from sparseflow_trt.building.plan_options import read
from sparseflow_trt.building.record import put_artifact, record_engine, record_layers
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions, OnProgress, Progress
from sparseflow_trt.engines.tensorrt.like import compare_tactics
from sparseflow_trt.engines.tensorrt.same_graph import check_same_graph
from sparseflow_trt.errors import ArtifactError, NotInstalledError, NotSparseError
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, left_as_they_are
from sparseflow_trt.model.layer_names import only_if_named, shown_name
from sparseflow_trt.model.model_file import input_dims, read_model
from sparseflow_trt.plans.plan import Plan, check_plan, read_plan
from sparseflow_trt.plans.shapes import check_profiles
from sparseflow_trt.policies.policy import read_policy

_POLICY = "policy.json"


@with_paths
class RefitOptions:
    """Where the new artifact goes, how it is validated, and the command that made it."""

    output: GivenPath
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    command: str = ""


@dataclass(frozen=True)
class RefitResult:
    """A finished exchange: where the new artifact lies, and what its manifest says."""

    artifact: Path
    manifest: Manifest


def refit(
    folder: AnyPath, path: AnyPath, options: RefitOptions, on_step: OnProgress = lambda _: None
) -> RefitResult:
    """Writes an artifact with the engine of another one and the weights of another model.

    Nothing is built anew: the engine keeps its kernels, so what is sparse there has to be 2:4 here.

    Args:
        folder: An artifact that was built with --refit; it stays as it is unless it is the output.
        path: A model that differs in its weights alone.
        options: How.
        on_step: Told how far it is.

    Raises:
        ArtifactError: The folder is no artifact, was not built to be refitted, or cannot be written.
        ModelError: The model has another graph.
        NotSparseError: A layer that has to be 2:4 is not.
        PlanError: The model's layers are not those of the artifact's plan.
        SparseflowError: Anything else that is wrong with the model, the inputs, TensorRT or the disk;
            nothing is written then.
    """
    clock = Clock()
    folder, path = Path(folder), Path(path)
    output = check_place(options.output)
    before = read_manifest(folder)
    engine_options = built_with(before, folder)
    check_files(before, folder)  # reads them whole
    with clock("read"):
        model, layers = read(path, on_step)
        unpruned = read_unpruned(options.validation.dense_model, model)
    with clock("plan"):
        record = record_model(model)
        dense_record = record_model(unpruned) if unpruned else None
        plan = read_plan(folder / "plan.yaml")
        check_sparse_layers(before, plan, layers)
        check_plan(plan, layers, "the artifact's plan")
        check_profiles(plan.profiles, input_dims(model))
        check_tolerances(options.validation.tolerances, model)
        inputs = input_sets(model, plan, options.validation)
        backend = TensorRtBackend()
        if why_not := backend.unavailable():
            raise NotInstalledError(why_not, "Refit it on the machine that the engine was built on.")
    with temporary_folder(output) as place:
        with clock("rewrite"):
            on_step(Progress("Rewriting the graph for the plan"))
            model_file = place / "model.onnx"
            graph = apply_plan(read_model(path), plan, model_file, backend.graph_needs(), unpruned)
            typed = folder / "model.onnx"
            check_same_graph(read_model(typed), read_model(model_file))
        with clock("backend"):
            used = before.engine.plugin
            plugin, sha256 = (folder / used.file, used.sha256) if used else (None, "")
            sparse = plan.wants_sparse
            request = BuildRequest(model_file, plan, place, sparse, engine_options, plugin, sha256)
            refitted = backend.refit(request, folder / before.engine.file, typed, on_step)
            engine = _merged(before, folder, record_engine(refitted, "", engine_options))
        with clock("validate"), temporary_folder(place / "validation") as scratch:
            shipped = Shipped(plan, place, graph, engine)
            verdict = validate(model, unpruned, shipped, inputs, options.validation, on_step, scratch)
        with clock("write"):
            for name in ("plan.yaml", _POLICY):
                if (folder / name).is_file():
                    (place / name).write_bytes((folder / name).read_bytes())
            manifest = before.model_copy(
                update={
                    "status": verdict.verdict,
                    "tool": f"sparseflow-trt {__version__}",
                    "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    "command": options.command,
                    "build_key": build_key(
                        refitted=before.build_key,
                        model=record.model_dump(),
                        inputs=hash_arrays(given.feeds for given in inputs),
                        tolerances=options.validation.tolerances.model_dump(),
                        dense_model=dense_record.model_dump() if dense_record else None,
                        tool=__version__,
                    ),
                    "model": record,
                    "dense_model": dense_record,
                    "layers": record_layers(layers, plan, input_dims(model)),
                    "graph": graph,
                    "engine": engine,
                    "validation": verdict,
                    "notes": left_as_they_are(layers),
                    "seconds": clock.rounded(),
                }
            )
            kept = place / _POLICY
            policy = read_policy(kept) if kept.is_file() else None
            target, manifest = put_artifact(manifest, policy, place, output)
    return RefitResult(target, manifest)


def built_with(manifest: Manifest, folder: Path) -> EngineOptions:
    """The options that an artifact was built with, those that its engine is loaded and written by.

    Raises:
        ArtifactError: It was not built to be refitted.
    """
    engine = manifest.engine
    if engine.backend != "tensorrt":
        raise ArtifactError(
            f"{folder} holds an engine of {engine.backend}: only TensorRT's are refitted.",
            "Build the new model instead: `sparseflow-trt build`.",
        )
    if not engine.options.get("refit"):
        raise ArtifactError(
            f"{folder} cannot be refitted: it was built without --refit.",
            "Build it with `sparseflow-trt build MODEL --refit`; that engine's weights can be exchanged.",
        )
    return EngineOptions(
        version_compatible=bool(engine.options.get("version_compatible")),
        refit=True,
        strip_plan=bool(engine.options.get("strip_plan")),
        tf32=bool(engine.options.get("tf32")),
    )


def check_sparse_layers(manifest: Manifest, plan: Plan, layers: tuple[WeightedLayer, ...]) -> None:
    """Checks that new weights are 2:4 where the engine's kernels count on it.

    A sparse kernel reads half of the weights: of others than 2:4 it would leave some out. That is so where
    the evidence tells of one, and may be so wherever a layer is planned sparse.

    Raises:
        NotSparseError: A layer is not; it is named with its kernel.
    """
    kernels = {o.layer: o.tactic for o in manifest.engine.outcomes if o.sparse}
    planned = {layer.name for layer in plan.layers if layer.sparsity != "dense"}
    wrong = [
        layer
        for layer in layers
        if (layer.name in kernels or layer.name in planned) and layer.state is not SparsityState.SPARSE
    ]
    if not wrong:
        return
    first = wrong[0]
    runs = f"runs the sparse kernel {kernels[first.name]}" if first.name in kernels else "is planned sparse"
    more = f" The same holds of {len(wrong) - 1} more." if len(wrong) > 1 else ""
    named = only_if_named(layer.kind for layer in wrong)
    raise NotSparseError(
        f"layer '{shown_name(first)}' {runs}, and its new weights are not 2:4: {first.reason}.{more}",
        f"Prune the new model with `sparseflow-trt prune`{named}, or build it anew with "
        "`sparseflow-trt build`.",
    )


def _merged(before: Manifest, folder: Path, after: EngineRecord) -> EngineRecord:
    """The refitted engine's record: its kernels' times are those of the build, which timed them."""
    engine = before.engine
    notes = (
        f"The engine of {folder.name} with other weights: its kernels were chosen and timed for those of "
        f"{before.model.file}.",
        compare_tactics(folder.name, engine.layers, after.layers),
        *after.notes,
    )
    kept = {
        name: getattr(engine, name) for name in ("chosen_because", "options", "outcomes", "sparse_tactics")
    }
    return after.model_copy(update={**kept, "notes": notes})
