"""What it costs to take layers apart that TensorRT runs as one product, so that the plugin can run some."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence

from sparseflow_trt.model.graph import WeightedLayer
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.plugin_lookup import joined_speedup, plugin_known
from sparseflow_trt.policies.policy import Policy


def slower_apart(
    policy: Policy,
    whole: Gemm,
    layers: Iterable[WeightedLayer],
    inside: Container[str],
    sizes: Sequence[int],
) -> str:
    """Where layers would take longer apart, some in the plugin, than as the one product; "" where nowhere.

    An M at which a time is not known says nothing. Where all would be one product of the plugin the two
    products are compared: what splits the output costs both.

    Args:
        policy: The times.
        whole: The one product, by TensorRT's own kernels.
        layers: The layers.
        inside: Names of those that would be in the plugin; if all are, as one product where that is faster.
        sizes: M at each profile's opt.
    """
    parts: dict[bool, list[Gemm]] = {True: [], False: []}  # by whether the plugin would run them
    for x in layers:
        parts[x.name in inside].append(Gemm(x.kind, x.n, x.k, whole.dtype))
    in_plugin, outside = parts[True], parts[False]
    gains = [joined_speedup(policy, in_plugin, m) for m in sizes]
    if not outside and all(gain and gain >= 1 + policy.margin for gain in gains):
        in_plugin = [whole]
    for m in sizes:
        one = _us_of_own(policy, whole, m)
        times = [_us_of_plugin(policy, gemm, m) for gemm in in_plugin]
        times += [_us_of_own(policy, gemm, m) for gemm in outside]
        known = [us for us in times if us is not None]
        apart = math.fsum(known)
        if one is not None and len(known) == len(times) and apart >= one:
            return f"with it these layers take {apart:.2f} µs at M={m}, and {one:.2f} µs as one product"
    return ""


def _us_of_own(policy: Policy, gemm: Gemm, m: int) -> float | None:
    """What TensorRT's own kernels take, as the policy chooses."""
    known = known_of(policy, gemm)
    times = known.expect(m)
    if times is None or times.at == "below":
        return None
    return times.sparse_us if known.judge(m).sparse else times.dense_us


def _us_of_plugin(policy: Policy, gemm: Gemm, m: int) -> float | None:
    times = plugin_known(policy, gemm).expect(m)
    return times.sparse_us if times else None
