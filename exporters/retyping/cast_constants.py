"""Constants that are stored in one float type and cast to another: they become constants of that type.

Files store weights so to be small. No engine gains by it: the plugin takes no weight behind a Cast, and
TensorRT 8.6 reads no BF16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.exporters.constants import constant_of, drop_unused
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir


def fold_casts(model: ir.Model) -> int:
    """Puts the constant that it gives in the place of each Cast of a constant between floats, in place.

    It is converted when the model is written. A constant that nothing else reads leaves its name to the new
    one; Casts of one constant to one type become one.

    Args:
        model: A model whose local functions are inlined.

    Returns:
        How many Casts there were.
    """
    import onnx_ir as ir

    names, casts = Names(model), 0
    floats = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in tuple(model.graph.all_nodes()):
        value = node.inputs[0] if node.inputs else None
        if node.op_type != "Cast" or node.domain != ONNX_DOMAIN or value is None:
            continue
        stored, to = constant_of(value), ir.DataType(node.attributes["to"].as_int())
        if stored is None or stored.dtype not in floats or to not in floats:
            continue
        if node.outputs[0].is_graph_output():
            continue
        if (value, to) not in made:
            made[value, to] = _converted(value, stored, to, names)
        node.outputs[0].replace_all_uses_with(made[value, to])
        drop_unused(node.outputs[0])
        casts += 1
    for (value, _), new in made.items():
        graph = new.graph
        gone = not value.uses() and not value.is_graph_output()
        if gone and graph is not None and value.name and value.name not in graph.initializers:
            new.name = value.name
    return casts


def _converted(value: ir.Value, stored: ir.TensorProtocol, to: ir.DataType, names: Names) -> ir.Value:
    """A new initializer where the constant is: its values in another type, as Cast gives them."""
    import onnx_ir as ir

    def convert() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):  # to infinity, as a Cast does
            return ir.Tensor(stored.numpy().astype(to.numpy()), to)

    producer = value.producer()
    graph = producer.graph if producer is not None else value.graph
    assert isinstance(graph, ir.Graph)
    shape = ir.Shape(stored.shape.numpy())
    name = names.new(f"{value.name}_as_{to.short_name()}")
    tensor = ir.LazyTensor(convert, to, shape, name=name)
    made = ir.Value(name=name, type=ir.TensorType(to), shape=shape, const_value=tensor)
    graph.register_initializer(made)
    return made
