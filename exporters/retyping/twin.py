"""A CPU twin of a half-precision model: every node computes in FP32, every tensor is rounded to its type.

The ONNX Runtime's CPU provider has no BF16 kernels for MatMul, Gemm, Add or Softmax, and its FP16 is FP32: it
puts a Cast before and behind each FP16 node that it has no kernel for and takes the pairs out again, so
that a chain of them is never rounded and a score of 1e5 never overflows. The twin rounds where the model
does (Cast to its type and back), so it shows what the types cost in accuracy; it does not show in which
order a GPU adds up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

# They only move or convert values, and the ONNX Runtime has them for both types: a table is not widened whole
# for the few rows that are gathered, nor a weight before it is transposed.
_RUNS_AS_TYPED = {
    "Cast", "Constant", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip


def needs_twin(model: OnnxModel) -> bool:
    """Whether any node computes in FP16 or BF16."""
    return any(_touches_half(node) for node in model.ir.graph.all_nodes())


def write_twin(model: OnnxModel, output: Path) -> None:
    """Writes the twin of a typed model, which the ONNX Runtime's CPU provider runs and rounds as it is typed.

    Args:
        model: A model as read, not used for anything afterwards: its graph is rewritten in place.
        output: The file to write, in an existing folder.
    """
    names = Names(model.ir)
    for graph in model.ir.graphs():
        widened: dict[ir.Value, ir.Value] = {}
        for node in tuple(graph):
            if _touches_half(node):
                _wrap(graph, node, widened, names)
    save_model(model.ir, output)


def _half_types() -> tuple[ir.DataType, ...]:
    import onnx_ir as ir

    return ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def _touches_half(node: ir.Node) -> bool:
    if node.op_type in _RUNS_AS_TYPED or bodies_of(node):
        return False
    return any(v is not None and v.dtype in _half_types() for v in (*node.inputs, *node.outputs))


def _wrap(graph: ir.Graph, node: ir.Node, widened: dict[ir.Value, ir.Value], names: Names) -> None:
    import onnx_ir as ir

    for i, value in enumerate(node.inputs):
        if value is None or value.dtype not in _half_types():
            continue
        if value not in widened:
            widened[value] = _cast(graph, node, value, ir.DataType.FLOAT, names, before=True)
        node.replace_input_with(i, widened[value])
    for output in node.outputs:
        dtype = output.dtype
        if dtype is None or dtype not in _half_types():
            continue
        readers = list(output.uses())
        name, output.name = output.name, names.new(f"{output.name}_wide")
        rounded = _cast(graph, node, output, dtype, names, before=False)
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


def _cast(
    graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType, names: Names, before: bool
) -> ir.Value:
    import onnx_ir as ir

    name = names.new(f"{value.name}_{dtype.short_name()}")
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], name=f"Cast_{name}")
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = name, dtype, value.shape
    (graph.insert_before if before else graph.insert_after)(node, cast)
    return made
