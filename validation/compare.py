"""Candidates against the reference, on every input set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparseflow_trt._deps import require
from sparseflow_trt.errors import InputError, NotInstalledError, SparseflowError
from sparseflow_trt.validation.chain import Chain, Origin
from sparseflow_trt.validation.engine_runner import engine_runner, engine_runtime, select_profile
from sparseflow_trt.validation.feeds import Array, InputSet
from sparseflow_trt.validation.measure import judge_output, missing_output
from sparseflow_trt.validation.messages import numpy_only, one_line, quiet_polygraphy
from sparseflow_trt.validation.narrow import widen
from sparseflow_trt.validation.runners import (
    UnsupportedError,
    as_written_runner,
    ort_errors,
    ort_runner,
    ort_runtime,
    reference_runner,
)
from sparseflow_trt.validation.steps import Stage
from sparseflow_trt.validation.tolerances import OutputTolerances
from sparseflow_trt.validation.triton_runner import ServedAt, triton_runner, triton_runtime
from sparseflow_trt.verdict import (
    CandidateVerdict,
    InputSetRecord,
    OutputVerdict,
    StepName,
    Validation,
    Verdict,
    overall_verdict,
)

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

Outputs = dict[str, Array]
OnProgress = Callable[[int, int], None]  # how many runs are done, and how many there are
OnOutputs = Callable[[str, str, Outputs], None]  # of which candidate ("" for the reference), on which set


@dataclass(frozen=True)
class Candidate:
    """A model that is to do what the reference does.

    Attributes:
        name: What the verdict calls it.
        path: An ONNX file, a TensorRT engine, or the folder that a server serves it from.
        not_run: Why it cannot run on this machine, as a sentence; "" where it can.
        as_written: Whether an ONNX file runs as the reference does, with no graph optimization: so that
            what is compared is the graph, and not what ONNX Runtime makes of it. (Its optimizer breaks
            Q/DQ with FP16 scales, for one.)
        load: What is done before an engine is loaded: the library of its plugin is.
        prepare: What is done to a loaded engine before it runs: one without weights is given them.
        step: The step that leads to it from the candidate before it, or from the reference.
        server: How a server is asked; for a candidate of that kind.
    """

    name: str
    path: Path
    kind: Literal["onnx", "engine", "server"]
    not_run: str = ""
    as_written: bool = False
    prepare: Callable[[Any], None] | None = None
    step: StepName = "engine"
    load: Callable[[], None] | None = None
    server: ServedAt | None = None


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


@dataclass(frozen=True)
class _Trial:
    """A candidate on its way: its runner and what that takes, or why it has none; what was found."""

    candidate: Candidate
    runner: BaseRunner | None
    takes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    runtime: str = ""
    not_run: str = ""
    outputs: list[OutputVerdict] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


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

    The reference runs once on each set; only one set's outputs are in memory at a time, and every
    model's weights are. A candidate that fails to load or to run has failed; one whose runtime is not
    installed, or has no kernel for one of its nodes, was not run, which is never a pass. What each model
    changes of the one before it in the chain origin, reference, candidates is told, too, and judges nothing.

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
        trials = [_open(candidate, inputs[0].feeds.keys()) for candidate in candidates]
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
                got[trial.candidate.name] = _run_trial(trial, runner, given, expected, tolerances, watch)
                report(done := done + 1, total)
            chain.add(given.name, before, expected, [got.get(t.candidate.name) for t in trials])
    verdicts = tuple(_conclude(trial, len(inputs)) for trial in trials)
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


def _stage(trial: _Trial) -> Stage:
    why_not = trial.not_run or (trial.errors[0] if trial.runner is None and trial.errors else "")
    return Stage(trial.candidate.name, trial.candidate.step, why_not)


def reference_outputs(reference: Path, inputs: Sequence[InputSet]) -> tuple[Outputs, ...]:
    """What the reference makes of each input set, to compare several candidates with one after the other.

    Raises:
        InputError: The reference cannot run on a set.
        ModelError: ONNX Runtime does not take the reference.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: ONNX Runtime or Polygraphy.
    """
    require("polygraphy", "comparing outputs")
    with quiet_polygraphy(), numpy_only():
        ready = _file_reference(reference)
        return tuple(_run_reference(ready, given) for given in inputs)


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
        trial = _open(candidate, inputs[0].feeds.keys())
        if trial.runner is not None:
            for given, outputs in zip(inputs, expected, strict=True):
                _run_trial(trial, trial.runner, given, outputs, tolerances, _nobody)
    return _conclude(trial, len(inputs))


def _nobody(candidate: str, given: str, outputs: Outputs) -> None:
    """Watches nothing."""


def _open(candidate: Candidate, fed: Collection[str]) -> _Trial:
    if candidate.not_run:
        return _Trial(candidate, None, not_run=candidate.not_run)
    try:
        runner, runtime = _runner(candidate)
        with runner:
            described = runner.get_input_metadata(use_numpy_dtypes=False)
            takes = {name: tuple(end.shape) for name, end in described.items()}
    except (NotInstalledError, UnsupportedError) as error:  # says nothing about the candidate
        return _Trial(candidate, None, not_run=f"{error.message} {error.hint}")
    except SparseflowError as error:
        return _Trial(candidate, None, errors=[error.message])
    except run_errors() as error:
        return _Trial(candidate, None, errors=[f"it cannot be started: {one_line(error)}."])
    # Polygraphy would feed it what is named most like it.
    foreign = [name for name in takes if name not in fed]
    if foreign:
        problem = f"it takes an input '{foreign[0]}', which the reference does not have."
        return _Trial(candidate, None, errors=[problem])
    return _Trial(candidate, runner, takes, runtime)


def _runner(candidate: Candidate) -> tuple[BaseRunner, str]:
    if candidate.kind == "engine":
        if candidate.load:
            candidate.load()
        return engine_runner(candidate.path, candidate.name, candidate.prepare), engine_runtime()
    if candidate.server is not None:
        return triton_runner(candidate.server, candidate.name), triton_runtime(candidate.server)
    runner = as_written_runner if candidate.as_written else ort_runner
    return runner(candidate.path, candidate.name), ort_runtime()


def _reference(reference: Path | StoredOutputs | Reference) -> _Reference:
    ready = _file_reference(reference) if isinstance(reference, Path) else reference
    if isinstance(ready, Reference):
        return _Reference(ready.name, ready.runtime, partial(_run_reference, ready))
    return _Reference(ready.name, ready.runtime, partial(_stored, ready))


def _stored(reference: StoredOutputs, given: InputSet) -> Outputs:
    if given.name not in reference.outputs:
        raise InputError(f"{reference.name} holds no outputs for input set '{given.name}'.", "Make it anew.")
    return reference.outputs[given.name]


def _file_reference(path: Path) -> Reference:
    return Reference(path.name, reference_runner(path), f"{ort_runtime()}, graph optimizations off")


def _run_reference(reference: Reference, given: InputSet) -> Outputs:
    try:
        return run_once(reference.runner, given)
    except run_errors() as error:
        raise InputError(
            f"the reference {reference.name} cannot run on input set '{given.name}': {one_line(error)}.",
            "Check the set's values and shapes against what the model takes.",
        ) from error


def _run_trial(
    trial: _Trial,
    runner: BaseRunner,
    given: InputSet,
    expected: Outputs,
    tolerances: OutputTolerances,
    watch: OnOutputs,
) -> Outputs | None:
    try:
        if trial.candidate.kind == "engine":
            select_profile(runner, given)
        _check_shapes(trial.takes, given)
        got = run_once(runner, given)
    except run_errors() as error:
        trial.errors.append(f"it cannot run on input set '{given.name}': {one_line(error)}.")
        return None
    watch(trial.candidate.name, given.name, got)
    trial.outputs.extend(_judge(given.name, expected, got, tolerances))
    return got


def _check_shapes(takes: dict[str, tuple[Any, ...]], given: InputSet) -> None:
    # Polygraphy would reshape or transpose what does not fit, and the outputs could agree by it.
    for name, dims in takes.items():
        shape = given.feeds[name].shape
        fixed = [isinstance(dim, int) and dim >= 0 for dim in dims]
        if len(dims) != len(shape) or any(f and d != s for f, d, s in zip(fixed, dims, shape, strict=True)):
            shown = ", ".join(str(dim) if known else "?" for dim, known in zip(dims, fixed, strict=True))
            raise InputError(f"it takes '{name}' in shape ({shown}), and the set holds {shape}")


def _judge(
    input_set: str, expected: Outputs, got: Outputs, tolerances: OutputTolerances
) -> list[OutputVerdict]:
    verdicts = []
    for name, array in expected.items():
        if name in got:
            verdicts.append(judge_output(name, input_set, array, got[name], tolerances.of(name)))
        else:
            have = ", ".join(f"'{other}'" for other in got)
            why = f"output '{name}' is missing: the candidate has {have}."
            verdicts.append(missing_output(name, input_set, tolerances.of(name), why))
    for name in got:
        if name not in expected:
            why = f"output '{name}' is not one of the reference's."
            verdicts.append(missing_output(name, input_set, tolerances.of(name), why))
    return verdicts


def run_once(runner: Any, given: InputSet) -> Outputs:
    """What a runner makes of one input set, by the outputs' names."""
    from polygraphy.comparator import Comparator

    feeds = {name: widen(array) for name, array in given.feeds.items()}
    results = Comparator.run([runner], data_loader=[feeds])
    return dict(results[0][1][0].items())


