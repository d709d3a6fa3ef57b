"""The summary of a run on a GPU: what passed and failed is kept, also of a run that is cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import os

NEEDS_TENSORRT = False


def test_passes():
    pass


def test_fails():
    assert 1 + 1 == 3, "arithmetic"


def test_is_cut():
    os._exit(9)


def test_is_never_reached():
    pass
"""


def test_a_run_that_is_cut_has_its_summary(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "gpu" / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n", encoding="utf-8")
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--gpu-summary",
        "gpu.json",
    ]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stdout + done.stderr
    summary = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert {word: summary[word] for word in ("passed", "failed", "skipped", "not run")} == {
        "passed": 1, "failed": 1, "skipped": 0, "not run": 2,
    }  # fmt: skip
    failed = summary["tests"]["test_some.py::test_fails"]
    assert (failed["outcome"], failed["reason"]) == ("failed", "AssertionError: arithmetic")
    assert any("assert 1 + 1 == 3" in line for line in failed["trace"])
