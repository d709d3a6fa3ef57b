"""Asks a built engine what it holds: its inspector's JSON, with the tensors' types at each profile's opt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparseflow_trt.engines.tensorrt_api import Flavour
from sparseflow_trt.engines.tensorrt_log import BuildLog, make_logger
from sparseflow_trt.errors import BuildError
from sparseflow_trt.shapes import Profile

_DEFAULT_STREAM = 0


def engine_information(
    flavour: Flavour, engine: Path, profiles: tuple[Profile, ...], log: BuildLog, host_code: bool = False
) -> tuple[str, ...]:
    """The inspector's JSON text, once for each profile (once where there are none).

    With dynamic shapes an inspector tells types and formats only when it has a context with shapes set.

    Args:
        flavour: The TensorRT that built it.
        engine: The engine's file.
        profiles: The engine's profiles.
        log: Takes what TensorRT says.
        host_code: Whether the engine may bring code for the CPU, as a version-compatible one does.

    Raises:
        BuildError: The engine does not load on this GPU.
    """
    trt = flavour.module
    runtime = trt.Runtime(make_logger(trt, log))
    if host_code:
        runtime.engine_host_code_allowed = True
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise BuildError(
            f"{flavour.title} built {engine.name} and does not load it: {log.take_errors()}",
            "Build with the TensorRT and the GPU that it is to run on.",
        )
    inspector = loaded.create_engine_inspector()
    form = trt.LayerInformationFormat.JSON
    context = loaded.create_execution_context()
    if context is None:
        return (inspector.get_engine_information(form),)
    texts = []
    for number, profile in enumerate(profiles):
        _set_shapes(context, number, profile)
        inspector.execution_context = context
        texts.append(inspector.get_engine_information(form))
    return tuple(texts) or (inspector.get_engine_information(form),)


def _set_shapes(context: Any, number: int, profile: Profile) -> None:
    context.set_optimization_profile_async(number, _DEFAULT_STREAM)
    for name, shapes in profile.inputs.items():
        context.set_input_shape(name, shapes.opt)
