"""The plugin's library is found, and loaded into the process that builds or runs a TensorRT engine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

from sparseflow_trt.engines.machine.cuda_libraries import variables, wheel_file
from sparseflow_trt.engines.tensorrt.api import Flavour, major_of
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.model.target import PLUGIN_OP, PLUGIN_VERSION

# A library that this process has mapped; not libnvinfer_plugin, libnvinfer_dispatch and the like.
_NVINFER = re.compile(r"\S*/libnvinfer\.so\.\d+\S*$")
_MAPS = Path("/proc/self/maps")
_BUILD = "Compile it: sparseflow-trt plugin build --tensorrt-include DIR."
VARIABLE = "SPARSEFLOW_PLUGIN"


def default_library(version: str) -> Path:
    """Where the plugin for a release of TensorRT is put and looked for: one for each major version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sparseflow-trt" / f"libsparseflow_linear24.trt{major_of(version)}.so"


def find_plugin(version: str) -> Path:
    """The plugin's library for a release of TensorRT: what SPARSEFLOW_PLUGIN names, else `default_library`.

    Raises:
        NotInstalledError: There is none.
    """
    given = os.environ.get(VARIABLE)
    library = Path(given) if given else default_library(version)
    if not library.is_file():
        named = f"{library}, which {VARIABLE} names," if given else str(library)
        raise NotInstalledError(f"The 2:4 plugin is not built: {named} does not exist.", _BUILD)
    return library


def load_plugin(flavour: Flavour, library: Path) -> None:
    """Loads the plugin's library, which registers itself with TensorRT; one that is loaded stays as it is.

    To be called before a model with the plugin's nodes is parsed, or an engine with them is loaded.

    Args:
        flavour: The TensorRT that it was compiled for, loaded.
        library: Its file.

    Raises:
        NotInstalledError: This TensorRT takes no plugins, or the library is missing or does not load.
    """
    if flavour.key != "tensorrt":
        raise NotInstalledError(
            f"{flavour.title} takes no plugins.", "Build with TensorRT: --backend tensorrt."
        )
    _open_to_all(flavour)
    _name_libraries()
    if not library.is_file():
        raise NotInstalledError(f"There is no plugin library {library}.", _BUILD)
    try:
        ctypes.CDLL(str(library.resolve()), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise NotInstalledError(
            f"{library} does not load: {error}.",
            f"Compile it against the headers of {flavour.title} {flavour.version}.",
        ) from error


def check_plugin(library: Path) -> None:
    """Loads the 2:4 plugin into TensorRT and looks for it in TensorRT's registry.

    It may crash: do this in a process that may die.

    Raises:
        NotInstalledError: TensorRT or the library is missing or does not load, or it registers no plugin.
    """
    from sparseflow_trt.engines.tensorrt.api import load_flavour

    flavour = load_flavour("tensorrt")
    load_plugin(flavour, library)
    registry = flavour.module.get_plugin_registry()
    find = getattr(registry, "get_creator", None) or registry.get_plugin_creator
    if find(PLUGIN_OP, PLUGIN_VERSION, "") is None:
        raise NotInstalledError(f"{library} holds no plugin {PLUGIN_OP}.", _BUILD)


def _name_libraries() -> None:
    """Tells the plugin where this Python's wheels have its libraries, where nobody else does."""
    for name, variable in variables().items():
        if file := wheel_file(name):
            os.environ.setdefault(variable, str(file))
    if file := wheel_file("nvrtc"):  # cuSPARSELt looks for it by its name alone
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(file))


def _open_to_all(flavour: Flavour) -> None:
    """Shows libnvinfer's functions to what is loaded later: Python loads it for its bindings alone."""
    mapped = {
        line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines() if "/libnvinfer.so" in line
    }
    for name in sorted(n for n in mapped if _NVINFER.match(n)) or [
        f"libnvinfer.so.{major_of(flavour.version)}"
    ]:
        with contextlib.suppress(OSError):  # the plugin's own error says what it lacks
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
