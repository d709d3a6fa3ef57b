"""Turns what a build did into the records of its manifest, and its folder into an artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sparseflow_trt._files import put_in_place, sha256_of
from sparseflow_trt.artifacts.artifact import check_not_foreign, place_for
from sparseflow_trt.artifacts.manifest import (
    DuelProfileRecord,
    EngineLayerRecord,
    EngineRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    OutcomeRecord,
    PolicyRecord,
    TimingRecord,
    write_manifest,
)
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.protocol import BuiltEngine, EngineOptions
from sparseflow_trt.engines.running.benchmark import Timing, ratio
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.model.graph import WeightedLayer, left_as_they_are
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.shapes import POINTS, Dims, Profile, dims_at
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.report.html import write_report
from sparseflow_trt.validation.feeds import InputSet


def put_artifact(
    manifest: Manifest, policy: Policy | None, folder: Path, output: Path
) -> tuple[Path, Manifest]:
    """Writes the report and the manifest of a folder that has all else, and puts it in its place.

    Args:
        manifest: But for the hashes of the folder's files.
        policy: What was decided from, for the report.
        folder: A temporary one, beside `output`.
        output: Where a passed one goes, and a failed one where none that passed is there.

    Returns:
        Where it lies now, and its manifest.

    Raises:
        ArtifactError: It cannot be put there, or something that is no artifact is there by now; or the
            plugin's library changed during the build.
        OSError: The disk is full.
    """
    files = {f.name: sha256_of(f) for f in sorted(folder.iterdir()) if f.is_file()}
    plugin = manifest.engine.plugin
    if plugin and files[plugin.file] != plugin.sha256:
        raise ArtifactError(
            f"the plugin's library {plugin.file} changed while the engine was built.", "Build it again."
        )
    manifest = manifest.model_copy(update={"files": files})
    report = folder / "report.html"
    write_report(manifest, report, policy)
    manifest = manifest.model_copy(update={"files": {**files, report.name: sha256_of(report)}})
    write_manifest(manifest, folder)
    target = place_for(output, manifest.status)
    check_not_foreign(target)  # builds take a while, in which somebody may have made a folder there
    put_in_place(folder, target)
    return target, manifest


def record_layers(
    layers: tuple[WeightedLayer, ...], plan: Plan, dims: dict[str, Dims]
) -> tuple[LayerRecord, ...]:
    """What each layer with a constant weight is, beside what the plan gives it."""
    planned = {p.name: p for p in plan.layers}
    return tuple(
        LayerRecord(
            name=layer.name,
            module=layer.module,
            kind=layer.kind,
            op_type=layer.op_type,
            weight=layer.weight,
            dtype=layer.dtype,
            n=layer.n,
            k=layer.k,
            batch=layer.batch,
            m={p.name: _m_range(layer, p, dims) for p in plan.profiles},
            state=layer.state.value,
            state_reason=layer.reason,
            mask_hash=layer.mask_hash,
            precision=planned[layer.name].precision,
            sparsity=planned[layer.name].sparsity,
            reason=planned[layer.name].reason,
        )
        for layer in layers
        if layer.weight
    )


def record_policy(policy: Policy, folder: Path) -> PolicyRecord:
    """Which policy a plan was made from; it lies in the artifact's folder."""
    return PolicyRecord(name=policy.name, device=policy.device, sha256=sha256_of(folder / "policy.json"))


def record_notes(plan: Plan, model: ModelRecord, layers: tuple[WeightedLayer, ...]) -> tuple[str, ...]:
    """Sentences on layers that no plan is for, and on a plan that was made for another file."""
    notes = left_as_they_are(layers)
    if plan.model_sha256 in ("", model.sha256):
        return notes
    theirs, ours = plan.model_sha256[:12], model.sha256[:12]
    return (
        *notes,
        f"The plan was made for another file than {model.file} (SHA-256 {theirs}…, not {ours}…): its layers "
        "fit, but its reasons may not.",
    )


def record_engine(engine: BuiltEngine, why: str, options: EngineOptions) -> EngineRecord:
    """What was built, why by that backend, and what it was asked for."""
    return EngineRecord(
        file=engine.file.name,
        backend=engine.backend,
        chosen_because=why,
        versions=engine.versions,
        device=engine.device,
        multiprocessors=_multiprocessors(engine.device),
        build_seconds=round(engine.seconds, 3),
        runs_here=engine.runs_here,
        sparse_tactics=engine.sparse_tactics,
        notes=engine.notes,
        options=options.asked(),
        outcomes=tuple(OutcomeRecord(**asdict(outcome)) for outcome in engine.outcomes),
        layers=tuple(
            EngineLayerRecord(
                name=e.name,
                type=e.type,
                precision=e.precision,
                tactic=e.tactic,
                profile=e.profile,
                nodes=e.nodes,
                tactic_id=e.tactic_id,
            )
            for e in engine.layers
        ),
        plugin=engine.plugin,
    )


def _multiprocessors(device: str) -> int | None:
    """Of the GPU that an engine was built for, by its words; None where that is not this machine's."""
    gpu = next(iter(find_gpus()), None)
    return gpu.multiprocessors if gpu and device.startswith(f"{gpu.name}, ") else None


def record_rivals(given: InputSet, sparse: Timing, dense: Timing) -> DuelProfileRecord:
    """What two engines took on one input set, which is named for its profile."""
    speedup = ratio(dense, sparse)
    return DuelProfileRecord(
        profile=given.name,
        shapes={name: array.shape for name, array in given.feeds.items()},
        sparse=_record_timing(sparse),
        dense=_record_timing(dense),
        speedup=speedup.median,
        low=speedup.low,
        high=speedup.high,
    )


def _record_timing(timing: Timing) -> TimingRecord:
    return TimingRecord(
        p50=timing.p50, p90=timing.p90, p99=timing.p99, low=min(timing.rounds), high=max(timing.rounds)
    )


def _m_range(
    layer: WeightedLayer, profile: Profile, dims: dict[str, Dims]
) -> tuple[int | None, int | None, int | None]:
    low, opt, high = (layer.m.evaluate(dims_at(dims, profile, point)) for point in POINTS)
    return low, opt, high
