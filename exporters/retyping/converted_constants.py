"""Constants of a graph in other types: made once for a type, converted when the model is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.pattern import Array

if TYPE_CHECKING:
    import onnx_ir as ir

Convert = Callable[["ir.TensorProtocol", "ir.DataType"], Array]


class ConvertedConstants:
    """The constants made so far; `convert` is called whenever one is read."""

    def __init__(self, names: Names, convert: Convert) -> None:
        self._names, self._convert = names, convert
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def make(self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Value:
        """The initializer, where a constant is, of its values in another type."""
        import onnx_ir as ir

        if (value, dtype) not in self._made:
            producer = value.producer()
            graph = producer.graph if producer is not None else value.graph
            assert isinstance(graph, ir.Graph)
            name, shape = self._names.new(name_as(value, dtype)), ir.Shape(tensor.shape.numpy())

            def converted() -> ir.TensorProtocol:
                return ir.Tensor(self._convert(tensor, dtype), dtype, name=name)

            stored = ir.LazyTensor(converted, dtype, shape, name=name)
            made = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=stored)
            graph.register_initializer(made)
            self._made[value, dtype] = made
        return self._made[value, dtype]

    def keep_names(self) -> None:
        """A constant that nobody reads any more leaves its name to the one that took over."""
        for (old, _), new in self._made.items():
            gone = not old.uses() and not old.is_graph_output()
            graph = new.graph
            if gone and graph is not None and old.name and old.name not in graph.initializers:
                new.name = old.name


def name_as(value: ir.Value, dtype: ir.DataType) -> str:
    """What a value is called in another type."""
    return f"{value.name}_as_{dtype.short_name()}"
