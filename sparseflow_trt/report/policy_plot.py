"""Draws a policy's points: for each shape the times and the speedup against M, of each sparse kernel."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.policy import (
    WHOSE,
    Dtype,
    Library,
    Pair,
    Point,
    Policy,
    SparseKernel,
    digest_of,
)
from sparseflow_trt.report.plots import INK, check_plot_name, plotting, save_plot
from sparseflow_trt.report.policy_panels import Panel, Ranges, in_words, panels_of, title_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_DENSE, _SPARSE, _PLUGIN, _GRID = "#6b7280", "#0f766e", "#b45309", "#e5e7eb"  # the report's palette
_FEW = 16  # so many panels have four columns at most; more make about a square
_COLOURS: dict[SparseKernel, str] = {"sparse": _SPARSE, "plugin": _PLUGIN}
_LETTERS = 46  # of a line over a panel
_LINE = 0.13  # the height of one, in inches
_TAKEN: dict[SparseKernel, tuple[str, float]] = {"sparse": ("#d7efe9", 1), "plugin": ("#f5cf9f", 0.05)}
_NAMES = (  # in the order of the legend
    "dense", "sparse", "plugin", "dense / sparse", "dense / plugin", "dense / plugin, estimated", "margin",
    "sparse is taken", "plugin is taken",
)  # fmt: skip


def plot_policy(
    policy: Policy, path: Path, library: Library, dtype: Dtype, points: Iterable[Point] | None = None
) -> None:
    """Draws a panel for each shape: times above, speedups below, marked where a lookup takes a sparse kernel.

    TensorRT's panels show the plugin beside its own sparse kernels, each where it was measured, and the
    plugin's speedup, dashed, where an estimate decides. The file says in its metadata which policy it shows,
    with `digest_of` it, and what each panel says in words.

    Args:
        policy: The policy, whose lookup says where a kernel is taken.
        path: A .png or .svg file.
        library: Whose points.
        dtype: Of which type.
        points: The policy's points to draw of these; all where they are not given.

    Raises:
        InputError: The file's name ends otherwise.
        PolicyError: No such point was measured dense and sparse.
        NotInstalledError: Matplotlib is not installed.
        ArtifactError: The file cannot be written.
    """
    check_plot_name(path)
    panels = panels_of(policy, policy.points if points is None else points, library, dtype)
    if not panels:
        raise PolicyError(
            f"policy '{policy.name}' holds no {dtype} points of {WHOSE[library]} to draw.",
            f"`sparseflow-trt policy show {shlex.quote(policy.name)}` lists what it holds.",
        )
    columns = _columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    words = max(len(_in_lines(panel.ranges)) for panel in panels.values()) * _LINE
    kernels = {kernel for panel in panels.values() for kernel in panel.ranges}
    estimated = any(panel.estimates for panel in panels.values())
    width = max(3.5 * columns, 6.5 + len(kernels) + 2 * estimated)  # the latter is the legend's
    height = (3.5 + words) * rows + 1.1
    title = f"{policy.device} · {WHOSE[library]} · {dtype}"
    with plotting(policy.name):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height))
        outer = figure.add_gridspec(
            rows, columns, left=0.6 / width, right=1 - 0.15 / width, bottom=0.5 / height,
            top=1 - (1.2 + words) / height, hspace=(0.85 + words) / 2.65, wspace=0.28,
        )  # fmt: skip
        named: dict[str, Artist] = {}
        for i, (shape, panel) in enumerate(panels.items()):
            inner = outer[i // columns, i % columns].subgridspec(2, 1, height_ratios=(1.5, 1), hspace=0.09)
            times = figure.add_subplot(inner[0])
            ratio = figure.add_subplot(inner[1], sharex=times)
            _write_over(times, title_of(shape), panel.ranges)
            named |= _draw(times, ratio, policy.margin, panel, leftmost=i % columns == 0)
        lines = [named[name] for name in _NAMES if name in named]
        figure.text(0.15 / width, 1 - 0.3 / height, title, fontsize=13, fontweight="bold", color=INK)
        figure.text(
            0.15 / width, 1 - 0.55 / height, _subtitle(policy, library, estimated), fontsize=8, color=_DENSE
        )
        figure.legend(
            handles=lines, ncols=len(lines), frameon=False, loc="upper left", borderaxespad=0,
            bbox_to_anchor=(0.15 / width, 1 - 0.66 / height), handlelength=1.6, labelcolor=INK,
            columnspacing=1.4, borderpad=0.2,
        )  # fmt: skip
        said = [f"{title_of(shape)}: {', '.join(in_words(panel.ranges))}" for shape, panel in panels.items()]
        shows = f"policy {policy.name}, sha256 {digest_of(policy)}, {library} {dtype}"
        save_plot(figure, path, title, "\n".join([shows, *said]))


def _columns(panels: int) -> int:
    if panels == 5:
        return 3
    return min(4, panels) if panels <= _FEW else math.ceil(math.sqrt(panels))


def _subtitle(policy: Policy, library: Library, estimated: bool) -> str:
    names = {"tensorrt": ("tensorrt",), "torch": ("torch", "cusparselt", "cublas")}[library]
    versions = [f"{name} {policy.libraries[name]}" for name in names if name in policy.libraries]
    how = ["estimated: from cuSPARSELt, corrected by TensorRT's times"] if estimated else []
    return " · ".join([f"policy '{policy.name}', {policy.provenance}", *versions, *how])


def _in_lines(ranges: Ranges) -> list[tuple[str, SparseKernel]]:
    """The same as lines that fit over a panel, each with its kernel."""
    each = zip(in_words(ranges), ranges, strict=True)
    return [(line, kernel) for words, kernel in each for line in textwrap.wrap(words, _LETTERS)]


def _write_over(times: Axes, title: str, ranges: Ranges) -> None:
    """A panel's title, and below it where each kernel is taken: beside the curves there is no room for it."""
    lines = _in_lines(ranges)
    above = _LINE * 72  # points
    times.set_title(title, loc="left", fontsize=9, fontweight="bold", color=INK, pad=5 + above * len(lines))
    for i, (line, kernel) in enumerate(lines, 1):
        times.annotate(
            line, (0, 1), xycoords="axes fraction", color=_COLOURS[kernel], fontsize=7,
            xytext=(0, 4 + above * (len(lines) - i)), textcoords="offset points",
        )  # fmt: skip


