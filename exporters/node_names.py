"""A name for each node that no other of its graph has: ONNX Runtime refuses two of one name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparseflow_trt.model.sites import LayerSite, name_of
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir


def name_nodes(graph: ir.Graph, sites: Iterable[LayerSite]) -> None:
    """Names nodes that have no name by their outputs, which may change, and numbers those of one name.

    Layers are named first, and so as plans know them. A node with a body keeps its name: its layers have it.

    Args:
        graph: With its subgraphs.
        sites: Its layers.
    """
    layers = {site.node for site in sites}
    nodes = tuple(graph.all_nodes())
    taken: dict[object, set[str]] = {}
    for node in (node for node in nodes if bodies_of(node)):
        node.name = name_of(node)
        taken.setdefault(node.graph, set()).add(node.name)
    for node in sorted((node for node in nodes if not bodies_of(node)), key=lambda node: node not in layers):
        used = taken.setdefault(node.graph, set())
        first = name = name_of(node)
        number = 1
        while name in used:
            number += 1
            name = f"{first}#{number}"
        used.add(name)
        node.name = name


def has_twins(graph: ir.Graph) -> bool:
    """Whether two nodes of one graph have the same name."""
    named = [(node.graph, node.name) for node in graph.all_nodes() if node.name]
    return len(set(named)) < len(named)
