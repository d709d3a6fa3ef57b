"""Where stored tensors' bytes lie, and who reads the same ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.parts import part_of
from sparseflow_trt.model.sites import LayerSite
from sparseflow_trt.model.trace import passes_through
from sparseflow_trt.model.weights import TracedWeight

if TYPE_CHECKING:
    import onnx_ir as ir

Users = list[tuple[LayerSite, TracedWeight]]  # those of one weight
WOULD_CHANGE = "which pruning would change"  # ends each reason that this module gives


@dataclass(frozen=True)
class Region:
    """Where a tensor's bytes lie: a range of a data file, or all of an inline tensor."""

    place: object
    begin: int
    end: int


def users_by_region(sites: Iterable[LayerSite]) -> dict[Region, Users]:
    """The layers that share a weight's bytes, each with its weight."""
    users: dict[Region, Users] = {}
    for site in sites:
        if isinstance(site.weight, TracedWeight):
            users.setdefault(region_of(site.weight.tensor), []).append((site, site.weight))
    return users


class Storage:
    """Every stored tensor of a model, to find who else reads the bytes that pruning would change."""

    def __init__(self, model: OnnxModel) -> None:
        """Looks through all of a model's graphs."""
        self._values: dict[object, list[tuple[Region, ir.Value]]] = {}
        for graph in model.ir.graphs():
            for value in graph.initializers.values():
                self._add(value, value.const_value)
        for node in model.ir.graph.all_nodes():
            tensor = node.attributes.get("value")
            if node.op_type == "Constant" and tensor is not None and node.outputs:
                self._add(node.outputs[0], tensor.value)

    def _add(self, value: ir.Value, tensor: Any) -> None:
        if tensor is not None and hasattr(tensor, "nbytes"):
            region = region_of(tensor)
            self._values.setdefault(region.place, []).append((region, value))

    def other_use(self, region: Region, sites: Sequence[LayerSite]) -> str:
        """What else than these layers' weights the bytes of a region are, or "" where nothing."""
        for other, value in self._values.get(region.place, []):
            if other != region and region.begin < other.end and other.begin < region.end:
                return f"shares some of its bytes with '{value.name}', {WOULD_CHANGE}"
        return self.other_readers(region, sites)

    def other_readers(self, region: Region, sites: Sequence[LayerSite]) -> str:
        """Which nodes other than these layers read just these bytes, as an embedding may; "" for none."""
        weights = {(site.node, 0 if site.side == "left" else 1) for site in sites}
        uses = set()
        same = [value for other, value in self._values.get(region.place, []) if other == region]
        for user, index in itertools.chain.from_iterable(map(_uses, same)):
            if user is None:
                uses.add("the graph's outputs")
            elif (user, index) not in weights:
                uses.add(f"{user.op_type} '{user.name or user.outputs[0].name}'")
        return f"is also read by {', '.join(sorted(uses))}, {WOULD_CHANGE}" if uses else ""


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
    """The (node, input) pairs that read a value, through the nodes that a weight is traced through.

    A graph that gives the value out is (None, 0).
    """
    if value.is_graph_output():
        yield None, 0
    for node, index in value.uses():
        if passes_through(node) and index == 0:
            yield from _uses(node.outputs[0])
        else:
            yield node, index


def region_of(tensor: ir.TensorProtocol) -> Region:
    """Where a stored tensor's bytes lie."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor):  # two names for one range of a file are one weight
        begin = tensor.offset or 0
        return Region(Path(tensor.path).resolve(), begin, begin + tensor.nbytes)
    part = part_of(tensor)
    place, begin = (id(part.whole), part.offset) if part is not None else (id(tensor), 0)
    return Region(place, begin, begin + tensor.nbytes)
