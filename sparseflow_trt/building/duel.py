"""Sparse against dense: builds a plan both ways, times the two engines in turn, keeps the one that ships."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sparseflow_trt._clock import Clock
from sparseflow_trt._deps import require
from sparseflow_trt.artifacts.graph_record import GraphRecord
from sparseflow_trt.artifacts.manifest import DuelProfileRecord, DuelRecord, EngineRecord
from sparseflow_trt.building.loading import engine_file
from sparseflow_trt.building.record import record_rivals
from sparseflow_trt.building.timing import time_engines
from sparseflow_trt.engines.backends.child import shared_child
from sparseflow_trt.engines.backends.choose import BackendName
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.protocol import EngineOptions, OnProgress, Progress
from sparseflow_trt.errors import BuildError, NotInstalledError
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.shapes import Profile
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.inputs import generate_inputs

MARGIN = 0.02
MOST_LOSS = 0.02  # of one profile: within the spread of single rounds (docs/TENSORRT.md)

_ROUNDS = 15
_LAUNCHES = 20
_NOTHING = "The plan has no sparse layer: there was nothing to compare, and dense ships."
_HINT = "Build with --backend tensorrt on the machine with the GPU, or without --verdict."


@dataclass(frozen=True)
class Built:
    """A plan and what was built from it, in some folder."""

    plan: Plan
    graph: GraphRecord
    engine: EngineRecord


@dataclass(frozen=True)
class Decision:
    """Which engine ships.

    Attributes:
        speedup: How many times as fast as dense sparse is: the geometric mean over the profiles.
        found: The measurement in words, to follow "sparse is".
        why: The sentence behind `ships`.
    """

    ships: Literal["sparse", "dense"]
    speedup: float
    found: str
    why: str


def check_duel(backend: BackendName, options: EngineOptions) -> None:
    """Checks, before anything is built, that two engines can be built freely and timed here.

    Raises:
        BuildError: The backend that was asked for has no sparse kernels to be timed, or an option is for
            one engine, or for one that cannot be run as it is.
        NotInstalledError: TensorRT, cuda-bindings or a GPU is missing.
    """
    if backend in ("onnxruntime", "tensorrt-rtx"):
        said = f"--verdict times sparse kernels against dense ones, and {backend} has none."
        raise BuildError(said, _HINT, usage=True)
    if options.like or options.strip_plan:
        asked = "--like fixes one's tactics" if options.like else "--strip-plan leaves the weights out"
        raise BuildError(
            f"--verdict builds two engines and runs them, and {asked}.",
            "Build with --verdict first, then once more with that option and --plan ARTIFACT/plan.yaml.",
            usage=True,
        )
    if why_not := TensorRtBackend().unavailable():
        raise NotInstalledError(f"--verdict times TensorRT's engines on this machine's GPU. {why_not}", _HINT)
    require("cuda.bindings.runtime", "timing engines")


def decide(speedups: Mapping[str, float], margin: float) -> Decision:
    """Sparse ships where its geometric mean wins by the margin and no profile is more than 2 % slower for it.

    Every profile counts alike, since a plan does not say how often each is used, and by its ratio alone, so
    that a long profile does not outweigh a short one. The bound on a single profile keeps one that is used
    from paying for another that is not; it does not follow the margin, so that a wider margin never lets
    sparse ship where a narrower one does not.

    Args:
        speedups: How many times as fast as dense sparse is at each profile, at least one, all positive.
        margin: By what share the mean has to be above 1.
    """
    slowest, fastest = min(speedups.values()), max(speedups.values())
    mean = math.exp(math.fsum(map(math.log, speedups.values())) / len(speedups))
    mean = min(max(mean, slowest), fastest)  # where it lies but for rounding
    where = min(speedups, key=speedups.__getitem__)
    found = f"{mean:.3f}× as fast at '{where}'"
    if len(speedups) > 1:
        found = f"{mean:.3f}× as fast over {len(speedups)} profiles ({slowest:.3f}× at '{where}')"
    if mean < 1 + margin:
        why = f"Dense ships: sparse is {found} and has to win by {_percent(margin)}."
    elif slowest < 1 - MOST_LOSS:
        why = f"Dense ships: sparse is {found}, and no profile may lose more than {_percent(MOST_LOSS)}."
    else:
        why = f"Sparse ships: it is {found} and had to win by {_percent(margin)}."
        return Decision("sparse", mean, found, why)
    return Decision("dense", mean, found, why)


def run_duel(
    build: Callable[[Plan, Path, OnProgress], Built],
    model: OnnxModel,
    plan: Plan,
    folder: Path,
    margin: float,
    clock: Clock,
    on_step: OnProgress,
) -> tuple[Built, DuelRecord]:
    """Builds the plan and the same plan with every layer dense, and keeps the files of the one that ships.

    Args:
        build: Builds a plan into a folder.
        model: The model as given, for the inputs at each profile's opt.
        plan: The plan; one with every layer dense is built once.
        folder: An empty folder, for what ships; the other's files are gone afterwards.
        margin: By what share sparse has to be faster.
        clock: Counts the seconds of the timing as "duel".
        on_step: Told which of the two is being built.

    Raises:
        SparseflowError: No inputs can be made, or one of the engines cannot be built or run.
    """
    if not plan.wants_sparse and not plan.plugin_products:
        return build(plan, folder, on_step), DuelRecord(margin=margin, ships="dense", why=_NOTHING)
    inputs = [_inputs_at_opt(model, profile) for profile in plan.profiles or (None,)]
    built = {}
    with shared_child():
        for number, (side, its_plan) in enumerate((("sparse", plan), ("dense", _dense(plan, ""))), 1):
            (folder / side).mkdir()
            built[side] = build(its_plan, folder / side, _naming(f"{side} engine, {number} of 2", on_step))
    with clock("duel"):
        profiles = _time(built, folder, inputs, on_step)
    decision = decide({p.profile: p.speedup for p in profiles}, margin)
    for file in (folder / decision.ships).iterdir():
        file.rename(folder / file.name)
    for side in built:
        shutil.rmtree(folder / side)
    dense_ships = decision.ships == "dense"
    record = DuelRecord(
        margin=margin,
        ships=decision.ships,
        why=decision.why,
        speedup=decision.speedup,
        rounds=_ROUNDS,
        launches=_LAUNCHES,
        profiles=profiles,
        sparse_outcomes=built["sparse"].engine.outcomes if dense_ships else (),
    )
    if not dense_ships:
        return built["sparse"], record
    reason = f"dense ships: sparse was {decision.found} (measured, {_ROUNDS} rounds)"
    return replace(built["dense"], plan=_dense(plan, reason)), record


def _dense(plan: Plan, reason: str) -> Plan:
    """The plan with every layer dense, `reason` given where it was not."""
    change = {"sparsity": "dense", "dense_below_m": 0, "joined": "", "reason": reason}
    layers = (p.model_copy(update=change) if p.sparsity != "dense" else p for p in plan.layers)
    return plan.model_copy(update={"layers": tuple(layers)})


def _inputs_at_opt(model: OnnxModel, profile: Profile | None) -> InputSet:
    """Seeded inputs, named for the profile."""
    if profile is None:
        return replace(generate_inputs(model, ())[0], name="static")
    (drawn,) = generate_inputs(model, (profile,), at=("opt",))
    return replace(drawn, name=profile.name)


def _time(
    built: Mapping[str, Built], folder: Path, inputs: list[InputSet], on_step: OnProgress
) -> tuple[DuelProfileRecord, ...]:
    files = [engine_file(folder / side, built[side].engine) for side in ("sparse", "dense")]
    timed = time_engines(
        files, inputs, _ROUNDS, _LAUNCHES, lambda step, done, total: on_step(Progress(step, done, total))
    )
    return tuple(record_rivals(given, *pair) for given, pair in zip(inputs, timed, strict=True))


def _naming(engine: str, on_step: OnProgress) -> OnProgress:
    return lambda progress: on_step(replace(progress, step=f"{progress.step} ({engine})"))


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
