"""Which floating-point types a node can compute in, by ONNX's own schema of its operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparseflow_trt.model.infer_shapes import infer_shapes
from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# Their outputs' type is an attribute that no input decides: they stay as they are.
_TYPED_BY_ATTRIBUTE = {
    "Bernoulli", "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix", "Multinomial",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "SequenceEmpty",
}  # fmt: skip


@dataclass(frozen=True)
class NodeTypes:
    """The type of each floating input and output, by position; one that is missing is left alone."""

    inputs: dict[int, ir.DataType]
    outputs: dict[int, ir.DataType]


def infer_types(model: ir.Model) -> None:
    """Adds the types of values that the file does not say, where onnx can tell them."""
    if any(v.dtype is None for node in model.graph.all_nodes() for v in node.outputs):
        infer_shapes(model)


def floating_types() -> tuple[ir.DataType, ...]:
    """The types that are rewritten into one another."""
    import onnx_ir as ir

    return ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def types_of(
    node: ir.Node,
    target: ir.DataType | None,
    opset: int,
    original: Mapping[ir.Value, ir.DataType | None],
) -> NodeTypes:
    """The types of a node's floating inputs and outputs once it computes in `target`.

    Args:
        node: The node, its outputs still typed as they were.
        target: FLOAT, FLOAT16 or BFLOAT16; None leaves the node as typed, as does an operator that ONNX
            does not define for that type, one with subgraphs, and a value whose type is not known.
        opset: The model's.
        original: The types that values had, where they may have others by now.
    """
    floats = floating_types()
    original_in = [original.get(v, v.dtype) if v is not None else None for v in node.inputs]
    original_out = [v.dtype for v in node.outputs]
    as_typed = NodeTypes(
        {i: d for i, d in enumerate(original_in) if d in floats and d is not None},
        {i: d for i, d in enumerate(original_out) if d in floats and d is not None},
    )
    schema = schema_of(node, opset)
    if target is None or schema is None or _is_fixed(node):
        return as_typed
    allowed = {t.type_param_str: set(t.allowed_type_strs) for t in schema.type_constraints}
    name = {"FLOAT": "tensor(float)", "FLOAT16": "tensor(float16)", "BFLOAT16": "tensor(bfloat16)"}[
        target.name
    ]
    if node.op_type == "Cast":  # reads any type; what it makes is its own
        if name not in allowed["T2"]:
            return as_typed
        read = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        return NodeTypes({0: read} if read is not None else {}, {0: target})

    follows_inputs = {formal.type_str for formal in schema.inputs} | (
        set(allowed) if node.op_type == "ConstantOfShape" else set()
    )

    def pick(index: int, formals: Any, before: ir.DataType | None) -> ir.DataType | None:
        kind = formals[min(index, len(formals) - 1)].type_str  # the last may be variadic
        if before not in floats:
            return None
        return target if kind in follows_inputs and name in allowed.get(kind, ()) else before

    return NodeTypes(
        {i: d for i, b in enumerate(original_in) if (d := pick(i, schema.inputs, b)) is not None},
        {i: d for i, b in enumerate(original_out) if (d := pick(i, schema.outputs, b)) is not None},
    )


def schema_of(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """ONNX's own schema of a node's operator in an opset, None where it has none."""
    import onnx

    if node.domain != ONNX_DOMAIN:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, ONNX_DOMAIN)
    except onnx.defs.SchemaError:
        return None


def has_bf16(node: ir.Node, opset: int) -> bool:
    """Whether ONNX defines a node's operator for BF16 in an opset: MatMul from 13 on, Conv from 22 on."""
    schema = schema_of(node, opset)
    if schema is None:
        return False
    allowed = {t.type_param_str: t.allowed_type_strs for t in schema.type_constraints}
    return "tensor(bfloat16)" in allowed.get(schema.outputs[0].type_str, ())


def _is_fixed(node: ir.Node) -> bool:
    return (
        node.op_type in _TYPED_BY_ATTRIBUTE
        or "output_dtype" in node.attributes
        or (node.op_type == "Cast" and node.outputs[0].dtype not in floating_types())
        or bool(bodies_of(node))
        or any(_is_no_tensor(v) for v in (*node.inputs, *node.outputs) if v is not None and v.name)
    )


def _is_no_tensor(value: ir.Value) -> bool:
    """Whether a value is not known to be a tensor: a sequence, say, or what a custom operator makes."""
    import onnx_ir as ir

    return not isinstance(value.type, ir.TensorType)
