"""Which nodes of a model change their precision together, and which of them FP16 is likely to hurt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseflow_trt.exporters.retyping.islands import fp32_islands, quantized_region
from sparseflow_trt.exporters.retyping.measured import MOVERS, PRODUCTS, first_float
from sparseflow_trt.model.node_range import LARGEST_FP16, NodeRange
from sparseflow_trt.model.sites import find_sites, name_of
from sparseflow_trt.plans.plan import Plan, Precision
from sparseflow_trt.plans.precision_record import UNCHANGED

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparseflow_trt.model.model_file import OnnxModel


@dataclass(frozen=True)
class Atom:
    """A node with what rides along with it: a product's bias, and nodes that only move its output.

    Attributes:
        nodes: Their names in a plan's islands, the first one's own first; weighted layers are in `layers`.
        layers: The weighted layers among them, by the plan's names: one, or none.
        op_type: The first node's.
        range: The first node's, None where it was not measured.
    """

    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    op_type: str
    range: NodeRange | None

    @property
    def name(self) -> str:
        """What a plan calls it."""
        return (self.layers or self.nodes)[0]

    @property
    def work(self) -> float:
        """M·N·K of a product, else the elements it makes."""
        return self.range.work if self.range else 0.0


@dataclass(frozen=True)
class Group:
    """Atoms that have to change together, and why FP16 may hurt them: "" where nothing speaks for it."""

    atoms: tuple[Atom, ...]
    suspicion: str
    weight: float


def find_groups(
    model: OnnxModel, plan: Plan, ranges: Mapping[str, NodeRange], limit: float
) -> tuple[Group, ...]:
    """The groups that a search may switch, those that are likely to need FP32 first.

    A tensor that FP16 cannot hold has to stay wide on its whole way, so that its maker and its readers
    are one group. A node that FP16's rounding of its inputs throws off by more than `limit` is one with
    the nodes before it up to the products they start from. Groups without such a reason follow in the
    order of their own error for their work.

    Args:
        model: The model as read.
        plan: In FP16; its islands, quantized layers and what lies between Q and DQ are not switched.
        ranges: By node name; nodes without one are switched last.
        limit: The relative error of one node from which it is suspected.
    """
    finder = _Finder(model, plan, ranges, limit)
    finder.ride_along()
    atoms = {nodes[0]: finder.atom(nodes) for nodes in finder.parts()}
    finder.join_suspects()
    groups = [
        finder.group(part, tuple(atoms[node] for node in part if node in atoms)) for part in finder.parts()
    ]
    return tuple(sorted(groups, key=lambda group: (not group.suspicion, -group.weight)))


def quantized_atoms(
    model: OnnxModel, plan: Plan, ranges: Mapping[str, NodeRange]
) -> tuple[tuple[Atom, Precision], ...]:
    """The weighted layers that are quantized in the model, and stay so, each with its precision."""
    planned = {layer.name: layer.precision for layer in plan.layers if layer.precision in ("int8", "fp8")}
    return tuple(
        (
            Atom((), (site.name,), site.node.op_type, ranges.get(name_of(site.node))),
            planned[site.name],
        )
        for site in find_sites(model)
        if site.name in planned
    )


class _Finder:
    """A forest over the nodes that can be switched: joined nodes have one root."""

    def __init__(self, model: OnnxModel, plan: Plan, ranges: Mapping[str, NodeRange], limit: float) -> None:
        self._ranges, self._limit = ranges, limit
        sites = {site.node: site.name for site in find_sites(model)}
        planned = {layer.name: layer.precision for layer in plan.layers}
        self._layers = {node: name for node, name in sites.items() if name in planned}
        floats = [node for node, name in self._layers.items() if planned[name] not in UNCHANGED]
        fixed = fp32_islands(model.ir, plan) | quantized_region(model.ir, model.opset, floats)
        fixed |= {node for node, name in self._layers.items() if planned[name] in UNCHANGED}
        nodes = tuple(model.ir.graph.all_nodes())
        self._nodes = [n for n in nodes if n not in fixed and first_float(n) is not None]
        self._all = nodes
        self._parent = {node: node for node in self._nodes}
        self._why: dict[ir.Node, tuple[float, str]] = {}

    def ride_along(self) -> None:
        """Joins movers with what makes their input, and a bias with its product."""
        for node in self._nodes:
            maker = _maker(node, 0)
            if node.op_type in MOVERS and maker in self._parent:
                self._join(node, maker)
            elif node.op_type == "Add":
                for i in (0, 1):
                    maker, other = _maker(node, i), node.inputs[1 - i]
                    if maker in self._layers and maker in self._parent and _is_constant(other):
                        self._join(node, maker)

    def join_suspects(self) -> None:
        """Joins the makers and readers of what FP16 cannot hold, and ill-conditioned nodes with their way."""
        beyond: dict[ir.Value, float] = {}
        for node in self._all:
            output = first_float(node)
            if output is None:
                continue
            found = self._ranges.get(name_of(node))
            source = node.inputs[0] if node.inputs else None
            if node.op_type in MOVERS and source in beyond:
                for value in node.outputs:
                    beyond[value] = beyond[source]
            elif found is not None and found.overflows:
                beyond[output] = found.largest
        for value, largest in beyond.items():
            chain = [n for n in (value.producer(), *value.consumers()) if n in self._parent]
            for node in chain[1:]:
                self._join(chain[0], node)
            if chain:
                maker = value.producer()
                said = f"'{name_of(maker)}' reaches {largest:.3g}" if maker else f"it reaches {largest:.3g}"
                self._suspect(chain[0], math.inf, f"{said}, and FP16 ends at {LARGEST_FP16:.0f}")
        for node in self._all:
            found = self._ranges.get(name_of(node))
            error = found.fp16_error if found else None
            overflow = any(value in beyond for value in (*node.inputs, *node.outputs))
            if error is not None and error > self._limit and not overflow:
                self._join_way(node, error)

    def _join_way(self, node: ir.Node, error: float) -> None:
        said = "is infinite or NaN" if math.isinf(error) else f"is off by {100 * error:.2g} %"
        why = f"'{name_of(node)}' {said} where FP16 rounds what it reads"
        way = self._way_before(node)
        if node in self._parent:
            way.append(node)
        for other in way[1:]:
            self._join(way[0], other)
        if way:
            self._suspect(way[0], min(error, 1e30), why)

    def _way_before(self, node: ir.Node) -> list[ir.Node]:
        """The nodes behind a node's inputs, up to and with the first product on each way."""
        found: dict[ir.Node, None] = {}  # in the order of finding
        open_ends = [node]
        while open_ends:
            for value in open_ends.pop().inputs:
                maker = value.producer() if value is not None else None
                if maker in self._parent and maker not in found:
                    found[maker] = None
                    if maker.op_type not in PRODUCTS:
                        open_ends.append(maker)
        return list(found)

    def parts(self) -> list[tuple[ir.Node, ...]]:
        """The joined nodes, in the order of the graph."""
        parts: dict[ir.Node, list[ir.Node]] = {}
        for node in self._nodes:
            parts.setdefault(self._root(node), []).append(node)
        return [tuple(nodes) for nodes in parts.values()]

    def atom(self, nodes: tuple[ir.Node, ...]) -> Atom:
        """What its first node does, with the names of all."""
        first = nodes[0]
        layers = tuple(self._layers[node] for node in nodes if node in self._layers)
        names = tuple(name_of(node) for node in nodes if node not in self._layers)
        return Atom(names, layers, first.op_type, self._ranges.get(name_of(first)))

    def group(self, nodes: Iterable[ir.Node], atoms: tuple[Atom, ...]) -> Group:
        """The joined atoms, with the worst that is said of one of their nodes."""
        reasons = [self._why[node] for node in nodes if node in self._why]
        if reasons:
            weight, why = max(reasons, key=lambda reason: reason[0])
            return Group(atoms, why, weight)
        known = [atom.range.fp16_error or 0.0 for atom in atoms if atom.range]
        squares = sum(error**2 for error in known)
        return Group(atoms, "", squares / max(sum(atom.work for atom in atoms), 1.0))

    def _suspect(self, node: ir.Node, weight: float, why: str) -> None:
        if weight > self._why.get(node, (0.0, ""))[0]:
            self._why[node] = (weight, why)

    def _root(self, node: ir.Node) -> ir.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _join(self, a: ir.Node, b: ir.Node) -> None:
        self._parent[self._root(b)] = self._root(a)


def _maker(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.producer() if value is not None else None


def _is_constant(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and ir.convenience.get_const_tensor(value) is not None
