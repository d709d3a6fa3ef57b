"""Names for what is added to a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


class Names:
    """Gives names that no value of the model has.

    A subgraph may not name a value as the graph around it does.
    """

    def __init__(self, model: ir.Model) -> None:
        self._taken = {v.name for node in model.graph.all_nodes() for v in node.outputs}
        for graph in model.graphs():
            self._taken |= {v.name for v in (*graph.inputs, *graph.initializers.values())}

    def new(self, base: str) -> str:
        """`base`, with a number behind it where that is taken."""
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name
