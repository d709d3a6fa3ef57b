"""The plugin's class and creator against a TensorRT release's headers, without TensorRT and without a GPU.

The environment variable SPARSEFLOW_TENSORRT_INCLUDE names the headers' folders, with ":" between them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.plugins.conftest import HERE, NEED_TENSORRT, SOURCES, compile_parts
from tests.plugins.test_layer import compile_fakes

INCLUDES = [Path(folder) for folder in os.environ.get("SPARSEFLOW_TENSORRT_INCLUDE", "").split(":") if folder]


@pytest.mark.skipif(not INCLUDES, reason="SPARSEFLOW_TENSORRT_INCLUDE does not name TensorRT's headers")
@pytest.mark.parametrize("include", INCLUDES, ids=str)
def test_a_plugin_is_built_serialized_and_run(include: Path, tmp_path: Path) -> None:
    compile_fakes(tmp_path)
    headers = ["-isystem", include, "-Wno-deprecated-declarations"]
    layer = sorted(path for path in SOURCES.glob("*.cpp") if path.name not in NEED_TENSORRT)
    plugin = [HERE / "drive_plugin.cpp", SOURCES / "fields.cpp", SOURCES / "log.cpp"]
    compile_parts(tmp_path, *([*headers, "-c", *half] for half in (layer, plugin)))
    link = ["-L.", "-lfakecuda", f"-Wl,-rpath,{tmp_path}", "-ldl", "-lpthread"]
    compile_parts(tmp_path, [*tmp_path.glob("*.o"), "-o", "drive_plugin", *link])
    named = {"SPARSEFLOW_CUSPARSELT": str(tmp_path), "SPARSEFLOW_CUBLASLT": str(tmp_path)}
    done = subprocess.run(
        [tmp_path / "drive_plugin"], env=os.environ | named, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
