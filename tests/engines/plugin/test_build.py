"""Compiling the plugin: what it takes is found, or named with the way to get it."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from sparseflow_trt.engines.plugin.build import PluginRequest, build_plugin
from sparseflow_trt.engines.plugin.library import check_library
from sparseflow_trt.engines.plugin.loading import default_library, find_plugin
from sparseflow_trt.errors import BuildError, NotInstalledError

REAL = [Path(folder) for folder in os.environ.get("SPARSEFLOW_TENSORRT_INCLUDE", "").split(":") if folder]
needs_tools = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="CMake or g++ is not installed"
)


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A folder that looks like TensorRT 10.3's headers."""
    folder = tmp_path / "tensorrt"
    folder.mkdir()
    (folder / "NvInferRuntime.h").write_text("#error these are no headers\n")
    lines = [f"#define TRT_{part}_ENTERPRISE {n}" for part, n in (("MAJOR", 10), ("MINOR", 3), ("PATCH", 0))]
    (folder / "NvInferVersion.h").write_text("\n".join(lines))
    return folder


@pytest.fixture
def cuda(tmp_path: Path) -> Path:
    """A folder that looks like CUDA."""
    folder = tmp_path / "cuda"
    for name in ("include/cuda_runtime_api.h", "include/crt/host_defines.h", "lib64/libcudart_static.a"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return folder


@needs_tools
def test_missing_headers_of_tensorrt_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=rf"no NvInferRuntime\.h in {tmp_path}") as caught:
        build_plugin(PluginRequest(tmp_path))
    assert "--tensorrt-include" in caught.value.hint


@needs_tools
def test_headers_without_a_version_are_refused(headers: Path) -> None:
    (headers / "NvInferVersion.h").write_text("")
    with pytest.raises(NotInstalledError, match=r"NvInferVersion\.h does not say its version"):
        build_plugin(PluginRequest(headers))


@needs_tools
@pytest.mark.parametrize(
    ("gone", "message", "hint"),
    [
        ("include/cuda_runtime_api.h", r"has no cuda_runtime_api\.h", "nvidia-cuda-runtime"),
        ("include/crt/host_defines.h", r"crt/host_defines\.h, which is not installed", "nvidia-cuda-crt"),
        ("lib64/libcudart_static.a", "CUDA's runtime library is missing", "nvidia-cuda-runtime"),
    ],
)
def test_missing_parts_of_cuda_are_named(
    headers: Path, cuda: Path, gone: str, message: str, hint: str
) -> None:
    (cuda / gone).unlink()
    with pytest.raises(NotInstalledError, match=message) as caught:
        build_plugin(PluginRequest(headers, cuda=cuda))
    assert hint in caught.value.hint


@needs_tools
def test_a_folder_without_cusparselt_is_refused(headers: Path, cuda: Path, tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=r"has no libcusparseLt\.so\.0") as caught:
        build_plugin(PluginRequest(headers, cuda=cuda, cusparselt=tmp_path))
    assert "pip install nvidia-cusparselt" in caught.value.hint


@needs_tools
def test_what_the_compiler_refuses_is_said(headers: Path, cuda: Path, tmp_path: Path) -> None:
    output = tmp_path / "plugin.so"
    with pytest.raises(BuildError, match=r"does not compile against TensorRT 10\.3\.0: .*error"):
        build_plugin(PluginRequest(headers, output, cuda))
    assert not output.exists()


def test_missing_tools_are_named(headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotInstalledError, match="cmake is not installed") as caught:
        build_plugin(PluginRequest(headers))
    assert caught.value.hint == "pip install cmake"


def test_a_library_is_looked_for_by_major_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SPARSEFLOW_PLUGIN", raising=False)
    assert default_library("10.3.0") == default_library("10.16.1") != default_library("8.6.0")
    with pytest.raises(NotInstalledError, match=r"is not built: .*trt10\.so does not exist") as caught:
        find_plugin("10.3.0")
    assert "sparseflow-trt plugin build" in caught.value.hint
    library = default_library("10.3.0")
    library.parent.mkdir()
    library.touch()
    assert find_plugin("10.3.0") == library
    monkeypatch.setenv("SPARSEFLOW_PLUGIN", str(tmp_path / "mine.so"))
    with pytest.raises(NotInstalledError, match=r"mine\.so, which SPARSEFLOW_PLUGIN names, does not exist"):
        find_plugin("10.3.0")


@needs_tools
@pytest.mark.skipif(not REAL, reason="SPARSEFLOW_TENSORRT_INCLUDE does not name TensorRT's headers")
@pytest.mark.parametrize("include", REAL, ids=str)
def test_it_compiles(include: Path, tmp_path: Path) -> None:
    cuda = os.environ.get("CUDA_HOME")
    built = build_plugin(PluginRequest(include, tmp_path / "plugin.so", Path(cuda) if cuda else None))
    assert check_library(built.library) == built.library
    with pytest.raises(OSError, match=r"getLogger|getPluginRegistry"):  # which TensorRT brings
        ctypes.CDLL(str(built.library), os.RTLD_NOW)
