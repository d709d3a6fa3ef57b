"""Asks a built engine what it holds: its inspector's JSON, with the tensors' types at each profile's opt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.engines.tensorrt.load_engine import load_engine
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.errors import BuildError
from sparseflow_trt.plans.shapes import Profile

_DEFAULT_STREAM = 0


def engine_information(
    flavour: Flavour,
    engine: Path,
    profiles: tuple[Profile, ...],
    log: BuildLog,
    host_code: bool = False,
    weights: Path | None = None,
) -> tuple[str, ...]:
    """The inspector's JSON text, once for each profile (once where there are none).

    With dynamic shapes an inspector tells types and formats only when it has a context with shapes set.

    Args:
        flavour: The TensorRT that built it.
        engine: The engine's file.
        profiles: The engine's profiles.
        log: Takes what TensorRT says.
        host_code: Whether the engine may bring code for the CPU, as a version-compatible one does.
        weights: The typed ONNX file whose weights a stripped engine gets.

    Raises:
        BuildError: The engine does not load on this GPU, or does not take the weights or a profile's shapes.
    """
    held = load_engine(flavour, engine, log, host_code, weights)
    inspector = held.engine.create_engine_inspector()
    form = flavour.module.LayerInformationFormat.JSON
    context = held.engine.create_execution_context()
    if context is None:
        return (inspector.get_engine_information(form),)
    texts = []
    for number, profile in enumerate(profiles):
        if not _set_shapes(context, number, profile):
            raise BuildError(
                f"{flavour.title} {flavour.version} built an engine that does not accept the "
                f"opt shapes of its profile '{profile.name}': {log.take_errors()}",
                "Change the profile's shapes, or build with another release.",
            )
        inspector.execution_context = context
        texts.append(inspector.get_engine_information(form))
    return tuple(texts) or (inspector.get_engine_information(form),)


def _set_shapes(context: Any, number: int, profile: Profile) -> bool:
    """Whether the context takes them: it says so, and raises nothing."""
    return bool(context.set_optimization_profile_async(number, _DEFAULT_STREAM)) and all(
        context.set_input_shape(name, shapes.opt) for name, shapes in profile.inputs.items()
    )
