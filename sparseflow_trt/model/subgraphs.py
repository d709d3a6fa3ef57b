"""The graphs inside of a node: an If's branches, the body of a Loop or Scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def bodies_of(node: ir.Node) -> tuple[tuple[str, ir.Graph], ...]:
    """A node's subgraphs, each with its attribute's name, which a list's have a number behind."""
    import onnx_ir as ir

    found: list[tuple[str, ir.Graph]] = []
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append((name, attribute.as_graph()))
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += [(f"{name}{i}", body) for i, body in enumerate(attribute.as_graphs())]
    return tuple(found)
