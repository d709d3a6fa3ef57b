"""Regression gates: a baseline from an accepted build, and a new build held to it."""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._files import sha256_of
from sparseflow_trt._paths import NO_PATH, AnyPath, MaybePath, with_paths
from sparseflow_trt._version import __version__
from sparseflow_trt.artifacts.manifest import Manifest, check_files, read_manifest
from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.building.artifact_validation import (
    ValidationOptions,
    candidates_of,
    check_same_inputs,
    check_shipped,
    check_tolerances,
    input_sets,
    limits_for,
)
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.exporters.fp32_reference import reference_for
from sparseflow_trt.gates.baseline import (
    MAX_GROWTH,
    Baseline,
    Metric,
    check_size,
    read_baseline,
)
from sparseflow_trt.gates.baseline_inputs import restore_inputs, store_inputs
from sparseflow_trt.gates.regressions import (
    Check,
    Gate,
    check_layers,
    check_metric,
    check_outputs,
    check_verdicts,
    evidence_of,
    figures_of,
)
from sparseflow_trt.gates.stored_array import array_from, store_array
from sparseflow_trt.gates.task_metrics import TaskMetric, load_metric, score_reference
from sparseflow_trt.gates.tighten import tighten
from sparseflow_trt.model.layer_names import shown_names
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.plans.plan import read_plan
from sparseflow_trt.validation.compare import StoredOutputs, compare, run_reference
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.input_files import check_ranges
from sparseflow_trt.validation.tolerances import OutputTolerances
from sparseflow_trt.validation.trial import Candidate

if TYPE_CHECKING:
    import numpy as np


_Arrays = dict[str, "np.ndarray[Any, Any]"]
_ROUNDING = 1e-6  # what a metric may differ by, of itself, and nobody asks why
_REFERENCE = ""  # what `compare` calls it when it hands out outputs


@with_paths
class BaselineOptions:
    """What a baseline is made from.

    Attributes:
        reference: The model whose FP32 outputs are the reference outputs; None takes the artifact's own,
            those of its typed model on the CPU.
        metrics: Task metrics to hold builds to, as `load_metric` takes them.
        max_drop: By how much less than on the reference outputs each may score.
        max_growth: How many times as large an output's mean error may become.
        most_bytes: That its arrays may take in the file, None for any number.
    """

    reference: MaybePath = NO_PATH
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    metrics: tuple[str, ...] = ()
    max_drop: float = 0.0
    max_growth: float = MAX_GROWTH
    most_bytes: int | None = None


def create_baseline(
    folder: AnyPath, options: BaselineOptions, on_step: OnProgress = lambda _: None
) -> tuple[Baseline | None, Validation]:
    """Runs an artifact on inputs and keeps these, the reference outputs and how far the artifact was.

    Returns:
        The baseline, or None where the artifact's outputs are not within tolerance (or nothing could be
        run), and the comparison.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or it has weights of an unpruned
            model and the reference is the pruned one.
        InputError: Inputs, a tolerance or a metric cannot be read, the reference takes other inputs, or its
            outputs cannot be stored or take more than they may.
        ModelError: The reference cannot be read, or ONNX Runtime does not take it.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: ONNX Runtime.
    """
    folder = Path(folder)
    metrics = {name: load_metric(name) for name in options.metrics}
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    typed, plan = read_model(folder / "model.onnx"), read_plan(folder / "plan.yaml")
    check_tolerances(options.validation.tolerances, typed)
    inputs = input_sets(typed, plan, options.validation)
    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        candidates = _candidates(folder, manifest, Path(scratch))
        given = options.reference
        reference = candidates[0].path
        if given:
            model = read_model(given)
            check_shipped(folder, manifest, model)
            check_same_inputs(model, typed)
            reference = reference_for(model, Path(scratch) / "reference.onnx")
        limits = limits_for(typed, plan, manifest.engine, options.validation.tolerances)
        truth = run_reference(reference, inputs, _progress(on_step, "Running the reference"))
        stored = {
            given: {name: store_array(array, f"output '{name}'") for name, array in of.items()}
            for given, of in truth.outputs.items()
        }
        kept = tuple(store_inputs(one, typed) for one in inputs)
        if options.most_bytes is not None:  # before the rest, which takes as long again for each candidate
            check_size(kept, stored, options.most_bytes)
        progress = _progress(on_step, "Running the artifact")
        validation = compare(truth, candidates, inputs, limits, progress)
    if given and sha256_of(given) != manifest.model.sha256:
        # with other weights in the reference the first step is not of precision alone
        validation = validation.model_copy(update={"attribution": None})
    if validation.verdict != "pass":
        return None, validation
    feeds = [one.feeds for one in inputs]
    held = [truth.outputs[one.name] for one in inputs]
    baseline = Baseline(
        schema_version=1,
        **_made_now(manifest),
        reference=_told(given, validation),
        tolerances={name: limits.of(name) for name in held[0]},
        max_growth=options.max_growth,
        inputs=kept,
        outputs=stored,
        figures=figures_of(validation),
        evidence=evidence_of(manifest, validation),
        metrics={
            name: Metric(
                score=score_reference(name, score, held, feeds, options.max_drop), max_drop=options.max_drop
            )
            for name, score in metrics.items()
        },
    )
    return baseline, validation


