"""Rewrites a model of a newer opset in opset 17, the newest that TensorRT 8.6's parser reads.

What has a plain older form gets it. An operator that came later is written out: Gelu as exporters wrote
it before there was one, the others as ONNX's own definition of them. What is left is compared with
opset 17's operator schemas, so that a node with no older form is an error that names it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.lowering.lower_rules import RULES
from sparseflow_trt.exporters.lowering.rewriting import OPSET, Rewriting, not_lowered, part_name
from sparseflow_trt.exporters.retyping.node_types import schema_of
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.infer_shapes import infer_shapes
from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# Attributes that are the same in opset 17 and take values there now that they did not take then.
_VALUES = {
    ("Pad", "mode"): ("constant", "reflect", "edge"),
    ("ScatterElements", "reduction"): ("none", "add", "mul"),
    ("ScatterND", "reduction"): ("none", "add", "mul"),
    ("Resize", "coordinate_transformation_mode"): (
        "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
    ),
}  # fmt: skip


def lower_to_opset17(model: ir.Model) -> dict[str, int]:
    """Rewrites a model in opset 17, in place; one of opset 17 or older stays as it is.

    Weighted layers keep their names and weights, outputs their names. Where one node becomes several,
    the first has its name, and all have its metadata.

    Args:
        model: A model whose local functions are inlined. After an error it is not to be used.

    Returns:
        How many nodes of each operator were written anew.

    Raises:
        ModelError: A node has no form in opset 17; it is named with the reason. Or the model still has
            local functions.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    before = model.opset_imports.get(ONNX_DOMAIN, 1)
    if before <= OPSET:
        return {}
    if model.functions:
        raise ModelError(
            "the model has local functions, each with an opset of its own.", "Inline them first."
        )
    replaced: Counter[str] = Counter()
    names = Names(model)
    _infer_types(model)
    for node in _onnx_nodes(model):
        if node.op_type not in RULES and schema_of(node, OPSET) is None and _write_out(node, before, names):
            replaced[node.op_type] += 1
    _infer_types(model)
    for node in _onnx_nodes(model):
        rule = RULES.get(node.op_type)
        changed = rule is not None and rule(Rewriting(node, names, before))
        if _drop_defaults(node, before) or changed:
            replaced[node.op_type] += 1
    model.opset_imports[ONNX_DOMAIN] = OPSET
    RemoveUnusedNodesPass()(model)  # constants that are attributes now
    _infer_types(model)
    for node in _onnx_nodes(model):
        _check(node)
    return dict(replaced)


def _onnx_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    return tuple(node for node in model.graph.all_nodes() if node.domain == ONNX_DOMAIN)


def _infer_types(model: ir.Model) -> None:
    """Adds the types and shapes that are missing, where onnx can tell them."""
    if all(v.type is not None and v.shape is not None for n in model.graph.all_nodes() for v in n.outputs):
        return
    infer_shapes(model)


def _write_out(node: ir.Node, opset: int, names: Names) -> bool:
    """Puts ONNX's definition of an operator in the place of a node, if the operator has one."""
    import onnx_ir as ir

    schema, graph = schema_of(node, opset), node.graph
    proto = _definition(node, schema, opset) if schema is not None else None
    if schema is None or proto is None or graph is None:
        return False
    formals = tuple(proto.output)
    written = {name for inner in proto.node for name in inner.output}
    proto.output[:] = [name for name in formals if name in written]  # those that this node asks for
    body = ir.serde.deserialize_function(proto)
    for formal, actual in zip(body.inputs, (*node.inputs, *[None] * len(body.inputs)), strict=False):
        for user, index in formal.uses():
            user.replace_input_with(index, actual)
    for number, inner in enumerate(tuple(body.all_nodes())):
        inner.name = part_name(node, inner.op_type, number)
        inner.metadata_props.update(node.metadata_props)
        _resolve_attributes(inner, node, schema)
        for value in inner.outputs:
            value.name = names.new(f"{node.outputs[0].name}_{value.name}") if value.name else value.name
    made = dict(zip(proto.output, body.outputs, strict=True))
    pairs = [(old, made[name]) for old, name in zip(node.outputs, formals, strict=False) if name in made]
    nodes = tuple(body)
    body.outputs.clear()
    body.remove(nodes)
    old, new = zip(*pairs, strict=True)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, old, new)
    return True


def _definition(node: ir.Node, schema: Any, opset: int) -> onnx.FunctionProto | None:
    """ONNX's definition of the operator, for this node's attributes and types, in operators of `opset`."""
    import onnx
    import onnx_ir as ir

    fixed = [v for v in schema.function_opset_versions if v <= opset]
    by_types = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if fixed:
        text = schema.get_function_with_opset_version(max(fixed))
    elif by_types:
        types = [
            b"" if value is None else ir.serde.serialize_value(value).type.SerializeToString()
            for value in node.inputs
        ]
        data = ir.serde.serialize_node(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(max(by_types), data, types)
    else:
        return None
    proto = onnx.FunctionProto()
    proto.ParseFromString(text)
    return proto if proto.node else None


def _resolve_attributes(inner: ir.Node, node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """Gives a definition's node the attributes that it takes from the node it defines."""
    import onnx_ir as ir

    for name, attribute in tuple(inner.attributes.items()):
        if not attribute.is_ref() or attribute.ref_attr_name is None:
            continue
        given = node.attributes.get(attribute.ref_attr_name)
        if given is None:
            default = schema.attributes[attribute.ref_attr_name].default_value
            given = ir.serde.deserialize_attribute(default) if default.name else None
        del inner.attributes[name]
        if given is not None:
            inner.attributes[name] = ir.Attr(name, given.type, given.value)


def _drop_defaults(node: ir.Node, opset: int) -> bool:
    """Drops attributes that opset 17 does not have and that say what was so without them."""
    import onnx_ir as ir

    then, now = schema_of(node, OPSET), schema_of(node, opset)
    if then is None or now is None:
        return False
    dropped = False
    for name in [name for name in node.attributes if name not in then.attributes and name in now.attributes]:
        default = now.attributes[name].default_value
        if default.name and ir.serde.deserialize_attribute(default).value == node.attributes[name].value:
            del node.attributes[name]
            dropped = True
    return dropped


def _check(node: ir.Node) -> None:
    """Checks a node against opset 17's schema of its operator.

    Raises:
        ModelError: The operator came later, or has an attribute, an input or a type that came later.
    """
    import onnx_ir as ir

    schema = schema_of(node, OPSET)
    if schema is None:
        raise not_lowered(node, "it has no such operator")
    for name, attribute in node.attributes.items():
        known = _VALUES.get((node.op_type, name))
        if name not in schema.attributes:
            raise not_lowered(node, f"the operator has no attribute '{name}' there")
        if known and attribute.as_string() not in known:
            raise not_lowered(node, f"{name}='{attribute.as_string()}' came later")
    if len(node.inputs) > schema.max_input:
        raise not_lowered(node, f"the operator takes {schema.max_input} inputs there, not {len(node.inputs)}")
    allowed = {t.type_param_str: set(t.allowed_type_strs) for t in schema.type_constraints}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
                continue
            kind = formals[min(index, len(formals) - 1)].type_str  # the last may be variadic
            if f"tensor({value.dtype.name.lower()})" not in allowed.get(kind, {kind}):
                raise not_lowered(node, f"no {value.dtype.name} there, as '{value.name}' is")
