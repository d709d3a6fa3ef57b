"""Compiles the plugin's sources with the sanitizers, once for all tests and pytest-xdist's workers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

MakeOnce = Callable[[str, Callable[[Path], None]], Path]

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "sparse_linear"
FAKE = HERE / "fake"
RECORD = ("choices.cpp", "packed.cpp", "record.cpp")  # which a layer and format_tool have in common
NEED_TENSORRT = {
    "fields.cpp",
    "log.cpp",
    "plugin.cpp",
    "check_cusparselt.cpp",
    "check_cublaslt.cpp",
    "format_tool.cpp",
}
FLAGS = ("-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all", f"-I{FAKE}", f"-I{SOURCES}")  # fmt: skip


def compile_parts(folder: Path, *commands: Sequence[object]) -> None:
    """Runs g++ once for each list of arguments, side by side."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    running = [
        subprocess.Popen([compiler, *FLAGS, *map(str, words)], cwd=folder, stderr=subprocess.PIPE, text=True)
        for words in commands
    ]
    for process in running:
        _, said = process.communicate()
        if "cannot find -lasan" in said or "cannot find -lubsan" in said:
            pytest.skip("g++'s sanitizers are not installed")
        assert process.returncode == 0, said


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Fills a folder of a name, unless another worker has; what fails there is tried anew."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the workers' folders lie side by side

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        made = base / name
        with made.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.with_suffix(".done").is_file():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                fill(made)
                made.with_suffix(".done").touch()
        return made

    return make


@pytest.fixture(scope="session")
def record_parts(made_once: MakeOnce) -> Path:
    """The objects of the packed format and of what an engine keeps."""
    sources = [SOURCES / name for name in RECORD]
    return made_once("record", lambda made: compile_parts(made, ["-c", *sources]))
