"""Compiles the 2:4 plugin against a TensorRT release's headers, with what it needs of CUDA found or named."""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt._files import check_file, written_atomically
from sparseflow_trt.engines.machine.cuda_libraries import wheel_folders
from sparseflow_trt.engines.plugin.loading import default_library
from sparseflow_trt.errors import BuildError, NotInstalledError

SOURCES = "sparseflow_trt.plugin_sources"  # the package of plugins/sparse_linear
_LIBRARY = "libsparseflow_linear24.so"
_SYSTEM_CUDA = Path("/usr/local/cuda")
_TENSORRT_INCLUDES = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu",
                      "/usr/local/tensorrt/include", "/usr/include")  # fmt: skip
_CUDARTS = ("libcudart_static.a", "libcudart.so", "libcudart.so.13", "libcudart.so.12")
_AT_RUN_TIME = {
    "cuSPARSELt": ("libcusparseLt.so.0", "pip install nvidia-cusparselt-cu13 (or -cu12)"),
    "NVRTC": ("libnvrtc.so.1[23]", "pip install nvidia-cuda-nvrtc (or nvidia-cuda-nvrtc-cu12)"),
    "cuBLASLt": ("libcublasLt.so.1[23]", "pip install nvidia-cublas (or nvidia-cublas-cu12)"),
}
_PIP_CUDA = "pip install nvidia-cuda-runtime nvidia-cuda-crt, or name CUDA's folder: --cuda DIR"
_VERSION = re.compile(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(?:_ENTERPRISE)?\s+(\d+)")


@dataclass(frozen=True)
class PluginRequest:
    """What to compile, and with what.

    Attributes:
        tensorrt_include: The folder of NvInferRuntime.h; None for the system's.
        output: The library to write; None for where it is looked for (`default_library`).
        cuda: A CUDA installation, with include/ and lib64/ or lib/; None for CUDA_HOME, NVIDIA's wheels in
            this Python, /usr/local/cuda.
        cusparselt: The folder of libcusparseLt.so.0, to be remembered in the library; None for that of
            NVIDIA's wheels.
    """

    tensorrt_include: Path | None = None
    output: Path | None = None
    cuda: Path | None = None
    cusparselt: Path | None = None


@dataclass(frozen=True)
class BuiltPlugin:
    """A compiled plugin.

    Attributes:
        library: Its file.
        tensorrt: The release that it is for, as its headers say it.
        tensorrt_include, cuda_includes, cudart: What it was compiled with.
        library_folders: Where it looks for cuSPARSELt and cuBLASLt before the system's loader does.
        notes: Sentences about what it will lack when it runs.
    """

    library: Path
    tensorrt: str
    tensorrt_include: Path
    cuda_includes: tuple[Path, ...]
    cudart: Path
    library_folders: tuple[Path, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, paths as strings."""
        return {
            "library": str(self.library),
            "tensorrt": self.tensorrt,
            "tensorrt_include": str(self.tensorrt_include),
            "cuda_includes": [str(folder) for folder in self.cuda_includes],
            "cudart": str(self.cudart),
            "library_folders": [str(folder) for folder in self.library_folders],
            "notes": list(self.notes),
        }


def build_plugin(request: PluginRequest) -> BuiltPlugin:
    """Compiles the plugin with CMake and the system's C++ compiler. It takes about half a minute.

    Raises:
        NotInstalledError: CMake, a compiler, or TensorRT's or CUDA's headers or libraries are missing.
        BuildError: It does not compile.
        ArtifactError: The library cannot be written.
        OSError: Its folder cannot be made.
    """
    cmake = _tool("cmake", "pip install cmake")
    _tool(os.environ.get("CXX", "g++"), "apt install g++, or name a C++17 compiler in CXX")
    include = _tensorrt_include(request.tensorrt_include)
    version = _version_of(include)
    includes = cuda_includes(request.cuda)
    cudart = cudart_beside(includes)
    folders, notes = _library_folders(request.cusparselt)
    output = request.output or default_library(version)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_file(output)
    with (
        tempfile.TemporaryDirectory() as scratch,
        importlib.resources.as_file(importlib.resources.files(SOURCES)) as sources,
    ):
        _run(
            (cmake, "-S", str(sources), "-B", scratch, f"-DTENSORRT_INCLUDE={include}",
             f"-DCUDA_INCLUDE={';'.join(map(str, includes))}", f"-DCUDART={cudart}",
             f"-DLIBRARY_FOLDERS={';'.join(map(str, folders))}"),
            version,
        )  # fmt: skip
        _run(
            (cmake, "--build", scratch, "--target", "sparseflow_linear24", "--parallel", str(_jobs())),
            version,
        )
        with written_atomically(output) as path:
            shutil.copyfile(Path(scratch) / _LIBRARY, path)
    return BuiltPlugin(output, version, include, includes, cudart, folders, notes)


def _tool(name: str, install: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotInstalledError(f"{name} is not installed: the plugin is compiled with it.", install)
    return found


def _jobs() -> int:
    return len(os.sched_getaffinity(0))


def _tensorrt_include(given: Path | None) -> Path:
    for folder in (given,) if given else map(Path, _TENSORRT_INCLUDES):
        if (folder / "NvInferRuntime.h").is_file():
            return folder.resolve()
    where = f"in {given}" if given else f"in any of {', '.join(_TENSORRT_INCLUDES)}"
    raise NotInstalledError(
        f"TensorRT's headers are missing: there is no NvInferRuntime.h {where}.",
        "Name their folder with --tensorrt-include. They are public; of 10.16, for example: "
        "git clone --depth 1 -b release/10.16 https://github.com/NVIDIA/TensorRT, folder include.",
    )


def _version_of(include: Path) -> str:
    file = include / "NvInferVersion.h"
    found = dict(_VERSION.findall(file.read_text(errors="replace"))) if file.is_file() else {}
    if not {"MAJOR", "MINOR", "PATCH"} <= set(found):
        raise NotInstalledError(
            f"{file} does not say its version.", "Name the folder of a whole TensorRT release's headers."
        )
    return f"{found['MAJOR']}.{found['MINOR']}.{found['PATCH']}"


def cuda_includes(given: Path | None) -> tuple[Path, ...]:
    """The folder of cuda_runtime_api.h, and that of crt/ where it is another one.

    Args:
        given: A CUDA installation; None for those that `PluginRequest.cuda` names.

    Raises:
        NotInstalledError: A header is missing.
    """
    home = os.environ.get("CUDA_HOME")
    if given:
        roots = [given / "include", given]
    else:
        roots = [Path(home) / "include"] if home else []
        roots += [*wheel_folders("include"), _SYSTEM_CUDA / "include"]
    main = next((root for root in roots if (root / "cuda_runtime_api.h").is_file()), None)
    if main is None:
        where = f"{given} has" if given else "CUDA's headers are not installed: this machine has"
        raise NotInstalledError(f"{where} no cuda_runtime_api.h.", _PIP_CUDA)
    crt = next((root for root in (main, *roots) if (root / "crt" / "host_defines.h").is_file()), None)
    if crt is None:
        raise NotInstalledError(
            f"CUDA's headers in {main} include crt/host_defines.h, which is not installed.",
            "pip install nvidia-cuda-crt (CUDA 13) or nvidia-cuda-nvcc-cu12 (CUDA 12)",
        )
    return (main.resolve(),) if crt == main else (main.resolve(), crt.resolve())


def cudart_beside(includes: Sequence[Path]) -> Path:
    """CUDA's runtime library, the static one by preference, of the installation with these headers.

    Raises:
        NotInstalledError: It is missing.
    """
    root = includes[0].parent
    for folder in (root / "lib64", root / "lib", root.parent.parent / "lib"):
        for name in _CUDARTS:
            if (folder / name).is_file():
                return (folder / name).resolve()
    raise NotInstalledError(f"CUDA's runtime library is missing beside {includes[0]}.", _PIP_CUDA)


def _library_folders(given: Path | None) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Where the libraries lie that are loaded at run time, and what is to be said of those that do not."""
    wheels = list(wheel_folders("lib"))
    folders: dict[Path, None] = {}
    notes = []
    for title, (pattern, install) in _AT_RUN_TIME.items():
        asked = [given] if given and title == "cuSPARSELt" else []
        found = next((folder for folder in (*asked, *wheels) if list(folder.glob(pattern))), None)
        if found is not None:
            folders[found.resolve()] = None
        elif asked:
            raise NotInstalledError(f"{given} has no {pattern}.", install)
        else:
            notes.append(f"{title} is in none of this Python's wheels; where it runs, {install}.")
    return tuple(folders), tuple(notes)


def _run(command: Sequence[str], version: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines[-1:] or ["it did not say why"]
    raise BuildError(
        f"the plugin does not compile against TensorRT {version}: {errors[0]}",
        "Name the headers of one whole release, and a CUDA toolkit or wheels of one version (--cuda).",
    )
