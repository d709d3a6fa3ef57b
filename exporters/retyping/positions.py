"""Which nodes compute positions and sizes: numbers that have to be exact, however few they are.

FP16 has every integer up to 2048 alone, and steps of a quarter from 256 on. A rotary embedding turns by
position · frequency, a relative position becomes the number of a bucket, a size is scaled and becomes that
of a Resize: half a step is another angle, another bucket, another shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparseflow_trt.exporters.retyping.node_types import infer_types
from sparseflow_trt.model.constants import constant_of
from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

_PRODUCTS = {"Einsum", "Gemm", "MatMul"}
_ARITHMETIC = _PRODUCTS | {
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "CumSum", "Div", "Exp", "Expand", "Flatten", "Floor",
    "Gather", "Identity", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape",
    "Round", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_ANGLES = {"Cos", "Sin"}
_SCALED = {"Resize", "Upsample"}


def nodes_of_positions(model: ir.Model) -> set[ir.Node]:
    """The nodes that compute angles, integers and scales of positions and sizes.

    That is: sines and cosines, casts to integers and a Resize's scales, with the arithmetic before them,
    where that begins at integers and constants, or at inputs of the model and has no products.

    Args:
        model: A model whose local functions are inlined; types that it lacks are added where they are asked
            for.
    """
    if not any(_may_be_an_end(node) for node in model.graph.all_nodes()):
        return set()  # and there is no need of types, which cost a third of the time of a plan
    infer_types(model)
    exact: set[ir.Value] = set()  # of integers and constants alone
    plain = {v for v in model.graph.inputs if v.name not in model.graph.initializers}  # of inputs, too
    ends: list[ir.Value] = []
    for node in model.graph.all_nodes():
        if node.domain != ONNX_DOMAIN or not node.outputs:
            continue
        read = [v for v in node.inputs if v is not None and constant_of(v) is None]
        floats = [v for v in read if v.dtype is None or v.dtype.is_floating_point()]
        known = all(v in exact or v in plain for v in floats)
        if node.op_type in _SCALED:
            ends += [v for v in node.inputs[1:3] if v is not None and (v in exact or v in plain)]
        elif node.op_type in _ANGLES and known:
            ends += node.outputs
        elif node.op_type in _ARITHMETIC and known and read:
            made = node.outputs[0].dtype
            if made is not None and made.is_integer():
                ends += floats
            elif node.op_type == "Gather" and not floats:
                continue  # a row of a table, and no position
            elif all(v in exact for v in floats):
                exact.update(node.outputs)
            elif node.op_type not in _PRODUCTS:
                plain.update(node.outputs)
    return _makers(ends, exact | plain)


def _may_be_an_end(node: ir.Node) -> bool:
    """Whether a node is of those that positions and sizes are computed for; its types are not needed."""
    import onnx_ir as ir

    if node.domain != ONNX_DOMAIN or node.op_type in _ANGLES | _SCALED:
        return node.domain == ONNX_DOMAIN
    to = node.attributes.get("to") if node.op_type == "Cast" else None
    return to is not None and any(to.value == dtype for dtype in ir.DataType if dtype.is_integer())


def _makers(ends: list[ir.Value], among: set[ir.Value]) -> set[ir.Node]:
    """The nodes that make some values, and those before them as far as these make values of `among`."""
    makers: set[ir.Node] = set()
    while ends:
        node = ends.pop().producer()
        if node is not None and node not in makers:
            makers.add(node)
            ends += [v for v in node.inputs if v in among and v is not None]
    return makers
