"""Times finished artifacts on this machine's GPU, at each profile's min, opt and max."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sparseflow_trt._schema import Record
from sparseflow_trt.engines.benchmark import Ratio, Timing, ratio, time_interleaved
from sparseflow_trt.engines.runner import Engine
from sparseflow_trt.engines.tensorrt_api import load_flavour
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.manifest import Manifest, check_files, read_manifest
from sparseflow_trt.model_file import read_model
from sparseflow_trt.plan import read_plan
from sparseflow_trt.validation.inputs import generate_inputs


class TimedShapes(Record):
    """One input set's GPU times: of the artifact, and of the one it is held against."""

    shapes: str
    timing: Timing
    against: Timing | None
    speedup: Ratio | None


def time_artifacts(
    folder: Path,
    against: Path | None,
    rounds: int,
    launches: int,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> tuple[TimedShapes, ...]:
    """Times an artifact's engine, in turn with another's, on seeded inputs of its own profiles.

    Args:
        folder: The artifact.
        against: Another one that takes the same inputs; its time over the first's is the speedup.
        rounds: How many rounds count, after one that does not.
        launches: CUDA graph replays a round and engine.
        progress: Called with (step, done, total).

    Raises:
        ArtifactError: A folder is no artifact, or its engine is not TensorRT's.
        BuildError: An engine does not load or run here.
        InputError: The other engine takes other inputs.
        NotInstalledError: TensorRT or cuda-bindings is missing.
    """
    folders = [folder, *([against] if against else [])]
    files = [_engine_file(f) for f in folders]  # each with whether it may bring host code
    inputs = generate_inputs(read_model(folder / "model.onnx"), read_plan(folder / "plan.yaml").profiles)
    flavour = load_flavour("tensorrt")
    timed = []
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(flavour, *file)) for file in files]
        for i, given in enumerate(inputs):
            progress(f"Timing {given.name}", i, len(inputs))
            timings = time_interleaved(engines, given.feeds, rounds, launches)
            other = timings[1] if against else None
            shapes = ", ".join(f"{name} {'×'.join(map(str, a.shape))}" for name, a in given.feeds.items())
            timed.append(
                TimedShapes(
                    shapes=f"{given.name}: {shapes}",
                    timing=timings[0],
                    against=other,
                    speedup=ratio(other, timings[0]) if other else None,
                )
            )
    return tuple(timed)


def _engine_file(folder: Path) -> tuple[Path, bool]:
    manifest: Manifest = read_manifest(folder)
    check_files(manifest, folder)
    if manifest.engine.backend != "tensorrt":
        raise ArtifactError(
            f"{folder} holds an engine of {manifest.engine.backend}; only TensorRT's are timed.",
            "Build it with --backend tensorrt, on the machine with the GPU.",
        )
    return folder / manifest.engine.file, bool(manifest.engine.options.get("version_compatible"))
