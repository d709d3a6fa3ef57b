"""What a policy says of the plugin: measured where it was, else estimated from cuSPARSELt's own times.

The plugin runs cuSPARSELt's kernels inside a TensorRT engine. So where nobody has measured it, what PyTorch
took for the same product by cuSPARSELt ("torch" points) stands for it: an estimate, and said to be one.
TensorRT's own points of the same shape tell how far it is off (`correction`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

from sparseflow_trt._same import Same
from sparseflow_trt.model.packing import ROWS, why_not_in_plugin
from sparseflow_trt.policies.correction import correction_of
from sparseflow_trt.policies.expected import Expected, Verdict
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import judge, known_of
from sparseflow_trt.policies.measurements import Measurements
from sparseflow_trt.policies.policy import Library, Policy

PLUGIN_DTYPES = ("FP16", "BF16")
_ELEMENT_BYTES = 2  # of FP16 and BF16, which is all that the plugin takes


def plugin_known(policy: Policy, gemm: Gemm) -> Known:
    """What a policy knows of the plugin for one layer; what `wins` and `sparse` say is said of the plugin.

    In this order: the plugin's points of this very shape (where they leave it open an estimate), an estimate
    of this very shape or learned from all measured ones, the plugin's points of a shape near by, an estimate
    of one near by, a threshold of the plugin. What was learned rests on many more shapes than the plugin was
    measured at, and is wrong less often for it (docs/AUTOTUNED_POLICY.md).
    An estimate is cuSPARSELt's time against cuBLAS's, and has to win by ESTIMATE_MARGIN. Of this very shape
    both are corrected by what TensorRT's dense kernel and the plugin took at the M where they were timed
    (`correction`). Thresholds of cuSPARSELt say nothing here: they are of its margin over cuBLAS. Of an M
    that is no multiple of 8, and was not measured in the plugin itself, what that costs is counted
    (`uneven_rows`).
    """
    return _plugin_known(Same(policy), gemm)


@functools.lru_cache(maxsize=256)
def _plugin_known(same: Same[Policy], gemm: Gemm) -> Known:
    measured = known_of(same.value, gemm, "tensorrt", "plugin").own
    estimated = _estimated(same.value, gemm)
    if not measured.shape:
        by_threshold = measured.threshold and not estimated.shape
        return Known(measured if by_threshold else estimated, uneven=True)
    if not measured.exact and (estimated.exact or estimated.guess):
        return Known(estimated, uneven=True)
    return Known(measured, estimated if estimated.shape else None, uneven=True)


def _estimated(policy: Policy, gemm: Gemm) -> Measurements:
    """What cuSPARSELt's times say of the plugin for a layer.

    Those of this very shape are held against TensorRT's dense kernel where that was timed (`correction`).
    """
    timed = _timed(policy, gemm)
    points = [p for p in policy.points if (p.n, p.k, p.dtype) == (*gemm.shape, gemm.dtype)]
    correction = correction_of(points) if timed.exact else None
    if correction is None:
        return timed
    return replace(timed, pairs=correction.pairs(), correction=correction, dense={})


def _timed(policy: Policy, gemm: Gemm) -> Measurements:
    """cuSPARSELt against cuBLAS, as they were timed."""
    return known_of(policy, gemm, "torch", "plugin").own


def estimated_speedups(known: Known) -> dict[int, float]:
    """What estimates say of the plugin where they decide, by M: those that PyTorch's kernels were timed at.

    Args:
        known: As `plugin_known` gives it.

    Returns:
        The speedups at multiples of 8; none where TensorRT's times of this very shape do not correct them.
    """
    estimated = known.otherwise or known.own
    if estimated.correction is None:
        return {}
    deciding = [m for m in estimated.timed if m % ROWS == 0 and known.at(m) is estimated]
    return {m: expected.speedup for m in deciding if (expected := known.expect(m))}


def judge_with_plugin(policy: Policy, gemm: Gemm, m: int, library: Library = "tensorrt") -> Verdict:
    """What the better of the library's own sparse kernels and the 2:4 plugin would do with a product.

    The arguments are those of `lookup.judge`. The reason names the plugin where that is what wins.
    """
    own = judge(policy, gemm, m, library)
    if gemm.dtype not in PLUGIN_DTYPES or why_not_in_plugin(*gemm.shape):
        return own
    plugin = plugin_known(policy, gemm).judge(m)
    if plugin.sparse and not is_beaten(plugin, own):
        return plugin
    if own.sparse or plugin.basis == "none":
        return own
    return replace(own, reason=f"{own.reason}; {plugin.reason}")


def is_beaten(plugin: Verdict, own: Verdict) -> bool:
    """Whether TensorRT's own sparse kernels are a better choice than the plugin.

    Where both verdicts rest on cuSPARSELt's times the plugin is the one that runs those kernels.
    """
    if not own.sparse or any(point.library == "torch" for point in own.points):
        return False
    if plugin.speedup is None or own.speedup is None:  # one rests on a threshold, and measured goes first
        return own.speedup is not None
    return own.speedup > plugin.speedup


def joined_speedup(policy: Policy, gemms: Sequence[Gemm], m: int) -> float | None:
    """How many times as fast one product of several layers of one input is as each by itself, at M.

    What one product costs more is counted: a Split copies its output, M·N elements read and written, at the
    rate at which the policy's dense product of the smallest M reads its weights. That of gate and up costs
    nothing: what reads it works element by element, and TensorRT 8.6 made no copy in any of five MLP blocks
    (results/tensorrt_mlp_*.json).

    Args:
        policy: What was measured.
        gemms: The layers' products, alike but for N.
        m: Their rows.

    Returns:
        The speedup; None where the policy has not measured that very product, or not each by itself.
    """
    asked = (replace(gemms[0], n=sum(gemm.n for gemm in gemms)), *gemms)
    known = [plugin_known(policy, gemm) for gemm in asked]
    timed = [Known(_timed(policy, gemm), uneven=True) for gemm in asked]
    # estimates are compared as they are, held to nothing
    speaking = [each if each.at(m) is each.own else Known(each.at(m), uneven=True) for each in known]
    for each in (speaking, timed):
        found = [e for whose in each if (e := whose.expect(m)) and e.basis == "exact" and e.at != "below"]
        # what was measured and what was estimated are not compared
        if len(found) == len(asked) and len({e.points[-1].library for e in found}) == 1:
            return _gain_of_one(found[0], found[1:], each[0].own, m)
    return None


def _gain_of_one(whole: Expected, parts: Sequence[Expected], known: Measurements, m: int) -> float:
    one = math.fsum(part.sparse_us for part in parts)
    if known.gemm.kind == "gate_up":
        return one / whole.sparse_us
    first = known.pairs[min(known.pairs)].dense
    bytes_a_us = first.n * first.k * _ELEMENT_BYTES / first.us
    return one / (whole.sparse_us + 2 * m * known.gemm.n * _ELEMENT_BYTES / bytes_a_us)
