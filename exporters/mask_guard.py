"""Holds weights to 2:4 through every step that may touch them, and names the step that broke it.

What each step leaves is remembered, not read: a constant that a step did not touch is the same tensor as
before, and one that it made is read when the model is written. So what is written last is scanned once;
where that is broken the remembered tensors are scanned in order, and the first broken one names its step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sparseflow_trt.artifacts.graph_record import MaskCheckRecord
from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.scan import WeightReader, scan_key, scan_pattern
from sparseflow_trt.model.sites import LayerSite, find_sites
from sparseflow_trt.model.trace import trace_weight
from sparseflow_trt.model.weights import TracedWeight, Untraceable

_HINT = "This is a bug in the rewriting: please report it with the model; --sparsity off builds without 2:4."


@dataclass(frozen=True)
class MaskStage:
    """The guarded weights as one step left them.

    Attributes:
        step: What was done, in words that can begin a sentence.
        weights: The weight behind each guarded layer, and the axis of its operand that is K.
        planned: Layers that are not guarded and whose weights the step changed as planned.
    """

    step: str
    weights: Mapping[str, tuple[TracedWeight | Untraceable, int]]
    planned: tuple[str, ...] = ()


def mask_stage(
    step: str, sites: Iterable[LayerSite], guarded: Collection[str], planned: Iterable[str] = ()
) -> MaskStage:
    """Remembers what a step left. No weight is read.

    Args:
        step: What was done.
        sites: The layers; each one's weight is traced anew.
        guarded: The names of those that have to stay 2:4.
        planned: The names of other layers whose weights were changed on purpose.
    """
    weights = {
        site.name: (trace_weight(site.node.inputs[0 if site.side == "left" else 1]), site.k_axis)
        for site in sites
        if site.name in guarded
    }
    return MaskStage(step, weights, tuple(planned))


def check_written(
    path: Path, stages: Sequence[MaskStage], guarded: Collection[str]
) -> tuple[MaskCheckRecord, ...]:
    """Reads the guarded weights of a written model and checks that each is 2:4.

    Args:
        path: The model as written.
        stages: What each step left, the model as given first.
        guarded: The names of the layers that have to be 2:4.

    Returns:
        A record of each step but the first, and of the writing.

    Raises:
        ModelError: A layer is 2:4 no more; the step that broke it is named, with the first broken group.
    """
    checks = [_check(before, after) for before, after in pairwise(stages)]
    if not guarded:
        return (*checks, MaskCheckRecord(step="Writing the model", touched=0))
    sites = {site.name: site for site in find_sites(read_model(path)) if site.name in guarded}
    with WeightReader() as reader:
        broken = [
            name
            for name in sorted(guarded)
            if (site := sites.get(name)) is None or why_broken(reader, site.weight, site.k_axis)
        ]
        if broken:
            written = mask_stage("Writing the model", sites.values(), guarded)
            raise _error(reader, broken, (*stages, written))
    return (*checks, MaskCheckRecord(step="Writing the model", touched=0, read=len(guarded)))


def _check(before: MaskStage, after: MaskStage) -> MaskCheckRecord:
    touched = sum(_key(before, name) != _key(after, name) for name in {*before.weights, *after.weights})
    return MaskCheckRecord(step=after.step, touched=touched, planned=after.planned)


def _key(stage: MaskStage, name: str) -> object:
    weight, k_axis = stage.weights.get(name, (None, 0))
    return scan_key(weight, k_axis) if isinstance(weight, TracedWeight) else None


def why_broken(
    reader: WeightReader, weight: TracedWeight | Untraceable, k_axis: int, state_only: bool = False
) -> str:
    """Why a weight is not 2:4 along `k_axis` of its operand, in words; "" where it is.

    All of it is read; with `state_only` no more than it takes to see that it is not, which the words count.
    """
    if isinstance(weight, Untraceable):
        return weight.reason
    try:
        scan = scan_pattern(reader, weight, k_axis, state_only)
    except (TypeError, ValueError) as error:  # a type or a K with no 2:4 pattern
        return str(error)
    if not scan.violating:
        return ""
    where = f", the first at {list(scan.first)}" if scan.first is not None else ""
    broken = f"{scan.violating} of {scan.groups} groups of weight '{weight.name}'"
    return f"{broken} hold more than two non-zeros{where}"


def _error(reader: WeightReader, broken: list[str], stages: Sequence[MaskStage]) -> ModelError:
    """The error for the layer that the earliest step broke."""
    found = [(*_first_broken(reader, name, stages), name) for name in broken]
    index, what, name = min(found, key=lambda entry: (entry[0], entry[2]))
    more = f" The same is true of {len(broken) - 1} more." if len(broken) > 1 else ""
    lead = f"{stages[index].step} broke the 2:4 pattern" if index else "The model as given breaks the pattern"
    return ModelError(f"{lead} of layer '{name}': {what}.{more}", _HINT)


def _first_broken(reader: WeightReader, name: str, stages: Sequence[MaskStage]) -> tuple[int, str]:
    gone = Untraceable("the layer is gone"), 0
    left = (stage.weights.get(name, gone) for stage in stages)
    whys = (why_broken(reader, weight, k_axis) for weight, k_axis in left)
    unsaid = len(stages) - 1, "it cannot be 2:4 in the file"  # its other operand became constant, say
    return next(((index, why) for index, why in enumerate(whys) if why), unsaid)
