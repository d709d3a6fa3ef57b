"""The notebook in demo/ runs from top to bottom and still gives the outputs that it is saved with."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat

DEMO = Path(__file__).parent.parent / "demo"
PATH = DEMO / "sparseflow_trt_demo.ipynb"
Cell = Any  # a nbformat.NotebookNode


def read() -> list[Cell]:
    """The code cells as they are saved."""
    notebook = nbformat.read(PATH, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(folder: Path) -> list[Cell]:
    """The code cells after a run in an empty folder."""
    spec = importlib.util.spec_from_file_location("run_notebook", DEMO / "run_notebook.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    notebook = script.run(PATH, folder)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Cell) -> list[str]:
    """What a cell prints and the tables it shows."""
    return [o.text if o.output_type == "stream" else o.data.get("text/markdown", "") for o in cell.outputs]


def kinds(cell: Cell) -> list[set[str]]:
    """Of what types a cell's outputs are."""
    return [{o.name} if o.output_type == "stream" else set(o.data) for o in cell.outputs]


def tags(cell: Cell) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)


def test_it_runs_and_says_what_is_saved(tmp_path: Path) -> None:
    ran = run(tmp_path)  # once: a run takes 15 s
    check_outputs(ran)
    check_verdicts(ran)
    check_pruning(ran)


def check_outputs(ran: list[Cell]) -> None:
    """Each cell gives the outputs that it is saved with."""
    for number, (saved, now) in enumerate(zip(read(), ran, strict=True)):
        assert kinds(now) == kinds(saved), number
        if "machine" in tags(saved):
            continue  # what is installed here decides
        told = [
            [without_numbers(t) if "measured" in tags(saved) else t for t in texts(c)] for c in (saved, now)
        ]
        assert told[0] == told[1], number


def check_verdicts(ran: list[Cell]) -> None:
    """The engine passes, and what was not run is no pass."""
    (cell,) = (cell for cell in ran if "machine" in tags(cell))
    rows = [row.split(" | ") for row in texts(cell)[-1].splitlines()[2:]]
    assert [row[2] for row in rows if row[0] == "| onnxruntime"] == ["**pass**", "**pass**"]
    assert {row[2] for row in rows if "engine (tensorrt-rtx)" in row[1]} <= {"**not run**", "**pass**"}


def check_pruning(ran: list[Cell]) -> None:
    """Pruning costs less where weights are given back."""
    (cell,) = (cell for cell in ran if "measured" in tags(cell))
    told = "".join(texts(cell))
    assert "Pruning makes most of the error" in told
    found = re.search(r"differs by (\d+) % from the unpruned model's; without them, by (\d+) %", told)
    assert found
    assert 5 < int(found[1]) < int(found[2]) / 2


def test_it_is_saved_as_a_run_from_top_to_bottom() -> None:
    cells = read()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert not any("stderr" in kind for cell in cells for kind in kinds(cell))
    assert not any("execution" in cell.metadata for cell in cells)  # times would change with each run
    assert PATH.stat().st_size < 600_000
    assert "/tmp/" not in PATH.read_text(encoding="utf-8")
