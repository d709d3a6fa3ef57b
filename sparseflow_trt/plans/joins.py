"""Which of the plugin's layers become one product: those that read one value, where that is faster."""

from __future__ import annotations

from collections.abc import Mapping

from sparseflow_trt.model.graph import WeightedLayer
from sparseflow_trt.plans.decide import Decision, PluginUse
from sparseflow_trt.plans.merges import siblings
from sparseflow_trt.plans.shapes import Dims, Profile, opts_of
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.plugin_lookup import joined_speedup
from sparseflow_trt.policies.policy import Policy


def find_joins(
    decided: Mapping[str, tuple[WeightedLayer, str, Decision]],
    profiles: tuple[Profile, ...],
    input_dims: dict[str, Dims],
    policy: Policy,
    plugin: PluginUse,
) -> dict[str, tuple[str, str]]:
    """Finds layers of one input and precision, such as gate and up, that are faster as one product.

    They are where the policy says so by its margin at each profile's opt, see `joined_speedup`.

    Args:
        decided: By name in the order of the graph: a layer, its precision and what was decided.
        profiles: The optimization profiles.
        input_dims: Each input's dimensions, by name.
        policy: The times.
        plugin: What the graph says of the layers.

    Returns:
        For each that is joined, the first layer of its product and the reason in words.
    """
    inside = (
        (layer, (layer.kind, precision, decision.dense_below_m))
        for layer, precision, decision in decided.values()
        if decision.kernel == "plugin"
    )
    joined: dict[str, tuple[str, str]] = {}
    for members in siblings(inside, plugin):
        _, precision, _ = decided[members[0].name]
        ms = opts_of(members[0].m, profiles, input_dims)
        gemms = [Gemm(layer.kind, layer.n, layer.k, precision.upper()) for layer in members]
        gains = [joined_speedup(policy, gemms, m) if m else None for m in ms]
        if all(gain and gain >= 1 + policy.margin for gain in gains):
            told = ", ".join(f"{gain:.2f}× at M={m}" for gain, m in zip(gains, ms, strict=True))
            reason = f"one product with the others that read its input, which is faster: {told}"
            joined |= {layer.name: (members[0].name, reason) for layer in members}
    return joined
