"""The sides of a comparison: one model planned, built and run in several ways.

A side is a way to plan the same 2:4 weights: "dense" with sparsity off, "sparse" with it forced (TensorRT
picks), "policy" as a policy says. Each side at each profile is an engine of its own, since a build of several
profiles may outlast the time that one command has; a build that was finished before is not built again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparseflow_trt.decide import SparsityMode
from sparseflow_trt.engines.benchmark import ratio, time_interleaved
from sparseflow_trt.engines.protocol import EngineOptions, Progress
from sparseflow_trt.engines.runner import Engine
from sparseflow_trt.engines.tensorrt_api import load_flavour
from sparseflow_trt.manifest import NAME as MANIFEST
from sparseflow_trt.model_file import read_model
from sparseflow_trt.pipeline import BuildOptions, BuildResult, PlanOptions, build, plan_for, read
from sparseflow_trt.plan import Plan
from sparseflow_trt.policy import Policy, find_policy
from sparseflow_trt.profile_specs import ProfileSpec
from sparseflow_trt.shapes import Profile, ShapeRange
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.runners import ort_runner

MODES: dict[str, SparsityMode] = {"dense": "off", "sparse": "force", "policy": "policy"}

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Settings:
    """How the engines are built.

    Attributes:
        work: Where the artifacts are kept, for the next command to find.
        backend: TensorRT; others are for trying the scripts where there is none.
        policy: What the "policy" side follows; without one there is no such side.
        timing_cache: A file that the builds share.
        stop_at: The moment (time.monotonic) from which no further build is begun.
        overrides: What single layers of the "sparse" side get instead, by their names.
    """

    work: Path
    backend: Any = "tensorrt"
    policy: Policy | None = None
    timing_cache: Path | None = None
    stop_at: float = float("inf")
    overrides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that make Settings."""
    parser.add_argument("--policy", type=find_policy, help="a policy's file or name: for the third side")
    parser.add_argument("--work", type=Path, help="where artifacts are kept, for the same command to go on")
    parser.add_argument("--timing-cache", type=Path, help="shared by the builds; what it holds is not timed")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS",
                        help="begin no build later")  # fmt: skip
    parser.add_argument("--backend", default="tensorrt", help="onnxruntime, to try this script")


@contextmanager
def settings_from(asked: argparse.Namespace) -> Iterator[Settings]:
    """The settings that a command line asks for; without --work, artifacts lie in a folder that goes."""
    stop_at = time.monotonic() + asked.stop_after
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        yield Settings(work, asked.backend, asked.policy, asked.timing_cache, stop_at)


def plans_of(model: Path, spec: ProfileSpec, settings: Settings) -> dict[str, Plan]:
    """Each side's plan of a model with one profile."""
    read_once = read(model)
    plans = {}
    for side, mode in MODES.items():
        if side == "policy" and settings.policy is None:
            continue
        policy = settings.policy if side == "policy" else None
        options = PlanOptions(policy=policy, profiles=(spec,), precision="fp16", sparsity=mode)
        plan = plan_for(*read_once, options, "")
        if side == "sparse":
            layers = (p.model_copy(update=dict(settings.overrides.get(p.name, {}))) for p in plan.layers)
            plan = plan.model_copy(update={"layers": tuple(layers)})
        plans[side] = plan
    return plans


def first_like(side: str, plans: Mapping[str, Plan]) -> str:
    """The first side whose layers get what this one's get, whatever the reasons: it has the same engine."""
    return next(other for other, plan in plans.items() if decisions(plan) == decisions(plans[side]))


def decisions(plan: Plan) -> list[tuple[str, str, str]]:
    """What each layer gets."""
    return [(layer.name, layer.precision, layer.sparsity) for layer in plan.layers]


def build_side(model: Path, plan: Plan, artifact: Path, settings: Settings) -> BuildResult:
    """One artifact; the one that stands there if nothing has changed."""
    if time.monotonic() > settings.stop_at and not (artifact / MANIFEST).is_file():
        raise SystemExit(f"The time is up before {artifact.name}; what was built is kept.")
    last = [""]

    def say(progress: Progress) -> None:
        if progress.step != last[0]:
            last[0] = progress.step
            print(f"  {artifact.name}: {progress.step}", file=sys.stderr, flush=True)

    engine = EngineOptions(timing_cache=settings.timing_cache)
    result = build(model, BuildOptions(artifact, plan, backend=settings.backend, engine=engine), say)
    seconds = result.manifest.engine.build_seconds
    done = "was built before" if result.unchanged else "built"
    print(f"  {artifact.name}: {done}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return result


def feeds_at_opt(model: Path, profile: Profile) -> Arrays:
    """Seeded inputs of a profile's opt shapes."""
    ranges = {n: ShapeRange(min=r.opt, opt=r.opt, max=r.opt) for n, r in profile.inputs.items()}
    (drawn,) = generate_inputs(read_model(model), (Profile(name=profile.name, inputs=ranges),))
    return dict(drawn.feeds)


def run_sides(
    results: Mapping[str, BuildResult], feeds: Arrays
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Arrays]]:
    """Each side's times, how many times faster than dense it is, and its outputs; all empty if none runs."""
    if any(result.manifest.engine.runs_here for result in results.values()):
        return {}, {}, {}
    with ExitStack() as stack:
        engines: list[Any] = [stack.enter_context(open_engine(result)) for result in results.values()]
        timed = dict(zip(results, time_interleaved(engines, feeds), strict=True))
        outputs = {side: engine.run(feeds) for side, engine in zip(results, engines, strict=True)}
    times = {
        side: {"p50_ms": t.p50, "p90_ms": t.p90, "p99_ms": t.p99, "launches": t.launches}
        for side, t in timed.items()
    }
    gains = {side: asdict(ratio(timed["dense"], t)) for side, t in timed.items() if side != "dense"}
    return times, gains, outputs


def open_engine(result: BuildResult) -> Engine | OrtEngine:
    """An artifact's engine, loaded."""
    file = result.artifact / result.manifest.engine.file
    if result.manifest.engine.backend == "onnxruntime":
        return OrtEngine(file)
    return Engine(load_flavour(result.manifest.engine.backend), file)


class OrtEngine:
    """ONNX Runtime on the CPU behind an Engine's methods, to try a benchmark where there is no GPU."""

    def __init__(self, path: Path) -> None:
        self._runner = ort_runner(path, "engine")

    def __enter__(self) -> OrtEngine:
        self._runner.activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.deactivate()

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs."""
        return {name: np.array(array) for name, array in self._runner.infer(feeds).items()}

    def time(self, feeds: Arrays, launches: int) -> list[float]:
        """Milliseconds of the CPU's wall time, of one launch alone: these times are of no interest."""
        started = time.perf_counter()
        self._runner.infer(feeds)
        return [1e3 * (time.perf_counter() - started)] * min(launches, 1)
