"""A constant tensor as the node that multiplies by it sees it, and how its values are replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.model.pattern import Array

if TYPE_CHECKING:
    import onnx_ir as ir

Step = tuple[str, tuple[int, ...]]  # ("transpose", permutation) or ("reshape", shape)


@dataclass(frozen=True)
class TracedWeight:
    """A constant tensor behind a node's input, and how its stored layout becomes what the node sees.

    `steps` lead from the stored array to the node's operand. `zero_point` is the stored value that
    means 0 (not 0 only for integers behind DequantizeLinear); it broadcasts against the stored array.
    `made` is the type that a Cast or QuantizeLinear on the way makes of them before they are dequantized.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    steps: tuple[Step, ...]
    zero_point: Array | int = 0
    made: ir.DataType | None = None

    @property
    def name(self) -> str:
        """The initializer's name, or the Constant's output."""
        return self.value.name or ""

    @property
    def operand_shape(self) -> tuple[int, ...]:
        """The shape of what the node sees."""
        return self.shapes[-1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The stored array's shape, and those behind each of the steps."""
        shapes = [tuple(int(d) for d in self.tensor.shape.numpy())]
        for step, argument in self.steps:
            shapes.append(tuple(shapes[-1][i] for i in argument) if step == "transpose" else argument)
        return shapes

    @property
    def zero_key(self) -> object:
        """Equal where two weights over one tensor take the same stored values for 0."""
        if isinstance(self.zero_point, int):
            return self.zero_point
        once = tuple(slice(0, 1 if stride == 0 else None) for stride in self.zero_point.strides)
        values = self.zero_point[once]
        return values.shape, hashlib.sha256(values.tobytes()).digest()

    def operand(self, stored: Array) -> Array:
        """The stored array as the node sees it: a view wherever NumPy can make one."""
        for step, argument in self.steps:
            stored = stored.transpose(argument) if step == "transpose" else stored.reshape(argument)
        return stored

    def stored(self, operand: Array) -> Array:
        """The inverse of `operand`."""
        for (step, argument), before in zip(self.steps[::-1], self.shapes[-2::-1], strict=True):
            if step == "transpose":
                operand = operand.transpose(np.argsort(argument))
            else:
                operand = operand.reshape(before)
        return operand


def replace_weight(weight: TracedWeight, values: Callable[[], Array]) -> None:
    """Makes a weight, in the graph in memory, hold other values of its type and shape.

    Args:
        weight: The weight; it stands for what was there before.
        values: Makes the stored array. It is called whenever the tensor is read: when the model is written.
    """
    import onnx_ir as ir

    tensor = weight.tensor

    def made() -> ir.TensorProtocol:
        return ir.Tensor(values(), tensor.dtype, name=tensor.name)

    lazy = ir.LazyTensor(made, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
    producer = weight.value.producer()
    if producer is None:
        weight.value.const_value = lazy
    else:
        producer.attributes.clear()  # a Constant's one attribute, which may be a list of numbers
        producer.attributes["value"] = ir.AttrTensor("value", lazy)


@dataclass(frozen=True)
class Untraceable:
    """Why an input is no constant weight, in words; `computed` where it is constant, computed of others."""

    reason: str
    computed: bool = False
