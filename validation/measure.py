"""One output against the reference: Polygraphy measures and judges, here is asked and worded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparseflow_trt.artifacts.verdict import OutputVerdict, Tolerance
from sparseflow_trt.validation.feeds import Array
from sparseflow_trt.validation.messages import no_statistics
from sparseflow_trt.validation.steps import root_mean_square

# By NumPy's letter for a type; BF16 and FP8 of ml_dtypes are "V".
_KINDS = {"f": "floating point", "V": "floating point", "i": "integer", "u": "integer", "b": "boolean"}


def judge_output(
    output: str, input_set: str, expected: Array, got: Array, tolerance: Tolerance
) -> OutputVerdict:
    """Compares one output of a candidate with the reference's. What the tolerance asks stands at `Tolerance`.

    A floating-point output fails, whatever the tolerance, where the reference holds NaN (it is no
    measure then), or the candidate NaN or an infinity that the reference does not hold there.

    Args:
        output: The output's name.
        input_set: The input set's name.
        expected: The reference's output, of any shape and type.
        got: The candidate's, of any; another width than the reference's is no fault, another kind is one:
            floating-point numbers in the place of integers, or booleans.
        tolerance: What passes.
    """
    known: dict[str, Any] = {
        "output": output,
        "input_set": input_set,
        "tolerance": tolerance,
        "shape": expected.shape,
        "reference_dtype": str(expected.dtype),
        "candidate_dtype": str(got.dtype),
    }
    where = f"output '{output}' on input set '{input_set}'"
    if expected.shape != got.shape:
        why = f"{where}: expected shape {expected.shape}, got {got.shape}."
        return OutputVerdict(**known, passed=False, reason=why)
    if _KINDS.get(expected.dtype.kind) != _KINDS.get(got.dtype.kind):  # who reads it would read other numbers
        return OutputVerdict(
            **known, passed=False, reason=f"{where}: expected {expected.dtype}, got {got.dtype}."
        )
    if expected.dtype.kind != "f" or got.dtype.kind not in "fiub":
        return _judge_equal(known, where, expected, got, tolerance)
    return _judge_close(known, where, expected.astype(np.float64), got.astype(np.float64), tolerance)


def missing_output(output: str, input_set: str, tolerance: Tolerance, why: str) -> OutputVerdict:
    """The verdict on an output that only one of the two has."""
    return OutputVerdict(output=output, input_set=input_set, passed=False, tolerance=tolerance, reason=why)


def _judge_equal(
    known: dict[str, Any], where: str, expected: Array, got: Array, tolerance: Tolerance
) -> OutputVerdict:
    same = np.asarray(expected == got)
    share = float(same.mean()) if same.size else 1.0
    passed = share >= tolerance.min_equal
    why = ""
    if not passed:
        at = _first(~same)
        why = (
            f"{where}: {int((~same).sum())} of {same.size} elements differ; a share of {share:.6g} is equal "
            f"and {tolerance.min_equal:g} is required; first at {list(at)}: expected "
            f"{expected[at]}, got {got[at]}."
        )
    return OutputVerdict(**known, passed=passed, equal=share, reason=why)


def _judge_close(
    known: dict[str, Any], where: str, expected: Array, got: Array, tolerance: Tolerance
) -> OutputVerdict:
    counts = {
        "reference_nan": int(np.isnan(expected).sum()),
        "reference_inf": int(np.isinf(expected).sum()),
        "candidate_nan": int(np.isnan(got).sum()),
        "candidate_inf": int(np.isinf(got).sum()),
    }
    # Where both hold the same infinity they are equal, and the difference is not a number: as zeros
    # they are equal to Polygraphy as well.
    alike = np.isinf(expected) & (expected == got)
    expected, got = np.where(alike, 0.0, expected), np.where(alike, 0.0, got)
    bound = _absolute_bound(expected, tolerance)
    figures, within = _figures(expected, got, bound, tolerance)
    why = _why(where, expected, got, bound, figures, within, tolerance, counts["reference_nan"])
    known |= {**counts, **figures, "abs_bound": bound, "reference_value": _only_value(expected)}
    return OutputVerdict(**known, passed=not why, reason=why)


def _only_value(expected: Array) -> float | None:
    """The number that all elements are; None where they differ, and of one alone that is not 0."""
    value = _finite(expected.flat[0]) if expected.size else None
    if value is None or (expected.size == 1 and value) or (expected != value).any():
        return None
    return value


def _absolute_bound(expected: Array, tolerance: Tolerance) -> float:
    rms = root_mean_square(expected[np.isfinite(expected)])
    return max(tolerance.max_abs, tolerance.max_abs_rms * rms)


def _figures(
    expected: Array, got: Array, bound: float, tolerance: Tolerance
) -> tuple[dict[str, float | None], bool]:
    """Polygraphy's figures, and its verdict on the elements."""
    from polygraphy.comparator import CosineSimilarityCompareFunc, PsnrCompareFunc, SimpleCompareFunc

    if not expected.size:
        return {"max_abs": 0.0, "mean_abs": 0.0, "cosine": 1.0}, True
    simple = SimpleCompareFunc(atol=bound, rtol=tolerance.max_rel)
    # What comes of NaN and infinity is counted and judged. Polygraphy words the arrays for a log that is off.
    with np.errstate(all="ignore"), np.printoptions(threshold=0, edgeitems=1), no_statistics():
        close = _polygraphy(got, expected, simple)
        cosine = _polygraphy(got, expected, CosineSimilarityCompareFunc(tolerance.min_cosine))
        psnr = _polygraphy(expected, got, PsnrCompareFunc())  # takes its peak from the first
        above = np.abs(expected) > bound
        # Of a result, bool() is the verdict: None has to be asked for by name below.
        ratio = _polygraphy(got[above], expected[above], simple) if above.any() else None
    figures = {
        "max_abs": close.max_absdiff,
        "mean_abs": close.mean_absdiff,
        "max_rel": ratio.max_reldiff if ratio is not None else None,
        "mean_rel": ratio.mean_reldiff if ratio is not None else None,
        "cosine": cosine.cosine_similarity,
        "psnr": psnr.psnr,
    }
    return {name: _finite(value) for name, value in figures.items()}, bool(close)


