"""A CPU twin of a BF16 model: every product in FP32, every tensor rounded to BF16.

The ONNX Runtime's CPU provider has no BF16 kernels for MatMul, Gemm, Add or Softmax. The twin rounds
where the model does (Cast to BF16 and back), so it shows what BF16 costs in accuracy; it does not show
in which order a GPU adds up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.exporters.apply_plan import save_model
from sparseflow_trt.model_file import OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir

# They only move or convert values, and the ONNX Runtime has them for BF16.
_RUNS_IN_BF16 = {"Cast", "Constant", "Identity"}


def needs_twin(model: OnnxModel) -> bool:
    """Whether any node computes in BF16."""
    return any(_touches_bf16(node) for node in model.ir.graph.all_nodes())


def write_bf16_twin(model: OnnxModel, output: Path) -> None:
    """Writes the twin of a typed model whose BF16 nodes the ONNX Runtime's CPU provider can run.

    Args:
        model: A model as read, not used for anything afterwards: its graph is rewritten in place.
        output: The file to write, in an existing folder.
    """
    for graph in model.ir.graphs():
        widened: dict[ir.Value, ir.Value] = {}
        for node in tuple(graph):
            if _touches_bf16(node):
                _wrap(graph, node, widened)
    save_model(model.ir, output)


def _touches_bf16(node: ir.Node) -> bool:
    import onnx_ir as ir

    if node.op_type in _RUNS_IN_BF16 or any(
        a.type == ir.AttributeType.GRAPH for a in node.attributes.values()
    ):
        return False
    return any(v is not None and v.dtype == ir.DataType.BFLOAT16 for v in (*node.inputs, *node.outputs))


def _wrap(graph: ir.Graph, node: ir.Node, widened: dict[ir.Value, ir.Value]) -> None:
    import onnx_ir as ir

    for i, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.BFLOAT16:
            continue
        if value not in widened:
            widened[value] = _cast(graph, node, value, ir.DataType.FLOAT, before=True)
        node.replace_input_with(i, widened[value])
    for output in node.outputs:
        if output.dtype != ir.DataType.BFLOAT16:
            continue
        readers = list(output.uses())
        name, output.name = output.name, f"{output.name}_wide"
        rounded = _cast(graph, node, output, ir.DataType.BFLOAT16, before=False)
        rounded.name = name
        output.dtype = ir.DataType.FLOAT
        if node.op_type == "ConstantOfShape":  # its type is its attribute's
            fill = node.attributes["value"].as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(fill.astype("float32")))
        for reader, index in readers:
            reader.replace_input_with(index, rounded)
        for i, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[i] = rounded


def _cast(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType, before: bool) -> ir.Value:
    import onnx_ir as ir

    scope = node.graph.name if node.graph is not None else ""
    name = f"{value.name}_in_{scope}_{dtype.short_name()}"
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], name=f"Cast_{name}")
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = name, dtype, value.shape
    (graph.insert_before if before else graph.insert_after)(node, cast)
    return made
