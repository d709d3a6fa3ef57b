"""How far outputs are from the reference, and which step that comes from, as bars."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.artifacts.verdict import OutputVerdict, StepOutput, StepRecord, Verdict, shown_outputs

_SMALLEST, _LARGEST = 1e-7, 1.0  # of the bars by step, as shares of the output: log scale


@dataclass(frozen=True)
class Gauge:
    """One output of one candidate: how much of what an element may be off by its worst one is.

    Attributes:
        shown: What is said of it: "not run" where nothing was compared with it.
        used: The largest error over the bound, on the input set where that is most; None where an output has
            no bound (it is not floating-point, or could not be compared).
    """

    candidate: str
    worst: OutputVerdict
    passed: bool
    shown: Verdict
    used: float | None


@dataclass(frozen=True)
class StepBar:
    """What one step changed of one output, on the input set that `verdict.shown_outputs` takes.

    Attributes:
        width: From 0 to 1 along the axis.
    """

    step: str
    between: str
    blamed: bool
    not_run: str
    found: StepOutput | None
    width: float


@dataclass(frozen=True)
class StepBars:
    """The steps' bars for one output, in the order of the steps."""

    output: str
    bars: tuple[StepBar, ...]


def draw_gauges(manifest: Manifest) -> tuple[Gauge, ...]:
    """A gauge for each output of each candidate that ran."""
    gauges = []
    for candidate in manifest.validation.candidates:
        for name in dict.fromkeys(row.output for row in candidate.outputs):
            rows = [row for row in candidate.outputs if row.output == name]
            worst = max(rows, key=lambda row: (not row.passed, _used(row) or 0.0))
            gauges.append(
                Gauge(
                    candidate.name,
                    worst,
                    all(row.passed for row in rows),
                    candidate.shown(name),
                    _used(worst),
                )
            )
    return tuple(gauges)


def draw_steps(manifest: Manifest) -> tuple[StepBars, ...]:
    """Bars by step for each output, where the manifest says them."""
    attribution = manifest.validation.attribution
    if attribution is None:
        return ()
    steps: list[tuple[str, StepRecord, str]] = [
        (step.name, step, attribution.input_set) for step in attribution.steps
    ]
    if attribution.unrestored:  # what pruning would have changed, had no layer its weights back
        steps.insert(0, ("pruning, not restored", attribution.unrestored, ""))
    names = dict.fromkeys(found.output for _, step, _ in steps for found in step.outputs)
    drawn = []
    for name in names:
        bars = []
        for title, step, input_set in steps:
            rows = shown_outputs(step, input_set)
            found = next((row for row in rows if row.output == name), None)
            width = _along(_change(found)) if found else 0.0
            between = f"{step.before} → {step.after}"
            bars.append(StepBar(title, between, title == attribution.blamed, step.not_run, found, width))
        drawn.append(StepBars(name, tuple(bars)))
    return tuple(drawn)


def shipped_gauges(manifest: Manifest, gauges: tuple[Gauge, ...]) -> tuple[tuple[Gauge, ...], str]:
    """The gauges of what ships, the engine, or of the typed model where that was not run; and which it is."""
    engine = f"engine ({manifest.engine.backend})"
    ships = tuple(gauge for gauge in gauges if gauge.candidate == engine)
    return (ships, "of the engine") if ships else (gauges, "of the typed model on the CPU")


def _used(row: OutputVerdict) -> float | None:
    if row.max_abs is None or not row.abs_bound:
        return None
    return row.max_abs / row.abs_bound


def _change(found: StepOutput) -> float:
    if found.nonfinite:
        return math.inf
    return 1 - found.equal if found.equal is not None else found.error or 0.0


def _along(error: float) -> float:
    if error <= _SMALLEST:
        return 0.0
    return min(1.0, math.log(error / _SMALLEST) / math.log(_LARGEST / _SMALLEST))
