"""Runs the command line, in this process where that is enough and in one of its own where it is not."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.model.pattern import prune_2to4
from tests.commands import Ended, Sparseflow, run_here
from tests.made_policies import make_points, make_policy

if TYPE_CHECKING:
    from tests.conftest import Models

COMMAND = (sys.executable, "-m", "sparseflow_trt.cli.main")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its current folder and its temporary files to itself."""
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.delenv("COLUMNS", raising=False)  # tables are as wide as they are in a pipe
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sparseflow:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        return run_here(monkeypatch, capfd, *arguments)

    return run


@pytest.fixture(scope="session")
def built_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `build_once` keeps artifacts that nobody changes."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture
def build_once(sparseflow: Sparseflow, built_before: Path) -> Callable[..., Path]:
    """Builds a model into a folder, or copies what the same command made of the same model before."""

    def run(model: Path, folder: str, *options: str) -> Path:
        of = repr((model.name, model.read_bytes(), folder, options)).encode()
        kept = built_before / hashlib.sha256(of).hexdigest()
        if not kept.exists():
            assert sparseflow("build", model, *options, "-o", folder).code == 0
            shutil.copytree(folder, kept)
        else:
            shutil.copytree(kept, folder)
        return Path(folder).resolve()

    return run


@pytest.fixture
def process() -> Sparseflow:
    """Runs a command in a process of its own."""

    def run(*arguments: object, **options: Any) -> Ended:
        command = (*COMMAND, *map(str, arguments))
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def terminal() -> Sparseflow:
    """Runs a command in a process of its own, whose standard output is a terminal of 80 columns."""

    def run(*arguments: object) -> Ended:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = (*COMMAND, *map(str, arguments))
        plain = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=plain) as child:
            os.close(theirs)
            out = b""
            with contextlib.suppress(OSError):  # Linux's end of a terminal
                while data := os.read(ours, 1 << 16):
                    out += data
            err = child.stderr.read() if child.stderr else ""
        os.close(ours)
        said = re.sub(r"\x1b\[[0-9;]*m", "", out.decode()).replace("\r\n", "\n")
        return Ended(child.returncode, said, err)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts a command and does not wait for it."""

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = (*COMMAND, *map(str, arguments))
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, heard)

    return run


@pytest.fixture
def with_head(models: Models) -> Path:
    """A saved model of up_proj and, behind it, a classifier, lm_head; neither is 2:4."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
        helper.make_node("MatMul", ["a", "head"], ["y"], name="lm_head"),
    ]
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("up", "head")}
    return models.save(models.model(nodes, weights))


@pytest.fixture
def mlp(models: Models) -> Callable[..., Path]:
    """Saves x (batch, k) through up_proj, Relu and down_proj; up_proj is 2:4."""

    def save(
        name: str = "model.onnx", k: int = 64, n: int = 128, down: str = "down_proj", seed: int = 0
    ) -> Path:
        rng = np.random.default_rng(seed)
        up = prune_2to4(rng.standard_normal((k, n)).astype(np.float32) / 8, 0)
        nodes = [
            helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
            helper.make_node("Relu", ["a"], ["b"], name="act"),
            helper.make_node("MatMul", ["b", "down"], ["y"], name=down),
        ]
        weights = {"up": up, "down": rng.standard_normal((n, 32)).astype(np.float32) / 8}
        return models.save(models.model(nodes, weights, {"x": ("batch", k)}), name)

    return save


@pytest.fixture
def policy(own_folder: Path) -> Path:
    """A file with times for the layers of `mlp`."""
    points = [
        *make_points("gate_up", 128, 64, {1: 0.5, 8: 2.0, 64: 2.0}),
        *make_points("down", 32, 128, {1: 0.5, 8: 1.0, 64: 1.0}),
    ]
    path = own_folder / "policy.json"
    path.write_text(make_policy(points).model_dump_json())
    return path


@pytest.fixture
def left() -> Callable[[Path], list[str]]:
    """What lies in a folder, with the hidden files; the builders' logs are elsewhere."""

    def names(folder: Path) -> list[str]:
        return sorted(entry.name for entry in folder.iterdir() if entry.name != "temporary")

    return names
