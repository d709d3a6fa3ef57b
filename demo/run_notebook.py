"""Runs a notebook from top to bottom and saves it with its outputs.

    python demo/run_notebook.py demo/sparseflow_trt_demo.ipynb

Times of day are left out, so that a notebook under version control changes where its outputs do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def main(path: Path) -> None:
    """Runs it where it lies, and saves it."""
    nbformat.write(run(path, path.parent), path)


def run(path: Path, folder: Path) -> Any:
    """The notebook after a run of a fresh kernel in a folder; a cell that fails is an error."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=300, record_timing=False, resources=place).execute()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
