"""A place that cannot be written is said at the beginning of a command, not after its work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparseflow_trt.errors import EXIT_NOT_INSTALLED

if TYPE_CHECKING:
    from tests.commands import Sparseflow

BEGINS = """
from pathlib import Path

def module():
    Path("begun").touch()
    raise ValueError("the work has begun")
"""
# What each command would complain of next: a source whose work leaves a mark, or one that holds nothing.
FILES = (
    ("export", "mine.py:module", "-o"),
    ("prune", "mine.py:module", "-o"),
    ("plan", "empty.onnx", "-o"),
    ("profile", "mine.py:module", "--plot"),
    ("baseline", "create", "gone.artifact", "-o"),
    ("check", "gone.artifact", "--baseline", "gone.json", "--junit"),
    ("policy", "learn", "gone.artifact", "--name", "x", "-o"),
    ("policy", "import", "gone.json", "--name", "x", "--device", "x", "--compute-capability", "8.0", "-o"),
    ("policy", "show", "gone", "--plot"),
    ("autotune", "empty.onnx", "-o"),
)
FOLDERS = (
    ("build", "mine.py:module", "-o"),
    ("build", "empty.onnx", "-o"),
    ("refit", "gone.artifact", "empty.onnx", "-o"),
)


@pytest.fixture(autouse=True)
def places(own_folder: Path) -> None:
    """A file and a folder where outputs are to go, and a source."""
    (own_folder / "mine.py").write_text(BEGINS, encoding="utf-8")
    (own_folder / "file").touch()
    (own_folder / "empty.onnx").touch()
    for name in ("folder.safetensors", "folder.svg"):
        (own_folder / name).mkdir()


def _suffix(command: tuple[str, ...]) -> str:
    return ".svg" if command[-1] == "--plot" else ".safetensors"


@pytest.mark.parametrize("command", (*FILES, *FOLDERS), ids=" ".join)
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("none/out", "the folder none does not exist"),
        ("file/out", "Not a directory"),
        ("/proc/out", "No such file or directory"),
    ],
)
def test_a_place_that_nobody_can_write_to(
    command: tuple[str, ...], place: str, why: str, sparseflow: Sparseflow, left: Callable[[Path], list[str]]
) -> None:
    before = left(Path())
    ended = sparseflow(*command, f"{place}{_suffix(command)}")
    assert (ended.code, ended.error) == (1, f"{place}{_suffix(command)} cannot be written: {why}.")
    assert left(Path()) == before


@pytest.mark.parametrize("command", FILES, ids=" ".join)
def test_a_folder_is_no_file_to_write(command: tuple[str, ...], sparseflow: Sparseflow) -> None:
    ended = sparseflow(*command, f"folder{_suffix(command)}")
    assert (ended.code, ended.error) == (1, f"folder{_suffix(command)} cannot be written: Is a directory.")
    assert not Path("begun").exists()


def test_a_default_place_is_looked_at_too(sparseflow: Sparseflow) -> None:
    Path("gone.baseline.json").mkdir()
    ended = sparseflow("baseline", "create", "gone.artifact")
    assert ended.error == "gone.baseline.json cannot be written: Is a directory."
    Path("mine.module.2to4.safetensors").mkdir()
    assert sparseflow("prune", "mine.py:module").error.endswith(": Is a directory.")
    Path("mine.module.artifact").touch()
    told = sparseflow("build", "mine.py:module").error
    assert told == "mine.module.artifact exists and is not an artifact."
    assert not Path("begun").exists()


def test_a_baseline_to_tighten_is_looked_at_too(sparseflow: Sparseflow) -> None:
    ended = sparseflow("check", "gone.artifact", "--baseline", "file/x.json", "--update")
    assert ended.error == "file/x.json cannot be written: Not a directory."


def test_a_plot_has_a_name_of_one(sparseflow: Sparseflow) -> None:
    ended = sparseflow("profile", "mine.py:module", "--plot", "x.jpg")
    assert ended.error == "x.jpg is not a plot's file name."
    assert not Path("begun").exists()


def test_a_plot_that_nothing_here_can_draw(sparseflow: Sparseflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = sparseflow("profile", "mine.py:module", "--plot", "x.svg")
    assert (ended.code, ended.error.startswith("matplotlib ")) == (EXIT_NOT_INSTALLED, True)
    assert not Path("begun").exists()


def test_a_folder_whose_parents_will_be_made(sparseflow: Sparseflow) -> None:
    command = ("deploy", "verify", "gone.artifact", "--repository", "models", "-o")
    assert sparseflow(*command, "file/a/b").error.endswith(" cannot be written: Not a directory.")
    assert "gone.artifact" in sparseflow(*command, "a/b").error
    assert not Path("a").exists()
