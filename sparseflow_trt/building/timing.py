"""Times engines on this machine's GPU: finished artifacts, and those that are to become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sparseflow_trt._schema import Record
from sparseflow_trt.building.loading import EngineFile, engine_file, open_engine, tensorrt_manifest
from sparseflow_trt.engines.running.benchmark import Ratio, Timing, add_layers, ratio, time_interleaved
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.model.model_file import OnnxModel, input_dims, read_model
from sparseflow_trt.plans.plan import read_plan
from sparseflow_trt.plans.shapes import Profile, with_something
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.inputs import generate_inputs

OnTimed = Callable[[str, int, int], None]  # (step, done, total)


class TimedShapes(Record):
    """One input set's GPU times: of the artifact, and of the one it is held against."""

    shapes: str
    timing: Timing
    against: Timing | None
    speedup: Ratio | None


def time_engines(
    files: Sequence[EngineFile],
    inputs: Sequence[InputSet],
    rounds: int,
    launches: int,
    progress: OnTimed = lambda step, done, total: None,
    layers: bool = False,
) -> list[tuple[Timing, ...]]:
    """Times TensorRT engines in turn on each input set, as CUDA graphs: for each set a timing of each engine.

    Args:
        files: Engines that take the same inputs.
        inputs: What to run them on.
        rounds: How many rounds count, after one that does not.
        launches: CUDA graph replays a round and engine.
        progress: Called with (step, done, total) before each input set.
        layers: Whether each layer is timed too.

    Raises:
        BuildError: An engine does not load or run here, or two have different libraries of the plugin.
        InputError: An engine takes other inputs.
        NotInstalledError: TensorRT, cuda-bindings or the plugin's library is missing.
    """
    flavour = load_flavour("tensorrt")
    timed = []
    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(flavour, file)) for file in files]
        for i, given in enumerate(inputs):
            progress(f"Timing {given.name}", i, len(inputs))
            timings = time_interleaved(engines, given.feeds, rounds, launches)
            timed.append(add_layers(timings, engines, given.feeds) if layers else timings)
    return timed


def time_artifacts(
    folder: Path,
    against: Path | None,
    rounds: int,
    launches: int,
    progress: OnTimed = lambda step, done, total: None,
    layers: bool = False,
) -> tuple[TimedShapes, ...]:
    """Times an artifact's engine, in turn with another's, on seeded inputs of its own profiles.

    A profile whose min is empty (a KV cache that holds nothing yet) is timed at its smallest shapes that are
    not, and its row says so: an engine is given no empty tensors here.

    Args:
        folder: The artifact.
        against: Another one that takes the same inputs; its time over the first's is the speedup.
        rounds: How many rounds count, after one that does not.
        launches: CUDA graph replays a round and engine.
        progress: Called with (step, done, total).
        layers: Whether each layer is timed too.

    Raises:
        ArtifactError: A folder is no artifact, its files have changed, or its engine is not TensorRT's.
        BuildError: An engine does not load or run here, or the two have different libraries of the plugin.
        InputError: The model has an input or output that cannot be given here, or the other engine takes
            other inputs.
        ModelError: The typed model cannot be read.
        NotInstalledError: TensorRT, cuda-bindings or the plugin's library is missing.
        PlanError: The plan cannot be read.
        ShapeError: A profile of the plan does not fit the model.
    """
    folders = [folder, *([against] if against else [])]
    files = [engine_file(f, tensorrt_manifest(f, "timed").engine) for f in folders]
    inputs = _timed_inputs(read_model(folder / "model.onnx"), read_plan(folder / "plan.yaml").profiles)
    timed = time_engines(files, inputs, rounds, launches, progress, layers)
    return tuple(_timed_shapes(given, timings) for given, timings in zip(inputs, timed, strict=True))


def _timed_inputs(model: OnnxModel, profiles: tuple[Profile, ...]) -> list[InputSet]:
    dims = input_dims(model)
    filled = tuple(with_something(profile, dims) for profile in profiles)
    empty = {f"{given.name}:min" for given, changed in zip(profiles, filled, strict=True) if given != changed}
    return [
        replace(given, name=f"{given.name}, not empty") if given.name in empty else given
        for given in generate_inputs(model, filled)
    ]


def _timed_shapes(given: InputSet, timings: tuple[Timing, ...]) -> TimedShapes:
    timing, *others = timings
    shapes = ", ".join(f"{name} {'×'.join(map(str, a.shape))}" for name, a in given.feeds.items())
    return TimedShapes(
        shapes=f"{given.name}: {shapes}",
        timing=timing,
        against=others[0] if others else None,
        speedup=ratio(others[0], timing) if others else None,
    )
