"""Compares an artifact, finished or not, with the model that it was built from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sparseflow_trt.artifact import record_model
from sparseflow_trt.engines.hardware import find_gpus
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.engines.refit import put_weights
from sparseflow_trt.engines.tensorrt_rtx import why_not_here
from sparseflow_trt.errors import ArtifactError, InputError
from sparseflow_trt.exporters.apply_plan import needs_fp32_reference, write_fp32_reference
from sparseflow_trt.exporters.twin import needs_twin, write_bf16_twin
from sparseflow_trt.manifest import EngineRecord, check_files, read_manifest
from sparseflow_trt.model_file import OnnxModel, read_model
from sparseflow_trt.plan import Plan, read_plan
from sparseflow_trt.validation.compare import Candidate, compare
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.input_files import check_ranges, load_inputs
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.tolerances import Tolerances
from sparseflow_trt.verdict import Validation


@dataclass(frozen=True)
class ValidationOptions:
    """Which inputs are compared, and how far outputs may be from the reference's, where not by default."""

    inputs: str | None = None
    seed: int = 0
    tolerances: Tolerances = field(default_factory=Tolerances)


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


def validate(
    model: OnnxModel,
    plan: Plan,
    folder: Path,
    engine: EngineRecord,
    inputs: list[InputSet],
    tolerances: Tolerances,
    on_step: OnProgress,
    scratch: Path,
) -> Validation:
    """Compares the typed model and the engine in `folder` with the model as given, in FP32 on the CPU.

    Args:
        model: The model as given, as read.
        plan: What the artifact was built for; its coarsest precision sets the tolerances.
        folder: The artifact's, finished or not.
        engine: What the backend said of the engine.
        inputs: What to compare on.
        tolerances: What the user asked for.
        on_step: Told how far the comparison is.
        scratch: An empty folder for graphs that only the comparison needs.
    """
    reference = model.path
    if needs_fp32_reference(model):
        reference = scratch / "reference.onnx"
        write_fp32_reference(read_model(model.path), reference)
    typed = Candidate("typed model on the ONNX Runtime, CPU", folder / "model.onnx", "onnx", as_written=True)
    typed_model = read_model(typed.path)
    if needs_twin(typed_model):
        typed = Candidate(
            "FP32 twin of the typed model, rounded to BF16, CPU",
            scratch / "twin.onnx",
            "onnx",
            as_written=True,
        )
        write_bf16_twin(typed_model, typed.path)
    return compare(
        reference,
        [typed, _engine_candidate(folder, engine)],
        inputs,
        tolerances.for_plan(plan),
        lambda done, total: on_step(Progress("Comparing with the FP32 reference", done, total)),
    )


def validate_artifact(
    folder: Path, reference: Path, options: ValidationOptions, on_step: OnProgress = lambda _: None
) -> Validation:
    """Compares a finished artifact with the model it was built from. The artifact is not changed.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or it was built from another model.
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
    plan = read_plan(folder / "plan.yaml")
    inputs = input_sets(model, plan, options)
    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        return validate(
            model, plan, folder, manifest.engine, inputs, options.tolerances, on_step, Path(scratch)
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
    return Candidate(name, file, "engine", why_not, prepare=prepare)
