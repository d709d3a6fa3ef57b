"""Speedup against M for the shapes of a model, from the policy it was planned by, as geometry for SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import known_of, taken_ranges
from sparseflow_trt.policies.measurements import Measurements
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import WHOSE, Pair, Policy, pairs_by_shape

WIDTH, HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 20, 12, 44
_MOST_PANELS = 12
_Measured = tuple[tuple[int, int], bool, dict[int, Pair]]  # (N, K), whether it is the layer's own, by M
_STEPS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
_MOST_EDGES = 4  # of ranges with more, only where the first begins and the last ends is marked


@dataclass(frozen=True)
class Curve:
    """A line through measured points, whether they are of the layer's own shape, and of the plugin."""

    points: tuple[tuple[float, float], ...]
    own: bool
    plugin: bool = False


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One shape's drawing. All places are in the SVG's units, from its upper left corner.

    Attributes:
        title: Kind, shape and how many layers.
        says: The whole in words, for who does not see it.
        taken: Where along x sparse is taken.
        taken_in_plugin: Where along x the plugin is, where it has a curve; estimates count where its points
            leave it open.
        crossings: The M at which layers change, with their labels.
        ranges: From min to max of each profile along x, and its opt.
    """

    title: str
    subtitle: str
    says: str
    curves: tuple[Curve, ...]
    taken: tuple[tuple[float, float], ...]
    taken_in_plugin: tuple[tuple[float, float], ...]
    crossings: tuple[Tick, ...]
    ranges: tuple[tuple[float, float, float], ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    one: float
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    left: float = _LEFT
    right: float = WIDTH - _RIGHT


def draw_speedups(manifest: Manifest, policy: Policy | None) -> tuple[tuple[Panel, ...], int]:
    """A panel for each shape that the policy says anything of, the largest first; how many are left out.

    The plugin has a curve where its points are of the very shape; estimates are not drawn.
    """
    if policy is None:
        return (), 0
    shapes: dict[Gemm, list[LayerRecord]] = {}
    for layer in manifest.layers:
        shapes.setdefault(layer.gemm, []).append(layer)
    ranked = sorted(shapes.items(), key=lambda item: -len(item[1]) * item[0].n * item[0].k)
    panels = [
        panel for gemm, layers in ranked if (panel := _panel(known_of(policy, gemm), layers)) is not None
    ]
    return tuple(panels[:_MOST_PANELS]), max(0, len(panels) - _MOST_PANELS)


def _panel(known: Known, layers: list[LayerRecord]) -> Panel | None:
    own, gemm = known.own, known.gemm
    curves, plugin = _measured(own), _measured_in_plugin(own)
    limit = own.threshold
    if not curves and not plugin and (limit is None or limit.min_m is None):
        return None
    drawn = [*((pairs, own, False) for _, own, pairs in curves), *([(plugin, True, True)] if plugin else [])]
    profiles = [sizes for sizes in layers[0].m.values() if None not in sizes]
    sizes = [m for sizes in profiles for m in sizes if m] + [m for pairs, _, _ in drawn for m in pairs]
    sizes += [m for m in ((limit.min_m, limit.max_m) if limit else ()) if m]
    low, high = min(sizes), max(sizes)
    if low == high:
        low, high = max(1, low // 2), high * 2
    speedups = [pair.speedup for pairs, _, _ in drawn for pair in pairs.values()]
    bottom, top = min(0.75, *speedups, 1.0) * 0.97, max(1.5, *speedups, 1.0) * 1.03

    def x(m: float) -> float:
        share = math.log(m / low) / math.log(high / low)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(speedup: float) -> float:
        share = math.log(speedup / bottom) / math.log(top / bottom)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    taken = taken_ranges(known, low, high)
    in_plugin = taken_ranges(plugin_known(own.policy, gemm), low, high) if plugin else []
    edges = sorted({b for b, _ in taken if b > low} | {end for _, end in taken if end < high})
    if len(edges) > _MOST_EDGES:
        edges = [edges[0], edges[-1]]
    title = f"{gemm.kind} {gemm.k} → {gemm.n}"
    return Panel(
        title=f"{title} · {len(layers)} layer{'s' if len(layers) > 1 else ''}",
        subtitle=_subtitle(own, curves, plugin),
        says=_in_words(title, taken, curves) + _plugin_in_words(in_plugin, plugin),
        curves=tuple(
            Curve(tuple((x(m), y(pair.speedup)) for m, pair in pairs.items()), own, of_plugin)
            for pairs, own, of_plugin in drawn
        ),
        taken=tuple((x(begin), x(end)) for begin, end in taken),
        taken_in_plugin=tuple((x(begin), x(end)) for begin, end in in_plugin),
        crossings=tuple(Tick(x(m), f"M={m}") for m in edges),
        ranges=tuple((x(a), x(b), x(c)) for a, b, c in profiles if a and b and c),
        x=tuple(Tick(x(m), f"{m:,}".replace(",", " ")) for m in _octaves(low, high)),
        y=tuple(Tick(y(step), f"{step:g}×") for step in _STEPS if bottom <= step <= top),
        one=y(1.0),
    )  # fmt: skip


def _measured(known: Measurements) -> list[_Measured]:
    """The shape that speaks for the layers, or those behind the threshold that does."""
    if known.shape:
        return [(known.shape, known.exact, known.pairs)]
    if known.threshold is None or known.threshold.min_m is None:
        return []
    kind, library, dtype = known.threshold.kind, known.threshold.library, known.threshold.dtype
    points = [p for p in known.policy.points if (p.kind, p.library, p.dtype) == (kind, library, dtype)]
    return [(shape, False, pairs) for shape, pairs in pairs_by_shape(points).items()]


def _measured_in_plugin(known: Measurements) -> dict[int, Pair]:
    """The plugin against TensorRT's dense kernel at the layers' own shape."""
    plugin = known_of(known.policy, known.gemm, "tensorrt", "plugin").own
    return plugin.pairs if plugin.exact else {}


def _subtitle(known: Measurements, curves: list[_Measured], plugin: Mapping[int, Pair]) -> str:
    whose = f"{WHOSE[known.library]}, {known.policy.device}, {known.gemm.dtype}"
    if plugin and not curves and known.threshold is None:
        return f"this shape was measured only in the plugin; {whose}"
    said = _own_subtitle(known, curves, whose)
    return f"{said}; the plugin was measured in TensorRT" if plugin else said


def _own_subtitle(known: Measurements, curves: list[_Measured], whose: str) -> str:
    shapes = ", ".join(f"{k} → {n}" for (n, k), _, _ in curves)
    if known.shape and curves and curves[0][1]:
        return f"this shape was measured; {whose}"
    if known.shape:
        return f"dashed: {shapes}, the nearest shape of its kind; {whose}"
    if curves:
        return f"the threshold of its kind decides, by {shapes} (dashed); {whose}"
    return f"the threshold of its kind decides; {whose}"


def _in_words(title: str, taken: list[tuple[int, int]], curves: list[_Measured]) -> str:
    said = f"{title}: sparse is taken {_spans(taken)}."
    for (n, k), _, pairs in curves:
        m, best = max(pairs.items(), key=lambda item: item[1].speedup)
        said += f" The largest speedup measured at {k} → {n} is {best.speedup:.2f}, at M={m}."
    return said


def _plugin_in_words(taken: list[tuple[int, int]], plugin: Mapping[int, Pair]) -> str:
    if not plugin:
        return ""
    m, best = max(plugin.items(), key=lambda item: item[1].speedup)
    largest = f"its largest speedup measured is {best.speedup:.2f}, at M={m}"
    return f" The plugin is taken {_spans(taken)}; {largest}."


def _spans(taken: list[tuple[int, int]]) -> str:
    spans = " and ".join(f"from M={a} to M={b}" if a < b else f"at M={a}" for a, b in taken)
    return spans or "at no M shown"


def _octaves(low: int, high: int) -> list[int]:
    powers = [2**i for i in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    step = math.ceil(len(powers) / 7) if powers else 1
    return powers[::step]
