"""Finds the dimensions that onnx's inference leaves unknown, by the ONNX Runtime's symbolic shape inference.

A graph that computes its shapes, as torch's TorchScript exporter and PyTorch's `expand` write it, ends what
onnx follows by name: behind it no M would be known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.ort_inference import symbolic_dims
from sparseflow_trt.model.stand_ins import stand_ins
from sparseflow_trt.model.subgraphs import bodies_of
from sparseflow_trt.model.symbolic import SymbolicM

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_SMALL = 64  # elements: what shapes are computed of. Larger weights are not read


def lacks_dims(model: ir.Model, values: Iterable[ir.Value | None]) -> bool:
    """Whether a dimension of some values does not follow from the inputs' axes."""
    axes = _axes(model.graph)
    return any(
        value is not None and (value.shape is None or not all(_follows(dim, axes) for dim in value.shape))
        for value in values
    )


def find_dims(model: ir.Model) -> None:
    """Names dimensions of values that are unknown, or called as no axis is, by the inputs' axes.

    Those that the inference does not find stay as they are: all, where the ONNX Runtime is not installed.
    """
    import onnx_ir as ir

    axes = _axes(model.graph)
    with stand_ins(model):
        found = symbolic_dims(_to_follow(model, axes), axes)
    for value in (output for node in model.graph for output in node.outputs):
        new = found.get(value.name or "", ())
        old = value.shape if value.shape is not None else [ir.SymbolicDim(None)] * len(new)
        if new and len(new) == len(old):
            both = zip(old, new, strict=True)
            value.shape = ir.Shape(a if b is None or _follows(a, axes) else b for a, b in both)


def _axes(graph: ir.Graph) -> dict[str, int]:
    """The axes of the inputs, each with a size to try whether something follows from them."""
    dims = (dim for value in graph.inputs for dim in value.shape or ())
    return {dim.value: 1 for dim in dims if not isinstance(dim, int) and dim.value}


def _follows(dim: int | ir.SymbolicDim, axes: dict[str, int]) -> bool:
    return isinstance(dim, int) or SymbolicM((dim.value,)).evaluate(axes) is not None


def _to_follow(model: ir.Model, axes: Collection[str]) -> onnx.ModelProto:
    """The nodes of the main graph that shapes depend on; what lies before them are inputs.

    Values whose shapes are known are such inputs, and so are large weights, whose data is left out.
    """
    import onnx
    import onnx_ir as ir

    graph = onnx.GraphProto(name="shapes")
    given: set[str] = set()
    opset = model.opset_imports.get(ONNX_DOMAIN, 1)
    for node in model.graph:
        read = [value for value in node.inputs if value is not None and value.name]
        # what a damaged file says of a node or a value cannot always be written again: it stays unknown
        with contextlib.suppress(ValueError, ir.serde.SerdeError):
            if not _is_followed(node, opset, axes) or not all(_give(v, graph, given, axes) for v in read):
                continue
            proto = ir.to_proto(node)
            schema = onnx.defs.get_schema(node.op_type, opset, ONNX_DOMAIN)
            # what stands in for another operator has what that one had, too
            del proto.input[schema.max_input :], proto.output[schema.max_output :]
            graph.node.append(proto)
            given.update(proto.output)
    graph.output.extend(
        onnx.ValueInfoProto(name=name) for node in graph.node[-1:] for name in node.output[:1]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(ONNX_DOMAIN, opset)])


def _is_followed(node: ir.Node, opset: int, axes: Collection[str]) -> bool:
    """Whether the inference takes a node, and has to: what is of no known shape, or may be part of one."""
    import onnx

    # it would take Attention for the ONNX Runtime's own
    if node.domain != ONNX_DOMAIN or bodies_of(node) or node.op_type in ("Attention", "Constant"):
        return False
    made = [value for value in node.outputs if value.name]
    needed = any(not _is_plain(value, axes) or _may_be_sizes(value) for value in made)
    return needed and onnx.defs.has(node.op_type, opset)


def _is_plain(value: ir.Value, axes: Collection[str]) -> bool:
    dims = value.shape if value.shape is not None else [None]
    return value.type is not None and all(isinstance(dim, int) or dim in axes for dim in dims)


def _may_be_sizes(value: ir.Value) -> bool:
    pixels = value.dtype is not None and value.dtype.is_floating_point()
    return not pixels or value.shape is None or len(value.shape) < 2


def _give(value: ir.Value, graph: onnx.GraphProto, given: set[str], axes: Collection[str]) -> bool:
    """Gives a graph a value that it has not: a small constant, or an input of a known shape."""
    import onnx
    import onnx_ir as ir

    name = str(value.name)
    if name in given:
        return True
    constant = ir.convenience.get_const_tensor(value)
    if constant is not None and constant.size <= _SMALL:
        graph.initializer.append(onnx.numpy_helper.from_array(constant.numpy(), name))
    elif constant is not None:
        sizes = [int(size) for size in constant.shape.numpy()]
        graph.input.append(onnx.helper.make_tensor_value_info(name, int(constant.dtype), sizes))
    elif _is_plain(value, axes) or (value.is_graph_input() and value.shape is not None):
        graph.input.append(ir.to_proto(value))
    else:
        return False
    given.add(name)
    return True
