"""The summary of a run on a GPU: what passed and failed is kept, also of a run that is cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.pages import prose, result_of

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


def write_tests(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "gpu" / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n", encoding="utf-8")


def run(tmp_path: Path, *arguments: str) -> int:
    """Runs them with a summary in gpu.json, by its absolute path."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--gpu-summary", str(tmp_path / "gpu.json"), *arguments]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they need pytest and none of its plugins
    return subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, check=False).returncode


def read(tmp_path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    return summary


def counts(summary: dict[str, Any]) -> tuple[int, int, int, list[str]]:
    passed, failed, skipped = (summary[word] for word in ("passed", "failed", "skipped"))
    return passed, failed, skipped, [name.partition("::")[2] for name in summary["not run"]]


def test_a_run_that_is_cut_has_its_summary(tmp_path: Path) -> None:
    write_tests(tmp_path)
    assert run(tmp_path) == 9
    summary = read(tmp_path)
    assert counts(summary) == (1, 1, 0, ["test_is_cut", "test_is_never_reached"])
    failed = summary["tests"]["test_some.py::test_fails"]
    assert (failed["outcome"], failed["reason"]) == ("failed", "AssertionError: arithmetic")
    assert any("assert 1 + 1 == 3" in line for line in failed["trace"])


def test_a_later_run_is_added_and_names_no_folders(tmp_path: Path) -> None:
    write_tests(tmp_path)
    assert run(tmp_path) == 9
    path = tmp_path / "test_some.py"
    path.write_text(TESTS.replace("1 + 1 == 3", "1 + 1 == 2"), encoding="utf-8")
    assert run(tmp_path, "-k", "fails or reached") == 0
    summary = read(tmp_path)
    assert counts(summary) == (3, 0, 0, ["test_is_cut"])
    assert [r["command"].partition("--gpu-summary ")[2] for r in summary["runs"]] == [
        "gpu.json", "gpu.json -k 'fails or reached'",
    ]  # fmt: skip
    assert str(tmp_path) not in json.dumps(summary)


def test_a_skipped_test_hides_no_result(tmp_path: Path) -> None:
    write_tests(tmp_path)
    assert run(tmp_path, "-k", "fails") == 1
    path = tmp_path / "test_some.py"
    skipped = TESTS.replace("def test_fails", "import pytest\n\n\n@pytest.mark.skip\ndef test_fails")
    path.write_text(skipped, encoding="utf-8")
    assert run(tmp_path, "-k", "fails or passes") == 0
    assert counts(read(tmp_path)) == (1, 1, 0, [])


def test_results_of_another_machine_are_replaced(tmp_path: Path) -> None:
    write_tests(tmp_path)
    assert run(tmp_path, "-k", "fails") == 1
    other = read(tmp_path) | {"driver": "1.2"}
    (tmp_path / "gpu.json").write_text(json.dumps(other), encoding="utf-8")
    assert run(tmp_path, "-k", "passes") == 0
    assert counts(read(tmp_path)) == (1, 0, 0, [])


def line_of(counted: list[int]) -> str:
    """A table's row."""
    return f"| {' | '.join(map(str, counted))} |"


def test_the_committed_summary_is_one_of_these_tests() -> None:
    summary = result_of("gpu_tests")
    outcomes = [test["outcome"] for test in summary["tests"].values()]
    assert all(outcomes.count(word) == summary[word] for word in ("passed", "failed", "skipped"))
    assert not set(summary["tests"]) & set(summary["not run"])
    assert "/tmp" not in json.dumps(summary)
    page = prose("docs/TENSORRT.md")
    said = "{passed} passed, {failed} failed, {skipped} were skipped".format(**summary)
    assert f"{said}; not run: {len(summary['not run'])} (" in page
    readme = prose("README.md")
    total = len(outcomes) + len(summary["not run"])
    counted = [total, *(summary[word] for word in ("passed", "failed", "skipped")), len(summary["not run"])]
    head = "| tests | passed | failed | skipped | not run | |---|---|---|---|---|"
    assert f"{head} {line_of(counted)}" in readme
    for file in {name.partition("::")[0] for name in [*summary["tests"], *summary["not run"]]}:
        told = [test["outcome"] for name, test in summary["tests"].items() if name.startswith(f"{file}::")]
        missing = sum(name.startswith(f"{file}::") for name in summary["not run"])
        row = [*(str(told.count(word)) for word in ("passed", "failed", "skipped")), str(missing)]
        assert f"| `{Path(file).name}` | {' | '.join(row)} |" in page
    failed = [
        name.rpartition("::")[2] for name, test in summary["tests"].items() if test["outcome"] == "failed"
    ]
    assert all(f"`{name}`" in page for name in failed), failed