def _polygraphy(first: Array, second: Array, function: Any) -> Any:
    """What Polygraphy finds between two arrays; of differences it takes the second as the true one."""
    from polygraphy.comparator import IterationResult

    # The function itself: its Comparator would word both arrays once more, for the log.
    results = [IterationResult({"output": array}, runner_name="runner") for array in (first, second)]
    return function(*results)["output"]


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _why(
    where: str,
    expected: Array,
    got: Array,
    bound: float,
    figures: dict[str, float | None],
    within: bool,
    tolerance: Tolerance,
    reference_nan: int,
) -> str:
    if reference_nan:
        first = list(_first(np.isnan(expected)))
        return (
            f"{where}: the reference itself holds {reference_nan} NaN, first at {first}, so nothing can be "
            "compared with it; give other inputs with --inputs, or look for NaN in the model's weights."
        )
    foreign = ~np.isfinite(got) & np.isfinite(expected)
    if foreign.any():
        at = _first(foreign)
        return (
            f"{where}: {int(foreign.sum())} of {got.size} elements are NaN or infinite where the reference "
            f"is finite; first at {list(at)}: expected {expected[at]:.6g}, got {got[at]:.6g}."
        )
    # Infinity in the reference alone (or of the other sign) is a difference, and no bound allows it.
    if not within or not np.isfinite(expected).all():
        return f"{where}: {_worst(expected, got, bound, tolerance)}"
    cosine = figures["cosine"]
    if _is_zero(expected, got, tolerance) or (cosine is not None and cosine >= tolerance.min_cosine):
        return ""
    shown = "is not a number" if cosine is None else f"is {cosine:.8g}"
    return f"{where}: the cosine to the reference {shown}; at least {tolerance.min_cosine:.8g} is required."


def _is_zero(expected: Array, got: Array, tolerance: Tolerance) -> bool:
    largest = max(float(np.abs(expected).max(initial=0.0)), float(np.abs(got).max(initial=0.0)))
    return largest <= tolerance.max_abs


def _worst(expected: Array, got: Array, bound: float, tolerance: Tolerance) -> str:
    with np.errstate(all="ignore"):
        off = np.abs(got - expected)
        # In this form a NaN counts as outside, and nothing is divided by zero.
        outside = ~((off <= bound) | (off <= tolerance.max_rel * np.abs(expected))) | ~np.isfinite(expected)
    ranked = np.where(outside, np.nan_to_num(off, nan=np.inf, posinf=np.inf), -1.0)
    at = tuple(int(i) for i in np.unravel_index(int(ranked.argmax()), ranked.shape))
    base = abs(float(expected[at]))
    relative = f"{off[at] / base:.4g}" if 0.0 < base < math.inf else "undefined"
    return (
        f"{int(outside.sum())} of {off.size} elements are outside the absolute bound {bound:.4g} and the "
        f"relative bound {tolerance.max_rel:.4g}; worst at {list(at)}: expected {expected[at]:.6g}, got "
        f"{got[at]:.6g} (off by {off[at]:.4g}, relative {relative})."
    )


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))
