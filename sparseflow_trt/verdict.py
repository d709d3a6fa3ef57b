"""What a comparison found: pass, fail or not run, with the numbers. These records go into manifest.json.

Every number is finite or null: JSON has no word for NaN and infinity. What was not finite is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from sparseflow_trt._schema import Record

Verdict = Literal["pass", "fail", "not run"]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Cosine = Annotated[FiniteFloat, Field(ge=-1, le=1)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


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
    """

    name: str
    file: str
    verdict: Verdict
    reason: str
    runtime: str = ""
    outputs: tuple[OutputVerdict, ...] = ()


class InputSetRecord(Record):
    """What one input set was, without its values: with the seed it can be made again."""

    name: str
    origin: str
    seed: int | None
    shapes: dict[str, tuple[int, ...]]


class Validation(Record):
    """The whole comparison.

    Attributes:
        reference: The reference's file.
        reference_runtime: What ran it, in words.
        compared_by: The library that compared, with its version.
        reason: The sentence behind the verdict.
    """

    verdict: Verdict
    reason: str
    reference: str
    reference_runtime: str
    compared_by: str
    input_sets: tuple[InputSetRecord, ...]
    candidates: tuple[CandidateVerdict, ...]


def overall_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Fail if one failed; pass if at least one ran and all that ran passed; else not run."""
    found = set(verdicts)
    if "fail" in found:
        return "fail"
    return "pass" if "pass" in found else "not run"
