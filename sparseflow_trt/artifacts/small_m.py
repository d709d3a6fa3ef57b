"""From which batch on an artifact's layers win sparse or in the plugin, by the policy it was planned with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest
from sparseflow_trt.plans.shapes import Profile
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import FAR, is_timed, known_of, taken_ranges
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Policy

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class SparseFrom:
    """Where sparse begins to pay in one profile.

    Attributes:
        profile: Its name.
        batch: The least batch at which every sparse layer wins, with the other dimensions at the profile's
            opt; None where no batch within reach does.
        m: The largest of the layers' thresholds: the M that the slowest of them needs.
        layer: That layer.
    """

    profile: str
    batch: int | None
    m: int | None
    layer: str


def sparse_from(
    manifest: Manifest, profiles: Sequence[Profile], policy: Policy | None, least_m: int | None
) -> tuple[SparseFrom, ...]:
    """Where sparse begins to pay in each profile of an artifact; nothing where that is not known.

    Args:
        manifest: The artifact's: its layers tell M at each profile's opt, and which are planned dense.
        profiles: Its plan's.
        policy: What was measured, where the artifact holds it.
        least_m: The threshold as a person gives it; it goes before the policy's.
    """
    layers = [layer for layer in manifest.layers if layer.sparsity != "dense"]
    if not layers or (policy is None and least_m is None):
        return ()
    ranges = {layer.name: _ranges(layer, manifest, policy, least_m) for layer in layers}
    return tuple(_in_profile(layers, profile, ranges) for profile in profiles)


def _in_profile(layers: Sequence[LayerRecord], profile: Profile, ranges: Mapping[str, Ranges]) -> SparseFrom:
    batch = next(iter(profile.inputs.values())).opt[0]
    needed, slowest = 0, ("", 0)
    for layer in layers:
        m = layer.m.get(profile.name, (None, None, None))[1]
        if not m:
            continue
        # M grows with the batch: M / batch rows an item. A range may end before the first batch in it.
        begins = [(math.ceil(low * batch / m), low, high) for low, high in ranges[layer.name]]
        reached = [(own, low) for own, low, high in begins if own * m <= high * batch]
        if not reached:
            return SparseFrom(profile.name, None, None, layer.name)
        own, low = reached[-1]
        if own > needed:
            needed, slowest = own, (layer.name, low)
    return SparseFrom(profile.name, max(needed, 1), slowest[1], slowest[0])


def _ranges(layer: LayerRecord, manifest: Manifest, policy: Policy | None, least_m: int | None) -> Ranges:
    """The ranges of M in which sparse wins, by a person or by the policy."""
    if least_m is not None:
        return [(least_m, FAR)]
    if policy is None:
        return []
    smooth = policy.model_copy(update={"wave": 0})  # where it is not sure to win it need not lose
    if layer.sparsity == "plugin":
        return taken_ranges(plugin_known(smooth, layer.gemm), 1, FAR)
    return taken_ranges(known_of(smooth, _as_run(layer, manifest, policy)), 1, FAR)


def _as_run(layer: LayerRecord, manifest: Manifest, policy: Policy) -> Gemm:
    """The one product that TensorRT made of a layer and others, if the policy has timed it; else its own."""
    others = {name for o in manifest.engine.outcomes if o.layer == layer.name for name in o.merged_with}
    n = layer.n + sum(other.n for other in manifest.layers if other.name in others)
    whole = replace(layer.gemm, n=n)
    return whole if others and is_timed(policy, whole) else layer.gemm
