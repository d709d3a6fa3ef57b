"""Candidates against the reference, on every input set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._deps import require
from sparseflow_trt.artifacts.verdict import (
    CandidateVerdict,
    InputSetRecord,
    Validation,
    Verdict,
    overall_verdict,
)
from sparseflow_trt.errors import InputError
from sparseflow_trt.validation.chain import Chain, Origin
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.messages import numpy_only, quiet_polygraphy
from sparseflow_trt.validation.runners import (
    Outputs,
    cannot_run,
    ort_runner,
    ort_runtime,
    run_errors,
    run_once,
)
from sparseflow_trt.validation.steps import Stage
from sparseflow_trt.validation.tolerances import OutputTolerances
from sparseflow_trt.validation.trial import Candidate, OnOutputs, Trial, conclude, open_trial, run_trial

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

OnProgress = Callable[[int, int], None]  # how many runs are done, and how many there are


@dataclass(frozen=True)
class StoredOutputs:
    """Outputs of a reference that ran before, in the place of one that runs.

    Attributes:
        name: What the verdict calls the reference.
        runtime: What ran it, in words.
        outputs: For each input set, by its name.
    """

    name: str
    runtime: str
    outputs: Mapping[str, Outputs]


@dataclass(frozen=True)
class _Reference:
    name: str
    runtime: str
    run: Callable[[InputSet], Outputs]


@dataclass(frozen=True)
class Reference:
    """What candidates are held against, where that is no ONNX file: a runner that is ready, in words."""

    name: str
    runner: BaseRunner
    runtime: str


def compare(
    reference: Path | StoredOutputs | Reference,
    candidates: Sequence[Candidate],
    inputs: Sequence[InputSet],
    tolerances: OutputTolerances,
    on_progress: OnProgress | None = None,
    origin: Origin | None = None,
    on_outputs: OnOutputs | None = None,
) -> Validation:
    """Runs the reference and every candidate on each input set and compares their outputs.

    The reference runs once on each set; only one set's outputs are in memory at a time. Weights that lie
    beside a graph which runs as written stay in their file; an engine's are in memory. A candidate that
    fails to load or to run has failed; one whose runtime is not installed, or has no kernel for one of its
    nodes, was not run, which is never a pass. What each model changes of the one before it in the chain
    origin, reference, candidates is told, too, and judges nothing.

    Args:
        reference: The weights that ship, in FP32, an ONNX file; what they gave on these sets before; or a
            runner of something else.
        candidates: What is compared with it, in the order of their steps.
        inputs: At least one set.
        tolerances: For each of the reference's outputs.
        on_progress: Told of each run as it ends.
        origin: The unpruned model, where there is one.
        on_outputs: Given the outputs of each run, the reference's first.

    Raises:
        InputError: There are no input sets, a tolerance is for an output that the reference lacks, or
            the reference cannot run on a set or holds no outputs for it.
        ModelError: ONNX Runtime does not take the reference.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: ONNX Runtime or Polygraphy.
    """
    if not inputs:
        raise InputError(
            "there are no input sets to compare on.", "Give some with --inputs, or let them be drawn."
        )
    require("polygraphy", "comparing outputs")
    report = on_progress or (lambda done, total: None)
    watch = on_outputs or _nobody
    with quiet_polygraphy(), numpy_only():
        truth = _reference(reference)
        trials = [open_trial(candidate, inputs[0].feeds.keys()) for candidate in candidates]
        running = [(trial, trial.runner) for trial in trials if trial.runner is not None]
        chain = Chain(origin, [_stage(trial) for trial in trials])
        total, done = len(inputs) * (1 + len(chain.origins) + len(running)), 0
        for given in inputs:
            expected = truth.run(given)
            _check_names(tolerances, expected)
            watch("", given.name, expected)
            origins = [Reference(path.name, runner, "") for path, runner in chain.origins]
            before = [_run_reference(origin, given) for origin in origins]
            report(done := done + 1 + len(before), total)
            got = {}
            for trial, runner in running:
                got[trial.candidate.name] = run_trial(trial, runner, given, expected, tolerances, watch)
                report(done := done + 1, total)
            chain.add(given.name, before, expected, [got.get(t.candidate.name) for t in trials])
    verdicts = tuple(conclude(trial, len(inputs)) for trial in trials)
    verdict = overall_verdict(found.verdict for found in verdicts)
    return Validation(
        verdict=verdict,
        reason=_overall_why(verdict, verdicts),
        reference=truth.name,
        reference_runtime=truth.runtime,
        compared_by=f"Polygraphy {require('polygraphy', 'comparing outputs').__version__}",
        input_sets=tuple(
            InputSetRecord(
                name=given.name,
                origin=given.origin,
                seed=given.seed,
                shapes={name: array.shape for name, array in given.feeds.items()},
            )
            for given in inputs
        ),
        candidates=verdicts,
        attribution=chain.attribution(
            [(t.candidate.step, found) for t in trials for found in t.outputs if not found.passed]
        ),
    )


def _stage(trial: Trial) -> Stage:
    why_not = trial.not_run or (trial.errors[0] if trial.runner is None and trial.errors else "")
    return Stage(trial.candidate.name, trial.candidate.step, why_not)


def run_reference(
    reference: Path, inputs: Sequence[InputSet], on_progress: OnProgress | None = None
) -> StoredOutputs:
    """What the reference makes of each input set, to compare candidates with later.

    Raises:
        InputError: The reference cannot run on a set.
        ModelError: ONNX Runtime does not take the reference.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: ONNX Runtime or Polygraphy.
    """
    require("polygraphy", "comparing outputs")
    report = on_progress or (lambda done, total: None)
    outputs = {}
    with quiet_polygraphy(), numpy_only():
        ready = _file_reference(reference)
        for given in inputs:
            outputs[given.name] = _run_reference(ready, given)
            report(len(outputs), len(inputs))
    return StoredOutputs(ready.name, ready.runtime, outputs)


def reference_outputs(reference: Path, inputs: Sequence[InputSet]) -> tuple[Outputs, ...]:
    """What `run_reference` gives, one for each input set."""
    return tuple(run_reference(reference, inputs).outputs.values())


def compare_one(
    candidate: Candidate,
    inputs: Sequence[InputSet],
    expected: Sequence[Outputs],
    tolerances: OutputTolerances,
) -> CandidateVerdict:
    """Compares one candidate with outputs of the reference, as `compare` does.

    Args:
        candidate: What is compared.
        inputs: The input sets.
        expected: The reference's outputs on each of them.
        tolerances: For each of the reference's outputs.
    """
    with quiet_polygraphy(), numpy_only():
        trial = open_trial(candidate, inputs[0].feeds.keys())
        if trial.runner is not None:
            for given, outputs in zip(inputs, expected, strict=True):
                run_trial(trial, trial.runner, given, outputs, tolerances, _nobody)
    return conclude(trial, len(inputs))


def _nobody(candidate: str, given: str, outputs: Outputs) -> None:
    """Watches nothing."""


def _reference(reference: Path | StoredOutputs | Reference) -> _Reference:
    ready = _file_reference(reference) if isinstance(reference, Path) else reference
    if isinstance(ready, Reference):
        return _Reference(ready.name, ready.runtime, partial(_run_reference, ready))
    return _Reference(ready.name, ready.runtime, partial(_stored, ready))


def _stored(reference: StoredOutputs, given: InputSet) -> Outputs:
    if given.name not in reference.outputs:
        raise InputError(
            f"{reference.name} holds no outputs for input set '{given.name}'.", "Create it again."
        )
    return reference.outputs[given.name]


def _file_reference(path: Path) -> Reference:
    return Reference(path.name, ort_runner(path, "reference"), f"{ort_runtime()}, graph optimizations off")


def _run_reference(reference: Reference, given: InputSet) -> Outputs:
    try:
        return run_once(reference.runner, given)
    except run_errors() as error:
        raise cannot_run(f"the reference {reference.name}", reference.runner, given, error) from error


def _check_names(tolerances: OutputTolerances, expected: Outputs) -> None:
    unknown = sorted(set(tolerances.outputs) - set(expected))
    if unknown:
        has = ", ".join(f"'{name}'" for name in expected)
        raise InputError(
            f"a tolerance is for output '{unknown[0]}'; the model has {has}.", "Correct the output's name."
        )


def _overall_why(verdict: Verdict, candidates: Sequence[CandidateVerdict]) -> str:
    if not candidates:
        return "There was no candidate to compare."
    by = {word: [c.name for c in candidates if c.verdict == word] for word in ("pass", "fail", "not run")}
    if verdict == "fail":
        first = next(c for c in candidates if c.verdict == "fail")
        return f"{len(by['fail'])} of {len(candidates)} candidate(s) failed; {first.name}: {first.reason}"
    skipped = f" {', '.join(by['not run'])} was not run." if by["not run"] and by["pass"] else ""
    if verdict == "pass":
        return f"{', '.join(by['pass'])} agreed with the reference.{skipped}"
    ran = next((c for c in candidates if c.outputs), None)
    return ran.reason if ran else f"No candidate was run: {candidates[0].reason}"
