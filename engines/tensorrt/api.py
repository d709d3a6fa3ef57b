"""The TensorRTs that there are, and how the graph that each takes differs."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from sparseflow_trt import _deps
from sparseflow_trt.engines.machine.hardware import load_kernels_lazily
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.model.target import GraphNeeds


@dataclass(frozen=True)
class _Known:
    title: str
    # In the order in which they have to be imported; the last one is the API.
    modules: tuple[str, ...]


_KNOWN = {
    "tensorrt": _Known("TensorRT", ("tensorrt",)),
    "tensorrt-rtx": _Known("TensorRT-RTX", ("tensorrt_rtx_libs", "tensorrt_rtx_bindings.tensorrt_rtx")),
}


@dataclass(frozen=True)
class Flavour:
    """A TensorRT that is loaded into this process.

    Attributes:
        key: Its name here, such as "tensorrt-rtx".
        title: Its name for people.
        module: Its Python API.
        version: Of its package; TensorRT-RTX's module does not know its own.
        strongly_typed: Whether its networks take their types from the graph. Before 10.12 they are
            asked for layer by layer (`pin_types`).
    """

    key: str
    title: str
    module: ModuleType
    version: str
    strongly_typed: bool


def title_of(key: str) -> str:
    """The name for people of a flavour, loaded or not."""
    return _KNOWN[key].title


def version_of(key: str) -> str | None:
    """The installed version of a flavour, None where one of its packages is missing."""
    versions = [_deps.version_of(module) for module in _KNOWN[key].modules]
    return versions[-1] if all(versions) else None


def install_line(key: str) -> str:
    """The command that installs a flavour."""
    return _deps.install_line(_KNOWN[key].modules[-1])


def load_flavour(key: str) -> Flavour:
    """Imports a TensorRT. It may print to stdout and may crash: do this in a process that may die.

    Raises:
        NotInstalledError: It is not installed, is too old or does not load.
    """
    known = _KNOWN.get(key)
    if known is None:
        raise NotInstalledError(f"There is no backend '{key}'.", f"Choose one of: {', '.join(_KNOWN)}.")
    load_kernels_lazily()
    loaded = [_deps.require(module, f"building with {known.title}") for module in known.modules]
    version = version_of(key) or "unknown"
    return Flavour(key, known.title, loaded[-1], version, is_strongly_typed(key, version))


def is_strongly_typed(key: str, version: str) -> bool:
    """Whether its networks take their types from the graph: TensorRT's from 10.12 on, RTX's always."""
    return key != "tensorrt" or _release(version) >= (10, 12)


def major_of(version: str) -> str:
    """The first number of a release: what its libraries' names and its plugins' end with."""
    return version.partition(".")[0]


def takes_int64(version: str) -> bool:
    """Whether a TensorRT's engines have INT64 inputs and outputs; before 9 they are INT32 there."""
    return not version or _release(version) >= (9,)


def graph_needs_of(key: str, version: str | None) -> GraphNeeds:
    """What a flavour needs of the graph.

    SPARSE_WEIGHTS is one switch for all of TensorRT's layers, and TensorRT-RTX ignores it. 8.6 reads opset 17
    at most, and has no BF16.

    Args:
        key: The flavour.
        version: Of its package; None, where it is not installed, has the needs of the newest.
    """
    if key != "tensorrt":
        return GraphNeeds()
    before_9 = version is not None and _release(version) < (9,)
    return GraphNeeds(
        17 if before_9 else None,
        spells_out=before_9,
        opts_out_dense=True,
        takes_plugin=True,
        takes_bf16=not before_9,
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
