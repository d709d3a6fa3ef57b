"""A layer's life in the plugin, on CPU libraries that stand in for CUDA's runtime, cuSPARSELt and cuBLASLt.

What they cannot show is how fast or how right NVIDIA's libraries are: tests/gpu has that.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.plugins.conftest import FAKE, HERE, NEED_TENSORRT, RECORD, SOURCES, MakeOnce, compile_parts

CHECKS = re.findall(r'{"(\w+)",\s+\1},', (HERE / "drive_layer.cpp").read_text())


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


@pytest.fixture(scope="session")
def folder(made_once: MakeOnce, record_parts: Path) -> Path:
    """drive_layer, the libraries and the layer's parts but for those of `record_parts`."""

    def make(made: Path) -> None:
        compile_fakes(made)
        apart = {*NEED_TENSORRT, *RECORD}
        sources = sorted(path for path in SOURCES.glob("*.cpp") if path.name not in apart)
        driver = ["-O0", "-c", HERE / "drive_layer.cpp"]  # the longest, and none of what is tested
        compile_parts(made, *(["-c", *half] for half in (sources[::2], sources[1::2])), driver)
        link = ["-L.", "-lfakecuda", f"-Wl,-rpath,{made}", "-ldl", "-lpthread"]
        compile_parts(made, [*made.glob("*.o"), *record_parts.glob("*.o"), "-o", "drive_layer", *link])

    return made_once("layer", make)


def test_each_fp16_and_bf16_number_is_widened_as_the_compiler_does_it(tmp_path: Path) -> None:
    compile_parts(tmp_path, [HERE / "check_numbers.cpp", "-o", "check_numbers"])
    done = subprocess.run([tmp_path / "check_numbers"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_benchmark_of_layers_finds_both_kernels_right(
    folder: Path, record_parts: Path, tmp_path: Path
) -> None:
    source = HERE.parents[1] / "benchmarks" / "plugin_layer.cpp"
    parts = [part for part in folder.glob("*.o") if part.name != "drive_layer.o"]
    parts += record_parts.glob("*.o")
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
