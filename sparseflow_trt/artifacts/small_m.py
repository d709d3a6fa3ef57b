"""From which batch on an artifact's layers win sparse or in the plugin, by the policy it was planned with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest
from sparseflow_trt.plans.shapes import Profile
from sparseflow_trt.policies.lookup import FAR, known_of, taken_ranges
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Policy


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
    return tuple(_in_profile(layers, profile, policy, least_m) for profile in profiles)


def _in_profile(
    layers: Sequence[LayerRecord], profile: Profile, policy: Policy | None, least_m: int | None
) -> SparseFrom:
    batch = next(iter(profile.inputs.values())).opt[0]
    needed, slowest = 0, ("", 0)
    for layer in layers:
        m = layer.m.get(profile.name, (None, None, None))[1]
        if not m:
            continue
        threshold = least_m if least_m is not None else _threshold(layer, policy)
        if threshold is None:
            return SparseFrom(profile.name, None, None, layer.name)
        own = math.ceil(threshold * batch / m)  # M grows with the batch: M / batch rows an item
        if own > needed:
            needed, slowest = own, (layer.name, threshold)
    return SparseFrom(profile.name, max(needed, 1), slowest[1], slowest[0])


def _threshold(layer: LayerRecord, policy: Policy | None) -> int | None:
    """The M from which on sparse wins: up to any M, or up to where the policy says that it ends."""
    if policy is None:
        return None
    smooth = policy.model_copy(update={"wave": 0})  # where it is not sure to win it need not lose
    known = (plugin_known if layer.sparsity == "plugin" else known_of)(smooth, layer.gemm)
    wins = taken_ranges(known, 1, FAR)
    return wins[-1][0] if wins else None
