"""A model in FP32, to compare others with: whether it has to be written for that, and how."""

from __future__ import annotations

from pathlib import Path

from sparseflow_trt.exporters.node_names import has_twins, name_nodes
from sparseflow_trt.exporters.retyping.retype import retype
from sparseflow_trt.exporters.saving import INLINE_BYTES, IR_VERSION, check_valid, save_model
from sparseflow_trt.model.graph import WeightedLayer
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.sites import find_sites


def write_fp32_reference(model: OnnxModel, output: Path) -> None:
    """Writes the model with every FP16 and BF16 computation in FP32, in an IR version that can be run.

    Weights keep the values that the half-precision model has.

    Raises:
        ModelError: The result is not valid ONNX.
    """
    import onnx_ir as ir

    name_nodes(model.ir.graph, find_sites(model))  # functions are inlined
    retype(model.ir, lambda _: ir.DataType.FLOAT, keep_outputs=False)
    save_model(model.ir, output)
    check_valid(output, model.path)


def reference_for(model: OnnxModel, output: Path) -> Path:
    """The model's own file where that can be run in FP32, else one that is written to `output`.

    Raises:
        ModelError: What is written is not valid ONNX.
    """
    if not needs_fp32_reference(model):
        return model.path
    write_fp32_reference(read_model(model.path), output)
    return output


def needs_fp32_reference(model: OnnxModel) -> bool:
    """Whether the reference has to be another file than the model.

    It is where that has half types, a new IR version, two nodes of one name, or sizes in its data file: ONNX
    Runtime infers shapes from them before it reads that file, and refuses the model.
    """
    unread = model.ir.ir_version > IR_VERSION or has_twins(model.ir.graph) or _has_sizes_outside(model)
    return unread or has_half_types(model)


def _has_sizes_outside(model: OnnxModel) -> bool:
    """Whether small integers lie outside of the .onnx file, as onnx.save(…, size_threshold=0) puts them."""
    import onnx_ir as ir

    tensors = (value.const_value for graph in model.ir.graphs() for value in graph.initializers.values())
    return any(
        isinstance(tensor, ir.ExternalTensor) and tensor.dtype.is_integer() and tensor.nbytes <= INLINE_BYTES
        for tensor in tensors
    )


def computes_in_half(model: OnnxModel, layers: tuple[WeightedLayer, ...]) -> bool:
    """Whether any layer gives FP16 or BF16, in whatever type its weight is stored.

    A model that has no layers says it by any half type in it.

    Args:
        model: A model as read.
        layers: Its layers.
    """
    if not layers:
        return has_half_types(model)
    return any((layer.gives or layer.dtype) in ("FP16", "BF16") for layer in layers)


def has_half_types(model: OnnxModel) -> bool:
    """Whether a model computes or stores anything in FP16 or BF16."""
    import onnx_ir as ir

    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    bodies = [model.ir.graph, *(function.graph for function in model.ir.functions.values())]
    for graph in (g for body in bodies for g in (body, *body.subgraphs())):
        nodes = tuple(graph)
        values = (*graph.initializers.values(), *graph.inputs, *(v for node in nodes for v in node.outputs))
        if any(v.dtype in half for v in values):
            return True
        # values between nodes have types only where the file says them, and a Cast always says its own
        casts = [
            node.attributes["to"] for node in nodes if node.op_type == "Cast" and "to" in node.attributes
        ]
        if any(to.type == ir.AttributeType.INT and to.value in half for to in casts):
            return True
    return False
