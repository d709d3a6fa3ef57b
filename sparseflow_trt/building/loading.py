"""Loads the engines of artifacts: finished ones, and those that are to become one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparseflow_trt._paths import AnyPath
from sparseflow_trt.artifacts.manifest import EngineRecord, Manifest, check_files, read_manifest
from sparseflow_trt.engines.backends.tensorrt_rtx import why_not_here
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.plugin.library import load_library
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import Flavour, load_flavour
from sparseflow_trt.errors import ArtifactError, BuildError


@dataclass(frozen=True)
class EngineFile:
    """A TensorRT engine to load.

    Attributes:
        path: Its file.
        host_code: Whether it may bring code for the CPU.
        weights: The typed ONNX file whose weights it gets, where it was written without.
        plugin: The library of its plugin, where it has nodes of it.
    """

    path: Path
    host_code: bool
    weights: Path | None = None
    plugin: Path | None = None


def engine_file(folder: Path, engine: EngineRecord) -> EngineFile:
    """The engine that lies in `folder`, finished or not."""
    weights = folder / "model.onnx" if engine.options.get("strip_plan") else None
    plugin = folder / engine.plugin.file if engine.plugin else None
    return EngineFile(folder / engine.file, bool(engine.options.get("version_compatible")), weights, plugin)


def tensorrt_manifest(folder: Path, done: str) -> Manifest:
    """The manifest of an artifact whose engine is TensorRT's, its files checked.

    Args:
        folder: The artifact.
        done: What is done with TensorRT's engines alone, as in "timed".

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or its engine is another's.
    """
    manifest = read_manifest(folder)
    if manifest.engine.backend != "tensorrt":
        raise ArtifactError(
            f"{folder} holds an engine of {manifest.engine.backend}; only TensorRT's are {done}.",
            "Build it with --backend tensorrt, on the machine with the GPU.",
        )
    check_files(manifest, folder)  # reads them whole
    return manifest


def open_artifact(folder: AnyPath) -> Engine:
    """Loads an artifact's engine onto this thread's GPU: with its plugin, and its weights where it has none.

    Args:
        folder: The artifact, of TensorRT or TensorRT-RTX.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or ONNX Runtime runs it.
        BuildError: It does not load or run here, or this process has another library of the plugin.
        InputError: It has an input or output that cannot be given here.
        NotInstalledError: TensorRT, cuda-bindings or the plugin's library is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    backend = manifest.engine.backend
    if backend == "onnxruntime":
        raise ArtifactError(
            f"{folder} holds an ONNX Runtime model, not an engine.",
            f"Open it with onnxruntime.InferenceSession('{folder / manifest.engine.file}').",
        )
    if backend == "tensorrt-rtx" and (why_not := why_not_here(find_gpus())):
        raise BuildError(
            f"{folder} does not run here. {why_not}",
            f"It is for {manifest.engine.device}. What --backend onnxruntime builds runs anywhere.",
        )
    flavour = load_flavour(backend)
    check_files(manifest, folder)  # reads them whole: after all that is asked in no time
    return open_engine(flavour, engine_file(folder, manifest.engine))


def open_engine(flavour: Flavour, file: EngineFile) -> Engine:
    """Loads an engine, after the library of its plugin.

    Raises:
        BuildError: It does not load here, or this process has another library of the plugin.
        InputError: It has an input or output that cannot be given here.
        NotInstalledError: cuda-bindings or the plugin's library is missing.
    """
    if file.plugin:
        load_library(flavour, file.plugin)
    return Engine(flavour, file.path, file.host_code, file.weights)
