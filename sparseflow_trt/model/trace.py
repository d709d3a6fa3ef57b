"""Follows a node's input to the constant tensor behind it, and what lies between the two."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.subgraphs import bodies_of
from sparseflow_trt.model.weights import TracedWeight, Untraceable

if TYPE_CHECKING:
    import onnx_ir as ir

# The reason of a layer whose weight is a product of two constants, as PyTorch's pruning leaves it.
MASK_APART = "its mask is still separate: the graph multiplies its weight by it"


def trace_weight(value: ir.Value | None) -> TracedWeight | Untraceable:
    """Follows a node's input up to the constant tensor it is, if it is one.

    Passes through Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze, Flatten, QuantizeLinear and
    DequantizeLinear.

    Raises:
        ValueError: A node on the way says something impossible (a `perm` that is none, …).
        TypeError: An attribute on the way has the wrong type.
        LookupError: A node on the way lacks an input or an attribute.
    """
    import onnx_ir as ir

    source, passed = _climb(value)
    if source is None:
        return Untraceable("dynamic weight: the input is left out")
    tensor, node = ir.convenience.get_const_tensor(source), source.producer()
    if tensor is not None:
        return _traced(source, tensor, passed)
    if node is None:
        return Untraceable(f"dynamic weight: '{source.name}' is an input of its graph")
    if node.op_type == "Constant" and node.domain == ONNX_DOMAIN:
        return Untraceable(f"dynamic weight: {_label(node)} holds no tensor")
    if _is_masking(node):
        return Untraceable(MASK_APART, computed=True)
    if _is_constant(source):
        return Untraceable(_why_computed(source, node), computed=True)
    return Untraceable(f"dynamic weight: computed by {_label(node)}")


def _why_computed(value: ir.Value, node: ir.Node) -> str:
    """Why a weight that a node computes of constants is not read, and what to do."""
    by = f"its weight is computed from constants by {_label(node)}"
    if is_dequantized(value):  # to fold it would make it a float
        return f"{by} behind a DequantizeLinear: do it before, and dequantize last"
    if node.op_type in ("Split", "Slice"):  # of what `parts` does not take
        by += ", and no range of rows"
    return f"{by}: make it one parameter before the export"


def _climb(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """The value that an input is, up what weights are traced through, and these nodes, the last one first."""
    passed: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and passes_through(node):
        passed.append(node)
        value = node.inputs[0]
    return value, passed


def _is_masking(node: ir.Node) -> bool:
    """Whether a node applies a constant mask to a constant of its shape, casts and the like aside.

    It multiplies them (a scale has another shape), or takes zero where the mask says so.
    """
    import onnx_ir as ir

    if node.op_type not in ("Mul", "Where"):
        return False
    sources = [source for source, _ in map(_climb, node.inputs)]
    found = [ir.convenience.get_const_tensor(source) for source in sources if source is not None]
    tensors = [tensor for tensor in found if tensor is not None]
    if node.op_type == "Where" and len(tensors) == 3:
        tensors = [tensors[0], *(branch for branch in tensors[1:] if np.any(branch.numpy()))]
    shapes = [tuple(tensor.shape.numpy()) for tensor in tensors]
    return len(shapes) == 2 and shapes[0] == shapes[1]


_PASSED_THROUGH = {
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def passes_through(node: ir.Node) -> bool:
    """Whether a weight is traced through a node, from its output to its first input."""
    if node.domain == "com.microsoft":  # the ONNX Runtime's own Q and DQ mean what ONNX's mean
        return node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return node.op_type in _PASSED_THROUGH and node.domain == ONNX_DOMAIN


_MOST_NODES = 64  # that a weight is computed by: an LSTM's gates in another order take 20

_DRAWN = ("Bernoulli", "Multinomial", "Random")


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is computed of constants alone, by few nodes."""
    import onnx_ir as ir

    waiting, seen = [value], set[ir.Node]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None:
            if value.const_value is None or value.is_graph_input():
                return False
        elif node not in seen and ir.convenience.get_const_tensor(value) is None:
            seen.add(node)
            inputs = [v for v in node.inputs if v is not None]
            bodies = bodies_of(node)
            drawn = node.op_type.startswith(_DRAWN) or node.domain != ONNX_DOMAIN
            if not inputs or bodies or drawn or len(seen) > _MOST_NODES:
                return False
            waiting += inputs
    return True


_MOVES = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value is what a DequantizeLinear gives, as it is or moved."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _MOVES and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"


