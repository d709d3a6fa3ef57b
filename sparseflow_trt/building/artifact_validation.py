"""Compares an artifact, finished or not, with the model that it was built from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sparseflow_trt._paths import NO_PATH, MaybePath, with_paths
from sparseflow_trt.artifacts.artifact import record_model
from sparseflow_trt.artifacts.graph_record import GraphRecord
from sparseflow_trt.artifacts.manifest import EngineRecord, Manifest, check_files, read_manifest
from sparseflow_trt.artifacts.verdict import StepName, Validation
from sparseflow_trt.building.drawn import with_drawn_inputs, with_what_is_drawn
from sparseflow_trt.building.layer_errors import add_layer_errors
from sparseflow_trt.engines.backends.tensorrt_rtx import why_not_here
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.plugin.library import load_library_here
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.engines.tensorrt.refit import put_weights
from sparseflow_trt.errors import ArtifactError, InputError
from sparseflow_trt.exporters.apply_plan import restore_planned_dense
from sparseflow_trt.exporters.fp32_reference import reference_for, write_fp32_reference
from sparseflow_trt.exporters.plugin.reference import expand_plugin_nodes
from sparseflow_trt.exporters.pruning.restore import check_same_ends
from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.model_file import OnnxModel, input_dims, output_types, read_model
from sparseflow_trt.model.operators import check_operators
from sparseflow_trt.plans.plan import Plan, read_plan
from sparseflow_trt.precision.overflow import with_first_overflow
from sparseflow_trt.validation.chain import Origin
from sparseflow_trt.validation.compare import compare
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.input_files import check_ranges, load_inputs
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.tolerances import OutputTolerances, Tolerances
from sparseflow_trt.validation.trial import Candidate


@with_paths
class ValidationOptions:
    """Which inputs are compared, and how far outputs may be from the reference's, where not by default.

    Attributes:
        dense_model: The unpruned model: the chain of steps begins there, and where something is built,
            layers that are planned dense get its weights.
        per_layer: Whether each step's error is split among the layers, too.
    """

    inputs: str | None = None
    seed: int = 0
    tolerances: Tolerances = field(default_factory=Tolerances)
    dense_model: MaybePath = NO_PATH
    per_layer: bool = False


@dataclass(frozen=True)
class Shipped:
    """What was built: for which plan, where it lies, what was done to its graph, and its engine.

    The plan's coarsest precision sets the tolerances.
    """

    plan: Plan
    folder: Path
    graph: GraphRecord
    engine: EngineRecord


def read_unpruned(path: Path | None, model: OnnxModel) -> OnnxModel | None:
    """Reads the unpruned model, if there is one.

    Raises:
        ModelError: It cannot be read, or it has other inputs or outputs.
    """
    if path is None:
        return None
    unpruned = read_model(path)
    check_operators(unpruned)
    check_same_ends(model, unpruned)
    return unpruned


def input_sets(model: OnnxModel, plan: Plan, options: ValidationOptions) -> list[InputSet]:
    """The inputs to validate on: those given, or seeded ones at min, opt and max of each profile.

    Raises:
        InputError: The given ones cannot be read or do not fit the model.
    """
    if options.inputs:
        given = load_inputs(options.inputs, model)
        check_ranges(given, plan.profiles)
        return given
    return generate_inputs(model, plan.profiles, seed=options.seed)


def check_tolerances(tolerances: Tolerances, model: OnnxModel) -> None:
    """Refuses a tolerance for an output that there is not before the engine is built, not after.

    Raises:
        InputError: There is one.
    """
    outputs = [value.name for value in model.ir.graph.outputs]
    unknown = [o.output for o in tolerances.overrides if o.output and o.output not in outputs]
    if unknown:
        has = ", ".join(f"'{name}'" for name in outputs)
        raise InputError(
            f"a tolerance is for output '{unknown[0]}'; the model has {has}.", "Correct the output's name."
        )


def limits_for(
    model: OnnxModel, plan: Plan, engine: EngineRecord, tolerances: Tolerances
) -> OutputTolerances:
    """How far outputs may be off: as a user asked, else by plan, output types, and TF32 where it is on."""
    return tolerances.for_plan(plan, output_types(model), bool(engine.options.get("tf32")))


def validate(
    model: OnnxModel,
    unpruned: OnnxModel | None,
    shipped: Shipped,
    inputs: list[InputSet],
    options: ValidationOptions,
    on_step: OnProgress,
    scratch: Path,
) -> Validation:
    """Compares the typed model and the engine with the weights that ship, in FP32 on the CPU.

    Those are the model's as given, with the unpruned model's where layers got them back.

    Args:
        model: The model as given, as read.
        unpruned: The model before pruning, as read; the error that pruning makes is told then.
        shipped: What was built from it.
        inputs: What to compare on.
        options: The tolerances, and how much is told.
        on_step: Told how far the comparison is.
        scratch: An empty folder for graphs that only the comparison needs.
    """
    given = reference_for(model, scratch / "reference.onnx")
    reference, origin = given, None
    if unpruned is not None:
        restored = shipped.graph.restored_layers
        origin = Origin(reference_for(unpruned, scratch / "unpruned.onnx"), given if restored else None)
        if restored:
            reference = scratch / "restored.onnx"
            fresh = read_model(model.path)
            restore_planned_dense(fresh, shipped.plan, unpruned)
            write_fp32_reference(fresh, reference)
    candidates = candidates_of(shipped.folder, shipped.engine, scratch)
    compared = compare(
        reference,
        candidates,
        inputs,
        limits_for(model, shipped.plan, shipped.engine, options.tolerances),
        lambda done, total: on_step(Progress("Comparing with the FP32 reference", done, total)),
        origin,
    )
    typed = candidates[0]
    compared = with_first_overflow(compared, typed.name, typed.path, inputs, scratch)
    compared = with_drawn_inputs(with_what_is_drawn(compared, model), model, inputs)
    if not options.per_layer:
        return compared
    pairs: list[tuple[StepName, Path, Path]] = [("precision", reference, typed.path)]
    if origin is not None:
        pairs.insert(0, ("pruning", origin.unpruned, reference))
    return add_layer_errors(compared, pairs, inputs, on_step, scratch)


def check_same_inputs(reference: OnnxModel, typed: OnnxModel) -> None:
    """Checks that a reference takes what an artifact does.

    Args:
        reference: The model to compare with.
        typed: The artifact's own.

    Raises:
        InputError: One has an input that the other lacks.
    """
    theirs, ours = input_dims(reference), input_dims(typed)
    for name in (*theirs, *ours):
        if name not in ours or name not in theirs:
            takes, lacks = (reference, typed) if name in theirs else (typed, reference)
            raise InputError(
                f"{takes.path} takes an input '{name}', and {lacks.path} does not.",
                "Name the model that the artifact was built from, or one with the same inputs.",
            )


def candidates_of(folder: Path, engine: EngineRecord, scratch: Path) -> list[Candidate]:
    """What an artifact holds that can be compared: first the typed model on the CPU, then the engine."""
    typed = Candidate(
        "typed model on the ONNX Runtime, CPU",
        folder / "model.onnx",
        "onnx",
        as_written=True,
        step="precision",
    )
    typed_model = read_model(typed.path)
    written_out = ""
    if expand_plugin_nodes(typed_model.ir):
        written_out = ", the plugin's nodes written out"
        name = f"typed model{written_out}, on the ONNX Runtime, CPU"
        typed = replace(typed, name=name, path=scratch / "expanded.onnx")
        save_model(typed_model.ir, typed.path)
        typed_model = read_model(typed.path)
    if needs_twin(typed_model):
        typed = replace(
            typed, name=f"typed model{written_out}, rounded as typed, CPU", path=scratch / "twin.onnx"
        )
        write_twin(typed_model, typed.path)
    return [typed, _engine_candidate(folder, engine)]


def validate_artifact(
    folder: Path, reference: Path, options: ValidationOptions, on_step: OnProgress = lambda _: None
) -> Validation:
    """Compares a finished artifact with the model it was built from. The artifact is not changed.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or it was built from another
            model; or it has weights of an unpruned model that was not given.
        SparseflowError: The reference or the inputs cannot be read.
    """
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    model = read_model(reference)
    if record_model(model) != manifest.model.model_copy(update={"file": reference.name}):
        raise ArtifactError(
            f"{folder} was built from another model than {reference}: their SHA-256 differ.",
            f"Name the file that was built: '{manifest.model.file}', SHA-256 {manifest.model.sha256[:12]}….",
        )
    unpruned = read_unpruned(options.dense_model, model)
    _check_unpruned(folder, manifest, unpruned)
    plan = read_plan(folder / "plan.yaml")
    inputs = input_sets(model, plan, options)
    shipped = Shipped(plan, folder, manifest.graph, manifest.engine)
    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        return validate(model, unpruned, shipped, inputs, options, on_step, Path(scratch))


def check_shipped(folder: Path, manifest: Manifest, reference: OnnxModel) -> None:
    """Checks that a reference is not the pruned model of an artifact that has other weights in some layers.

    Raises:
        ArtifactError: It is.
    """
    known, restored = manifest.dense_model, manifest.graph.restored_layers
    if known is None or not restored or record_model(reference).sha256 != manifest.model.sha256:
        return
    raise ArtifactError(
        f"{len(restored)} layer(s) of {folder} have weights of the unpruned model '{known.file}', which are "
        f"not in {reference.path}.",
        f"Take '{known.file}' as --reference, or leave the option out: the artifact's own outputs are then "
        "the reference.",
    )


def _check_unpruned(folder: Path, manifest: Manifest, unpruned: OnnxModel | None) -> None:
    """Checks that an artifact with restored weights comes with the model that they are from."""
    known, restored = manifest.dense_model, manifest.graph.restored_layers
    if not restored or known is None:
        return
    if unpruned is None:
        raise ArtifactError(
            f"{len(restored)} layer(s) of {folder} have weights of the unpruned model '{known.file}', which "
            "are not in the reference.",
            f"Give it with --dense-model; its SHA-256 is {known.sha256[:12]}….",
        )
    if record_model(unpruned) != known.model_copy(update={"file": unpruned.path.name}):
        raise ArtifactError(
            f"{folder} was built with weights of another unpruned model than {unpruned.path}: their SHA-256 "
            "differ.",
            f"Name the file that was given then: '{known.file}', SHA-256 {known.sha256[:12]}….",
        )


def _engine_candidate(folder: Path, engine: EngineRecord) -> Candidate:
    name, file = f"engine ({engine.backend})", folder / engine.file
    if engine.backend == "onnxruntime":
        return Candidate(name, file, "onnx")
    # asked again: an artifact may be validated on another machine than it was built on
    why_not = why_not_here(find_gpus()) or "This version runs TensorRT engines, not TensorRT-RTX's."
    why_not = why_not if engine.backend == "tensorrt-rtx" else engine.runs_here
    stripped = engine.options.get("strip_plan")
    prepare = partial(put_weights, folder / "model.onnx") if stripped else None
    load = partial(load_library_here, folder / engine.plugin.file) if engine.plugin else None
    return Candidate(name, file, "engine", why_not, prepare=prepare, load=load)
