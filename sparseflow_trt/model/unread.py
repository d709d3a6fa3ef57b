"""Takes nodes that nothing reads out of a graph in memory: no engine has them, so no layer is one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir


def drop_unread(graph: ir.Graph) -> None:
    """Removes every node whose outputs lead to no output of its graph, in bodies, too.

    Such are left where an output of a model was cut off. Constants stay.
    """
    for node in reversed(tuple(graph)):  # what reads a node's outputs stands behind it
        read = any(output.uses() or output.is_graph_output() for output in node.outputs)
        for _, body in bodies_of(node):
            if not read:
                body.outputs.clear()  # its nodes read values of the graph around it
            drop_unread(body)
        if not read:
            graph.remove(node, safe=True)
