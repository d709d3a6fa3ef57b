"""Where a node's weight comes from: the constant tensor behind an input, and the way from one to the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.pattern import Array

if TYPE_CHECKING:
    import onnx_ir as ir

Step = tuple[str, tuple[int, ...]]  # ("transpose", permutation) or ("reshape", shape)


@dataclass(frozen=True)
class TracedWeight:
    """A constant tensor behind a node's input, and how its stored layout becomes what the node sees.

    `steps` lead from the stored array to the node's operand. `zero_point` is the stored value that
    means 0 (not 0 only for integers behind DequantizeLinear); it broadcasts against the stored array.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    steps: tuple[Step, ...]
    zero_point: Array | int = 0

    @property
    def name(self) -> str:
        """The initializer's name, or the Constant's output."""
        return self.value.name or ""

    @property
    def operand_shape(self) -> tuple[int, ...]:
        """The shape of what the node sees."""
        shape = tuple(int(d) for d in self.tensor.shape.numpy())
        for step, argument in self.steps:
            shape = tuple(shape[i] for i in argument) if step == "transpose" else argument
        return shape

    def operand(self, stored: Array) -> Array:
        """The stored array as the node sees it: a view wherever NumPy can make one."""
        for step, argument in self.steps:
            stored = stored.transpose(argument) if step == "transpose" else stored.reshape(argument)
        return stored

    def stored(self, operand: Array) -> Array:
        """The inverse of `operand`."""
        shapes = [tuple(int(d) for d in self.tensor.shape.numpy())]
        for step, argument in self.steps:
            before = shapes[-1]
            shapes.append(tuple(before[i] for i in argument) if step == "transpose" else argument)
        for (step, argument), before in zip(reversed(self.steps), reversed(shapes[:-1]), strict=True):
            if step == "transpose":
                operand = operand.transpose(np.argsort(argument))
            else:
                operand = operand.reshape(before)
        return operand


@dataclass(frozen=True)
class Untraceable:
    """Why an input is not a constant weight, in words."""

    reason: str


def trace_weight(value: ir.Value | None) -> TracedWeight | Untraceable:
    """Follows a node's input up to the constant tensor it is, if it is one.

    Passes through Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze, Flatten, QuantizeLinear and
    DequantizeLinear.
    """
    import onnx_ir as ir

    above: list[ir.Node] = []
    while value is not None:
        node = value.producer()
        if node is None:
            if value.const_value is None:
                return Untraceable(f"dynamic weight: '{value.name}' is an input of its graph")
            return _traced(value, value.const_value, above)
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None:
                return Untraceable(f"dynamic weight: Constant '{node.name}' holds no tensor")
            return _traced(value, tensor, above)
        if node.op_type not in PASSED_THROUGH:
            return Untraceable(f"dynamic weight: computed by {node.op_type} '{node.name}'")
        above.append(node)
        value = node.inputs[0]
    return Untraceable("dynamic weight: the input is left out")


PASSED_THROUGH = {
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def _traced(
    value: ir.Value, tensor: ir.TensorProtocol, above: list[ir.Node]
) -> TracedWeight | Untraceable:
    shape = tuple(int(d) for d in tensor.shape.numpy())
    steps: list[Step] = []
    zero_point: Array | int = 0
    for node in reversed(above):
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            order = tuple(perm.as_ints()) if perm else tuple(reversed(range(len(shape))))
            steps.append(("transpose", order))
            shape = tuple(shape[i] for i in order)
        elif node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            reshaped = _reshaped(node, shape)
            if reshaped is None:
                return Untraceable(f"dynamic weight: the shape of {node.op_type} '{node.name}' is not constant")
            steps.append(("reshape", reshaped))
            shape = reshaped
        elif node.op_type == "DequantizeLinear" and len(node.inputs) > 2 and node.inputs[2] is not None:
            found = _zero_point(node, tensor, shape, steps)
            if isinstance(found, Untraceable):
                return found
            zero_point = found
    return TracedWeight(value, tensor, tuple(steps), zero_point)


def _reshaped(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    import onnx_ir as ir

    if node.op_type != "Reshape":
        output = node.outputs[0].shape
        return tuple(int(d) for d in output.numpy()) if output is not None and output.is_static() else None
    target = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    if target is None:
        return None
    allow_zero = node.attributes.get("allowzero")
    copies_zero = not (allow_zero and allow_zero.as_int())
    dims = [
        shape[i] if d == 0 and copies_zero and i < len(shape) else int(d) for i, d in enumerate(target.numpy())
    ]
    known = int(np.prod([d for d in dims if d != -1], dtype=np.int64))
    size = int(np.prod(shape, dtype=np.int64))
    dims = [size // max(known, 1) if d == -1 else d for d in dims]
    return tuple(dims) if int(np.prod(dims, dtype=np.int64)) == size else None


def _zero_point(
    node: ir.Node, tensor: ir.TensorProtocol, shape: tuple[int, ...], steps: list[Step]
) -> Array | int | Untraceable:
    import onnx_ir as ir

    if tensor.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return 0  # quantized on the way: the stored floats have their own zero
    constant = ir.convenience.get_const_tensor(node.inputs[2])
    if constant is None:
        return Untraceable(f"dynamic weight: the zero point of '{node.name}' is not constant")
    values = constant.numpy()
    if values.size == 0 or not np.any(values != values.flat[0]):
        return int(values.flat[0]) if values.size else 0
    axis_attribute = node.attributes.get("axis")
    axis = (axis_attribute.as_int() if axis_attribute else 1) % len(shape)
    if steps or values.shape != (shape[axis],):
        return Untraceable(f"zero points of '{node.name}' differ within the weight in a way not handled here")
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
