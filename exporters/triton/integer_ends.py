"""Rewrites a model to take and give INT32 where it has INT64, as TensorRT 8.6's engines do."""

from __future__ import annotations

from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import OnnxModel


def narrow_integers(model: OnnxModel) -> None:
    """Gives a model INT32 in the place of INT64 at its ends, as the engine has it; inside nothing changes."""
    import onnx_ir as ir

    graph, names = model.ir.graph, Names(model.ir)
    for value in graph.inputs:
        if value.dtype == ir.DataType.INT64:
            uses = tuple(value.uses())
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT64})
            cast.outputs[0].name = names.new(f"{value.name}_as_int64")
            graph.insert_before(graph[0], cast)
            for node, place in uses:
                node.replace_input_with(place, cast.outputs[0])
            value.dtype = ir.DataType.INT32
    for place, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.INT64:
            name = value.name
            value.name = names.new(f"{name}_as_int64")
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT32})
            graph.append(cast)
            made = cast.outputs[0]
            made.name, made.shape, made.dtype = name, value.shape, ir.DataType.INT32
            graph.outputs[place] = made
