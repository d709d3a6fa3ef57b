"""The commands that work on ONNX files, where there is no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.cli.main import _COMMANDS

if TYPE_CHECKING:
    from tests.conftest import Models

# Read by every Python process that starts, children of children too: as if torch were not installed.
_SITE = """
import importlib.machinery

find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] == "torch" else find(name, *rest)
)
"""
_RUN = """
import json, sys
from sparseflow_trt.cli.main import main

codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes), file=sys.stderr)
"""


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python processes find no torch."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_SITE)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def test_the_environment_has_no_torch(without_torch: dict[str, str]) -> None:
    command = [sys.executable, "-c", "import numpy, torch"]
    done = subprocess.run(command, env=without_torch, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_commands_run_without_torch(models: Models, without_torch: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("MatMul", ["b", "down"], ["y"], name="down_proj"),
    ]
    weights = {
        "up": rng.standard_normal((64, 128)).astype(np.float32) / 8,
        "down": rng.standard_normal((128, 32)).astype(np.float32) / 8,
    }
    models.save(models.model(nodes, weights), "dense.onnx")
    dims = ["--dim", "batch=1,4,8"]
    commands = [
        ["prune", "dense.onnx", "-o", "sparse.onnx"],
        ["inspect", "sparse.onnx"],
        ["plan", "sparse.onnx", "-o", "plan.yaml", *dims],
        ["build", "sparse.onnx", "-o", "artifact", "--backend", "onnxruntime", *dims],
        ["validate", "artifact", "--reference", "sparse.onnx"],
        ["doctor"],
        ["--help"],
        *([name, "--help"] for name in _COMMANDS),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(commands)],
        cwd=models.folder,
        env=without_torch,
        capture_output=True,
        text=True,
        check=True,
    )
    *errors, codes = done.stderr.splitlines()
    assert json.loads(codes) == [0] * len(commands), done.stdout + done.stderr
    assert not any("error" in line or "torch" in line for line in errors), done.stderr
    assert (models.folder / "artifact" / "manifest.json").is_file()
    assert "Usage: sparseflow-trt inspect" in done.stdout
