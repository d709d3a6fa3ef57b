"""The CUDA libraries of this machine: from NVIDIA's wheels, or where the system's loader finds them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CudaLibrary:
    """One library as found.

    Attributes:
        name: Such as "cusparseLt".
        file: What was loaded: a path, or a name that the system's loader resolved; "" where none loads.
        version: As the library itself says it, "" where it is missing.
        needed_for: What uses it, in words.
        install: The command that installs it.
    """

    name: str
    file: str
    version: str
    needed_for: str
    install: str


@dataclass(frozen=True)
class _Known:
    name: str
    # Newest first: the majors of CUDA 13 and 12 (cuSPARSELt counts its own).
    sonames: tuple[str, ...]
    needed_for: str
    install: str
    variable: str = ""  # names it for the 2:4 plugin


# The wheels named are those of CUDA 12, which drivers for CUDA 13 run as well.
_KNOWN = (
    _Known(
        "cudart",
        ("libcudart.so.13", "libcudart.so.12"),
        "running engines and timing them",
        "pip install nvidia-cuda-runtime-cu12",
    ),
    _Known(
        "cublasLt",
        ("libcublasLt.so.13", "libcublasLt.so.12"),
        "timing dense matrix products, or running them in the 2:4 plugin,",
        "pip install nvidia-cublas-cu12",
        "SPARSEFLOW_CUBLASLT",
    ),
    _Known(
        "cusparseLt",
        ("libcusparseLt.so.0",),
        "timing 2:4 matrix products, or running them in the 2:4 plugin,",
        "pip install nvidia-cusparselt-cu12",
        "SPARSEFLOW_CUSPARSELT",
    ),
    _Known(
        "nvrtc",
        ("libnvrtc.so.13", "libnvrtc.so.12"),
        "compiling cuSPARSELt's FP16 kernels",
        "pip install nvidia-cuda-nvrtc-cu12",
    ),
)


def find_libraries() -> tuple[CudaLibrary, ...]:
    """Looks for cudart, cublasLt, cusparseLt and nvrtc and loads what it finds to ask for its version."""
    return tuple(_find(known) for known in _KNOWN)


def variables() -> dict[str, str]:
    """The environment variables that name a library for the 2:4 plugin, by the library's name."""
    return {known.name: known.variable for known in _KNOWN if known.variable}


def _find(known: _Known) -> CudaLibrary:
    given = os.environ.get(known.variable, "") if known.variable else ""
    named = [str(Path(given) / soname) for soname in known.sonames] if Path(given).is_dir() else [given]
    for file in named if given else _candidates(known.sonames):
        try:
            library = ctypes.CDLL(file)
            version = version_of(known.name, library)
        except (OSError, AttributeError):  # AttributeError: a library of that name that is another one
            continue
        return CudaLibrary(known.name, file, version, known.needed_for, known.install)
    return CudaLibrary(known.name, "", "", known.needed_for, known.install)


def wheel_folders(kind: str) -> Iterator[Path]:
    """The folders "lib" or "include" of NVIDIA's wheels in this Python, CUDA 13's first."""
    # CUDA 12's wheels lie in nvidia/<library>/lib, CUDA 13's together in nvidia/cu13/lib.
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob(f"*/{kind}"), key=lambda p: (p.parent.name != "cu13", p))


def wheel_file(name: str) -> Path | None:
    """A library's file in NVIDIA's wheels, such as that of "cusparseLt"; it is not loaded."""
    sonames = next(known.sonames for known in _KNOWN if known.name == name)
    return next((Path(file) for file in _candidates(sonames) if Path(file).is_absolute()), None)


def _candidates(sonames: tuple[str, ...]) -> Iterator[str]:
    folders = tuple(wheel_folders("lib"))
    for soname in sonames:
        yield from (str(folder / soname) for folder in folders if (folder / soname).is_file())
    yield from sonames


def version_of(name: str, library: Any) -> str:
    """The version that a library of CUDA's, opened by ctypes, says of itself.

    Raises:
        AttributeError: It is another library.
    """
    value = ctypes.c_int()
    if name == "cudart":
        library.cudaRuntimeGetVersion(ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"
    if name == "nvrtc":
        minor = ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(value), ctypes.byref(minor))
        return f"{value.value}.{minor.value}"
    get_property = getattr(library, f"{name}GetProperty")
    numbers = []
    for property_type in range(3):  # libraryPropertyType: MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
        get_property(property_type, ctypes.byref(value))
        numbers.append(str(value.value))
    return ".".join(numbers)


def version_of_file(name: str, file: str) -> str:
    """The version that a file of cublasLt or cusparseLt says of itself, "" where it is another library."""
    try:
        return version_of(name, ctypes.CDLL(file))
    except (OSError, AttributeError):
        return ""
