"""The plugin's library: loaded into TensorRT's process, or said why not."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.errors import NotInstalledError


def _flavour(key: str = "tensorrt") -> Flavour:
    module: Any = SimpleNamespace()
    return Flavour(key, "TensorRT", module, "8.6.0", False)


def test_tensorrt_rtx_takes_none(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match="takes no plugins"):
        load_plugin(_flavour("tensorrt-rtx"), tmp_path / "plugin.so")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=r"no plugin library .*absent\.so"):
        load_plugin(_flavour(), tmp_path / "absent.so")


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plugin.so"
    file.write_text(json.dumps("not ELF"))
    with pytest.raises(NotInstalledError, match=r"plugin\.so does not load") as caught:
        load_plugin(_flavour(), file)
    assert "headers of TensorRT 8.6.0" in caught.value.hint


def test_a_library_runs_its_constructors(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    source, library, trace = tmp_path / "p.cpp", tmp_path / "p.so", tmp_path / "loaded"
    source.write_text(f'#include <fstream>\nstatic bool done = (std::ofstream("{trace}") << "yes", true);\n')
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    load_plugin(_flavour(), library)
    assert trace.read_text() == "yes"
