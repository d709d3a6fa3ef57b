"""A Polygraphy runner of a TensorRT engine, with the profile chosen that takes a set's shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._deps import require
from sparseflow_trt.errors import BuildError, InputError, one_line
from sparseflow_trt.validation.messages import quiet_polygraphy

if TYPE_CHECKING:
    from polygraphy.backend.trt import TrtRunner

    from sparseflow_trt.validation.feeds import InputSet


def engine_runner(path: Path, name: str, prepare: Callable[[Any], None] | None = None) -> TrtRunner:
    """A runner of a TensorRT engine file. The engine is loaded here, once.

    Args:
        path: The file.
        name: The runner's.
        prepare: What is done to the loaded engine before it runs.

    Raises:
        BuildError: The file cannot be read, this TensorRT or this GPU does not take the engine, or it
            cannot be prepared.
        NotInstalledError: TensorRT or Polygraphy.
    """
    require("tensorrt", "running an engine")
    require("polygraphy", "comparing outputs")
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException

    try:
        with quiet_polygraphy():
            engine = EngineFromBytes(path.read_bytes())()
            if prepare:
                prepare(engine)
            return TrtRunner(engine, name)
    except (PolygraphyException, OSError, RuntimeError) as error:
        raise BuildError(
            f"TensorRT does not load {path}: {one_line(error)}.",
            "Run it with the TensorRT release and on the kind of GPU that it was built for.",
        ) from error


def engine_runtime() -> str:
    """What these runners run on, in words."""
    return f"TensorRT {require('tensorrt', 'running an engine').__version__}"


def select_profile(runner: TrtRunner, given: InputSet) -> None:
    """Makes a runner use, from its next activation on, the engine's first profile that takes a set's shapes.

    Raises:
        InputError: No profile takes them.
    """
    engine = (
        runner._engine_or_context
    )  # what it was made with; `runner.engine` is there only while it is active
    for index in range(engine.num_optimization_profiles):
        if all(_takes(engine, index, name, array.shape) for name, array in given.feeds.items()):
            runner.optimization_profile = index
            return
    shapes = ", ".join(f"{name} {array.shape}" for name, array in given.feeds.items())
    raise InputError(
        f"input set '{given.name}' ({shapes}) fits none of the "
        f"engine's {engine.num_optimization_profiles} profile(s).",
        "Give inputs within the plan's profiles, or plan a profile for these.",
    )


def _takes(engine: Any, index: int, name: str, shape: tuple[int, ...]) -> bool:
    low, _, high = (tuple(point) for point in engine.get_tensor_profile_shape(name, index))
    return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
