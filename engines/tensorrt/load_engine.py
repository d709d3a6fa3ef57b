"""Loads an engine file, with the weights put back where it was written without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.engines.tensorrt.log import BuildLog, make_logger
from sparseflow_trt.errors import BuildError


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with what it lives by: TensorRT wants the runtime and the logger to outlast it."""

    engine: Any
    runtime: Any
    logger: Any


def load_engine(
    flavour: Flavour, path: Path, log: BuildLog, host_code: bool = False, weights: Path | None = None
) -> LoadedEngine:
    """Loads an engine file onto this machine's GPU.

    Args:
        flavour: The TensorRT to load it with.
        path: The engine's file.
        log: Takes what TensorRT says.
        host_code: Whether the engine may bring code for the CPU, as a version-compatible one does.
        weights: The typed ONNX file whose weights a stripped engine gets; None for one that has its own.

    Raises:
        BuildError: This TensorRT or this GPU does not take it, or it does not take the weights.
    """
    trt = flavour.module
    logger = make_logger(trt, log)
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BuildError(
            f"{flavour.title} {flavour.version} does not load {path.name}: {log.take_errors()}",
            "Use the TensorRT release and the kind of GPU that it was built for.",
        )
    if weights is not None:
        from sparseflow_trt.engines.tensorrt.refit import refit_from_onnx

        refit_from_onnx(flavour, engine, weights, logger, log)
    return LoadedEngine(engine, runtime, logger)


def context_memory_of(engine: Any) -> int:
    """Bytes that an execution context of a loaded engine needs besides the weights."""
    v2 = hasattr(engine, "device_memory_size_v2")  # from 10.1 on; the older one is gone in 11
    return int(engine.device_memory_size_v2 if v2 else engine.device_memory_size)
