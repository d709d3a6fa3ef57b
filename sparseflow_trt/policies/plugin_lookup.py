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
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import guess_for, judge, known_of
from sparseflow_trt.policies.near import nearest_shape, points_near, witnesses_of
from sparseflow_trt.policies.policy import Library, Policy, dense_by_m, pairs_by_m, pairs_by_shape
from sparseflow_trt.policies.uneven_rows import KnownInPlugin, in_plugin

# By how much an estimate has to win, against TensorRT's dense kernel or cuBLAS's: the plugin took 0.93 to
# 1.17 times as long as cuSPARSELt in PyTorch, and its gain over TensorRT 8.6's dense kernel was 0.84 to 1.36
# times what cuBLAS's times say, in 46 products of LLaMA-8B, LLaMA-70B and TinyLlama on an H200
# (results/plugin_linear_*.json). With this margin none of those is lost, whatever is left out of what is
# known of it (results/ship_policy.json).
ESTIMATE_MARGIN = 0.15
PLUGIN_DTYPES = ("FP16", "BF16")
_ELEMENT_BYTES = 2  # of FP16 and BF16, which is all that the plugin takes


def plugin_known(policy: Policy, kind: str, n: int, k: int, dtype: str) -> KnownInPlugin:
    """What a policy knows of the plugin for one layer; what `wins` and `sparse` say is said of the plugin.

    In this order: the plugin's points of this very shape (where they leave it open an estimate), an estimate
    of this very shape or learned from all measured ones, the plugin's points of a shape near by, an estimate
    of one near by, a threshold of the plugin. What was learned rests on many more shapes than the plugin was
    measured at, and is wrong less often for it (docs/AUTOTUNED_POLICY.md).
    An estimate is cuSPARSELt's time against cuBLAS's, and has to win by ESTIMATE_MARGIN. Of this very shape
    both are corrected by what TensorRT's dense kernel and the plugin took at the M where they were timed
    (`correction`). Thresholds of cuSPARSELt say
    nothing here: they are of its margin over cuBLAS. Of an M that is no multiple of 8, and was not measured
    in the plugin itself, what that costs is counted (`uneven_rows`).

    Args:
        policy: What was measured.
        kind: The layer's kind.
        n: Its outputs.
        k: Its inputs.
        dtype: The type of its product, such as "FP16".
    """
    return _plugin_known(Same(policy), kind, n, k, dtype)


@functools.lru_cache(maxsize=256)
def _plugin_known(same: Same[Policy], kind: str, n: int, k: int, dtype: str) -> KnownInPlugin:
    return in_plugin(_of_multiples(same.value, kind, n, k, dtype))


def _of_multiples(policy: Policy, kind: str, n: int, k: int, dtype: str) -> Known:
    measured = known_of(policy, kind, n, k, dtype, "tensorrt", "plugin")
    estimated = _estimated(measured)
    if measured.library != "tensorrt":
        return estimated
    if not measured.shape:
        return measured if measured.threshold and not estimated.shape else estimated
    if not measured.exact and (estimated.exact or estimated.guess):
        return estimated
    return replace(measured, otherwise=estimated) if estimated.shape else measured


def _estimated(layer: Known) -> Known:
    """What cuSPARSELt's times say of the plugin for the layer that something is known of.

    Those of this very shape are held against TensorRT's dense kernel where that was timed (`correction`).
    """
    known = _timed(layer)
    points = [p for p in layer.policy.points if (p.n, p.k, p.dtype) == (layer.n, layer.k, layer.dtype)]
    correction = correction_of(points) if known.exact else None
    if correction is None:
        return known
    return replace(
        known,
        pairs=correction.pairs(),
        correction=correction,
        whose="estimated from cuSPARSELt against TensorRT's kernels",
        dense={},
    )


def _timed(layer: Known) -> Known:
    """cuSPARSELt against cuBLAS, as they were timed, of the layer that something is known of."""
    policy, n, k, dtype = layer.policy, layer.n, layer.k, layer.dtype
    near = [p for p in points_near(policy, layer.kind, n, k, dtype) if p.library == "torch"]
    timed = pairs_by_shape(near)
    shape = nearest_shape(timed, n, k)
    points = [p for p in policy.points if (p.dtype, p.library) == (dtype, "torch")]
    return replace(
        layer,
        library="torch",
        shape=shape,
        pairs=timed[shape] if shape else {},
        witnesses=witnesses_of(shape, n, k, points, pairs_by_m),
        threshold=None,
        whose="estimated from cuSPARSELt against cuBLAS",
        margin=max(policy.margin, ESTIMATE_MARGIN),
        dense=dense_by_m(p for p in points if (p.n, p.k) == (n, k)),
        guess=guess_for(policy, "torch", n, k, dtype, shape),
        otherwise=None,
    )


def estimated_speedups(known: Known) -> dict[int, float]:
    """What estimates say of the plugin where they decide, by M: those that PyTorch's kernels were timed at.

    Args:
        known: As `plugin_known` gives it.

    Returns:
        The speedups at multiples of 8; none where TensorRT's times of this very shape do not correct them.
    """
    estimated = known.otherwise or known
    if estimated.correction is None:
        return {}
    deciding = [m for m in estimated.timed if m % ROWS == 0 and known.at(m) is estimated]
    return {m: expected.speedup for m in deciding if (expected := known.expect(m))}


def judge_with_plugin(
    policy: Policy, kind: str, n: int, k: int, m: int, dtype: str, library: Library = "tensorrt"
) -> Verdict:
    """What the better of the library's own sparse kernels and the 2:4 plugin would do with a product.

    The arguments are those of `lookup.judge`. The reason names the plugin where that is what wins.
    """
    own = judge(policy, kind, n, k, m, dtype, library)
    if dtype not in PLUGIN_DTYPES or why_not_in_plugin(n, k):
        return own
    plugin = plugin_known(policy, kind, n, k, dtype).judge(m)
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


def joined_speedup(policy: Policy, kind: str, ns: Sequence[int], k: int, m: int, dtype: str) -> float | None:
    """How many times as fast one product of several layers of one input is as each by itself, at M.

    What one product costs more is counted: a Split copies its output, M·N elements read and written, at the
    rate at which the policy's dense product of the smallest M reads its weights. That of gate and up costs
    nothing: what reads it works element by element, and TensorRT 8.6 made no copy in any of five MLP blocks
    (results/tensorrt_mlp_*.json).

    Returns:
        The speedup; None where the policy has not measured that very product, or not each by itself.
    """
    best = [plugin_known(policy, kind, n, k, dtype) for n in (sum(ns), *ns)]
    for known in (best, [_timed(each) for each in best]):
        asked = [
            each.at(m).expect(m) for each in known
        ]  # estimates are compared as they are, held to nothing
        found = [e for e in asked if e and e.basis == "exact" and e.at != "below"]
        # what was measured and what was estimated are not compared
        if len(found) == len(known) and len({e.points[-1].library for e in found}) == 1:
            return _gain_of_one(found[0], found[1:], known[0], sum(ns), m, kind)
    return None


def _gain_of_one(
    whole: Expected, parts: Sequence[Expected], known: Known, n: int, m: int, kind: str
) -> float:
    one = math.fsum(part.sparse_us for part in parts)
    if kind == "gate_up":
        return one / whole.sparse_us
    first = known.pairs[min(known.pairs)].dense
    bytes_a_us = first.n * first.k * _ELEMENT_BYTES / first.us
    return one / (whole.sparse_us + 2 * m * n * _ELEMENT_BYTES / bytes_a_us)