def _draw(times: Axes, ratio: Axes, margin: float, panel: Panel, leftmost: bool) -> dict[str, Artist]:
    """Draws one shape; gives the artists that a legend names."""
    curves = panel.curves
    dense = {m: pair.dense for pairs in curves.values() for m, pair in pairs.items()}
    sizes = sorted({*dense, *panel.estimates})
    named = _draw_times(times, "dense", _DENSE, [dense[m] for m in sorted(dense)])
    bands: list[tuple[float, float]] = []
    for kernel, pairs in curves.items():
        named |= _draw_times(times, kernel, _COLOURS[kernel], [pair.sparse for pair in pairs.values()])
        colour = INK if kernel == "sparse" else _COLOURS[kernel]
        name = f"dense / {kernel}"
        (named[name],) = ratio.plot(
            list(pairs), [pair.speedup for pair in pairs.values()], color=colour, lw=1.2, marker="o", ms=2.6,
            label=name, zorder=3,
        )  # fmt: skip
        around = [_interval(pair) for pair in pairs.values()]
        ratio.fill_between(
            list(pairs), [low for low, _ in around], [high for _, high in around],
            color=colour, alpha=0.2, lw=0,
        )  # fmt: skip
        bands += around
    if panel.estimates:
        measured = {m: pair.speedup for m, pair in curves.get("plugin", {}).items()}
        named |= _draw_estimates(ratio, measured, panel.estimates)
        bands += [(speedup, speedup) for speedup in panel.estimates.values()]
    for kernel, spans in panel.ranges.items():
        named |= _mark_ranges((times, ratio), spans, kernel, sizes)
    ratio.axhline(1, color=_DENSE, lw=0.8, zorder=1)
    label = f"margin of {100 * margin:g}%"
    named["margin"] = ratio.axhline(1 + margin, color=_DENSE, lw=0.8, ls=(0, (2, 2)), zorder=1, label=label)
    _dress(times, ratio, sizes, [end for band in bands for end in band], leftmost)
    return named


