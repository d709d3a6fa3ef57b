"""The way of a model through the house, top to bottom: read, planned, typed, built, validated, recorded."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sparseflow_trt import __version__
from sparseflow_trt._clock import Clock
from sparseflow_trt._files import sha256_of, temporary_folder
from sparseflow_trt.artifact import (
    build_key,
    built_before,
    check_place,
    hash_arrays,
    record_model,
)
from sparseflow_trt.artifact_validation import (
    Shipped,
    ValidationOptions,
    check_tolerances,
    input_sets,
    read_unpruned,
    validate,
)
from sparseflow_trt.decide import PluginUse, SparsityMode
from sparseflow_trt.duel import Built, check_duel, run_duel
from sparseflow_trt.engines.choose import BackendName, backend_for
from sparseflow_trt.engines.like import like_facts
from sparseflow_trt.engines.plugin_library import check_library, library_for
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions, OnProgress, Progress
from sparseflow_trt.exporters.apply_plan import apply_plan, computes_in_half, restore_planned_dense
from sparseflow_trt.exporters.exact_layers import exact_layers
from sparseflow_trt.exporters.islands import check_islands
from sparseflow_trt.exporters.plugin_nodes import plugin_layers
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.graph import WeightedLayer, read_layers
from sparseflow_trt.manifest import Manifest
from sparseflow_trt.model_file import OnnxModel, check_operators, input_dims, read_model
from sparseflow_trt.plan import ModelPrecision, Plan, check_plan, yaml_from_plan
from sparseflow_trt.planning import check_forced, make_plan
from sparseflow_trt.policy import Policy
from sparseflow_trt.precision_record import Precision, Precisions
from sparseflow_trt.precision_search import choose_precisions
from sparseflow_trt.precision_trials import Question
from sparseflow_trt.profile_specs import ProfileSpec, make_profiles
from sparseflow_trt.record import put_artifact, record_engine, record_layers, record_origin, record_policy
from sparseflow_trt.shapes import ShapeRange, check_profiles
from sparseflow_trt.split import Split
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.tolerances import plan_precision


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made from.

    Attributes:
        policy: Where sparse wins; None plans everything dense.
        axes: The range (min, opt, max) of each dynamic axis, by its name in the model.
        shapes: The shapes of whole inputs, by name; they go before `axes`.
        profiles: The optimization profiles; `axes` and `shapes` give what one leaves out. Without any,
            those two make one named 'default'.
        precision: None keeps a model that computes in half precision as it is typed, and takes FP16 for one
            that does in FP32, however its weights are stored. "auto" is FP16 until `settle` has searched.
        split: Along which axis the one profile is split at the layers' crossovers.
        plugin: Whether layers may be given to the plugin.
    """

    policy: Policy | None = None
    axes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    shapes: dict[str, ShapeRange] = field(default_factory=dict)
    profiles: tuple[ProfileSpec, ...] = ()
    precision: ModelPrecision | Precisions | Literal["auto"] | None = None
    sparsity: SparsityMode = "policy"
    split: Split | None = None
    plugin: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for. `plan` is either made from options or given, as a person edited it.

    With `margin` the plan's engine ships only where it is faster than a dense one by that share. `plugin` is
    the library of the plugin's nodes.
    """

    output: Path
    plan: Plan | PlanOptions
    backend: BackendName = "auto"
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    margin: float | None = None
    plugin: Path | None = None
    force: bool = False
    command: str = ""


@dataclass(frozen=True)
class BuildResult:
    """A finished build: where it lies, what its manifest says, and whether there was nothing to do."""

    artifact: Path
    manifest: Manifest
    unchanged: bool


def build(path: Path, options: BuildOptions, on_step: OnProgress = lambda _: None) -> BuildResult:
    """Builds an engine from an ONNX model, validates it and writes an artifact.

    Raises:
        SparseflowError: Anything that is wrong with the model, the plan, the inputs, the backend or the
            disk; nothing is written then, and an older artifact stays as it was.
    """
    clock = Clock()
    output = check_place(options.output)
    if options.margin is not None:
        check_duel(options.backend, options.engine)
    with clock("read"):
        model, layers = read(path, on_step)
        check_operators(model)
        unpruned = read_unpruned(options.validation.dense_model, model)
    with clock("plan"):
        record = record_model(model)
        dense_record = record_model(unpruned) if unpruned else None
        plan = plan_for(model, layers, options.plan, record.sha256)
        policy = options.plan.policy if isinstance(options.plan, PlanOptions) else None
        check_tolerances(options.validation.tolerances, model)
        inputs = input_sets(model, plan, options.validation)
        backend, why = backend_for(options.backend)
        needs = backend.graph_needs()
        searched = isinstance(options.plan, PlanOptions) and options.plan.precision == "auto"
        library = library_for(plan, options.plugin, options.engine, needs.takes_plugin)
        if searched and options.plugin and needs.takes_plugin:
            library = check_library(options.plugin)  # what is found may put other layers into the plugin
        sha256 = sha256_of(library) if library else ""
        key = build_key(
            model=record.model_dump(),
            plan=plan.model_dump(mode="json"),
            policy=policy.model_dump(mode="json") if policy else None,
            backend=[backend.name, backend.versions(), backend.device()],
            options={
                **options.engine.asked(),
                **like_facts(options.engine.like),
                **({"plugin": sha256} if library else {}),
            },
            margin=options.margin,
            inputs=hash_arrays(given.feeds for given in inputs),
            tolerances=options.validation.tolerances.model_dump(),
            dense_model=dense_record.model_dump() if dense_record else None,
            per_layer=options.validation.per_layer,
            searched=searched,
            tool=__version__,
        )
        if not options.force and (stands := built_before(output, key)):
            return BuildResult(output, stands, unchanged=True)
    if isinstance(options.plan, PlanOptions) and searched:
        with clock("precision"):
            bf16 = needs.takes_bf16
            plan = settle(
                model, layers, plan, options.plan, inputs, options.validation, bf16, on_step, unpruned
            )
            library = library_for(plan, options.plugin, options.engine, needs.takes_plugin)

    def build_engine(plan: Plan, place: Path, on_step: OnProgress) -> Built:
        with clock("rewrite"):
            on_step(Progress("Rewriting the graph for the plan"))
            typed = place / "model.onnx"
            graph = apply_plan(read_model(path), plan, typed, needs, unpruned)
        with clock("backend"):
            sparse = plan.wants_sparse
            request = BuildRequest(typed, plan, place, sparse, options.engine, library, sha256)
            engine = record_engine(backend.build(request, on_step), why, options.engine)
        return Built(plan, graph, engine)

    with temporary_folder(output) as folder:
        duel = None
        if options.margin is None:
            built = build_engine(plan, folder, on_step)
        else:
            built, duel = run_duel(build_engine, model, plan, folder, options.margin, clock, on_step)
        with clock("validate"), temporary_folder(folder / "validation") as scratch:
            shipped = Shipped(built.plan, folder, built.graph, built.engine)
            verdict = validate(model, unpruned, shipped, inputs, options.validation, on_step, scratch)
        with clock("write"):
            (folder / "plan.yaml").write_text(yaml_from_plan(built.plan), encoding="utf-8")
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
                dense_model=dense_record,
                policy=record_policy(policy, folder) if policy else None,
                plan_sha256=sha256_of(folder / "plan.yaml"),
                layers=record_layers(layers, built.plan, input_dims(model)),
                graph=built.graph,
                engine=built.engine,
                duel=duel,
                precision_search=built.plan.search,
                validation=verdict,
                notes=record_origin(plan, record),
                seconds=clock.rounded(),
                files={},
            )
            target, manifest = put_artifact(manifest, policy, folder, output)
    return BuildResult(target, manifest, unchanged=False)


def read(path: Path, on_step: OnProgress = lambda _: None) -> tuple[OnnxModel, tuple[WeightedLayer, ...]]:
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
        PlanError: The given plan does not fit the model's layers, or names an island that there is not.
        ShapeError: Its profiles do not fit the model's inputs, a dynamic axis has no range, or the
            profile cannot be split as asked.
        NotSparseError: Layers are to run sparse whose weights are not 2:4: those of the given plan, or
            whichever are, and none is.
    """
    dims = input_dims(model)
    if isinstance(plan, PlanOptions):
        check_forced(layers, plan.sparsity, model)
        own: ModelPrecision = "keep" if computes_in_half(model, layers) else "fp16"
        asked = "fp16" if plan.precision == "auto" else plan.precision or own
        plan = make_plan(
            layers,
            make_profiles(plan.profiles, dims, plan.axes, plan.shapes),
            dims,
            plan.policy,
            _with_exact(asked, exact_layers(model)),
            plan.sparsity,
            model.path.name,
            model_sha256,
            plan.split,
            PluginUse(plan.plugin, plugin_layers(model)),
        )
    check_plan(plan, layers)
    check_islands(model.ir, plan)
    check_profiles(plan.profiles, dims)
    return plan


