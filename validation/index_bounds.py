"""How large the values of an integer input may be: the sizes of the tables they index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

# What hands integers on as they are, from its first input to its first output.
_CARRIERS = frozenset({
    "Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Gather", "GatherElements", "GatherND",
})  # fmt: skip
_INDEXED = frozenset({"Gather", "GatherElements"})  # data is input 0, the index input 1


def index_bound(value: ir.Value) -> int | None:
    """The number of rows of the smallest table that `value` indexes; None where it indexes none.

    The value is followed through what does not change it (Cast, Reshape, Concat, …) to the index of
    each Gather; a table's size is its dimension along the Gather's axis. An index v with
    0 <= v < bound is inside every table.
    """
    bounds: list[int] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, position in current.uses():
            if node.domain != ONNX_DOMAIN:
                continue
            if node.op_type in _INDEXED and position == 1:
                rows = _rows(node)
                bounds += [] if rows is None else [rows]
            elif node.op_type == "Concat" or (node.op_type in _CARRIERS and position == 0):
                waiting += node.outputs
    return min(bounds, default=None)


def _rows(gather: ir.Node) -> int | None:
    axis = gather.attributes.get_int("axis", 0)
    table = gather.inputs[0]
    while table is not None:
        if table.shape is not None and -len(table.shape) <= axis < len(table.shape):
            size = table.shape[axis]
            if isinstance(size, int):
                return size
        maker = table.producer()
        # A table that is stored in another type or copied has the shape of what it is made from.
        if maker is None or maker.op_type not in ("Cast", "DequantizeLinear", "Identity"):
            return None
        table = maker.inputs[0]
    return None
