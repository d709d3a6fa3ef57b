"""Which layers pruning takes by their names: one rule for ONNX models and PyTorch modules."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

NOT_NAMED = "a classifier, which is taken only where it is named"


def of_classifiers(kinds: Iterable[str]) -> str:
    """What a hint that says `prune` has to add for layers of these kinds, "" where it takes them all."""
    return ", which takes a classifier only where --include names it" if "classifier" in kinds else ""


def why_left(names: Iterable[str], kind: str, include: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a layer is left alone, "" where it is taken.

    With no `include` that is all but classifiers (see `kinds`): one costs much accuracy for little time.

    Args:
        names: What the layer is called: by its module, its node, its weight.
        kind: Of the layer.
        include: Globs such as "*.mlp.*" of the layers to take, and no others; none means every layer.
        exclude: Globs of layers to leave alone. They go before `include`.
    """
    names = tuple(names)
    if is_named(names, exclude):
        return "excluded"
    if include:
        return "" if is_named(names, include) else "no pattern names it"
    return NOT_NAMED if kind == "classifier" else ""


def is_named(names: Iterable[str], globs: Sequence[str]) -> bool:
    """Whether a glob matches one of a layer's names, or is one: names may hold brackets."""
    return any(name == glob or fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)