def _with_exact(asked: ModelPrecision | Precisions, reasons: dict[str, str]) -> Precisions:
    """What is asked for, with FP32 for the layers that half precision leads astray, and why."""
    precisions = asked if isinstance(asked, Precisions) else Precisions(asked)
    exact: dict[str, Precision] = dict.fromkeys(reasons, "fp32")
    return replace(precisions, layers={**exact, **precisions.layers}, reasons=reasons)


def settle(
    model: OnnxModel,
    layers: tuple[WeightedLayer, ...],
    plan: Plan,
    options: PlanOptions,
    inputs: Sequence[InputSet],
    validation: ValidationOptions,
    takes_bf16: bool,
    on_step: OnProgress = lambda _: None,
    unpruned: OnnxModel | None = None,
) -> Plan:
    """The plan with precisions that were searched for, and sparsity decided anew for these.

    What is run has the weights that will ship: those of the unpruned model where `plan` runs a layer dense.

    Args:
        model: As read.
        layers: Its layers.
        plan: As `plan_for` made it from `options`, in FP16.
        options: What it was made from.
        inputs: What precisions are tried on.
        validation: What the user asked for, for the tolerances.
        takes_bf16: Whether what runs the plan has BF16.
        on_step: Told of each run.
        unpruned: The model before pruning, where layers get their weights back.

    Raises:
        PlanError: Not even FP32 keeps the tolerances.
        SparseflowError: The model cannot be run on the inputs.
    """
    limits = validation.tolerances.for_plan(plan)
    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        path = model.path
        if unpruned is not None:
            path, shipped = Path(scratch) / "restored.onnx", read_model(model.path)
            restore_planned_dense(shipped, plan, unpruned)
            save_model(shipped.ir, path)
        question = Question(path, plan, plan_precision(plan), limits, inputs, takes_bf16)
        found = choose_precisions(question, Path(scratch), on_step)
    return plan_for(model, layers, replace(options, precision=found), plan.model_sha256)
