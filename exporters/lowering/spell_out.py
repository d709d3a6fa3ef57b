"""Writes out what TensorRT 8.6's parser leaves out or cannot do without, both found by running it.

It reads Shape without its `start` and `end` (opset 15): the whole shape comes back, and the node that reads
it fails, or worse, does not. And it reads the third input of QuantizeLinear and DequantizeLinear, the zero
point, where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.exporters.lowering.rewriting import Rewriting, input_of
from sparseflow_trt.model.constants import constant_of
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir


def fold_dequantized(model: ir.Model) -> int:
    """Turns DequantizeLinear of a constant INT32, or of a single number, into the constant that it gives.

    Quantizers store biases so, and the numbers in a GELU; TensorRT dequantizes neither. The product is ONNX's
    own definition, in the scale's type.

    Returns:
        How many were folded.
    """
    import onnx_ir as ir

    names, folded = Names(model), 0
    for node in tuple(model.graph.all_nodes()):
        if node.op_type != "DequantizeLinear" or node.domain != ONNX_DOMAIN:
            continue
        stored, scale, zero = (_constant_input(node, i) for i in range(3))
        if stored is None or scale is None or (zero is None and len(node.inputs) > 2 and node.inputs[2]):
            continue
        of_a_number = not stored.shape and stored.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
        if stored.dtype != ir.DataType.INT32 and not of_a_number:
            continue
        if node.outputs[0].is_graph_output():
            continue
        axis = node.attributes.get("axis")
        factor = scale.numpy()
        if factor.size > 1:
            at = (axis.as_int() if axis else 1) % len(stored.shape)
            factor = factor.reshape([-1 if i == at else 1 for i in range(len(stored.shape))])
        steps = stored.numpy().astype(np.int32)
        if of_a_number and zero is not None:  # INT32 has none but 0
            steps = steps - zero.numpy().astype(np.int32)
        values = (steps * factor).astype(factor.dtype).reshape(steps.shape)
        work = Rewriting(node, names, model.opset_imports.get(ONNX_DOMAIN, 1))
        node.outputs[0].replace_all_uses_with(work.constant(values, "folded"))
        folded += 1
    return folded


def _constant_input(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = input_of(node, index)
    return constant_of(value) if value is not None else None


def spell_out(model: ir.Model) -> dict[str, int]:
    """Rewrites these nodes in place, in every opset that has them.

    Args:
        model: A model whose local functions are inlined.

    Returns:
        How many nodes of each operator were rewritten.
    """
    names = Names(model)
    opset = model.opset_imports.get(ONNX_DOMAIN, 1)
    done: dict[str, int] = {}
    for node in tuple(model.graph.all_nodes()):
        rule = {"Shape": _shape, "QuantizeLinear": _zero_point, "DequantizeLinear": _zero_point}.get(
            node.op_type
        )
        if rule and node.domain == ONNX_DOMAIN and rule(Rewriting(node, names, opset)):
            done[node.op_type] = done.get(node.op_type, 0) + 1
    return done


def _shape(work: Rewriting) -> bool:
    """Shape(x, start, end) as a Slice of Shape(x)."""
    import onnx_ir as ir

    node = work.node
    start, end = (node.attributes.pop(name, None) for name in ("start", "end"))
    if start is None and end is None:
        return False
    first = start.as_int() if start else 0
    last = end.as_int() if end else np.iinfo(np.int64).max
    whole = work.add("Shape", node.inputs[0], dtype=ir.DataType.INT64)
    bounds = [work.constant(np.asarray([v], np.int64), name) for v, name in ((first, "start"), (last, "end"))]
    work.replace(work.add("Slice", whole, *bounds))
    return True


def _zero_point(work: Rewriting) -> bool:
    """The zero point that is left out: 0 of the quantized type, in the shape of the scale."""
    node = work.node
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return False
    quantized = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    scale = node.inputs[1]
    dtype = quantized.dtype if quantized is not None else None
    if dtype is None or scale is None or scale.shape is None or not scale.shape.is_static():
        return False
    node.resize_inputs(3)
    shape = tuple(int(d) for d in scale.shape.numpy())
    node.replace_input_with(2, work.constant(np.zeros(shape, dtype.numpy()), "zero_point"))
    return True
