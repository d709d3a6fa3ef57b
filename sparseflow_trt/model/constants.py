"""A graph's constants: which tensor a value always is, and what is left of one that nothing reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a value always is, if it is one."""
    import onnx_ir as ir

    if value.is_graph_input():  # its default can be overridden
        return None
    return ir.convenience.get_const_tensor(value)


def drop_unused(value: ir.Value) -> None:
    """Removes a constant and the nodes that lead from it, as far as nothing reads them."""
    while not value.uses() and not value.is_graph_output():
        node = value.producer()
        if node is None:
            graph = value.graph
            if value.is_initializer() and graph is not None and not value.is_graph_input():
                del graph.initializers[value.name or ""]
            return
        above = [v for v in node.inputs if v is not None]
        if any(output.uses() or output.is_graph_output() for output in node.outputs) or node.graph is None:
            return
        node.graph.remove(node, safe=True)
        for other in above[1:]:
            drop_unused(other)
        if not above:
            return
        value = above[0]
