"""The way of a model through the house, top to bottom. The only module that joins the three folders."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sparseflow_trt import __version__
from sparseflow_trt._files import put_in_place, sha256_of, temporary_folder
from sparseflow_trt.artifact import (
    build_key,
    built_before,
    check_place,
    hash_arrays,
    place_for,
    record_model,
)
from sparseflow_trt.engines.choose import BackendName, backend_for
from sparseflow_trt.engines.hardware import find_gpus
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions, Progress
from sparseflow_trt.engines.tensorrt_rtx import why_not_here
from sparseflow_trt.errors import ArtifactError, InputError
from sparseflow_trt.exporters.apply_plan import (
    apply_plan,
    has_half_types,
    needs_fp32_reference,
    write_fp32_reference,
)
from sparseflow_trt.exporters.twin import needs_twin, write_bf16_twin
from sparseflow_trt.graph import WeightedLayer, read_layers
from sparseflow_trt.manifest import (
    EngineRecord,
    Manifest,
    PolicyRecord,
    check_files,
    read_manifest,
    write_manifest,
)
from sparseflow_trt.model_file import OnnxModel, check_operators, input_dims, read_model
from sparseflow_trt.plan import (
    ModelPrecision,
    Plan,
    SparsityMode,
    check_plan,
    make_plan,
    read_plan,
    yaml_from_plan,
)
from sparseflow_trt.policy import Policy
from sparseflow_trt.profile_specs import ProfileSpec, make_profiles
from sparseflow_trt.record import record_engine, record_graph, record_layers
from sparseflow_trt.report.html import write_report
from sparseflow_trt.shapes import ShapeRange, check_profiles
from sparseflow_trt.validation.compare import Candidate, compare
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.input_files import check_ranges, load_inputs
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.tolerances import Tolerances
from sparseflow_trt.verdict import Validation

OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made from.

    Attributes:
        policy: Where sparse wins; None plans everything dense.
        axes: The range (min, opt, max) of each dynamic axis, by its name in the model.
        shapes: The shapes of whole inputs, by name; they go before `axes`.
        profiles: The optimization profiles; `axes` and `shapes` give what one leaves out. Without any,
            those two make one named 'default'.
        precision: None keeps a half-precision model as it is typed, and takes FP16 for one in FP32.
    """

    policy: Policy | None = None
    axes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    shapes: dict[str, ShapeRange] = field(default_factory=dict)
    profiles: tuple[ProfileSpec, ...] = ()
    precision: ModelPrecision | None = None
    sparsity: SparsityMode = "policy"


