"""Renders policies: what one is, a row for each shape that it measured, and points with their times."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sparseflow_trt.cli import console

if TYPE_CHECKING:
    from sparseflow_trt.policies.measured_shapes import MeasuredShape
    from sparseflow_trt.policies.policy import Point, Policy, Threshold

_WORDS = 240  # characters of the clocks and of the source, which --json has whole
_MOST_SHAPES = 3  # of a threshold's that are named; more are counted
_MOST_ROWS = 20  # of points behind an answer; a threshold may have hundreds
_MOST_RANGES = 3  # of the M at which a kernel wins
_WHAT = """
"Won" is at how many of the measured M the kernel wins. "Wins at M" is where a lookup takes it: that
includes M between measured ones, where it has to be sure to win. The widest ranges are shown; the plugin's
are from its own points, to which `policy ask --plugin` adds estimates. "Best" is the largest measured
speedup. --points lists the times.
"""


def print_policy(policy: Policy, shown: Policy, every_point: bool = False) -> None:
    """Prints what a policy is, and of what is shown a row for each shape, or for each point.

    Args:
        policy: The whole of it, whose lookup says where sparse wins.
        shown: The same with the points and thresholds to show.
        every_point: A row for each point, and all shapes of a threshold.
    """
    from sparseflow_trt.policies.measured_shapes import measured_shapes

    out = console.out()
    for name, said in _facts(policy):
        console.say(f"{name + ':':<12}{said}")
    if shown.thresholds:
        console.say("\nWhere no measured shape is near:")
    for limit in shown.thresholds:
        console.say(f"  {limit.kind}, {limit.library} {limit.dtype}: {_range_of(limit, every_point)}")
    if shown.points and every_point:
        out.print()
        out.print(points_table(shown.points))
    elif shown.points:
        console.say(_WHAT)
        out.print(_shapes_table(measured_shapes(policy, shown.points)))


def points_table(points: Iterable[Point], shares: Sequence[float] = ()) -> Any:
    """A row for each sparse point beside its dense one, and for each dense one that has none.

    Args:
        points: The points.
        shares: Of each pair of dense and sparse, how much it weighs, where that is known.
    """
    table = console.table(
        "Kind", ">N", ">K", "Library", "Type", ">M", ">Dense µs", "95 %", "Kernel", ">µs", "95 %", ">Speedup",
        *([">Weight"] if shares else []), spared=("95 %", "Kind", "Library"),
    )  # fmt: skip
    points = tuple(points)

    dense: dict[tuple[Any, ...], Point] = {}  # of several the fastest, which is what counts
    for p in points:
        if p.kernel == "dense":
            dense[_product_of(p)] = min(dense.get(_product_of(p), p), p, key=lambda point: point.us)
    others = [p for p in points if p.kernel != "dense"]
    alone = dense.keys() - {_product_of(p) for p in others}
    for i, p in enumerate((*others, *(dense[key] for key in dense if key in alone))):
        base = dense.get(_product_of(p))
        figures = ("", "") if base is None else (f"{base.us:.2f}", _interval(base))
        own = ("", "", "") if p is base else (p.kernel, f"{p.us:.2f}", _interval(p))
        ratio = f"{base.us / p.us:.2f}×" if base and p is not base else ""
        weight = [f"{shares[i]:.1%}"] if shares else []
        table.add_row(
            p.kind, str(p.n), str(p.k), p.library, p.dtype, str(p.m), *figures, *own, ratio, *weight
        )
    return table


def nearest_points(points: Sequence[Point], m: int) -> tuple[Sequence[Point], int]:
    """Of very many points those of the products whose M is nearest, and how many rows are left out."""
    products = list(dict.fromkeys(_product_of(point) for point in points))
    if len(products) <= _MOST_ROWS:
        return points, 0
    nearest = set(sorted(products, key=lambda product: abs(math.log(product[-1] / m)))[:_MOST_ROWS])
    return [point for point in points if _product_of(point) in nearest], len(products) - _MOST_ROWS


def _product_of(point: Point) -> tuple[Any, ...]:
    return point.kind, point.library, point.dtype, point.n, point.k, point.m


def _shapes_table(shapes: Iterable[MeasuredShape]) -> Any:
    table = console.table(
        "Kind", ">N", ">K", "Library", "Type", "Kernel", ">M", ">Won", "Wins at M", ">Best", ">At M",
        spared=("At M", "M", "Best"),
    )  # fmt: skip
    for s in shapes:
        best = ("", "") if s.best is None else (f"{s.best.speedup:.2f}×", str(s.best.dense.m))
        won = f"{s.won} of {len(s.sizes)}" if s.kernel else f"{len(s.sizes)} dense"
        table.add_row(
            ", ".join(s.kinds), str(s.n), str(s.k), s.library, s.dtype, s.kernel or "dense alone",
            _span(s.sizes[0], s.sizes[-1]), won, _wins(s), *best,
        )  # fmt: skip
    return table


def _wins(shape: MeasuredShape) -> str:
    from sparseflow_trt.policies.lookup import widest

    if not shape.wins:
        return "nowhere" if shape.kernel else ""
    said = ", ".join(_span(*span) for span in widest(shape.wins, _MOST_RANGES))
    more = len(shape.wins) - _MOST_RANGES
    return f"{said} and {more} more" if more > 0 else said


def _facts(policy: Policy) -> Iterable[tuple[str, str]]:
    yield "Device", f"{policy.device}, compute capability {policy.compute_capability}"
    versions = (f"{name} {version}" for name, version in policy.libraries.items())
    yield "Libraries", ", ".join(versions) or "not recorded"
    yield "Margin", f"{policy.margin:.0%}, by which sparse has to be faster"
    if policy.wave is None:
        yield "Wave", "not known: between two measured M, the larger one decides"
    elif policy.wave:
        yield "Wave", f"{policy.wave:,} elements, the step by which times may jump between measured M"
    yield (
        "Spreads",
        f"{policy.spreads:g} standard deviations are subtracted from what other shapes predict, "
        f"{policy.spreads_between:g} between measured M",
    )
    yield "Provenance", policy.provenance
    for name, words in (("Clocks", policy.clocks), ("Source", policy.source)):
        yield name, textwrap.shorten(words, _WORDS, placeholder=" …")


def _range_of(limit: Threshold, whole: bool) -> str:
    if limit.min_m is None:
        said = "dense" if limit.kernel == "sparse" else "not in the plugin"
    else:
        said = f"{limit.kernel} from M={limit.min_m}"
        said += f" to {limit.max_m}" if limit.max_m is not None else ""
    shapes = ", ".join(f"{k}→{n}" for n, k in limit.shapes)
    if len(limit.shapes) > _MOST_SHAPES and not whole:
        shapes = f"of {len(limit.shapes)} shapes"
    return f"{said} ({shapes})" if shapes else said


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _interval(point: Point) -> str:
    return "" if point.low_us is None else f"{point.low_us:.2f}–{point.high_us:.2f}"
