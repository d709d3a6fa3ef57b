"""Layers that TensorRT's builder timed once for several: whose times are a layer's, too.

The builder keeps what it measured for layers with the same parameters and tensors, and does not time these
again (NVIDIA's guide, "Timing Cache"). Its log does not say so: it names no layer but where it times one. So
the layer that was timed is found by elimination, from what the finished engine tells.
"""

from __future__ import annotations

from collections.abc import Iterable

from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.timings import LayerTimings

Twins = dict[tuple[str, int], str]


def find_twins(layers: Iterable[LayerEvidence], timings: Iterable[LayerTimings]) -> Twins:
    """For layers that the log has no times of, the layer whose times the builder must have taken.

    A layer has one where the inspector tells the same parameters and tensors of both, both run the very same
    tactic, and no other layer of the profile that is like them has times in the log: with two of those it is
    not told which one. A layer that the log names and gives no time of has none. This holds for builds that
    began with no times of earlier ones.

    Args:
        layers: What the engine says of itself.
        timings: What the builder's log says it measured.

    Returns:
        By name and profile the name of the other layer.
    """
    tried = {(t.layer, t.profile): t.tried_dense + t.tried_sparse for t in timings}
    alike: dict[tuple[int, str], list[LayerEvidence]] = {}
    for layer in layers:
        if layer.parameters:
            alike.setdefault((layer.profile, layer.parameters), []).append(layer)
    twins: Twins = {}
    for (profile, _), group in alike.items():
        timed = [layer for layer in group if tried.get((layer.name, profile), 0)]
        if len(timed) != 1:
            continue
        for layer in group:
            if layer is not timed[0] and _tactic(layer) == _tactic(timed[0]):
                twins[layer.name, profile] = timed[0].name
    return twins


def _tactic(layer: LayerEvidence) -> tuple[str, str]:
    return layer.tactic, layer.tactic_id
