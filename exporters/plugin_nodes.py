"""Puts layers into the TensorRT plugin SparseFlowLinear24, and out of it where there is no TensorRT.

One node takes the place of MatMul or Gemm with the bias and the ReLU behind it. Its weight is packed (see
packing) and lies in the node's attributes: that is how TensorRT's ONNX parsers, from 8.6 on, hand tensors to
a plugin while a network is made. Indices are INT8 there, since 8.6 turns UINT8 into INT32.

ONNX Runtime does not know the node; plugin_reference writes it as ONNX's own operators. A model-local
function would not serve both: 8.6 does not read functions, and from 10 on they go before plugins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparseflow_trt.errors import PlanError
from sparseflow_trt.exporters.apply_plan import INLINE_BYTES, save_model
from sparseflow_trt.exporters.rewriting import constant_of
from sparseflow_trt.model_file import OnnxModel
from sparseflow_trt.packing import pack_2to4
from sparseflow_trt.pattern import Array
from sparseflow_trt.scan import WeightReader
from sparseflow_trt.sites import LayerSite, dtype_name, find_sites
from sparseflow_trt.weights import TracedWeight

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "sparseflow"
OP_TYPE = "SparseFlowLinear24"
VERSION = "1"
_MULTIPLE = 16  # of N and K, which cuSPARSELt wants of 16-bit numbers
ACTIVATIONS = ("", "Relu")  # by number; cuSPARSELt's GELU is for INT8 alone


@dataclass(frozen=True)
class PluginNode:
    """A layer that was put into the plugin.

    Attributes:
        layer: Its name, which the node has too.
        dtype: FP16 or BF16.
        folded: The names of the nodes behind it that became part of it: its bias, its ReLU.
        packed_bytes, dense_bytes: The weight as it is kept, and as it was.
    """

    layer: str
    n: int
    k: int
    dtype: str
    folded: tuple[str, ...]
    packed_bytes: int
    dense_bytes: int


class _Parts(NamedTuple):
    values: ir.Tensor[Any]
    indices: ir.Tensor[Any]


def why_no_plugin(site: LayerSite) -> str:
    """Why a layer of a typed model cannot run in the plugin, "" where it can (if its weight is 2:4)."""
    weight, node = site.weight, site.node
    if not isinstance(weight, TracedWeight):
        return weight.reason
    if node.op_type not in ("MatMul", "Gemm"):
        return f"the plugin computes MatMul and Gemm, not {node.op_type}"
    if site.side != "right":
        return "the weight is the left operand"
    if len(weight.operand_shape) != 2:
        return f"the weight has {len(weight.operand_shape)} dimensions, not two"
    if dtype_name(weight.tensor) not in ("FP16", "BF16"):
        return f"the plugin takes FP16 and BF16 weights, not {dtype_name(weight.tensor)}"
    if (value := node.inputs[1]) is not None and value.dtype not in (None, weight.tensor.dtype):
        return "the weight is cast on its way"
    if site.n % _MULTIPLE or site.k % _MULTIPLE:
        return f"N={site.n} and K={site.k} are not both multiples of {_MULTIPLE}"
    return _why_not_gemm(node) if node.op_type == "Gemm" else ""


def put_into_plugin(model: OnnxModel, layers: Iterable[str]) -> tuple[PluginNode, ...]:
    """Replaces layers by nodes of the plugin, in the graph in memory. Shapes stay as dynamic as they are.

    Args:
        model: A typed model; its graph is changed.
        layers: Names of layers.

    Returns:
        A record for each layer, in the order of the graph.

    Raises:
        PlanError: A name is no layer of the model, or its layer cannot run in the plugin.
        ModelError: A node says something impossible.
    """
    wanted = set(layers)
    sites = find_sites(model)
    if unknown := sorted(wanted - {site.name for site in sites}):
        raise PlanError(f"no layer is named {', '.join(unknown)}.", "`sparseflow-trt inspect` lists them.")
    chosen = [site for site in sites if site.name in wanted]
    for site in chosen:
        if reason := why_no_plugin(site):
            raise PlanError(
                f"layer '{site.name}' cannot run in the plugin: {reason}.", "Plan it dense or sparse."
            )
    packed: dict[object, _Parts] = {}  # layers that share a weight are packed once
    made = tuple(_replace(site, packed) for site in chosen)
    if made:
        model.ir.opset_imports[DOMAIN] = 1
    return made


def save_plugin_model(model: ir.Model, output: Path) -> None:
    """Saves a model as `save_model` does, with the packed weights of its plugin nodes in `output`.packed.

    Inside of the .onnx file they could not exceed 2 GB together.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    import onnx_ir as ir

    beside = output.with_name(f"{output.name}.packed")
    inside: list[tuple[ir.Node, ir.Attr]] = []
    places: dict[int, Any] = {}
    try:
        with beside.open("wb") as stream:
            for node in plugin_nodes(model):
                for attribute in tuple(node.attributes.values()):
                    if attribute.type != ir.AttributeType.TENSOR:
                        continue
                    tensor = attribute.as_tensor()
                    if tensor.nbytes <= INLINE_BYTES:
                        continue
                    if id(tensor) not in places:
                        places[id(tensor)] = ir.ExternalTensor(
                            beside.name, stream.tell(), tensor.nbytes, tensor.dtype,
                            shape=ir.Shape(tensor.shape.numpy()), name=attribute.name, base_dir=output.parent,
                        )  # fmt: skip
                        stream.write(tensor.tobytes())
                    inside.append((node, attribute))
                    node.attributes.add(ir.AttrTensor(attribute.name, places[id(tensor)]))
        save_model(model, output)
    finally:
        for node, attribute in inside:
            node.attributes.add(attribute)
    if not inside:
        beside.unlink()


