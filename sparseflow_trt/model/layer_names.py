"""What layers are called, and which pruning takes by that: one rule for ONNX models and PyTorch modules."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

_CALLED = {"classifier": "a classifier", "adapter": "an adapter"}  # the kinds that are left unless named
NOT_NAMED = {kind: f"{what}, which is taken only where it is named" for kind, what in _CALLED.items()}


class Named(Protocol):
    """A layer by its node's name, and its module's where the exporter says it, else ""."""

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> str: ...


def shown_name(layer: Named) -> str:
    """What people are told that a layer is called: its module, or else its node's name."""
    return layer.module or layer.name


def shown_names(layers: Iterable[Named]) -> dict[str, str]:
    """What people are told that each layer is called, by its node's name, which programs know it by."""
    return {layer.name: shown_name(layer) for layer in layers}


def shown_reasons(
    reasons: Iterable[tuple[str, str]], names: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """(Name, reason) pairs with the names that `shown_names` gives."""
    return tuple((names.get(name, name), why) for name, why in reasons)


def takes_if_named(kinds: Iterable[str]) -> str:
    """What `prune` does with layers of these kinds, "" where it takes them all."""
    kinds = set(kinds)
    found = " or ".join(what for kind, what in _CALLED.items() if kind in kinds)
    return f"takes {found} only where --include names it" if found else ""


def only_if_named(kinds: Iterable[str]) -> str:
    """What a hint that says `prune` has to add for layers of these kinds, "" where it takes them all."""
    does = takes_if_named(kinds)
    return f", which {does}" if does else ""


def may_stay_dense(kind: str) -> bool:
    """Whether a pruned model counts as 2:4 though layers of this kind are not: adapters are meant so."""
    return kind == "adapter"


def kind_left(kinds: Iterable[str]) -> str:
    """Of the kinds of a weight's users the one that leaves it alone unless it is named, else ""."""
    kinds = set(kinds)
    return next((kind for kind in _CALLED if kind in kinds), "")


def why_left(names: Iterable[str], kind: str, include: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a layer is left alone, "" where it is taken.

    With no `include` that is all but classifiers and adapters (see `kinds`): the one costs much accuracy for
    little time, and the other, of K or N = 8 or 16, is trained beside weights that may be pruned.

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
    return NOT_NAMED.get(kind, "")


def is_named(names: Iterable[str], globs: Sequence[str]) -> bool:
    """Whether a glob matches one of a layer's names, or is one: names may hold brackets."""
    return any(name == glob or fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


def is_pattern(glob: str) -> bool:
    """Whether a glob is meant for several names: one that is not may be a misspelt name."""
    return any(sign in glob for sign in "*?[")
