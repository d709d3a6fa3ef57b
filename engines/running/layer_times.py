"""How long each layer of an engine takes, as TensorRT's profiler reports it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class LayerTime:
    """One layer's GPU time.

    Attributes:
        name: As the engine's inspector names it.
        ms: The median of the runs, in milliseconds. The profiler times layer by layer, so that the sum of
            the layers is more than a run takes.
        share: Of the sum of the layers, from 0 to 1.
    """

    name: str
    ms: float
    share: float


def make_recorder(module: ModuleType, runs: list[dict[str, float]]) -> Any:
    """A TensorRT IProfiler that adds what it is told to the last of `runs`: milliseconds by layer."""
    base: Any = module.IProfiler

    class Recorder(base):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            base.__init__(self)  # the bindings ask for it by name

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            # A layer in a loop is told of once for each time round.
            runs[-1][layer_name] = runs[-1].get(layer_name, 0.0) + ms

    return Recorder()


def layer_times(runs: Sequence[Mapping[str, float]]) -> tuple[LayerTime, ...]:
    """Each layer's median over the runs, in the engine's order; a run that does not name it counts as 0."""
    names = dict.fromkeys(name for run in runs for name in run)
    medians = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    total = sum(medians.values())
    return tuple(LayerTime(name, ms, ms / total if total else 0.0) for name, ms in medians.items())