def run_errors() -> tuple[type[Exception], ...]:
    """What a run that fails raises."""
    from polygraphy.exception import PolygraphyException

    return (PolygraphyException, InputError, *ort_errors())


def _check_names(tolerances: OutputTolerances, expected: Outputs) -> None:
    unknown = sorted(set(tolerances.outputs) - set(expected))
    if unknown:
        has = ", ".join(f"'{name}'" for name in expected)
        raise InputError(
            f"a tolerance is for output '{unknown[0]}'; the model has {has}.", "Correct the output's name."
        )


def _conclude(trial: _Trial, sets: int) -> CandidateVerdict:
    failed = [found.reason for found in trial.outputs if not found.passed]
    problems = trial.errors + failed
    verdict: Verdict = "fail" if problems else "not run" if trial.runner is None else "pass"
    if verdict == "fail":
        more = f" And {len(problems) - 1} more." if len(problems) > 1 else ""
        why = problems[0] + more
    elif verdict == "not run":
        why = trial.not_run
    else:
        outputs = len({found.output for found in trial.outputs})
        why = f"All {outputs} output(s) are within tolerance on all {sets} input set(s)."
    return CandidateVerdict(
        name=trial.candidate.name,
        file=trial.candidate.path.name,
        verdict=verdict,
        reason=why,
        runtime=trial.runtime,
        outputs=tuple(trial.outputs),
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
    return f"No candidate was run: {candidates[0].reason}"
