"""The error of an output as a sum of steps: unpruned, pruned, in the planned precision, as an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from sparseflow_trt.artifacts.verdict import (
    Attribution,
    OutputVerdict,
    StepName,
    StepOutput,
    StepRecord,
    left_after_cancelling,
)
from sparseflow_trt.validation.feeds import Array

Outputs = Mapping[str, Array]

_PIECE = 1 << 20  # elements that are subtracted at a time

_WORDS: dict[StepName, str] = {
    "pruning": "pruning",
    "precision": "the planned precision",
    "engine": "the engine itself",
}


@dataclass(frozen=True)
class Stage:
    """One model of the chain, and what the step that leads to it changed.

    `step` is None for the chain's first model. `not_run` says why a model has no outputs.
    """

    name: str
    step: StepName | None = None
    not_run: str = ""
    found: list[StepOutput] = field(default_factory=list)


def add_outputs(stages: Sequence[Stage], input_set: str, outputs: Sequence[Outputs | None]) -> None:
    """Adds to each stage what its step changed on one input set.

    Args:
        stages: The chain, the first model first.
        input_set: The set's name.
        outputs: Of each stage, None of one that did not run.
    """
    ran = [(stage, given) for stage, given in zip(stages, outputs, strict=True) if given is not None]
    if len(ran) < 2 or ran[0][0] is not stages[0]:
        return
    names = [name for name in ran[0][1] if all(name in given for _, given in ran)]
    for name in names:
        arrays = [given[name] for _, given in ran]
        if any(array.shape != arrays[0].shape for array in arrays):
            continue
        kinds = {array.dtype.kind for array in arrays}
        changes = _float_steps(arrays) if kinds == {"f"} else _equal_steps(arrays)
        for (stage, _), change in zip(ran[1:], changes, strict=True):
            stage.found.append(StepOutput(output=name, input_set=input_set, **change))


def attribute(
    stages: Sequence[Stage],
    failed: Sequence[tuple[StepName, OutputVerdict]] = (),
    unrestored: Stage | None = None,
) -> Attribution:
    """Names the step to blame.

    A step that makes elements NaN or infinite is to blame before all others, the first such step; else
    the one that changes an output most: where the verdict is fail of the first candidate that failed, at
    its worst output, among the steps that its tolerance judges (from the reference on); where it is not,
    of all steps at the output that is furthest off. Floating-point outputs go before others.

    Args:
        stages: The chain with what was found.
        failed: The outputs that are out of tolerance, with the step that leads to their candidate.
        unrestored: The pruned model as given, beside the one with restored weights.
    """
    steps = [_record(stages, i) for i in range(1, len(stages))]
    blamed, reason, input_set = _blame(steps, failed)
    as_given = None
    if unrestored is not None:
        as_given = StepRecord(
            name="pruning", before=stages[0].name, after=unrestored.name, outputs=tuple(unrestored.found)
        )
        reason = f"{reason} {_restored_words(as_given, steps[0])}".strip()
    return Attribution(
        blamed=blamed, reason=reason, input_set=input_set, steps=tuple(steps), unrestored=as_given
    )


def total_of(found: StepOutput) -> float:
    """How far an output is from the chain's first model's after a step, to rank by: a share of its size."""
    if found.nonfinite:
        return math.inf
    if found.equal is not None:
        return 1 - found.equal
    return found.accumulated or 0.0


def relative_size(difference: Array, size: float) -> float | None:
    """The root mean square of a difference over another one, None where that is 0 and this is not."""
    change = root_mean_square(difference)
    return _finite(change / size) if size else (None if change else 0.0)


def root_mean_square(values: Array) -> float:
    """The root mean square, 0 of none."""
    largest = float(np.abs(values).max(initial=0.0))
    if not largest or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(float(np.square(values / largest).mean()))  # does not overflow


def _float_steps(arrays: Sequence[Array]) -> list[dict[str, Any]]:
    """Sums over pieces, so that large outputs are not copied whole in FP64."""
    flat = [array.reshape(-1) for array in arrays]
    steps = len(flat) - 1
    sums, whole, products = np.zeros((2, steps)), 0.0, np.zeros(steps)
    largest, broken, size, count = np.zeros(steps), np.zeros(steps, np.int64), 0.0, 0
    for begin in range(0, flat[0].size, _PIECE):
        wide = [array[begin : begin + _PIECE].astype(np.float64) for array in flat]
        finite = [np.isfinite(array) for array in wide]
        kept = [array[np.logical_and.reduce(finite)] for array in wide]
        count += kept[0].size
        with np.errstate(over="ignore"):  # squares of FP64 outputs: told as null
            size += float(kept[0] @ kept[0])
            total = kept[-1] - kept[0]
            whole += float(total @ total)
            for i in range(steps):
                change, so_far = kept[i + 1] - kept[i], kept[i + 1] - kept[0]
                sums[:, i] += change @ change, so_far @ so_far
                products[i] += change @ total
                largest[i] = max(largest[i], float(np.abs(change).max(initial=0.0)))
                broken[i] += int((finite[i] & ~finite[i + 1]).sum())
    return [
        {
            "error": _ratio(sums[0, i], size) if count else None,
            "accumulated": _ratio(sums[1, i], size) if count else None,
            "share": _finite(products[i] / whole) if whole else None,
            "max_abs": _finite(largest[i]) if count else None,
            "nonfinite": int(broken[i]),
        }
        for i in range(steps)
    ]


def _ratio(change: float, size: float) -> float | None:
    """The root of the ratio of two sums of squares; None where the second is 0 and the first is not."""
    return _finite(math.sqrt(change / size)) if size else (None if change else 0.0)


def _equal_steps(arrays: Sequence[Array]) -> list[dict[str, Any]]:
    return [{"equal": float(np.mean(old == new)) if old.size else 1.0} for old, new in pairwise(arrays)]


def _record(stages: Sequence[Stage], index: int) -> StepRecord:
    stage = stages[index]
    assert stage.step is not None
    before = next(s for s in reversed(stages[:index]) if s.step is None or s.found)
    why_not = stage.not_run or ("" if stage.found else "it gave no outputs to compare.")
    return StepRecord(
        name=stage.step, before=before.name, after=stage.name, not_run=why_not, outputs=tuple(stage.found)
    )


def _blame(
    steps: Sequence[StepRecord], failed: Sequence[tuple[StepName, OutputVerdict]]
) -> tuple[StepName | Literal[""], str, str]:
    """The step, the sentence, and the input set that it is about."""
    ran = [step for step in steps if step.outputs]
    if not ran:
        return "", "No step could be measured.", ""
    if broken := _first_broken(ran):
        step, found = broken
        reason = (
            f"{_capital(_WORDS[step])} is to blame: it makes {found.nonfinite} element(s) of output "
            f"'{found.output}' on input set '{found.input_set}' NaN or infinite."
        )
        return step, reason, found.input_set
    clear = [(name, verdict) for name, verdict in failed if not verdict.reference_nan]
    if failed and not clear:
        unclear = failed[0][1]
        where = f"output '{unclear.output}' on input set '{unclear.input_set}'"
        reason = (
            f"No step is to blame: the reference itself has NaN in {where}, so nothing can be measured "
            "against it."
        )
        return "", reason, unclear.input_set
    judged = [step for step in ran if not clear or step.name in ("precision", clear[0][0])]
    place = _worst_place(ran, judged, clear)
    if place is None:  # its outputs were missing, or of another shape
        return "", f"No output could be subtracted.{_not_run_words(steps)}", ""
    changes = _changes(judged, place)
    blamed = max(changes, key=changes.__getitem__)
    if not changes[blamed]:
        return "", f"No step changes an output.{_not_run_words(steps)}", ""
    left = left_after_cancelling(steps, *place)
    others = [
        f"{_WORDS[name]} by {percent(size)}" for name, size in changes.items() if size and name != blamed
    ]
    beside = f"{',' if others[1:] else ' and'} {' and '.join(others)}" if others else ""
    most = "makes most of the error" if left is None else "is the largest step"
    lead = "is to blame" if clear else most if others else "makes all of the error"
    reason = (
        f"{_capital(_WORDS[blamed])} {lead}: it changes output '{place[0]}' on input set '{place[1]}' by "
        f"{percent(changes[blamed])}{beside}.{_cancel_words(left)}{_not_run_words(steps)}"
    )
    return blamed, reason, place[1]


def _first_broken(ran: Sequence[StepRecord]) -> tuple[StepName, StepOutput] | None:
    """The first step that makes elements NaN or infinite, with the output that has most of them."""
    for step in ran:
        worst = max(step.outputs, key=lambda found: found.nonfinite)
        if worst.nonfinite:
            return step.name, worst
    return None


def _worst_place(
    ran: Sequence[StepRecord],
    judged: Sequence[StepRecord],
    failed: Sequence[tuple[StepName, OutputVerdict]],
) -> tuple[str, str] | None:
    """The output that is furthest off, and its input set: of the first candidate that failed, else of all.

    None where no step tells of any.
    """
    sizes = {(found.output, found.input_set): total_of(found) for step in ran for found in step.outputs}
    if failed:
        wrong = {(v.output, v.input_set) for name, v in failed if name == failed[0][0]}
        sizes = {
            place: max(_changes(judged, place).values(), default=0.0) for place in sizes if place in wrong
        }
    # integers (an index of the largest, say) follow from floating-point outputs where there are any
    floats = {(f.output, f.input_set) for step in ran for f in step.outputs if f.equal is None}
    return max(
        (place for place in sizes if _changes(judged, place)),
        key=lambda place: (place in floats and sizes[place] > 0, sizes[place]),
        default=None,
    )


def _cancel_words(left: float | None) -> str:
    if left is None:
        return ""
    return f" One step cancels what another added: the error after all of them is {percent(left)}."


def _changes(steps: Sequence[StepRecord], place: tuple[str, str]) -> dict[StepName, float]:
    changes: dict[StepName, float] = {}
    for step in steps:
        for found in step.outputs:
            if (found.output, found.input_set) == place:
                size = found.error or 0.0 if found.equal is None else 1 - found.equal
                changes[step.name] = max(size, changes.get(step.name, 0.0))  # a step may be there twice
    return changes


def _restored_words(as_given: StepRecord, now: StepRecord) -> str:
    before = {(f.output, f.input_set): total_of(f) for f in as_given.outputs}
    after = {(f.output, f.input_set): total_of(f) for f in now.outputs}
    if not before:
        return ""
    place = max(before, key=before.__getitem__)
    told = (
        f"With the restored weights, output '{place[0]}' on input set '{place[1]}' differs "
        f"by {percent(after.get(place, 0.0))} from the unpruned model's; without them, by "
        f"{percent(before[place])}."
    )
    if after.get(place, 0.0) > before[place]:
        told += " Restoring made it worse, which can happen when a model was trained further after pruning."
    return told


def _not_run_words(steps: Sequence[StepRecord]) -> str:
    missing = [_WORDS[step.name] for step in steps if step.not_run]
    if not missing:
        return ""
    they = "it was" if len(missing) == 1 else "they were"
    return f" What {' and '.join(missing)} would add is not known: {they} not run."


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def percent(size: float) -> str:
    """A share for people, to two digits or the percent."""
    if not math.isfinite(size):
        return "more than can be said"
    return f"{100 * size:.0f} %" if size >= 0.1 else f"{100 * size:.2g} %"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
