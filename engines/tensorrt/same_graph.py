"""Two ONNX models held against each other: are they one graph, and which of its weights differ?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

# Shapes, axes, indices and conditions: a builder takes them for part of the graph.
_STRUCTURE = {"INT32", "INT64", "UINT32", "UINT64", "BOOL", "STRING"}
_HINT = "Only weights can be exchanged: build the new model with `sparseflow-trt build`."


def check_same_graph(before: OnnxModel, after: OnnxModel) -> None:
    """Checks that two models differ in nothing but the values of their weights.

    Names count, as weights are exchanged by them; documentation and metadata do not.

    Raises:
        ModelError: They are two graphs; the first node, constant or tensor that differs is named.
    """
    for ours, theirs in zip_longest(_facts(before.ir.graph), _facts(after.ir.graph)):
        if ours == theirs:
            continue
        if ours is None or (theirs is not None and ours[0] != theirs[0]):
            what = f"it has {theirs[0]} where that has {ours[0] if ours else 'nothing'}"
        elif theirs is None:
            what = f"it lacks {ours[0]}"
        else:
            what = f"{ours[0]} is not the same"
        raise ModelError(f"the new model's graph is not the one that was built: {what}.", _HINT)
    weights = named_weights(after)
    fixed = _attribute_tensors(before), _attribute_tensors(after)
    changed = [where for where, tensor in fixed[1].items() if not _equal(fixed[0][where], tensor)]
    if changed:
        node, attribute = changed[0]
        raise ModelError(
            f"node '{node}' has other values in its attribute '{attribute}', which are part of the engine: a "
            "layer in the plugin keeps its weights.",
            _HINT,
        )
    structure = [n for n in changed_weights(before, after) if weights[n].dtype.name in _STRUCTURE]
    if structure:
        raise ModelError(
            f"the new model's graph is not the one that was built: constant '{structure[0]}' "
            f"({weights[structure[0]].dtype.name}) has other values.",
            _HINT,
        )


def changed_weights(before: OnnxModel, after: OnnxModel) -> tuple[str, ...]:
    """The names of the constants whose values differ bit for bit, of two models of one graph."""
    old = named_weights(before)
    return tuple(name for name, tensor in named_weights(after).items() if not _equal(old[name], tensor))


def named_weights(model: OnnxModel) -> dict[str, ir.TensorProtocol]:
    """Every constant tensor by the name that its readers use: initializers, and what Constant nodes hold."""
    found: dict[str, ir.TensorProtocol] = {}
    for graph in (model.ir.graph, *model.ir.graph.subgraphs()):
        found.update((n, v.const_value) for n, v in graph.initializers.items() if v.const_value is not None)
        for node in graph:
            value = node.attributes.get("value")
            if node.op_type == "Constant" and value is not None and node.outputs[0].name:
                found[node.outputs[0].name] = value.as_tensor()
    return found


def _attribute_tensors(model: OnnxModel) -> dict[tuple[str, str], ir.TensorProtocol]:
    """The tensors that nodes hold, but for Constant nodes, by the node's and the attribute's name."""
    import onnx_ir as ir

    return {
        (node.name or node.outputs[0].name or "", name): attribute.as_tensor()
        for node in model.ir.graph.all_nodes()
        if node.op_type != "Constant"
        for name, attribute in node.attributes.items()
        if attribute.type == ir.AttributeType.TENSOR
    }


def _facts(graph: ir.Graph) -> Iterator[tuple[str, object]]:
    """What makes a graph, piece by piece, each with its name for people; weights by type and shape alone."""
    for value in graph.inputs:
        yield f"input '{value.name}'", _type_of(value)
    for name, value in sorted(graph.initializers.items()):
        yield f"constant '{name}'", _type_of(value)
    for node in graph:
        inputs = tuple(value.name if value is not None else None for value in node.inputs)
        outputs = tuple(value.name for value in node.outputs)
        attributes = {name: _plain(a) for name, a in sorted(node.attributes.items())}
        kind = (node.domain, node.op_type)
        yield f"node '{node.name}' ({node.op_type})", (kind, inputs, outputs, attributes)
        for _, body in bodies_of(node):
            yield from _facts(body)
    for value in graph.outputs:
        yield f"output '{value.name}'", _type_of(value)


def _type_of(value: ir.Value) -> tuple[object, ...]:
    return value.dtype, str(value.shape)


def _plain(attribute: ir.Attr) -> object:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.dtype, str(tensor.shape)
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return attribute.type  # what is in them are facts of their own
    return attribute.type, attribute.value


def _equal(ours: ir.TensorProtocol, theirs: ir.TensorProtocol) -> bool:
    one, other = np.ascontiguousarray(ours.numpy()), np.ascontiguousarray(theirs.numpy())
    if one.dtype.kind == "O" or one.dtype != other.dtype:
        return bool(np.array_equal(one, other))
    # as bytes: equal bits are equal weights, also where they are NaN
    return bool(np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)))
