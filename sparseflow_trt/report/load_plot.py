"""Draws what a server did by concurrency: throughput, latency, and the batches that it formed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparseflow_trt.artifacts.load_record import LoadStep
from sparseflow_trt.report.plots import INK, check_plot_name, plotting, save_plot

_COLOURS = ("#0f766e", "#b45309", "#6b7280")


def plot_load(title: str, steps: Sequence[LoadStep], path: Path) -> None:
    """Draws throughput and latency by concurrency, and below them the share of items by batch size.

    Args:
        title: Over the plot.
        steps: What was measured.
        path: A .png or .svg file.

    Raises:
        InputError: The file's name ends otherwise.
        NotInstalledError: Matplotlib is not installed.
        ArtifactError: The file cannot be written.
    """
    check_plot_name(path)
    places = range(len(steps))
    names = [str(step.concurrency) for step in steps]
    with plotting(title) as matplotlib:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 6), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        rate, late, batch = figure.subplots(3, 1, sharex=True)
        rate.bar(places, [step.per_second for step in steps], 0.5, color=_COLOURS[0])
        rate.set_ylabel("requests / s", color=INK)
        for colour, quantile in zip(_COLOURS, ("p50_ms", "p95_ms", "p99_ms"), strict=True):
            values = [getattr(step, quantile) for step in steps]
            late.plot(places, values, "o-", color=colour, label=quantile.removesuffix("_ms"), markersize=4)
        late.set_ylabel("milliseconds", color=INK)
        late.set_ylim(bottom=0)
        late.legend(frameon=False)
        sizes = sorted({size for step in steps for size in step.batches})
        bottom = [0.0] * len(steps)
        shades = matplotlib.colormaps["viridis"].resampled(max(len(sizes), 2))
        for number, size in enumerate(sizes):
            totals = [sum(s * n for s, n in step.batches.items()) or 1 for step in steps]
            shares = [
                size * step.batches.get(size, 0) / total for step, total in zip(steps, totals, strict=True)
            ]
            batch.bar(places, shares, 0.5, bottom=bottom, color=shades(number), label=str(size))
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
        batch.set_ylabel("items by batch", color=INK)
        batch.set_xlabel("concurrency", color=INK)
        batch.set_xticks(list(places), names)
        batch.legend(
            frameon=False, ncols=8, loc="upper center", bbox_to_anchor=(0.5, -0.3), title="batch size"
        )
        for axes in (rate, late, batch):
            axes.spines[["top", "right"]].set_visible(False)
        save_plot(figure, path)
