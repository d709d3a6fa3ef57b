"""Renames values in bodies that are named as one around them, which ONNX forbids and ONNX Runtime writes.

It casts an FP16 value that both the graph and a body read by one name in each, and does not read that again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir


def rename_shadowed(path: Path) -> None:
    """Gives such values names of their own, in the file; one without such stays as it is.

    Args:
        path: An ONNX file.
    """
    import onnx_ir as ir

    if not any(bodies_of(node) for node in read_model(path).ir.graph):
        return
    model = read_model(path, inline=True).ir
    if _rename(model.graph, frozenset(), Names(model)):
        ir.save(model, path)


def _rename(graph: ir.Graph, around: frozenset[str | None], names: Names) -> int:
    renamed = 0
    for value in (output for node in graph for output in node.outputs):
        if value.name in around:
            value.name = names.new(value.name or "")
            renamed += 1
    given = (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
    inside = around | {value.name for value in given if value.name}
    return renamed + sum(_rename(body, inside, names) for node in graph for _, body in bodies_of(node))
