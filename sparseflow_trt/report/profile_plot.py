"""Draws where GPU time goes: a stacked bar for each profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparseflow_trt.report.plots import INK, check_plot_name, plotting, save_plot

_COLOURS = ("#0f766e", "#5eead4", "#b45309", "#fcd34d", "#6b7280", "#d1d5db")
_DARK = (0, 2, 4)  # of these colours, those that white is read on
_LABELLED = 0.04  # a narrower piece of a bar has no room for its share


def plot_profile(title: str, bars: Sequence[tuple[str, Mapping[str, float]]], path: Path) -> None:
    """Draws one bar for each profile, of milliseconds by class.

    Args:
        title: Over the plot.
        bars: Each bar's name, and its milliseconds by class; all have the same classes.
        path: A .png or .svg file.

    Raises:
        InputError: The file's name ends otherwise.
        NotInstalledError: Matplotlib is not installed.
        ArtifactError: The file cannot be written.
    """
    check_plot_name(path)
    height = 1.25 + 0.62 * len(bars)
    with plotting(title):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, height))
        axes = figure.add_axes((0.02, 0.45 / height, 0.96, 1 - 1.1 / height))
        classes = [(i, name) for i, name in enumerate(bars[0][1]) if any(times[name] for _, times in bars)]
        for row, (_, times) in enumerate(bars):
            total, left = sum(times.values()), 0.0
            for i, name in classes:
                axes.barh(row, times[name], 0.5, left=left, color=_COLOURS[i % len(_COLOURS)],
                          label=name if row == 0 else None)  # fmt: skip
                if total and times[name] / total >= _LABELLED:
                    axes.text(
                        left + times[name] / 2, row, f"{times[name] / total:.0%}", ha="center", va="center",
                        color="white" if i in _DARK else INK,
                    )  # fmt: skip
                left += times[name]
        for row, (name, times) in enumerate(bars):
            axes.text(0, row - 0.32, f"{name}: {sum(times.values()):.3f} ms", color=INK, va="bottom")
        axes.set_ylim(len(bars) - 0.7, -0.7)
        axes.set_yticks([])
        axes.set_xlabel("milliseconds of GPU time", color=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.text(0.02, 1 - 0.3 / height, title, fontsize=11, fontweight="bold", color=INK)
        figure.legend(
            loc="upper left", bbox_to_anchor=(0.01, 1 - 0.38 / height), ncols=len(classes), frameon=False,
            handlelength=1.0, columnspacing=1.2, labelcolor=INK,
        )  # fmt: skip
        save_plot(figure, path)