def _traced(value: ir.Value, tensor: ir.TensorProtocol, passed: list[ir.Node]) -> TracedWeight | Untraceable:
    import onnx_ir as ir

    traced = TracedWeight(value, tensor, ())
    dequantized = False
    for node in reversed(passed):
        shape = traced.operand_shape
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            order = tuple(perm.as_ints()) if perm else tuple(reversed(range(len(shape))))
            if sorted(order) != list(range(len(shape))):
                raise ValueError(f"{_label(node)} has perm {list(order)} for {len(shape)} dimensions")
            traced = replace(traced, steps=(*traced.steps, ("transpose", order)))
        elif node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            reshaped = _reshaped(node, shape)
            if reshaped is None:
                return Untraceable(f"dynamic weight: the shape of {_label(node)} is not constant")
            if math.prod(reshaped) != math.prod(shape) or min(reshaped, default=0) < 0:
                raise ValueError(f"{_label(node)} turns {list(shape)} into {list(reshaped)}")
            traced = replace(traced, steps=(*traced.steps, ("reshape", reshaped)))
        elif node.op_type == "QuantizeLinear":
            traced = replace(traced, made=_quantized_type(node))
        elif node.op_type == "Cast" and not dequantized:
            traced = replace(traced, made=ir.DataType(node.attributes["to"].as_int()))
        elif node.op_type == "DequantizeLinear":
            dequantized = True
            zero_point = _zero_point(node, traced)
            if isinstance(zero_point, Untraceable):
                return zero_point
            traced = replace(traced, zero_point=zero_point)
    return traced


def _reshaped(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape behind a node that only reshapes, or None where it is not constant."""
    if node.op_type == "Flatten":
        axis = _int_attribute(node, "axis", 1)
        axis += len(shape) if axis < 0 else 0
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    given = _ints(node, 1, "axes")  # the shape, for Reshape
    if node.op_type == "Reshape":
        allow_zero = bool(_int_attribute(node, "allowzero", 0))
        return None if given is None else _target_shape(given, shape, allow_zero)
    if given is None and (len(node.inputs) > 1 and node.inputs[1] is not None):
        return None
    if node.op_type == "Squeeze":
        axes = {a % len(shape) for a in given} if given else {i for i, d in enumerate(shape) if d == 1}
        return tuple(d for i, d in enumerate(shape) if i not in axes)
    rank = len(shape) + len(given or ())
    axes = {a % rank for a in given or ()}
    if len(axes) != len(given or ()):
        raise ValueError(f"{_label(node)} names an axis twice")
    rest = iter(shape)
    return tuple(1 if i in axes else next(rest) for i in range(rank))


def _target_shape(target: tuple[int, ...], shape: tuple[int, ...], allow_zero: bool) -> tuple[int, ...]:
    dims = [d if d or allow_zero else shape[i] for i, d in enumerate(target)]
    if dims.count(-1) == 1:
        known = math.prod(d for d in dims if d != -1)
        dims[dims.index(-1)] = math.prod(shape) // known if known else 0
    return tuple(dims)


def _int_attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute else default


def _ints(node: ir.Node, index: int, name: str) -> tuple[int, ...] | None:
    """Integers that are a constant input of a node or, as in old opsets, an attribute."""
    import onnx_ir as ir

    if len(node.inputs) > index:
        value = node.inputs[index]
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        return None if tensor is None else tuple(int(d) for d in tensor.numpy().reshape(-1))
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute else None


def _quantized_type(node: ir.Node) -> ir.DataType:
    """What QuantizeLinear makes: its zero point's type, or the one it says; ONNX's default is UINT8."""
    import onnx_ir as ir

    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    said = zero_point.dtype if zero_point is not None else None
    return said or ir.DataType(_int_attribute(node, "output_dtype", 0) or ir.DataType.UINT8)


def _zero_point(node: ir.Node, traced: TracedWeight) -> Array | int | Untraceable:
    """What DequantizeLinear takes for 0, laid over the stored array."""
    import onnx_ir as ir

    if traced.tensor.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return 0  # quantized on the way, or a type with a zero of its own
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0
    constant = ir.convenience.get_const_tensor(value)
    if constant is None:
        return Untraceable(f"dynamic weight: the zero point of {_label(node)} is not constant")
    if constant.dtype != traced.tensor.dtype:
        raise ValueError(
            f"{_label(node)} has a zero point of {constant.dtype.name} for {traced.tensor.dtype.name}"
        )
    values = constant.numpy()
    if values.size == 0 or not np.any(values != values.flat[0]):
        return int(values.flat[0]) if values.size else 0
    shape = traced.operand_shape
    axis = _int_attribute(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    if values.ndim != 1 or values.shape[0] != shape[axis]:
        return Untraceable(f"the zero points of {_label(node)} are blocked, which is not handled here")
    over_axis = values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return traced.stored(np.broadcast_to(over_axis, shape))
