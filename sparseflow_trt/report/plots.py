"""What all plots share: their files' formats, and that the same values make the same file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._deps import require
from sparseflow_trt._files import written_atomically
from sparseflow_trt.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2937"  # the report's


def check_plot_name(path: Path) -> None:
    """Refuses a file that is neither .png nor .svg.

    Raises:
        InputError: It is.
    """
    if _kind(path) not in ("png", "svg"):
        raise InputError(f"{path} is not a plot's file name.", "End it with .png or .svg.", usage=True)


@contextlib.contextmanager
def plotting(seed: str) -> Iterator[Any]:
    """Matplotlib, with settings to draw and save with: an SVG's text is text, its names follow from `seed`.

    Raises:
        NotInstalledError: Matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "plots")
    with matplotlib.rc_context({"svg.hashsalt": seed, "svg.fonttype": "none", "font.size": 8}):
        yield matplotlib


def save_plot(figure: Figure, path: Path, title: str = "", shows: str = "") -> None:
    """Writes a drawing, with no date in it.

    Args:
        figure: What was drawn.
        path: A .png or .svg file.
        title: The title in its metadata, if any.
        shows: The description in its metadata, if any.

    Raises:
        ArtifactError: The file cannot be written.
    """
    kind = _kind(path)
    named = {"Title": title, "Description": shows}
    metadata: dict[str, str | None] = {name: text for name, text in named.items() if text}
    if kind == "svg":
        metadata["Date"] = None
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")