def plugin_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """The nodes of the plugin in a model and its subgraphs."""
    return tuple(n for n in model.graph.all_nodes() if (n.domain, n.op_type) == (DOMAIN, OP_TYPE))


def _why_not_gemm(node: ir.Node) -> str:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if attributes.get("transA", 0):
        return "Gemm transposes its input"
    if attributes.get("alpha", 1.0) != 1 or (attributes.get("beta", 1.0) != 1 and len(node.inputs) > 2):
        return "Gemm scales its product or its bias"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and _bias_of(bias, _columns(node), 2) is None:
        return "the bias is not a constant of one number a column"
    return ""


def _columns(node: ir.Node) -> int:
    shape = node.outputs[0].shape
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else -1


def _bias_of(value: ir.Value, n: int, rank: int | None) -> Array | None:
    """The constant [n] that a value adds to each row of a tensor of a rank; None where it is another."""
    tensor = constant_of(value)
    if tensor is None:
        return None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if not shape or shape[-1] != n or any(d != 1 for d in shape[:-1]):
        return None
    if len(shape) > 1 and (rank is None or len(shape) > rank):
        return None  # it would add a dimension
    return tensor.numpy().reshape(n)


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads a value, if it is of a type and the value is no output."""
    uses = value.uses()
    if value.is_graph_output() or len(uses) != 1:
        return None
    user = next(iter(uses)).node
    return user if user.op_type == op_type and user.domain in ("", "ai.onnx") else None


def _replace(site: LayerSite, packed: dict[object, _Parts]) -> PluginNode:
    import onnx_ir as ir

    node, weight = site.node, site.weight
    assert isinstance(weight, TracedWeight) and node.graph is not None
    x, product = node.inputs[0], node.outputs[0]
    assert x is not None
    old, bias = [node], None
    if node.op_type == "Gemm":
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = _bias_of(node.inputs[2], site.n, 2)
    elif (add := _only_user(product, "Add")) is not None:
        other = next((v for v in add.inputs if v is not product), None)
        rank = None if x.shape is None else len(x.shape)
        bias = _bias_of(other, site.n, rank) if other is not None else None
        if bias is not None:
            old.append(add)
    relu = _only_user(old[-1].outputs[0], "Relu")
    if relu is not None:
        old.append(relu)
    parts = _pack(site, weight, packed)
    attributes: dict[str, Any] = {
        "n": site.n,
        "k": site.k,
        "activation": int(relu is not None),
        "values": parts.values,
        "indices": parts.indices,
        "plugin_version": VERSION,
        "plugin_namespace": "",
    }
    if bias is not None:
        same = bias.astype(weight.tensor.dtype.numpy())
        attributes["bias"] = ir.Tensor(same, dtype=weight.tensor.dtype, name="bias")
    new = ir.node(OP_TYPE, [x], attributes, domain=DOMAIN, name=node.name or site.name)
    new.metadata_props.update(node.metadata_props)
    last = old[-1].outputs[0]
    new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = last.name, last.type, last.shape
    constants = [value for gone in old for value in gone.inputs if value is not None and value is not x]
    ir.convenience.replace_nodes_and_values(node.graph, old[-1], old, [new], [last], [new.outputs[0]])
    for value in constants:
        _drop_unused(value)
    return PluginNode(
        layer=site.name,
        n=site.n,
        k=site.k,
        dtype=dtype_name(weight.tensor),
        folded=tuple(gone.name or gone.op_type for gone in old[1:]),
        packed_bytes=parts.values.nbytes + parts.indices.nbytes,
        dense_bytes=weight.tensor.nbytes,
    )


def _pack(site: LayerSite, weight: TracedWeight, packed: dict[object, _Parts]) -> _Parts:
    import onnx_ir as ir

    key = id(weight.tensor), weight.steps, site.k_axis
    if key not in packed:
        with WeightReader() as reader:
            operand = weight.operand(reader.stored_array(weight.tensor))
            try:
                made = pack_2to4(operand if site.k_axis == 1 else operand.T)
            except ValueError as error:
                raise PlanError(
                    f"layer '{site.name}' cannot run in the plugin: of its weight '{weight.name}', {error}.",
                    "Prune it, or plan the layer dense.",
                ) from error
        packed[key] = _Parts(
            ir.Tensor(made.values, dtype=weight.tensor.dtype, name="values"),
            ir.Tensor(made.indices.view(np.int8), name="indices"),
        )
    return packed[key]


def _drop_unused(value: ir.Value) -> None:
    """Removes a constant and the nodes that lead from it, as far as nothing reads them."""
    while not value.uses() and not value.is_graph_output():
        node = value.producer()
        if node is None:
            graph = value.graph
            if value.is_initializer() and graph is not None and not value.is_graph_input():
                del graph.initializers[value.name or ""]
            return
        above = [v for v in node.inputs if v is not None]
        if any(output.uses() or output.is_graph_output() for output in node.outputs) or node.graph is None:
            return
        node.graph.remove(node, safe=True)
        for other in above[1:]:
            _drop_unused(other)
        if not above:
            return
        value = above[0]
