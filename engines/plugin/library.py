"""The plugin's library beside an engine: copied with it, known by its hash, loaded once into a process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._files import sha256_of
from sparseflow_trt.engines.machine.cuda_libraries import version_of_file
from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.plugin.shared_library import why_no_library
from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.tensorrt.api import Flavour, load_flavour
from sparseflow_trt.errors import BuildError, NotInstalledError
from sparseflow_trt.model.layer_names import shown_name, shown_names
from sparseflow_trt.model.target import PLUGIN_OP

if TYPE_CHECKING:
    from sparseflow_trt.engines.evidence.outcomes import LayerOutcome
    from sparseflow_trt.plans.plan import Plan

_HOW = "Compile it with `sparseflow-trt plugin build`."
_USED = {"cusparseLt": "cuSPARSELt", "cublasLt": "cuBLASLt"}  # what the plugin's library loads itself
_MAPS = Path("/proc/self/maps")
_loaded: set[str] = set()  # the SHA-256 of the library that this process has loaded, whatever its name was


def library_for(plan: Plan, library: Path | None, options: EngineOptions, takes_plugin: bool) -> Path | None:
    """The library that a plan's engine is built with, None where it needs none.

    Raises:
        BuildError: An option is asked for that the plugin's layers do not have.
        NotInstalledError: It needs one, and none is given, or what is given is none.
    """
    layers = [layer for product in plan.plugin_products for layer in product]
    if not layers or not takes_plugin:
        return None
    if library is None:
        raise NotInstalledError(
            f"the plan gives {len(layers)} layer(s) to the plugin, the first of them "
            f"'{shown_name(layers[0])}', but no plugin library is given.",
            f"Name it with --plugin LIB. {_HOW}",
        )
    if options.version_compatible or options.hardware_compatible:
        asked = "--version-compatible" if options.version_compatible else "--hardware-compatible"
        raise BuildError(
            f"{asked} does not work for engines with layers in the plugin, and the plan has {len(layers)} of "
            "them.",
            f"Leave {asked} out, or plan these layers dense or sparse.",
        )
    return check_library(library)


def check_library(path: Path) -> Path:
    """The path, absolute, of a file that is seen to be the plugin's library.

    It is read and not loaded: that takes TensorRT and CUDA, which need not be where a plan is made.

    Raises:
        NotInstalledError: There is none, or the file is no whole shared library with the plugin in it.
    """
    if not path.is_file():
        raise NotInstalledError(f"There is no plugin library {path}.", _HOW)
    if reason := why_no_library(path, PLUGIN_OP):
        raise NotInstalledError(f"{path} is not a library of the plugin: {reason}.", _HOW)
    return path.resolve()


def copy_library(path: Path, folder: Path) -> Path:
    """Copies the library to an engine's folder: an artifact runs without the one that it was built with.

    Raises:
        NotInstalledError: As `check_library`.
        OSError: It cannot be written.
    """
    target = folder / check_library(path).name
    shutil.copyfile(path, target)
    return target


def load_library(flavour: Flavour, path: Path, sha256: str = "") -> None:
    """Loads the plugin's library into this process, before an engine with its nodes is made or loaded.

    TensorRT knows a plugin by its name: of two libraries it would go on with the first in silence.

    Args:
        flavour: TensorRT.
        path: The library.
        sha256: Of it, where that is known.

    Raises:
        BuildError: Another one is loaded.
        NotInstalledError: As `check_library`; or it does not load, or this TensorRT takes no plugins.
    """
    checked = check_library(path)
    sha256 = sha256 or sha256_of(checked)
    if sha256 in _loaded:
        return
    if before := next(iter(_loaded), ""):
        raise BuildError(
            f"{path} is not the plugin library that this process has loaded (SHA-256 "
            f"{sha256[:12]}…, not {before[:12]}…).",
            "Run the two engines in two processes, or build both with one library.",
        )
    load_plugin(flavour, path)
    _loaded.add(sha256)


def load_library_here(path: Path) -> None:
    """As `load_library`, for a process that has not loaded TensorRT by itself.

    Raises:
        BuildError: As `load_library`.
        NotInstalledError: As `load_library`; or TensorRT is missing.
    """
    load_library(load_flavour("tensorrt"), path)


def versions_in_use() -> dict[str, str]:
    """The versions of the libraries that this process's plugin has loaded, as they say it themselves."""
    versions = {}
    for line in _MAPS.read_text().splitlines():
        file = line.split(maxsplit=5)[-1]
        found = re.search(r"/lib(cusparseLt|cublasLt)\.so[.\d]*$", file)
        if found and _USED[found[1]] not in versions:
            versions[_USED[found[1]]] = version_of_file(found[1], file)
    return {name: version for name, version in versions.items() if version}


def plugin_mismatches(plan: Plan, outcomes: Iterable[LayerOutcome]) -> tuple[str, ...]:
    """The layers that run outside of the plugin though planned for it, or the other way, a sentence each."""
    planned = {layer.name: layer.sparsity for layer in plan.layers}
    shown = shown_names(plan.layers)
    return tuple(
        f"'{shown[o.layer]}' is planned {planned[o.layer]} and runs {'in' if o.plugin else 'outside of'} the "
        "plugin."
        for o in outcomes
        if o.tactic and o.plugin != (planned[o.layer] == "plugin")
    )


def lowered_note(plan: Plan, title: str) -> tuple[str, ...]:
    """What a builder that takes no plugin says of layers that are planned for it: one sentence, or none."""
    count = sum(len(product) for product in plan.plugin_products)
    if not count:
        return ()
    return (
        f"{count} layer(s) are planned for the plugin, which {title} does not support: they run dense here. "
        "The plugin is for --backend tensorrt.",
    )
