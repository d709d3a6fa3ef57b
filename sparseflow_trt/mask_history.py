"""Which of several models, each made from the one before it, broke a layer's 2:4 pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparseflow_trt.graph import SparsityState, WeightedLayer


@dataclass(frozen=True)
class Break:
    """A layer that was 2:4 in one model and is not in the next.

    Attributes:
        layer: Its name in the model where it is not.
        before: The last model where it was 2:4, as it was named.
        after: The model where it is not.
        reason: What is wrong there, in words.
        first: Index in the stored weight of the first element of the first violating group.
    """

    layer: str
    before: str
    after: str
    reason: str
    first: tuple[int, ...] | None


def find_breaks(models: Sequence[tuple[str, Sequence[WeightedLayer]]]) -> tuple[Break, ...]:
    """The layers whose 2:4 pattern a step between two models broke.

    Layers are the same where their names are, or else the names of their weights. One that the next model
    does not have, as steps that fuse layers leave it, is no break.

    Args:
        models: Each with its name and its layers, in the order in which they were made.
    """
    breaks: list[Break] = []
    for (before, old), (after, new) in pairwise(models):
        by_name = {layer.name: layer for layer in new}
        by_weight = {layer.weight: layer for layer in new if layer.weight}
        for layer in old:
            now = by_name.get(layer.name) or by_weight.get(layer.weight)
            if layer.state is not SparsityState.SPARSE or now is None or now.state is SparsityState.SPARSE:
                continue
            breaks.append(Break(now.name, before, after, now.reason, now.first))
    return tuple(breaks)
