"""Puts ONNX's operators in the place of the ONNX Runtime's own, for as long as shapes are inferred.

onnx knows nothing of those, and behind the first of them no M would be known. What stands in gives the same
shape and type; it is never run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.runtimes_own import RUNTIMES_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

# They give what they are given, another way; the last two of them the ONNX Runtime has in ONNX's domain.
_ALIKE = {
    "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "LayerNormalization", "SimplifiedLayerNormalization",
}  # fmt: skip
_PACKED = "MatMulNBits"  # its weight is in blocks of a few bits; its sizes are attributes
_SUM = 3  # the output of a SkipLayerNormalization that is the sum it normalises


@contextmanager
def stand_ins(model: ir.Model) -> Iterator[None]:
    """Within it nodes are ONNX's own where that gives the same shapes; behind it they are as before."""
    undo = [_stand_in(node) for node in model.graph.all_nodes()]
    try:
        yield
    finally:
        for node, op_type, domain, inputs, sums in filter(None, undo):
            node.op_type, node.domain = op_type, domain
            stood = node.inputs[1] if len(inputs) > 1 else None
            for index, value in enumerate(inputs):
                node.replace_input_with(index, value)
            if stood is not None and stood not in inputs:
                _graph_of(node).initializers.pop(str(stood.name))
            for user, index in sums:
                user.replace_input_with(index, node.outputs[_SUM])
            if len(node.outputs) > _SUM:
                node.outputs[_SUM].shape = node.outputs[0].shape
                node.outputs[_SUM].type = copy.deepcopy(node.outputs[0].type)


_Undo = tuple["ir.Node", str, str, tuple["ir.Value | None", ...], tuple[tuple["ir.Node", int], ...]]


def _stand_in(node: ir.Node) -> _Undo | None:
    told = _like(node)
    if told is None:
        return None
    inputs = tuple(node.inputs)
    sums: tuple[tuple[ir.Node, int], ...] = ()
    before = (node.op_type, node.domain)
    node.op_type, node.domain = told[0], ONNX_DOMAIN
    for index, source in enumerate(told[1]):
        node.replace_input_with(index, inputs[source])
    if before[0] == _PACKED:
        node.replace_input_with(1, _unpacked(node))
    if told[0] == "Identity" and len(node.outputs) > _SUM:
        sums = tuple((use.node, use.idx) for use in node.outputs[_SUM].uses())
        node.outputs[_SUM].replace_all_uses_with(node.outputs[0])
    return node, *before, inputs, sums


def _like(node: ir.Node) -> tuple[str, tuple[int, ...]] | None:
    """ONNX's operator of the same shape and type, and which inputs it takes first."""
    kind = node.op_type
    if node.domain == ONNX_DOMAIN:
        return ("Identity", ()) if kind in ("LayerNormalization", "SimplifiedLayerNormalization") else None
    if node.domain != RUNTIMES_DOMAIN:
        return None
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        return kind, ()
    if kind == "EmbedLayerNormalization":
        return "Gather", (2, 0)  # rows of the table of words, by their indices
    if kind == "FusedMatMul":
        turned = any(a.value for name, a in node.attributes.items() if name.startswith("trans"))
        return None if turned else ("MatMul", ())
    if kind == _PACKED:
        sizes = (node.attributes.get(name) for name in ("K", "N"))
        whole = all(size is not None and size.as_int() > 0 for size in sizes) and len(node.inputs) > 2
        return ("MatMul", ()) if whole else None
    if kind == "Attention" and not _is_square(node):
        return None
    if kind in _ALIKE or kind in ("Attention", "MultiHeadAttention"):
        return "Identity", ()
    return None


def _is_square(node: ir.Node) -> bool:
    """Whether an Attention's weight makes q, k and v as wide as what it reads."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    if shape is None or not shape.is_static():
        return False
    sizes = tuple(int(d) for d in shape.numpy())
    return len(sizes) == 2 and sizes[1] == 3 * sizes[0]


def _unpacked(node: ir.Node) -> ir.Value:
    """A weight of the shape and type that a MatMulNBits multiplies by, with no memory of its own."""
    import onnx_ir as ir

    k, n = (node.attributes[name].as_int() for name in ("K", "N"))
    scales = node.inputs[2]
    kind = scales.dtype if scales is not None and scales.dtype is not None else ir.DataType.FLOAT
    name = f"{node.outputs[0].name}/unpacked"
    zeros = ir.tensor(np.broadcast_to(np.zeros((), kind.numpy()), (k, n)), kind, name=name)
    value = ir.Value(name=name, shape=ir.Shape((k, n)), type=ir.TensorType(kind), const_value=zeros)
    _graph_of(node).register_initializer(value)
    return value


def _graph_of(node: ir.Node) -> ir.Graph:
    import onnx_ir as ir

    assert isinstance(node.graph, ir.Graph)
    return node.graph
