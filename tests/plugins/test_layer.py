"""A layer's life in the plugin, on CPU libraries that stand in for CUDA's runtime, cuSPARSELt and cuBLASLt.

What they cannot show is how fast or how right NVIDIA's libraries are: tests/gpu has that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "sparse_linear"
FAKE = HERE / "fake"
CHECKS = re.findall(r'{"(\w+)",\s+\1},', (HERE / "drive_layer.cpp").read_text())
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


def compile_fakes(folder: Path) -> None:
    """The three libraries, and a cuSPARSELt that is too old."""
    (folder / "old").mkdir()
    compile_parts(folder, ["-shared", "-fPIC", FAKE / "cuda.cpp", "-o", "libfakecuda.so"])
    link = ["-L.", "-lfakecuda", f"-Wl,-rpath,{folder}"]
    compile_parts(
        folder,
        ["-shared", "-fPIC", "-DFAKE_MINOR=9", FAKE / "cusparselt.cpp", "-o", "libcusparseLt.so.0", *link],
        [
            "-shared",
            "-fPIC",
            "-DFAKE_MINOR=7",
            FAKE / "cusparselt.cpp",
            "-o",
            "old/libcusparseLt.so.0",
            *link,
        ],
        ["-shared", "-fPIC", FAKE / "cublaslt.cpp", "-o", "libcublasLt.so.13", *link],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """drive_layer and the libraries, compiled once for all of pytest-xdist's workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return compile_driver(tmp_path_factory.mktemp("layer"))
    made = tmp_path_factory.getbasetemp().parent / "layer"  # the workers' folders lie side by side
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "drive_layer").is_file():
            shutil.rmtree(made, ignore_errors=True)  # what could not be compiled, by another worker
            made.mkdir()
            compile_driver(made)
    return made


def compile_driver(made: Path) -> Path:
    """drive_layer, which is written last, and the libraries."""
    compile_fakes(made)
    sources = sorted(path for path in SOURCES.glob("*.cpp") if path.name not in NEED_TENSORRT)
    halves = sources[::2], [*sources[1::2], HERE / "drive_layer.cpp"]
    compile_parts(made, *(["-c", *half] for half in halves))
    link = ["-L.", "-lfakecuda", f"-Wl,-rpath,{made}", "-ldl", "-lpthread"]
    compile_parts(made, [*made.glob("*.o"), "-o", "drive_layer", *link])
    return made


def test_the_benchmark_of_layers_finds_both_kernels_right(folder: Path, tmp_path: Path) -> None:
    source = HERE.parents[1] / "benchmarks" / "plugin_layer.cpp"
    parts = [part for part in folder.glob("*.o") if part.name != "drive_layer.o"]
    link = [f"-L{folder}", "-lfakecuda", f"-Wl,-rpath,{folder}", "-ldl", "-lpthread"]
    compile_parts(tmp_path, [source, *parts, "-o", "plugin_layer", *link])
    named = {"SPARSEFLOW_CUSPARSELT": str(folder), "SPARSEFLOW_CUBLASLT": str(folder)}
    done = subprocess.run(
        [tmp_path / "plugin_layer", "32", "16", "16", "64"],
        env=os.environ | named,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["type"], row["m"]) for row in rows] == [
        ("fp16", 16),
        ("fp16", 64),
        ("bf16", 16),
        ("bf16", 64),
    ]
    for row in rows:
        assert 0 < row["sparse_error"] == row["dense_error"] < {"fp16": 2**-11, "bf16": 2**-8}[row["type"]]
        assert (set(row["sparse_us"]), set(row["dense_us"])) == ({5.0}, {4.0})  # what the stand-ins take


def drive(folder: Path, check: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a check; the libraries are named in the environment, unless `variables` names others."""
    named = {"SPARSEFLOW_CUSPARSELT": str(folder), "SPARSEFLOW_CUBLASLT": str(folder)} | variables
    return subprocess.run(
        [folder / "drive_layer", check], env=os.environ | named, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("check", [name for name in CHECKS if not name.startswith("loads")])
def test_a_layer(folder: Path, check: str) -> None:
    done = drive(folder, check)
    assert done.returncode == 0, done.stderr


def test_a_missing_library_is_named(folder: Path) -> None:
    done = drive(folder, "loads", SPARSEFLOW_CUSPARSELT="/nowhere/libcusparseLt.so.0")
    assert done.returncode == 1
    assert "cuSPARSELt does not load (/nowhere/libcusparseLt.so.0" in done.stderr
    assert "install nvidia-cusparselt-cu12 or -cu13" in done.stderr


def test_an_old_library_is_refused(folder: Path) -> None:
    done = drive(folder, "loads", SPARSEFLOW_CUSPARSELT=str(folder / "old"))
    assert done.returncode == 1
    assert "is 0.7.1, and 0.8.1 is the oldest that is taken" in done.stderr


def test_dense_products_need_cublaslt(folder: Path) -> None:
    assert drive(folder, "loads", SPARSEFLOW_CUBLASLT="/nowhere").returncode == 0
    done = drive(folder, "loads_dense", SPARSEFLOW_CUBLASLT="/nowhere/lib.so")
    assert done.returncode == 1
    assert "cuBLASLt does not load" in done.stderr


def test_another_library_is_no_cusparselt(folder: Path) -> None:
    done = drive(folder, "loads", SPARSEFLOW_CUSPARSELT=str(folder / "libcublasLt.so.13"))
    assert done.returncode == 1
    assert "has no cusparseLtInit" in done.stderr


def test_fewer_algorithms_can_be_asked_for(folder: Path) -> None:
    done = drive(folder, "the_fastest_right_algorithm_is_kept", SPARSEFLOW_ALGORITHMS="2")
    assert done.returncode == 1
    assert "linear->algorithm(128).id == 3" in done.stderr
