"""The sides of a comparison: one model planned, built and run in several ways.

A side is a way to plan the same 2:4 weights: "dense" with sparsity off, "sparse" with it forced (TensorRT
picks), "policy" as a policy says. With the plugin's library there are two more, "plugin", all layers in it,
and "joined", the same with products of one input made one, and a policy may choose it, too. Each side at
each profile is an engine of its own, since a build of several profiles may outlast the time that one command
has; a build that was finished before is not built again.
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
from engine_layers import layer_ms, products_of

from sparseflow_trt.artifacts.manifest import NAME as MANIFEST
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.engines.plugin.library import load_library
from sparseflow_trt.engines.protocol import EngineOptions, Progress
from sparseflow_trt.engines.running.benchmark import ratio, time_interleaved
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.exporters.plugin.nodes import plugin_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.pipeline import BuildOptions, BuildResult, build
from sparseflow_trt.plans.decide import SparsityMode
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.profile_specs import ProfileSpec
from sparseflow_trt.plans.shapes import Profile
from sparseflow_trt.policies.policy import Policy, find_policy
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.runners import ort_runner

MODES: dict[str, SparsityMode] = {
    "dense": "off", "sparse": "force", "plugin": "plugin", "joined": "plugin", "policy": "policy"
}  # fmt: skip
NEEDS_PLUGIN = ("plugin", "joined")

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Settings:
    """How the engines are built.

    Attributes:
        work: Where the artifacts are kept, for the next command to find.
        backend: TensorRT; others are for trying the scripts where there is none.
        policy: What the "policy" side follows; without one there is no such side.
        plugin: The plugin's library; without it no side has layers in it.
        timing_cache: A file that the builds share.
        stop_at: The moment (time.monotonic) from which no further build is begun.
        overrides: What single layers get instead, by side and by name.
        builders: How many artifacts are built at once.
    """

    work: Path
    backend: Any = "tensorrt"
    policy: Policy | None = None
    plugin: Path | None = None
    timing_cache: Path | None = None
    stop_at: float = float("inf")
    overrides: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    builders: int = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that make Settings."""
    parser.add_argument("--policy", type=find_policy, help="a policy's file or name: for its side")
    parser.add_argument("--plugin", type=Path, help="the plugin's compiled library: for the sides in it")
    parser.add_argument("--work", type=Path, help="where artifacts are kept, for the same command to go on")
    parser.add_argument("--timing-cache", type=Path, help="shared by the builds; what it holds is not timed")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS",
                        help="begin no build later")  # fmt: skip
    parser.add_argument("--builders", type=int, default=1, metavar="N", help="artifacts built at once; with "
                        "more than one all are built before the first is timed")  # fmt: skip
    parser.add_argument("--backend", default="tensorrt", help="onnxruntime, to try this script")


@contextmanager
def settings_from(asked: argparse.Namespace) -> Iterator[Settings]:
    """The settings that a command line asks for; without --work, artifacts lie in a folder that goes."""
    stop_at = time.monotonic() + asked.stop_after
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        yield Settings(work, asked.backend, asked.policy, asked.plugin, asked.timing_cache, stop_at,
                       builders=asked.builders)  # fmt: skip


def plans_of(model: Path, spec: ProfileSpec, settings: Settings) -> dict[str, Plan]:
    """Each side's plan of a model with one profile."""
    read_once = read(model)
    plans = {}
    for side, mode in MODES.items():
        if (side == "policy" and not settings.policy) or (side in NEEDS_PLUGIN and not settings.plugin):
            continue
        policy = settings.policy if side == "policy" else None
        options = PlanOptions(policy, profiles=(spec,), precision="fp16", sparsity=mode,
                              plugin=settings.plugin is not None)  # fmt: skip
        plan = plan_for(*read_once, options, "")
        if side == "joined":
            plan = join(model, plan)
        own = settings.overrides.get(side, {})
        layers = (p.model_copy(update=dict(own.get(p.name, {}))) for p in plan.layers)
        plans[side] = plan.model_copy(update={"layers": tuple(layers)})
    return plans


