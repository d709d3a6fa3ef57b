"""Writes the plugin's nodes as ONNX's own operators, for the ONNX Runtime that a model is validated with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.plugin.nodes import ACTIVATIONS
from sparseflow_trt.exporters.saving import plugin_nodes
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.packing import Packed24, unpack_2to4
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.target import PLUGIN_DOMAIN, PLUGIN_OP

if TYPE_CHECKING:
    import onnx_ir as ir


def expand_plugin_nodes(model: ir.Model) -> int:
    """Writes the plugin's nodes as ONNX's own operators, in place, for runtimes that have no plugin.

    The product, the bias and the ReLU are computed in FP32 and rounded once, as the plugin does it; BF16 too
    runs on the CPU so.

    Returns:
        How many nodes there were.

    Raises:
        ModelError: A node is not as `put_into_plugin` makes it.
    """
    names = Names(model)
    nodes = plugin_nodes(model)
    for node in nodes:
        try:
            _expand(node, names)
        except (ValueError, TypeError, LookupError) as error:
            raise ModelError(
                f"the {PLUGIN_OP} node '{node.name}' is not valid: {error}.", "Build the artifact again."
            ) from error
    model.opset_imports.pop(PLUGIN_DOMAIN, None)
    return len(nodes)


def _expand(node: ir.Node, names: Names) -> None:
    import onnx_ir as ir

    graph, x, output = node.graph, node.inputs[0], node.outputs[0]
    assert isinstance(graph, ir.Graph) and x is not None
    values, indices = (node.attributes[name].as_tensor() for name in ("values", "indices"))
    n, k = (node.attributes[name].as_int() for name in ("n", "k"))
    shape = (n, k // 8)
    weight = unpack_2to4(
        Packed24(values.numpy().reshape(n, k // 2), indices.numpy().view(np.uint8).reshape(shape))
    )
    activation = ACTIVATIONS[node.attributes["activation"].as_int()]
    made: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        new = ir.node(op_type, inputs, attributes, name=node.name if op_type == "MatMul" else "")
        new.outputs[0].name = names.new(f"{output.name}_{op_type.lower()}")
        made.append(new)
        return new.outputs[0]

    def constant(array: Array, what: str) -> ir.Value:
        name = names.new(f"{output.name}_{what}")
        value = ir.val(name, const_value=ir.tensor(array, dtype=values.dtype, name=name))
        graph.register_initializer(value)
        return add("Cast", value, to=ir.DataType.FLOAT)

    result = add(
        "MatMul", add("Cast", x, to=ir.DataType.FLOAT), constant(np.ascontiguousarray(weight.T), "weight")
    )
    if "bias" in node.attributes:
        result = add("Add", result, constant(node.attributes["bias"].as_tensor().numpy(), "bias"))
    if activation:
        result = add(activation, result)
    result = add("Cast", result, to=values.dtype)
    result.type, result.shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], [result])
