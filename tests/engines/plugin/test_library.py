"""The plugin's library in a process and beside an engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparseflow_trt.engines.backends.child import run_build
from sparseflow_trt.engines.plugin import library as plugin_library
from sparseflow_trt.engines.plugin.library import (
    check_library,
    copy_library,
    library_for,
    load_library,
    lowered_note,
)
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions
from sparseflow_trt.engines.tensorrt.api import Flavour, version_of
from sparseflow_trt.errors import BuildError, NotInstalledError
from sparseflow_trt.model.target import PLUGIN_OP
from sparseflow_trt.plans.plan import Plan, PlannedLayer
from sparseflow_trt.policies.policy import Kernel
from tests.shared_libraries import write_library


def make_plan(**kernels: Kernel) -> Plan:
    layers = (
        PlannedLayer(name=n, kind="o", n=16, k=16, precision="fp16", sparsity=kernel, reason="")
        for n, kernel in kernels.items()
    )
    return Plan(precision="keep", policy="none", profiles=(), layers=tuple(layers))


def flavour(key: str = "tensorrt") -> Flavour:
    module: Any = SimpleNamespace()
    return Flavour(key, "TensorRT", module, "8.6.0", False)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with the plugin's name in it that adds a letter to a file whenever it is loaded."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    monkeypatch.setattr(plugin_library, "_loaded", set())
    source, library, trace = tmp_path / "p.cpp", tmp_path / "libp.so", tmp_path / "loaded"
    source.write_text(
        f'#include <fstream>\nstatic bool b = (std::ofstream("{trace}", std::ios::app) << "x", true);\n'
        f'extern "C" char const* getPluginName() {{ return "{PLUGIN_OP}"; }}\n'
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_a_library_is_looked_at_and_not_loaded(compiled: Path, tmp_path: Path) -> None:
    assert check_library(compiled) == compiled.resolve()
    assert not (tmp_path / "loaded").exists()


def test_the_name_that_is_looked_for_is_the_sources() -> None:
    header = Path(__file__).parents[3] / "plugins" / "sparse_linear" / "plugin.h"
    assert f'kName = "{PLUGIN_OP}"' in header.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no library", "it is not an ELF file"),
        (b"\x7fELF", "it is cut off after 4 bytes"),
        (None, f"it holds no {PLUGIN_OP}"),
    ],
)
def test_what_is_no_library_of_the_plugin_is_refused_wherever_it_is_given(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_library, "_loaded", set())
    path = tmp_path / "lib.so"
    if content is None:
        write_library(path, "AnotherPlugin")
    else:
        path.write_bytes(content)
    (tmp_path / "artifact").mkdir()
    plan = make_plan(a="plugin")
    uses: tuple[Callable[[], object], ...] = (
        lambda: check_library(path),
        lambda: copy_library(path, tmp_path / "artifact"),
        lambda: load_library(flavour(), path),
        lambda: library_for(plan, path, EngineOptions(), takes_plugin=True),
    )
    for use in uses:
        with pytest.raises(
            NotInstalledError, match=rf"lib\.so is not a library of the plugin: {says}"
        ) as caught:
            use()
        assert "`sparseflow-trt plugin build`" in caught.value.hint
    assert not list((tmp_path / "artifact").iterdir())


def test_a_copy_of_the_library_is_not_loaded_again(compiled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    copy = copy_library(compiled, folder)
    load_library(flavour(), compiled)
    load_library(flavour(), copy)
    assert (tmp_path / "loaded").read_text() == "x"


def test_a_library_whose_hash_is_known_is_not_hashed(compiled: Path) -> None:
    load_library(flavour(), compiled, "0123456789abcdef")
    with pytest.raises(BuildError, match="not 0123456789ab"):
        load_library(flavour(), compiled)


@pytest.mark.parametrize("name", ["libp.so", "libq.so"])
def test_another_library_is_refused_whatever_its_name(compiled: Path, tmp_path: Path, name: str) -> None:
    load_library(flavour(), compiled)
    folder = tmp_path / "other"
    folder.mkdir()
    other = folder / name
    other.write_bytes(compiled.read_bytes() + b"\0")
    with pytest.raises(BuildError, match="is not the plugin library that this process has loaded") as caught:
        load_library(flavour(), other)
    assert "two processes" in caught.value.hint


@pytest.mark.skipif(version_of("tensorrt-rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_child_process_loads_it_before_it_builds(
    compiled: Path, save_model: Any, make_request: Any, tmp_path: Path
) -> None:
    request: BuildRequest = replace(make_request(save_model(), 8), plugin=compiled)
    with pytest.raises(NotInstalledError, match="TensorRT-RTX takes no plugins"):
        run_build("tensorrt-rtx", request, tmp_path / "engine", lambda progress: None)


def test_the_libraries_that_the_plugin_loaded_say_their_versions(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    source, library = tmp_path / "p.cpp", tmp_path / "libcublasLt.so.99"
    source.write_text('extern "C" int cublasLtGetProperty(int type, int* v) { *v = 7 + type; return 0; }\n')
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    told = "import ctypes, sys; from sparseflow_trt.engines.plugin.library import versions_in_use as v; "
    done = subprocess.run(
        [sys.executable, "-c", f"{told}print(v()); ctypes.CDLL(sys.argv[1]); print(v())", library],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["{}", "{'cuBLASLt': '7.8.9'}"]


def test_a_builder_without_plugins_says_how_many_layers_run_dense() -> None:
    assert lowered_note(make_plan(a="sparse"), "X") == ()
    (note,) = lowered_note(make_plan(a="plugin", b="plugin"), "X")
    assert note.startswith("2 layer(s) are planned for the plugin, which X does not support: they run dense")
