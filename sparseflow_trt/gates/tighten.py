"""A baseline made stricter by a better build. It is never made looser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparseflow_trt.artifacts.verdict import OutputVerdict, Tolerance
from sparseflow_trt.gates.baseline import Baseline, Evidence, Figures
from sparseflow_trt.gates.regressions import evidence_of, figures_of

if TYPE_CHECKING:
    import numpy as np

    from sparseflow_trt.artifacts.manifest import Manifest
    from sparseflow_trt.artifacts.verdict import Validation

# What a tolerance leaves above the errors that were seen. An angle's cosine falls with its square.
_HEADROOM = 2.0
_COSINE_ROUNDING = 1e-7

Outputs = Mapping[str, Mapping[str, "np.ndarray[Any, Any]"]]


def tighten(
    baseline: Baseline, manifest: Manifest, validation: Validation, outputs: Outputs, known: dict[str, Any]
) -> Baseline:
    """The baseline with a passing build in the place of the accepted one.

    A build that is no better gives the baseline as it was, so that version control shows no change.

    Tolerances become twice the errors of this build where that is less than they were, figures the
    smaller of both, and what this build has sparse has to stay so.

    Args:
        baseline: As it was.
        manifest: Of the build, which passed every check of the baseline.
        validation: Its comparison with the baseline's outputs.
        outputs: The reference outputs, by input set and name.
        known: Fields that say when and with what it was made.
    """
    rows = [row for candidate in validation.candidates for row in candidate.outputs]
    was = {(f.candidate, f.output): f for f in baseline.figures}
    now = {(f.candidate, f.output): f for f in figures_of(validation)}
    tightened = baseline.model_copy(
        update={
            **known,
            "tolerances": {
                name: _tightened(tolerance, [row for row in rows if row.output == name], outputs)
                for name, tolerance in baseline.tolerances.items()
            },
            "figures": tuple(_better(was.get(key), now.get(key)) for key in {**was, **now}),
            "evidence": evidence_of(manifest, validation),
        }
    )
    unnamed = {"created": baseline.created, "evidence": _unnamed(tightened.evidence)}  # as older ones are
    same = tightened.model_copy(update=unnamed) == baseline.model_copy(
        update={"evidence": _unnamed(baseline.evidence)}
    )
    return baseline if same else tightened


def _tightened(tolerance: Tolerance, rows: list[OutputVerdict], outputs: Outputs) -> Tolerance:
    if not rows:
        return tolerance
    update: dict[str, Any] = {}
    equal = [row.equal for row in rows if row.equal is not None]
    if equal:
        update["min_equal"] = max(tolerance.min_equal, 1 - _HEADROOM * (1 - min(equal)))
    if all(row.max_abs is not None for row in rows):
        off = [(row.max_abs or 0.0, _rms(outputs[row.input_set][row.output])) for row in rows]
        scaled = [error / rms for error, rms in off if rms]
        update["max_abs"] = min(tolerance.max_abs, _HEADROOM * max(error for error, _ in off))
        if scaled and tolerance.max_abs_rms:
            update["max_abs_rms"] = min(tolerance.max_abs_rms, _HEADROOM * max(scaled))
            if max(scaled) <= update["max_abs_rms"]:  # no element needs the relative bound
                update["max_rel"] = min(tolerance.max_rel, update["max_abs_rms"])
    cosines = [row.cosine for row in rows if row.cosine is not None]
    if cosines and len(cosines) == len(rows):
        seen = max(1 - min(cosines), _COSINE_ROUNDING)
        update["min_cosine"] = max(tolerance.min_cosine, 1 - _HEADROOM**2 * seen)
    changed = {name: value for name, value in update.items() if value != getattr(tolerance, name)}
    if not changed:
        return tolerance
    return tolerance.model_copy(update={**changed, "reason": "tightened to twice the errors of a build."})


def _unnamed(evidence: Evidence) -> Evidence:
    """The same with no modules: they say nothing of how a build did."""
    layers = tuple(layer.model_copy(update={"module": ""}) for layer in evidence.layers)
    return evidence.model_copy(update={"layers": layers})


def _rms(array: np.ndarray[Any, Any]) -> float:
    import numpy as np

    finite = array[np.isfinite(array)].astype(np.float64)
    return math.sqrt(float(np.square(finite).mean())) if finite.size else 0.0


def _better(was: Figures | None, now: Figures | None) -> Figures:
    if was is None or now is None:
        found = was or now
        assert found is not None
        return found
    picks = {"max_abs": min, "mean_abs": min, "cosine": max, "equal": max}
    update = {}
    for name, pick in picks.items():
        both = [value for value in (getattr(was, name), getattr(now, name)) if value is not None]
        update[name] = pick(both) if both else None
    return now.model_copy(update=update)
