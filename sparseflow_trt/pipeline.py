"""The way of a model through the house, top to bottom: read, planned, typed, built, validated, recorded."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparseflow_trt._clock import Clock
from sparseflow_trt._files import sha256_of, temporary_folder
from sparseflow_trt._paths import NO_PATH, AnyPath, GivenPath, MaybePath, with_paths
from sparseflow_trt._version import __version__
from sparseflow_trt.artifacts.artifact import (
    build_key,
    built_before,
    check_place,
    hash_arrays,
    record_model,
)
from sparseflow_trt.artifacts.manifest import Manifest, ModelRecord
from sparseflow_trt.building.artifact_validation import (
    Shipped,
    ValidationOptions,
    check_tolerances,
    input_sets,
    read_unpruned,
    validate,
)
from sparseflow_trt.building.duel import Built, check_duel, run_duel
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read, settle
from sparseflow_trt.building.record import (
    put_artifact,
    record_engine,
    record_layers,
    record_notes,
    record_policy,
)
from sparseflow_trt.engines.backends.choose import BackendName, backend_for
from sparseflow_trt.engines.plugin.library import check_library, library_for
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions, OnProgress, Progress
from sparseflow_trt.engines.tensorrt.like import like_facts
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.model.graph import layers_with_masks_apart
from sparseflow_trt.model.model_file import input_dims, read_model
from sparseflow_trt.plans.plan import Plan, yaml_from_plan
from sparseflow_trt.validation.feeds import InputSet


@with_paths
class BuildOptions:
    """What a build is asked for. `plan` is either made from options or given, as a person edited it.

    With `margin` the plan's engine ships only where it is faster than a dense one by that share. `plugin` is
    the library of the plugin's nodes.
    """

    output: GivenPath
    plan: Plan | PlanOptions
    backend: BackendName = "auto"
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    margin: float | None = None
    plugin: MaybePath = NO_PATH
    force: bool = False
    command: str = ""


@dataclass(frozen=True)
class BuildResult:
    """A finished build: where it lies, what its manifest says, and whether there was nothing to do."""

    artifact: Path
    manifest: Manifest
    unchanged: bool


def build(path: AnyPath, options: BuildOptions, on_step: OnProgress = lambda _: None) -> BuildResult:
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
        model, layers = read(Path(path), on_step)
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
        device = [backend.name, backend.versions(), backend.device()]
        key = _key_of(options, plan, record, dense_record, inputs, device, sha256)
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
                plan_policy="" if policy else built.plan.policy,
                plan_sha256=sha256_of(folder / "plan.yaml"),
                layers=record_layers(layers, built.plan, input_dims(model)),
                masks_apart=layers_with_masks_apart(layers),
                graph=built.graph,
                engine=built.engine,
                duel=duel,
                precision_search=built.plan.search,
                validation=verdict,
                notes=record_notes(plan, record, layers),
                seconds=clock.rounded(),
                files={},
            )
            target, manifest = put_artifact(manifest, policy, folder, output)
    return BuildResult(target, manifest, unchanged=False)


def _key_of(
    options: BuildOptions,
    plan: Plan,
    model: ModelRecord,
    dense_model: ModelRecord | None,
    inputs: Sequence[InputSet],
    device: Sequence[object],
    plugin: str,
) -> str:
    """What a build's result follows from: one that has it already stands."""
    asked = options.plan if isinstance(options.plan, PlanOptions) else None
    return build_key(
        model=model.model_dump(),
        plan=plan.model_dump(mode="json"),
        policy=asked.policy.model_dump(mode="json") if asked and asked.policy else None,
        backend=device,
        options={
            **options.engine.asked(),
            **like_facts(options.engine.like),
            **({"plugin": plugin} if plugin else {}),
        },
        margin=options.margin,
        inputs=hash_arrays(given.feeds for given in inputs),
        tolerances=options.validation.tolerances.model_dump(),
        dense_model=dense_model.model_dump() if dense_model else None,
        per_layer=options.validation.per_layer,
        searched=asked is not None and asked.precision == "auto",
        tool=__version__,
    )
