"""What it costs to take layers apart that TensorRT runs as one product, so that the plugin can run some."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from sparseflow_trt.model.graph import WeightedLayer
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.plugin_lookup import joined_speedup, plugin_known
from sparseflow_trt.policies.policy import Policy


def slower_apart(
    policy: Policy,
    whole: Gemm,
    layers: Iterable[WeightedLayer],
    inside: Mapping[str, int],
    sizes: Sequence[int],
) -> str:
    """Where layers would take longer apart, some in the plugin, than as the one product; "" where nowhere.

    At the largest M they have to be faster, at others not slower by more than the policy's margin; an M at
    which a time is not known says nothing. Where all would be one product of the plugin (`joins`) the two
    products are compared: what splits the output costs both. Others are counted each by itself.

    Args:
        policy: The times.
        whole: The one product, by TensorRT's own kernels.
        layers: The layers.
        inside: Names of those that would be in the plugin, with the M below which they run dense copies.
        sizes: M at each profile's opt.
    """
    in_plugin: list[tuple[Gemm, int]] = []
    outside: list[Gemm] = []
    for x in layers:
        gemm = Gemm(x.kind, x.n, x.k, whole.dtype)
        if x.name in inside:
            in_plugin.append((gemm, inside[x.name]))
        else:
            outside.append(gemm)
    below = {copies for _, copies in in_plugin}
    if not outside and len(below) == 1:
        gains = [joined_speedup(policy, [gemm for gemm, _ in in_plugin], m) for m in sizes]
        if all(gain and gain >= 1 + policy.margin for gain in gains):
            in_plugin = [(whole, below.pop())]
    for m in sizes:
        one = _us_of_own(policy, whole, m)
        times = [_us_of_plugin(policy, gemm, copies, m) for gemm, copies in in_plugin]
        times += [_us_of_own(policy, gemm, m) for gemm in outside]
        known = [us for us in times if us is not None]
        if one is None or len(known) < len(times):
            continue
        apart = math.fsum(known)
        if apart >= one * (1 if m == max(sizes) else 1 + policy.margin):
            return f"with it these layers take {apart:.2f} µs at M={m}, and {one:.2f} µs as one product"
    return ""


def _us_of_own(policy: Policy, gemm: Gemm, m: int) -> float | None:
    """What TensorRT's own kernels take, as the policy chooses."""
    known = known_of(policy, gemm)
    times = known.expect(m)
    if times is None or times.at == "below":
        return None
    return times.sparse_us if known.judge(m).sparse else times.dense_us


def _us_of_plugin(policy: Policy, gemm: Gemm, dense_below_m: int, m: int) -> float | None:
    """What the plugin takes, or its dense copy below some M."""
    times = plugin_known(policy, gemm).expect(m)
    if times is None or times.at == "below":
        return None
    return times.dense_us if m < dense_below_m else times.sparse_us
