"""Which of several models, each made from the one before it, broke a layer's 2:4 pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparseflow_trt.model.graph import SparsityState, WeightedLayer


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


@dataclass(frozen=True)
class Missing:
    """Layers that were 2:4 in one model and are not found in the next.

    Attributes:
        layers: Their names in the model where they were.
        before: That model, as it was named.
        after: The next one.
    """

    layers: tuple[str, ...]
    before: str
    after: str


Models = Sequence[tuple[str, Sequence[WeightedLayer]]]


def find_breaks(models: Models) -> tuple[Break, ...]:
    """The layers whose 2:4 pattern a step between two models broke.

    Layers are the same where their names are, or else the names of their weights, or else where their zeros
    lie: an exporter may rename all of them.

    Args:
        models: Each with its name and its layers, in the order in which they were made.
    """
    return tuple(
        Break(now.name, before, after, now.reason, now.first)
        for before, after, pairs in _steps(models)
        for _, now in pairs
        if now is not None and now.state is not SparsityState.SPARSE
    )


def find_missing(models: Models) -> tuple[Missing, ...]:
    """The 2:4 layers that a step between two models left out, fused with others, or changed past knowing.

    Args:
        models: As for `find_breaks`.
    """
    found = []
    for before, after, pairs in _steps(models):
        if gone := tuple(layer.name for layer, now in pairs if now is None):
            found.append(Missing(gone, before, after))
    return tuple(found)


_Pairs = list[tuple[WeightedLayer, WeightedLayer | None]]


def _steps(models: Models) -> Iterator[tuple[str, str, _Pairs]]:
    """Each step's two models, and each layer that is 2:4 in the first with what it is in the second."""
    for (before, old), (after, new) in pairwise(models):
        by_name = {layer.name: layer for layer in new}
        by_weight = {layer.weight: layer for layer in new if layer.weight}
        by_mask = {_mask_of(layer): layer for layer in new if layer.mask_hash}
        pairs = []
        for layer in old:
            if layer.state is SparsityState.SPARSE:
                now = by_name.get(layer.name) or by_weight.get(layer.weight) or by_mask.get(_mask_of(layer))
                pairs.append((layer, now))
        yield before, after, pairs


def _mask_of(layer: WeightedLayer) -> tuple[int, int, str]:
    return layer.n, layer.k, layer.mask_hash