def check_artifact(
    folder: AnyPath,
    path: AnyPath,
    metrics: Sequence[str] = (),
    max_drop: float | None = None,
    on_step: OnProgress = lambda _: None,
) -> tuple[Gate, Baseline | None]:
    """Holds an artifact to a baseline: outputs, errors, metrics, verdicts, and what was sparse.

    Args:
        folder: The artifact's; it is not changed.
        path: The baseline's file.
        metrics: The code behind the baseline's metrics, as `load_metric` takes it: a file names no code that
            runs. One that the baseline lacks is scored on its reference outputs, too.
        max_drop: In the place of the baseline's, for every metric; without either none may drop.
        on_step: Told how far it is.

    Returns:
        The gate, and where it passed the baseline that this build tightens.

    Raises:
        ArtifactError: The folder is no artifact, or its files have changed.
        InputError: The baseline or a metric cannot be read, or the baseline's inputs do not fit the artifact.
    """
    folder, path = Path(folder), Path(path)
    baseline = read_baseline(path)
    scorers = {name: load_metric(name) for name in metrics}
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    typed, plan = read_model(folder / "model.onnx"), read_plan(folder / "plan.yaml")
    inputs = [restore_inputs(given, typed, path) for given in baseline.inputs]
    check_ranges(inputs, plan.profiles)
    expected = {
        given: {
            name: array_from(array, f"{path}: output '{name}' on '{given}'") for name, array in of.items()
        }
        for given, of in baseline.outputs.items()
    }
    stored = StoredOutputs(path.name, baseline.reference, expected)
    first = next(iter(baseline.tolerances.values()))
    tolerances = OutputTolerances(first, baseline.tolerances)
    found: dict[str, dict[str, _Arrays]] = {}

    def keep(candidate: str, given: str, outputs: _Arrays) -> None:
        found.setdefault(candidate, {})[given] = outputs

    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        candidates = _candidates(folder, manifest, Path(scratch))
        progress = _progress(on_step, "Comparing with the baseline")
        validation = compare(
            stored, candidates, inputs, tolerances, progress, on_outputs=keep if scorers else None
        )
    now = evidence_of(manifest, validation)
    feeds = [given.feeds for given in inputs]
    held = [expected[given.name] for given in inputs]
    on_reference = {name: score(held, feeds) for name, score in scorers.items()}
    reasons = {"": manifest.validation.reason, **{c.name: c.reason for c in validation.candidates}}
    checks = [
        *check_verdicts(baseline.evidence, now, reasons),
        *check_outputs(baseline, validation),
        *_check_metrics(baseline, scorers, on_reference, max_drop, found, inputs),
        *check_layers(baseline.evidence, now, shown_names(manifest.layers)),
    ]
    failed = [check for check in checks if not check.passed]
    gate = Gate(
        verdict="fail" if failed else "pass",
        reason=f"{len(failed)} of {len(checks)} checks failed: {failed[0].reason}"
        if failed
        else f"All {len(checks)} checks passed.",
        artifact=folder.name,
        baseline=path.name,
        checks=tuple(checks),
        notes=(*_model_notes(baseline, manifest), *_metric_notes(baseline, on_reference)),
        hint=_hint(failed, folder, manifest, baseline),
        validation=validation,
    )
    if failed:
        return gate, None
    return gate, tighten(baseline, manifest, validation, expected, _made_now(manifest))


