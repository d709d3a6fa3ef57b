"""Optional dependencies: the one place that imports them by name and knows the pip line for each."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from sparseflow_trt.errors import NotInstalledError


class _Dependency(NamedTuple):
    """A module's distributions, any of them, its oldest version, and what to install for it.

    The requirements are those of one of setup.cfg's extras: whoever lacks one mostly lacks the rest. CUDA's
    bindings stand alone: they are asked for when TensorRT or TensorRT-RTX is there.
    """

    distributions: tuple[str, ...]
    floor: str
    requirements: tuple[str, ...]


_TORCH = ("safetensors>=0.4", "torch>=2.6", "onnxscript>=0.7")
_TENSORRT = ("cuda-bindings>=12.6", "tensorrt>=8.6")
_RTX = ("tensorrt_rtx_cu13_libs>=1.7", "tensorrt_rtx_cu13_bindings>=1.7")
_TRITON = _Dependency(("tritonclient",), "2.51", ("tritonclient[grpc,http]>=2.51",))

_KNOWN = {
    "onnxruntime": _Dependency(("onnxruntime", "onnxruntime-gpu"), "1.23", ("onnxruntime>=1.23",)),
    "matplotlib": _Dependency(("matplotlib",), "3.7", ("matplotlib>=3.7",)),
    "onnxscript": _Dependency(("onnxscript",), "0.7", _TORCH),
    "polygraphy": _Dependency(("polygraphy",), "0.53.4", ("polygraphy>=0.53.4",)),
    "ray": _Dependency(("ray",), "2.9", ("ray>=2.9",)),
    "safetensors": _Dependency(("safetensors",), "0.4", ("safetensors>=0.4",)),
    "sklearn": _Dependency(("scikit-learn",), "1.4", ("scikit-learn>=1.4",)),
    "torch": _Dependency(("torch",), "2.6", _TORCH),
    "transformers": _Dependency(("transformers",), "4.56", (*_TORCH, "transformers>=4.56")),
    "tensorrt": _Dependency(("tensorrt", "tensorrt-cu12", "tensorrt-cu13"), "8.6", _TENSORRT),
    "cuda.bindings.runtime": _Dependency(("cuda-bindings",), "12.6", ("cuda-bindings>=12.6",)),
    "tritonclient.grpc": _TRITON,
    "tritonclient.http": _TRITON,
    "tritonclient.grpc.aio": _TRITON,
    "tritonclient.grpc.model_config_pb2": _TRITON,
    # The libraries have to be loaded before the bindings, which do not find them by themselves.
    "tensorrt_rtx_libs": _Dependency(("tensorrt_rtx_cu13_libs",), "1.7", _RTX),
    "tensorrt_rtx_bindings.tensorrt_rtx": _Dependency(("tensorrt_rtx_cu13_bindings",), "1.7", _RTX),
}


def version_of(module: str) -> str | None:
    """The installed version of what provides `module`, or None where it is not installed."""
    for distribution in _KNOWN[module].distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def install_line(module: str) -> str:
    """The command that installs `module`."""
    return f"pip install {shlex.join(_KNOWN[module].requirements)}"


def require(module: str, needed_for: str) -> ModuleType:
    """Imports an optional dependency.

    Args:
        module: The import name, one of those listed in this file.
        needed_for: What needs it, in words that complete "… is needed for".

    Raises:
        NotInstalledError: It is not installed, is too old, or does not load; with the line that installs it.
    """
    known = _KNOWN[module]
    version = version_of(module)
    if version is not None and _release(version) < _release(known.floor):
        raise NotInstalledError(
            f"{module} {version} is too old: {needed_for} needs {known.floor} or later.", install_line(module)
        )
    try:
        with _interrupts_held():
            return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        state = "is not installed" if version is None else f"{version} does not load ({error})"
        raise NotInstalledError(
            f"{module} {state}: it is needed for {needed_for}.", install_line(module)
        ) from error


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Lets Ctrl-C wait for the end of the block: an extension module that is half loaded crashes Python."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


def _release(version: str) -> tuple[int, ...]:
    digits = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in digits[0].split(".")) if digits else ()
