"""One candidate on its way through a comparison: opened, run on each input set, judged."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparseflow_trt.artifacts.verdict import EMPTY, ZERO, CandidateVerdict, OutputVerdict, StepName, Verdict
from sparseflow_trt.errors import InputError, NotInstalledError, SparseflowError, one_line
from sparseflow_trt.validation.engine_runner import engine_runner, engine_runtime, select_profile
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.measure import judge_output, missing_output
from sparseflow_trt.validation.messages import why_refused
from sparseflow_trt.validation.runners import (
    Outputs,
    UnsupportedError,
    ort_runner,
    ort_runtime,
    run_errors,
    run_once,
)
from sparseflow_trt.validation.tolerances import OutputTolerances
from sparseflow_trt.validation.triton_runner import ServedAt, triton_runner, triton_runtime

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

OnOutputs = Callable[[str, str, Outputs], None]  # of which candidate ("" for the reference), on which set


_HINT = "If that is not intended, give other inputs with --inputs, or trained weights."


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
class Trial:
    """A candidate on its way: its runner and what that takes, or why it has none; what was found.

    `outputs` and `errors` fill while it runs.
    """

    candidate: Candidate
    runner: BaseRunner | None
    takes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    runtime: str = ""
    not_run: str = ""
    outputs: list[OutputVerdict] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def open_trial(candidate: Candidate, fed: Collection[str]) -> Trial:
    """Loads a candidate and looks at what it takes; where it does not load, the trial says why.

    Args:
        candidate: What is to run.
        fed: The names of the inputs that it will be given.
    """
    if candidate.not_run:
        return Trial(candidate, None, not_run=candidate.not_run)
    try:
        runner, runtime = _runner(candidate)
        with runner:
            described = runner.get_input_metadata(use_numpy_dtypes=False)
            takes = {name: tuple(end.shape) for name, end in described.items()}
    except (NotInstalledError, UnsupportedError) as error:  # says nothing about the candidate
        return Trial(candidate, None, not_run=f"{error.message} {error.hint}")
    except SparseflowError as error:
        # an artifact keeps these words, and its folder is a temporary one while it is built
        said = error.message.replace(str(candidate.path), candidate.path.name)
        return Trial(candidate, None, errors=[said])
    except run_errors() as error:
        return Trial(candidate, None, errors=[f"it cannot be started: {one_line(error)}."])
    # Polygraphy would feed it what is named most like it.
    foreign = [name for name in takes if name not in fed]
    if foreign:
        problem = f"it takes an input '{foreign[0]}', which the reference does not have."
        return Trial(candidate, None, errors=[problem])
    return Trial(candidate, runner, takes, runtime)


def _runner(candidate: Candidate) -> tuple[BaseRunner, str]:
    if candidate.kind == "engine":
        if candidate.load:
            candidate.load()
        return engine_runner(candidate.path, candidate.name, candidate.prepare), engine_runtime()
    if candidate.server is not None:
        return triton_runner(candidate.server, candidate.name), triton_runtime(candidate.server)
    return ort_runner(candidate.path, candidate.name, not candidate.as_written), ort_runtime()


def run_trial(
    trial: Trial,
    runner: BaseRunner,
    given: InputSet,
    expected: Outputs,
    tolerances: OutputTolerances,
    watch: OnOutputs,
) -> Outputs | None:
    """Runs a candidate on one input set and adds to its trial what was found.

    Args:
        trial: The candidate's.
        runner: The trial's own.
        given: The input set.
        expected: The reference's outputs on it.
        tolerances: For each of these.
        watch: Given the outputs.

    Returns:
        The outputs, None where it does not run.
    """
    try:
        if trial.candidate.kind == "engine":
            select_profile(runner, given)
        _check_shapes(trial.takes, given)
        got = run_once(runner, given)
    except run_errors() as error:
        trial.errors.append(f"it cannot run on input set '{given.name}': {why_refused(error)}.")
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


def conclude(trial: Trial, sets: int) -> CandidateVerdict:
    """The verdict on a candidate that ran on `sets` input sets, or did not run."""
    failed = [found.reason for found in trial.outputs if not found.passed]
    problems = trial.errors + failed
    flat = _flat_outputs(trial.outputs)
    names = {found.output for found in trial.outputs}
    nothing = bool(names) and all(flat.get(name) in (EMPTY, ZERO) for name in names)
    verdict: Verdict = "fail" if problems else "not run" if trial.runner is None or nothing else "pass"
    if verdict == "fail":
        more = f" And {len(problems) - 1} more." if len(problems) > 1 else ""
        why = problems[0] + more
    elif nothing:
        found = " or ".join(dict.fromkeys(flat.values()))
        why = f"All outputs are {found} on all {sets} input set(s), so nothing was compared. {_HINT}"
    elif verdict == "not run":
        why = trial.not_run
    else:
        why = f"All {len(names)} output(s) are within tolerance on all {sets} input set(s)."
        if flat:
            said = ", ".join(f"'{name}' is {what}" for name, what in flat.items())
            why += f" Some say nothing about errors: {said}. {_HINT}"
    return CandidateVerdict(
        name=trial.candidate.name,
        file=trial.candidate.path.name,
        verdict=verdict,
        reason=why,
        runtime=trial.runtime,
        outputs=tuple(trial.outputs),
        tells_nothing=flat,
    )


def _flat_outputs(outputs: list[OutputVerdict]) -> dict[str, str]:
    """The outputs that are empty or one number on every input set, and which of it."""
    flat = {}
    for name in dict.fromkeys(found.output for found in outputs):
        rows = [found for found in outputs if found.output == name]
        full = {found.reference_value for found in rows if 0 not in found.shape}
        value = next(iter(full), None)
        if not full:
            flat[name] = EMPTY
        elif len(full) == 1 and value is not None:
            flat[name] = f"{(value or 0):.6g} everywhere in the reference"
    return flat