def _hint(failed: Sequence[Check], folder: Path, manifest: Manifest, baseline: Baseline) -> str:
    """How to find out what made failed checks worse, and how to accept it."""
    if not failed:
        return ""
    kinds, said = {check.kind for check in failed}, []
    if kinds != {"layer"}:
        unpruned = manifest.dense_model.file if manifest.dense_model else _other_reference(baseline)
        models = f"--reference {manifest.model.file}{unpruned and f' --dense-model {unpruned}'}"
        said.append(
            "Which step and layer an error comes from: "
            f"sparseflow-trt validate {folder} {models} --per-layer."
        )
    if "layer" in kinds:
        said.append(f"Why a layer is not sparse: sparseflow-trt inspect {folder}.")
    said.append("To accept the build as it is: sparseflow-trt baseline create, and have the diff reviewed.")
    return " ".join(said)


def _other_reference(baseline: Baseline) -> str:
    """The file of a baseline's reference where it is another than was built, as before pruning; or ""."""
    name, given, told = baseline.reference.partition(" (SHA-256 ")
    return name if given and not told.startswith(baseline.model.sha256) else ""


def _candidates(folder: Path, manifest: Manifest, scratch: Path) -> list[Candidate]:
    """The artifact's, under names that do not follow the plan's precision: a twin is a typed model, too."""
    typed, *others = candidates_of(folder, manifest.engine, scratch)
    return [replace(typed, name="typed model"), *others]


def _check_metrics(
    baseline: Baseline,
    scorers: dict[str, TaskMetric],
    on_reference: dict[str, float],
    max_drop: float | None,
    found: dict[str, dict[str, _Arrays]],
    inputs: list[InputSet],
) -> list[Check]:
    """Each metric on the outputs of each candidate that ran on every set, against the reference outputs."""
    checks = [
        check_metric(name, "", metric, None)
        for name, metric in baseline.metrics.items()
        if name not in scorers
    ]
    feeds = [given.feeds for given in inputs]
    for name, score in scorers.items():
        kept = baseline.metrics.get(name)
        allowed = max_drop if max_drop is not None else kept.max_drop if kept else 0.0
        metric = Metric(score=on_reference[name], max_drop=allowed)
        for candidate, outputs in found.items():
            if candidate != _REFERENCE and len(outputs) == len(inputs):
                scored = score([outputs[one.name] for one in inputs], feeds)
                checks.append(check_metric(name, candidate, metric, scored))
    return checks


def _metric_notes(baseline: Baseline, on_reference: dict[str, float]) -> tuple[str, ...]:
    """Which metrics score the reference outputs otherwise than when these were stored, as sentences."""
    return tuple(
        f"Metric '{name}' gives {now:.6g} on the reference outputs and gave {kept.score:.6g} when the "
        "baseline was made: its code or one of its libraries has changed. Builds are held to the new value."
        for name, now in on_reference.items()
        if (kept := baseline.metrics.get(name)) and not math.isclose(kept.score, now, rel_tol=_ROUNDING)
    )


def _model_notes(baseline: Baseline, manifest: Manifest) -> tuple[str, ...]:
    if manifest.model.sha256 == baseline.model.sha256 and manifest.model.data == baseline.model.data:
        return ()
    theirs, ours = baseline.model.sha256[:12], manifest.model.sha256[:12]
    return (
        f"This build is of a different model file from the baseline's: {manifest.model.file} (SHA-256 "
        f"{ours}…), not {baseline.model.file} ({theirs}…).",
    )


def _told(given: Path | None, validation: Validation) -> str:
    what = "the artifact's own typed model" if given is None else f"{given.name} (SHA-256 {sha256_of(given)})"
    return f"{what}, by {validation.reference_runtime}"


def _made_now(manifest: Manifest) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"tool": f"sparseflow-trt {__version__}", "created": now, "model": manifest.model}


def _progress(on_step: OnProgress, step: str) -> Any:
    return lambda done, total: on_step(Progress(step, done, total))
