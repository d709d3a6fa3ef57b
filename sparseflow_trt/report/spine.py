"""A model's weighted layers and FP32 islands in the graph's order, a line for each block, alike ones once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from sparseflow_trt.artifacts.graph_record import IslandsRecord
from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest

_NUMBER = re.compile(r"\d+")
_MOST_BLOCKS = 40
_MOST_OPERATORS = 2


@dataclass(frozen=True)
class Mark:
    """One mark on the spine: a layer, or the islands between two.

    Attributes:
        role: "sparse" (or in the plugin) or "dense" as planned, or "island".
        text: What stands on it.
        detail: A second, smaller line.
        title: The whole, for whoever points at it.
    """

    role: str
    text: str
    detail: str
    title: str


@dataclass(frozen=True)
class Block:
    """Blocks that follow each other and are alike.

    Attributes:
        label: The name of the first, with the last one's number behind it.
        count: How many there are.
    """

    label: str
    count: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Spine:
    """All blocks; `left_out` is how many more there were."""

    blocks: tuple[Block, ...]
    left_out: int


def draw_spine(manifest: Manifest) -> Spine:
    """The spine of a build's graph."""
    behind: dict[str, list[IslandsRecord]] = {}
    for run in manifest.graph.spine:
        behind.setdefault(run.after, []).append(run)
    labels = ["", *(_block_of(layer.module or layer.name) for layer in manifest.layers), ""]
    placed = _placed(behind.get("", []), *labels[:2])
    for layer, label, following in zip(manifest.layers, labels[1:], labels[2:], strict=False):
        placed.append((label, _layer(layer, label)))
        placed += _placed(behind.get(layer.name, []), label, following)
    groups = [(label, [mark for _, mark in marks]) for label, marks in groupby(placed, lambda mark: mark[0])]
    blocks = list(_joined(groups))
    return Spine(tuple(blocks[:_MOST_BLOCKS]), max(0, len(blocks) - _MOST_BLOCKS))


def _placed(runs: list[IslandsRecord], before: str, behind: str) -> list[tuple[str, Mark]]:
    """The islands between two layers, each beside the label of its block, those of one block as one mark.

    A block's first normalisation stands behind the last layer of the block before: its module tells whose it
    is. One whose module is of neither layer's block nor outside of blocks stays with the layer before.
    """
    operators: dict[str, list[str]] = {}
    for run in runs:
        own = _block_of(run.module)
        outside = not own and before != behind  # such as the norm before a head
        told = bool(run.module) and (outside or own in (before, behind))
        operators.setdefault(own if told else before, []).extend(run.operators)
    ordered = dict.fromkeys((before, "", behind))
    return [(label, _island(tuple(operators[label]))) for label in ordered if label in operators]


def _joined(groups: list[tuple[str, list[Mark]]]) -> Iterable[Block]:
    begin = 0
    for i, (_, marks) in enumerate(groups):
        following = groups[i + 1][1] if i + 1 < len(groups) else None
        if following is not None and _drawn(following) == _drawn(marks):
            continue
        first, last = groups[begin][0], groups[i][0]
        number = _NUMBER.search(last)
        label = f"{first} … {number[0]}" if i > begin and number else first
        yield Block(label, i - begin + 1, tuple(groups[begin][1]))
        begin = i + 1


def _drawn(marks: list[Mark]) -> list[tuple[str, str, str]]:
    """What is alike of blocks that are, whatever the numbers in their names."""
    return [(mark.role, _NUMBER.sub("#", mark.text), mark.detail) for mark in marks]


def _block_of(name: str) -> str:
    """What a name says up to its first number: "encoder.layer.3" of "encoder.layer.3.attention.query"."""
    number = _NUMBER.search(name)
    return name[: number.end()] if number else ""


def _layer(layer: LayerRecord, block: str) -> Mark:
    name = layer.module or layer.name
    own = name.removeprefix(block).strip("._/") or layer.kind
    short = re.split(r"[./]", own)
    weights = {"sparse": "2:4", "not-sparse": "not 2:4", "not-eligible": "not eligible"}
    detail = f"{layer.k} → {layer.n} · {layer.precision}"
    state = weights.get(layer.state, layer.state)
    title = f"{name}: {layer.kind}, {detail}, weights {state}, planned {layer.sparsity}. {layer.reason}"
    return Mark("dense" if layer.sparsity == "dense" else "sparse", ".".join(short[-2:]), detail, title)


def _island(operators: tuple[str, ...]) -> Mark:
    counts = Counter(operators)
    telling = sorted(counts, key=lambda op: (not _TELLING.search(op), -counts[op]))
    shown = ", ".join(telling[:_MOST_OPERATORS])
    more = len(operators) - sum(counts[op] for op in telling[:_MOST_OPERATORS])
    whole = ", ".join(op if count == 1 else f"{count} {op}" for op, count in counts.items())
    return Mark("island", shown, f"fp32{f' · +{more}' if more else ''}", f"Kept in FP32: {whole}")


# What an island is there for; the rest are the nodes around it.
_TELLING = re.compile(r"Softmax|Norm|^Reduce")