def join(model: Path, plan: Plan) -> Plan:
    """The plan with all of the plugin's layers that read one value as one product."""
    reads = {name: layer.reads for name, layer in plugin_layers(read_model(model)).items()}
    groups: dict[str, list[str]] = {}
    for layer in plan.layers:
        if layer.sparsity == "plugin":
            groups.setdefault(reads[layer.name], []).append(layer.name)
    first = {name: names[0] for names in groups.values() if len(names) > 1 for name in names}
    layers = tuple(p.model_copy(update={"joined": first.get(p.name, "")}) for p in plan.layers)
    return plan.model_copy(update={"layers": layers})


def first_like(side: str, plans: Mapping[str, Plan]) -> str:
    """The first side whose layers get what this one's get, whatever the reasons: it has the same engine."""
    return next(other for other, plan in plans.items() if decisions(plan) == decisions(plans[side]))


def decisions(plan: Plan) -> list[tuple[Any, ...]]:
    """What each layer gets."""
    return [(p.name, p.precision, p.sparsity, p.joined, p.dense_below_m) for p in plan.layers]


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
    options = BuildOptions(artifact, plan, settings.backend, engine=engine, plugin=settings.plugin)
    result = build(model, options, say)
    seconds = result.manifest.engine.build_seconds
    done = "was built before" if result.unchanged else "built"
    print(f"  {artifact.name}: {done}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return result


def feeds_at_opt(model: Path, profile: Profile) -> Arrays:
    """Seeded inputs of a profile's opt shapes."""
    (drawn,) = generate_inputs(read_model(model), (profile,), at=("opt",))
    return dict(drawn.feeds)


@dataclass(frozen=True)
class Ran:
    """What running the sides gave, each by its side.

    Attributes:
        times: In milliseconds, the engines in turn.
        gains: How many times faster than the dense engine each other one is.
        layers: Where the time goes, of `products_of`; empty but for TensorRT.
        outputs: Of one run.
    """

    times: dict[str, Any] = field(default_factory=dict)
    gains: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Arrays] = field(default_factory=dict)


def run_sides(results: Mapping[str, BuildResult], feeds: Arrays) -> Ran:
    """Runs and times the sides; nothing of it where one cannot be run here."""
    if any(result.manifest.engine.runs_here for result in results.values()):
        return Ran()
    with ExitStack() as stack:
        engines: list[Any] = [stack.enter_context(open_engine(result)) for result in results.values()]
        timed = dict(zip(results, time_interleaved(engines, feeds), strict=True))
        outputs = {side: engine.run(feeds) for side, engine in zip(results, engines, strict=True)}
        layers = {
            side: products_of(layer_ms(engine, feeds), ran_as(result))
            for (side, result), engine in zip(results.items(), engines, strict=True)
            if isinstance(engine, Engine)
        }
    times = {
        side: {"p50_ms": t.p50, "p90_ms": t.p90, "p99_ms": t.p99, "launches": t.launches}
        for side, t in timed.items()
    }
    gains = {side: asdict(ratio(timed["dense"], t)) for side, t in timed.items() if side != "dense"}
    return Ran(times, gains, layers, outputs)


def ran_as(result: BuildResult) -> dict[str, str]:
    """By each planned layer's name that of the engine's layer."""
    return {outcome.layer: outcome.engine_layer for outcome in result.manifest.engine.outcomes}


def open_engine(result: BuildResult) -> Engine | OrtEngine:
    """An artifact's engine, loaded."""
    engine = result.manifest.engine
    file = result.artifact / engine.file
    if engine.backend == "onnxruntime":
        return OrtEngine(file)
    flavour = load_flavour(engine.backend)
    if engine.plugin:
        load_library(flavour, result.artifact / engine.plugin.file)
    return Engine(flavour, file)


class OrtEngine:
    """ONNX Runtime on the CPU behind an Engine's methods, to try a benchmark where there is no GPU."""

    device_memory_bytes = loaded_bytes = 0

    def __init__(self, path: Path) -> None:
        self._runner = ort_runner(path, "engine", optimized=True)

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

    @contextmanager
    def capture(self, feeds: Arrays) -> Iterator[OrtRun]:
        """Stands for a captured run."""
        yield OrtRun(self, feeds)


@dataclass(frozen=True)
class OrtRun:
    """One input set, to be run again."""

    engine: OrtEngine
    feeds: Arrays

    def time(self, launches: int) -> list[float]:
        """Milliseconds of the CPU's wall time, of one launch alone: these times are of no interest."""
        started = time.perf_counter()
        self.engine.run(self.feeds)
        return [1e3 * (time.perf_counter() - started)] * launches
