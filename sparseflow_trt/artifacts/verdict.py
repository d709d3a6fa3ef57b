"""What a comparison found: pass, fail or not run, with the numbers. These records go into manifest.json.

Every number is finite or null: JSON has no word for NaN and infinity. What was not finite is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from sparseflow_trt._schema import Record

Verdict = Literal["pass", "fail", "not run"]
StepName = Literal["pruning", "precision", "engine"]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Cosine = Annotated[FiniteFloat, Field(ge=-1, le=1)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]

EMPTY, ZERO = "empty", "0 everywhere in the reference"  # of outputs: nothing is compared with them
_LEAST_SHRUNK = 0.01  # of the error so far: less is rounding
_LEAST_BEYOND = 0.0005  # of shares beyond 0 and 1: less is shown as 0.0 % and 100.0 %


class Tolerance(Record):
    """How far an output may be from the reference.

    An element of a floating-point output is within tolerance where |candidate - reference| is at most
    the absolute bound, or at most `max_rel` times |reference|: one of the two is enough (Polygraphy's
    element-wise rule). Besides, the whole output needs `min_cosine`. Integer, boolean and string
    outputs are compared for equality: `min_equal` of their elements have to be the same.

    Attributes:
        max_abs: An absolute bound as it stands.
        max_abs_rms: An absolute bound in units of the reference output's root mean square, so that
            one number serves unit vectors and logits. The larger of the two bounds counts.
        max_rel: The relative bound.
        min_cosine: The least cosine between the two outputs, each flattened. Not asked where both
            outputs lie within `max_abs` of zero everywhere, since zero has no direction.
        min_equal: The least share of equal elements of an output that is not floating-point.
        reason: Where the numbers come from.
    """

    max_abs: NonNegative
    max_abs_rms: NonNegative = 0.0
    max_rel: NonNegative
    min_cosine: Cosine
    min_equal: Share = 1.0
    reason: str = ""


class OutputVerdict(Record):
    """One output of one candidate on one input set.

    The figures are null where the outputs could not be subtracted (missing, of another shape) or the
    figure is not a finite number. Positions where both hold the same infinity count as equal.

    Attributes:
        max_abs: The largest |candidate - reference|.
        mean_abs: The mean of it.
        max_rel: The largest |candidate - reference| / |reference| over the elements whose reference
            is larger than `abs_bound`: of the others the absolute bound decides, and a ratio to
            something near 0 says nothing. Null where there are none.
        mean_rel: The mean over the same elements.
        cosine: Of the two outputs, each flattened.
        psnr: In dB, against the reference's largest value (against 1 where none is positive). Null
            where the outputs are equal, since it is infinite then.
        equal: The share of equal elements, for outputs that are not floating-point.
        abs_bound: The absolute bound that was used: the larger of the tolerance's two.
        reference_value: The one number that all elements of a floating-point reference are, where it has
            several, or is 0. Null where they differ.
        reason: "" where it passed, else what exceeded what.
    """

    output: str
    input_set: str
    passed: bool
    tolerance: Tolerance
    abs_bound: NonNegative | None = None
    shape: tuple[int, ...] = ()
    reference_dtype: str = ""
    candidate_dtype: str = ""
    max_abs: FiniteFloat | None = None
    mean_abs: FiniteFloat | None = None
    max_rel: FiniteFloat | None = None
    mean_rel: FiniteFloat | None = None
    cosine: FiniteFloat | None = None
    psnr: FiniteFloat | None = None
    equal: FiniteFloat | None = None
    reference_value: FiniteFloat | None = None
    reference_nan: int = 0
    reference_inf: int = 0
    candidate_nan: int = 0
    candidate_inf: int = 0
    reason: str = ""


class CandidateVerdict(Record):
    """One candidate over all input sets.

    Attributes:
        runtime: What ran it, in words; "" where nothing did.
        reason: The sentence behind the verdict.
        tells_nothing: Of the outputs that are one number in the reference, or empty, on every input set: what
            they are. No error of a layer shows there. Where all are empty or 0 the verdict is "not run".
    """

    name: str
    file: str
    verdict: Verdict
    reason: str
    runtime: str = ""
    tells_nothing: dict[str, str] = Field(default_factory=dict)
    outputs: tuple[OutputVerdict, ...] = ()

    def shown(self, output: str) -> Verdict:
        """What is said of one output: where it is empty or 0 and nothing failed, that it was not compared."""
        if any(not found.passed for found in self.outputs if found.output == output):
            return "fail"
        return "not run" if self.tells_nothing.get(output) in (EMPTY, ZERO) else "pass"


class InputSetRecord(Record):
    """What one input set was, without its values: with the seed it can be made again."""

    name: str
    origin: str
    seed: int | None
    shapes: dict[str, tuple[int, ...]]


class StepOutput(Record):
    """What one step changed of one output on one input set.

    Sizes are root mean squares over the elements that are finite in every model of the chain, relative to
    that of the output of the chain's first model. With e the change of a step and E that of all steps:

    Attributes:
        error: |e| relative to the output. Null for outputs that are not floating-point, and where no
            element is finite in every model.
        accumulated: The same of all steps up to this one.
        share: e·E / E·E: what of the whole error is this step's. The shares of all steps add up to 1; one
            that makes up for others' errors has a negative one, and `left_after_cancelling` says where they
            are no parts of a whole. Null where nothing is left of all changes.
        max_abs: The largest element of |e|.
        equal: The share of elements that the step left equal, for outputs that are not floating-point.
        nonfinite: How many elements it made NaN or infinite.
    """

    output: str
    input_set: str
    error: FiniteFloat | None = None
    accumulated: FiniteFloat | None = None
    share: FiniteFloat | None = None
    max_abs: FiniteFloat | None = None
    equal: FiniteFloat | None = None
    nonfinite: int = 0


class StepRecord(Record):
    """One step from the first model of the chain to the engine.

    Attributes:
        name: "pruning" from the unpruned model to the weights that ship, both in FP32; "precision" from
            there to the typed model on the CPU; "engine" from there to the engine.
        before: The model before it, in words; two steps back where the model between was not run.
        after: The model after it.
        not_run: Why there are no figures, "" where there are.
    """

    name: StepName
    before: str
    after: str
    not_run: str = ""
    outputs: tuple[StepOutput, ...] = ()


def shown_outputs(step: StepRecord, input_set: str) -> list[StepOutput]:
    """For each output what was found on one input set, else where it is furthest off.

    Shares add up over the steps of one input set alone: what shows steps beside each other shows these rows.

    Args:
        step: Whose outputs.
        input_set: That of the attribution; "" for none.
    """
    return [
        max(
            (f for f in step.outputs if f.output == name),
            key=lambda f: (
                f.input_set == input_set,
                f.nonfinite,
                1 - f.equal if f.equal is not None else f.accumulated or 0.0,
            ),
        )
        for name in dict.fromkeys(f.output for f in step.outputs)
    ]


def cancelling(steps: Sequence[StepRecord]) -> dict[tuple[str, str], float]:
    """Where steps take back what others added, by output and input set: the error that this leaves."""
    places = dict.fromkeys((found.output, found.input_set) for step in steps for found in step.outputs)
    left = {place: left_after_cancelling(steps, *place) for place in places}
    return {place: error for place, error in left.items() if error is not None}


def left_after_cancelling(steps: Sequence[StepRecord], output: str, input_set: str) -> float | None:
    """The error after all steps of an output where they cancel, None where they do not.

    They do where a step takes back what others added: the error so far shrinks, or a share is negative. The
    shares are no parts of a whole then.

    Args:
        steps: All steps of the chain.
        output: Its name.
        input_set: Likewise.
    """
    found = [f for step in steps for f in step.outputs if (f.output, f.input_set) == (output, input_set)]
    sizes = [f.accumulated for f in found if f.accumulated is not None]
    shares = [f.share for f in found if f.share is not None]
    shrinks = any(after < (1 - _LEAST_SHRUNK) * before for before, after in pairwise(sizes))
    beyond = any(not -_LEAST_BEYOND < share < 1 + _LEAST_BEYOND for share in shares)
    return sizes[-1] if sizes and (shrinks or beyond) else None


class LayerError(Record):
    """What one node adds to the error of one step, on the input set that is named beside.

    Attributes:
        layer: The node's name.
        value: The name of its output.
        own: Of the difference between the node after the step and before it, where both read the same
            inputs: those of the model before the step, rounded to the types that they have after it.
            A root mean square, relative to that of the output before the step. Null where it is not finite.
        accumulated: Of the difference between the two whole models at that output, likewise: this node's
            error and what came to it. Null where it is not finite.
        nonfinite: How many elements the node itself makes NaN or infinite.
        accumulated_nonfinite: How many elements are so in the whole model.
        saturated: How many elements are the largest number of their type where the model before the step
            goes beyond it, or minus infinity in front of a Softmax: a mask's fill that was clipped. They
            count in neither error.
    """

    step: StepName
    layer: str
    op_type: str
    module: str = ""
    value: str
    own: FiniteFloat | None
    accumulated: FiniteFloat | None
    nonfinite: int = 0
    accumulated_nonfinite: int = 0
    saturated: int = 0


class Attribution(Record):
    """Which step the error comes from.

    Attributes:
        blamed: The step to blame, "" where nothing changed or nothing ran.
        reason: That as a sentence, with the figures.
        input_set: The input set that the sentence is about, "" where it is about none.
        unrestored: The pruning step as it would have been with no layer's weights restored; None where
            none were.
        layers: Each node's error, the largest own first; empty unless they were asked for.
        layers_input_set: What `layers` was measured on.
    """

    blamed: StepName | Literal[""]
    reason: str
    input_set: str = ""
    steps: tuple[StepRecord, ...]
    unrestored: StepRecord | None = None
    layers: tuple[LayerError, ...] = ()
    layers_input_set: str = ""


class Validation(Record):
    """The whole comparison.

    Attributes:
        reference: The reference's file.
        reference_runtime: What ran it, in words.
        compared_by: The library that compared, with its version.
        reason: The sentence behind the verdict.
        attribution: Where the error comes from; None in what older versions wrote.
    """

    verdict: Verdict
    reason: str
    reference: str
    reference_runtime: str
    compared_by: str
    input_sets: tuple[InputSetRecord, ...]
    candidates: tuple[CandidateVerdict, ...]
    attribution: Attribution | None = None


def overall_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Fail if one failed; pass if at least one ran and all that ran passed; else not run."""
    found = set(verdicts)
    if "fail" in found:
        return "fail"
    return "pass" if "pass" in found else "not run"
