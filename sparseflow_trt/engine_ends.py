"""Inputs and outputs as an engine has them, where they are not quite its typed model's."""

from __future__ import annotations

from dataclasses import replace

from sparseflow_trt.engines.tensorrt_api import takes_int64
from sparseflow_trt.exporters.triton_tensors import Ends, ServedTensor
from sparseflow_trt.manifest import EngineRecord
from sparseflow_trt.model_file import OnnxModel


def ends_of_engine(ends: Ends, engine: EngineRecord) -> Ends:
    """A model's inputs and outputs with the types that they have in an engine of it.

    TensorRT 8.6 has no INT64: what is one in the model is INT32 in the engine, and Triton refuses a
    configuration that says otherwise.
    """
    if not narrows_integers(engine):
        return ends

    def of_engine(tensor: ServedTensor) -> ServedTensor:
        return replace(tensor, type="INT32") if tensor.type == "INT64" else tensor

    return Ends(tuple(map(of_engine, ends.inputs)), tuple(map(of_engine, ends.outputs)))


def narrows_integers(engine: EngineRecord) -> bool:
    """Whether the engine has INT32 where its model has INT64."""
    return engine.backend == "tensorrt" and not takes_int64(engine.versions.get("tensorrt", ""))


def narrow_integers(model: OnnxModel) -> None:
    """Gives a model INT32 in the place of INT64 at its ends, as the engine has it; inside nothing changes."""
    import onnx_ir as ir

    graph = model.ir.graph
    for value in graph.inputs:
        if value.dtype == ir.DataType.INT64:
            uses = tuple(value.uses())
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT64})
            cast.outputs[0].name = f"{value.name}_as_int64"
            graph.insert_before(graph[0], cast)
            for node, place in uses:
                node.replace_input_with(place, cast.outputs[0])
            value.dtype = ir.DataType.INT32
    for place, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.INT64:
            name = value.name
            value.name = f"{name}_as_int64"
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT32})
            graph.append(cast)
            made = cast.outputs[0]
            made.name, made.shape, made.dtype = name, value.shape, ir.DataType.INT32
            graph.outputs[place] = made