def _draw_times(times: Axes, name: str, colour: str, points: list[Point]) -> dict[str, Artist]:
    sizes = [p.m for p in points]
    (line,) = times.plot(
        sizes, [p.us for p in points], color=colour, lw=1.4, marker="o", ms=2.6, label=name, zorder=3
    )
    times.fill_between(
        sizes, [p.low_us or p.us for p in points], [p.high_us or p.us for p in points],
        color=colour, alpha=0.25, lw=0, zorder=2,
    )  # fmt: skip
    return {name: line}


def _draw_estimates(
    ratio: Axes, measured: dict[int, float], estimates: dict[int, float]
) -> dict[str, Artist]:
    """Draws them dashed, from and to the measured ones beside them; between two of those there are none."""
    both = measured | estimates
    xs: list[float] = []
    ys: list[float] = []
    for ends in pairwise(sorted(both)):
        dashed = any(m in estimates for m in ends)
        xs += ends if dashed else [math.nan]
        ys += [both[m] for m in ends] if dashed else [math.nan]
    name = "dense / plugin, estimated"
    (line,) = ratio.plot(xs, ys, color=_PLUGIN, lw=1, ls=(0, (3, 1.5)), label=name, zorder=2)
    return {name: line}


def _mark_ranges(
    both: tuple[Axes, Axes], ranges: list[tuple[int, int]], kernel: SparseKernel, sizes: list[int]
) -> dict[str, Artist]:
    """Marks where a lookup takes the kernel.

    Sparse is shaded, with lines where that begins and ends; the plugin, which may be taken where sparse is,
    has a strip at the bottom.
    """
    from matplotlib.patches import Patch

    colour, height = _TAKEN[kernel]
    for axes in both:
        for begin, end in ranges:
            axes.axvspan(begin, end, 0, height, color=colour, lw=1 if begin == end else 0, zorder=0)
        ends = {m for span in ranges for m in span} if kernel == "sparse" else set()
        for m in ends - {sizes[0], sizes[-1]}:
            axes.axvline(m, color=_COLOURS[kernel], lw=0.5, alpha=0.4, zorder=1)
    name = f"{kernel} is taken"
    return {name: Patch(color=colour, label=name)}


def _dress(times: Axes, ratio: Axes, sizes: list[int], ratios: list[float], leftmost: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    for axes in (times, ratio):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(True, color=_GRID, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=7.5, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.yaxis.set_minor_locator(NullLocator())
    if sizes[0] == sizes[-1]:
        times.set_xlim(sizes[0] / 2, sizes[0] * 2)
    times.tick_params(labelbottom=False)
    low, high = min(*ratios, 0.95) / 1.04, max(*ratios, 1.1) * 1.04
    ratio.set_ylim(low, high)
    steps = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 2, 3, 4)
    ratio.yaxis.set_major_locator(FixedLocator([s for s in steps if low <= s <= high]))
    ratio.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    bottom, top = times.get_ylim()
    times.yaxis.set_major_locator(LogLocator(10, (1, 2, 5) if top / bottom < 300 else (1,)))
    times.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    octaves = range(math.floor(math.log2(sizes[0])), math.ceil(math.log2(sizes[-1])) + 1)
    step = math.ceil(len(octaves) / 7)
    ratio.xaxis.set_major_locator(FixedLocator([2**o for o in octaves][::step]))
    ratio.xaxis.set_minor_locator(NullLocator())
    ratio.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ratio.set_xlabel("M", fontsize=8, color=INK, labelpad=1)
    if leftmost:
        times.set_ylabel("µs", fontsize=8, color=INK)
        ratio.set_ylabel("speedup", fontsize=8, color=INK)


def _interval(pair: Pair) -> tuple[float, float]:
    """Between which speedups the two times' confidence intervals leave it."""

    def ends(point: Point) -> tuple[float, float]:
        return point.low_us or point.us, point.high_us or point.us

    (dense_low, dense_high), (sparse_low, sparse_high) = ends(pair.dense), ends(pair.sparse)
    return dense_low / sparse_high, dense_high / sparse_low
