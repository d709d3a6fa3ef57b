"""Why a planned layer runs sparse or dense, in words: by what the engine tells and its builder timed."""

from __future__ import annotations

from sparseflow_trt.artifacts.manifest import STUB
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.tactics import is_sparse_tactic
from sparseflow_trt.engines.evidence.timings import LayerTimings, Timing
from sparseflow_trt.model.layer_names import shown_name
from sparseflow_trt.plans.plan import PlannedLayer

_NO_TIMES = "the log has no times for it (TensorRT reuses those of a layer like it, or of a timing cache)"


def why_it_runs(
    planned: PlannedLayer,
    found: LayerEvidence,
    timings: LayerTimings,
    merged: list[PlannedLayer],
    precision: str,
) -> str:
    """What a layer runs as, in words, and why sparse was or was not taken.

    Args:
        planned: What was asked for.
        found: The engine's layer that does its product.
        timings: What the builder measured of it.
        merged: The other planned layers that became the same one.
        precision: What it computes in, in TensorRT's words.
    """
    wanted = planned.sparsity == "sparse"
    if is_sparse_tactic(found.tactic):
        head = "runs sparse" if wanted else "planned dense, but runs sparse"
        return f"{head}: {_times_of_sparse(timings, found.tactic)}"
    nothing_timed = not (timings.tried_sparse or timings.tried_dense)
    could_be_sparse = nothing_timed or timings.tried_sparse
    if could_be_sparse and (not found.tactic or found.tactic.startswith(STUB)):
        times = "" if nothing_timed else f"; of those timed: {_both_times(timings)}"
        part = f"it is part of '{found.name}'{times}"
        return f"planned {planned.sparsity}; the engine does not report which kernel it runs: {part}"
    if not wanted:
        return _why_dense_as_planned(timings, nothing_timed)
    if timings.tried_sparse:
        return _why_not_picked(timings)
    reasons = _why_not_tried(found, merged, precision)
    if nothing_timed:
        return f"planned sparse, but runs dense: {'; '.join((*reasons, _NO_TIMES))}"
    return "planned sparse, but no sparse tactic was tried" + (f": {'; '.join(reasons)}" if reasons else "")


def _why_dense_as_planned(timings: LayerTimings, nothing_timed: bool) -> str:
    if nothing_timed:
        return f"runs dense, as planned; {_NO_TIMES}"
    if not timings.tried_sparse:
        return "never tried: planned dense"
    return f"runs dense, as planned, though sparse tactics were tried: {_both_times(timings)}"


def _why_not_picked(timings: LayerTimings) -> str:
    sparse, dense = timings.best_sparse, timings.best_dense
    if sparse is None or dense is None:
        return f"eligible, but dense was picked: {_both_times(timings)}"
    if sparse.ms >= dense.ms:
        return f"eligible, but slower: {_both_times(timings)}"
    formats = f" ({sparse.formats} against {dense.formats})" if sparse.formats != dense.formats else ""
    return (
        f"eligible and faster on its own, but dense was picked: {_both_times(timings)}; TensorRT also counts "
        f"the cost of converting formats around the layer{formats}"
    )


def _why_not_tried(found: LayerEvidence, merged: list[PlannedLayer], precision: str) -> list[str]:
    """What is known of why; nothing is guessed."""
    reasons = [
        f"merged with '{shown_name(other)}', which is planned dense"
        for other in merged
        if other.sparsity == "dense"
    ]
    if found.sparse_weights is False and not reasons:
        reasons.append("TensorRT finds that its weights are not 2:4")
    multiplied, _, written = precision.partition("->")
    if multiplied == "Float":
        reasons.append("it runs in FP32, and TensorRT has no FP32 sparse kernel")
    elif multiplied == "Int8" and written:
        reasons.append(f"its output is {written}, and sparse INT8 kernels need one that stays INT8")
    return reasons


def _times_of_sparse(timings: LayerTimings, runs: str) -> str:
    sparse, dense = timings.best_sparse, timings.best_dense
    if sparse is None:
        return _NO_TIMES
    # The formats around a layer may ask for another sparse tactic than the fastest one.
    best = "" if sparse.tactic == runs else "best sparse "
    if dense is None:
        return f"{best}{_ms(sparse, None)}, and no dense tactic gave a time ({_tried(timings)})"
    return f"{best}{_ms(sparse, dense)} against {_ms(dense, sparse)} dense ({_tried(timings)})"


def _both_times(timings: LayerTimings) -> str:
    sparse, dense = timings.best_sparse, timings.best_dense
    return f"best sparse {_ms(sparse, dense)}, best dense {_ms(dense, sparse)} ({_tried(timings)})"


def _tried(timings: LayerTimings) -> str:
    return f"{timings.tried_sparse} sparse and {timings.tried_dense} dense tactics tried"


def _ms(timing: Timing | None, beside: Timing | None) -> str:
    """A time with as many digits as tell it from the one beside it, three at least."""
    if timing is None:
        return "not measured"
    other = beside.ms if beside else timing.ms
    digits = next((d for d in (3, 4, 5) if f"{timing.ms:#.{d}g}" != f"{other:#.{d}g}"), 3)
    return f"{timing.ms:#.{digits}g} ms"