@dataclass(frozen=True)
class ValidationOptions:
    """Which inputs are compared, and how far outputs may be from the reference's, where not by default."""

    inputs: str | None = None
    seed: int = 0
    tolerances: Tolerances = field(default_factory=Tolerances)


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for. `plan` is either made from options or given, as a person edited it."""

    output: Path
    plan: Plan | PlanOptions
    backend: BackendName = "auto"
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    force: bool = False
    command: str = ""


@dataclass(frozen=True)
class BuildResult:
    """A finished build: where it lies, what its manifest says, and whether there was nothing to do."""

    artifact: Path
    manifest: Manifest
    unchanged: bool


def build(path: Path, options: BuildOptions, on_step: OnStep = lambda _: None) -> BuildResult:
    """Builds an engine from an ONNX model, validates it and writes an artifact.

    Raises:
        SparseflowError: Anything that is wrong with the model, the plan, the inputs, the backend or the
            disk; nothing is written then, and an older artifact stays as it was.
    """
    clock = _Clock()
    output = check_place(options.output)
    with clock("read"):
        model, layers = read(path, on_step)
        check_operators(model)
    with clock("plan"):
        record = record_model(model)
        plan = plan_for(model, layers, options.plan, record.sha256)
        policy = options.plan.policy if isinstance(options.plan, PlanOptions) else None
        _check_tolerances(options.validation.tolerances, model)
        inputs = input_sets(model, plan, options.validation)
        backend, why = backend_for(options.backend)
        key = build_key(
            model=record.model_dump(),
            plan=plan.model_dump(mode="json"),
            policy=policy.model_dump(mode="json") if policy else None,
            backend=[backend.name, backend.versions()],
            options=options.engine.asked(),
            inputs=hash_arrays(given.feeds for given in inputs),
            tolerances=options.validation.tolerances.model_dump(),
            tool=__version__,
        )
        if not options.force and (built := built_before(output, key)):
            return BuildResult(output, built, unchanged=True)
    with temporary_folder(output) as folder:
        with clock("rewrite"):
            on_step(Progress("Rewriting the graph for the plan"))
            applied = apply_plan(read_model(path), plan, folder / "model.onnx", backend.graph_needs())
        with clock("backend"):
            request = BuildRequest(applied.model, plan, folder, plan.wants_sparse, options.engine)
            engine_record = record_engine(backend.build(request, on_step), why, options.engine)
        with clock("validate"), temporary_folder(folder / "validation") as scratch:
            limits = options.validation.tolerances
            verdict = validate(model, plan, folder, engine_record, inputs, limits, on_step, scratch)
        with clock("write"):
            (folder / "plan.yaml").write_text(yaml_from_plan(plan), encoding="utf-8")
            if policy:
                (folder / "policy.json").write_text(policy.model_dump_json(indent=2) + "\n", encoding="utf-8")
            manifest = Manifest(
                schema_version=1,
                status=verdict.verdict,
                tool=f"sparseflow-trt {__version__}",
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                command=options.command,
                build_key=key,
                model=record,
                policy=_policy_record(policy, folder),
                plan_sha256=sha256_of(folder / "plan.yaml"),
                layers=record_layers(layers, plan, input_dims(model)),
                graph=record_graph(applied),
                engine=engine_record,
                validation=verdict,
                seconds=clock.rounded(),
                files={f.name: sha256_of(f) for f in sorted(folder.iterdir()) if f.is_file()},
            )
            report = folder / "report.html"
            write_report(manifest, report)
            manifest = manifest.model_copy(
                update={"files": {**manifest.files, report.name: sha256_of(report)}}
            )
            write_manifest(manifest, folder)
            target = place_for(output, manifest.status)
            put_in_place(folder, target)
    return BuildResult(target, manifest, unchanged=False)


def read(path: Path, on_step: OnStep = lambda _: None) -> tuple[OnnxModel, tuple[WeightedLayer, ...]]:
    """Reads a model and its weighted layers.

    Raises:
        ModelError: The file cannot be read.
    """
    model = read_model(path)
    step = "Reading the weights"
    return model, read_layers(model, lambda done, total: on_step(Progress(step, done, total)))


def plan_for(
    model: OnnxModel, layers: tuple[WeightedLayer, ...], plan: Plan | PlanOptions, model_sha256: str
) -> Plan:
    """A plan that fits the model: the given one, checked, or one made from options.

    Raises:
        PlanError: The given plan does not fit the model's layers.
        ShapeError: Its profiles do not fit the model's inputs, or a dynamic axis has no range.
    """
    dims = input_dims(model)
    if isinstance(plan, PlanOptions):
        plan = make_plan(
            layers,
            make_profiles(plan.profiles, dims, plan.axes, plan.shapes),
            dims,
            plan.policy,
            plan.precision or ("keep" if has_half_types(model) else "fp16"),
            plan.sparsity,
            model.path.name,
            model_sha256,
        )
    check_plan(plan, layers)
    check_profiles(plan.profiles, dims)
    return plan


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


def validate(
    model: OnnxModel,
    plan: Plan,
    folder: Path,
    engine: EngineRecord,
    inputs: list[InputSet],
    tolerances: Tolerances,
    on_step: OnStep,
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
    folder: Path, reference: Path, options: ValidationOptions, on_step: OnStep = lambda _: None
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


def _check_tolerances(tolerances: Tolerances, model: OnnxModel) -> None:
    """Refuses a tolerance for an output that there is not before the engine is built, not after."""
    outputs = [value.name for value in model.ir.graph.outputs]
    unknown = [o.output for o in tolerances.overrides if o.output and o.output not in outputs]
    if unknown:
        has = ", ".join(f"'{name}'" for name in outputs)
        raise InputError(
            f"a tolerance is for output '{unknown[0]}'; the model has {has}.", "Correct the output's name."
        )


def _engine_candidate(folder: Path, engine: EngineRecord) -> Candidate:
    name, file = f"engine ({engine.backend})", folder / engine.file
    if engine.backend == "onnxruntime":
        return Candidate(name, file, "onnx")
    # asked again: an artifact may be validated on another machine than it was built on
    why_not = why_not_here(find_gpus()) or "This version runs TensorRT engines, not TensorRT-RTX's."
    return Candidate(name, file, "engine", why_not if engine.backend == "tensorrt-rtx" else engine.runs_here)


def _policy_record(policy: Policy | None, folder: Path) -> PolicyRecord | None:
    if policy is None:
        return None
    return PolicyRecord(name=policy.name, device=policy.device, sha256=sha256_of(folder / "policy.json"))


class _Clock:
    """Adds up the seconds that each named step took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        return {step: round(value, 3) for step, value in self._seconds.items()}
