"""Puts layers into the TensorRT plugin SparseFlowLinear24, and out of it where there is no TensorRT.

One node takes the place of MatMul or Gemm with the bias and the ReLU behind it. Its weight is packed (see
packing) and lies in the node's attributes: that is how TensorRT's ONNX parsers, from 8.6 on, hand tensors to
a plugin while a network is made. Indices are INT8 there, since 8.6 turns UINT8 into INT32.

ONNX Runtime does not know the node; `reference` writes it as ONNX's own operators. A model-local
function would not serve both: 8.6 does not read functions, and from 10 on they go before plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparseflow_trt.artifacts.graph_record import PluginNodeRecord
from sparseflow_trt.errors import PlanError
from sparseflow_trt.exporters.plugin.fold import Folded, fold, why_not_gemm
from sparseflow_trt.model.constants import drop_unused
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.layer_names import shown_name
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.packing import pack_2to4, why_not_in_plugin
from sparseflow_trt.model.scan import WeightReader
from sparseflow_trt.model.sites import LayerSite, dtype_name, find_sites
from sparseflow_trt.model.target import PLUGIN_DOMAIN, PLUGIN_OP, PLUGIN_VERSION
from sparseflow_trt.model.weights import TracedWeight
from sparseflow_trt.plans.decide import PluginLayer

if TYPE_CHECKING:
    import onnx_ir as ir

JOINED = " || "  # between the names of layers that became one, as TensorRT writes it
NO_DENSE_COPIES: Mapping[str, int] = MappingProxyType({})
ACTIVATIONS = ("", "Relu")  # by number; cuSPARSELt's GELU is for INT8 alone


class _Parts(NamedTuple):
    values: ir.Tensor[Any]
    indices: ir.Tensor[Any]


def why_no_plugin(site: LayerSite, dtype: str = "") -> str:
    """Why a layer cannot run in the plugin, "" where it can (if its weight is 2:4).

    Args:
        site: The layer, in a typed model or in one that is still to be typed.
        dtype: What its weight will be typed as, "" for as it is.
    """
    weight, node = site.weight, site.node
    if not isinstance(weight, TracedWeight):
        return weight.reason
    if node.op_type not in ("MatMul", "Gemm"):
        return f"the plugin computes MatMul and Gemm, not {node.op_type}"
    if weight.value.is_graph_input():
        return "the weight is also a graph input, so a caller may replace it"
    if site.side != "right":
        return "the weight is the left operand"
    if len(weight.operand_shape) != 2:
        return f"the weight has {len(weight.operand_shape)} dimensions, not two"
    if (dtype or dtype_name(weight.tensor)) not in ("FP16", "BF16"):
        return f"the plugin takes FP16 and BF16 weights, not {dtype_name(weight.tensor)}"
    if (value := node.inputs[1]) is not None and value.dtype not in (None, weight.tensor.dtype):
        return "the weight is cast before it is used"
    if reason := why_not_in_plugin(site.n, site.k):
        return reason
    return why_not_gemm(node) if node.op_type == "Gemm" else ""


def plugin_layers(model: OnnxModel) -> dict[str, PluginLayer]:
    """What the plugin could do with each layer of a model that is still to be typed."""
    return {
        site.name: PluginLayer(
            reads=_reads(site),
            why_not=why_no_plugin(site, dtype="FP16"),
            relu=site.side == "right" and fold(site).relu,
        )
        for site in find_sites(model)
    }


def _reads(site: LayerSite) -> str:
    """The value that a layer multiplies and the graph that it does so in: a node cannot serve two graphs."""
    value, graph = site.node.inputs[0], site.node.graph
    return f"{value.name if value is not None else ''} in {id(graph)}"  # If's branches may have one name


def put_into_plugin(
    model: OnnxModel,
    layers: Iterable[str],
    joined: Iterable[Sequence[str]] = (),
    dense_below_m: Mapping[str, int] = NO_DENSE_COPIES,
) -> tuple[PluginNodeRecord, ...]:
    """Replaces layers by nodes of the plugin, in the graph in memory. Shapes stay as dynamic as they are.

    Args:
        model: A typed model; its graph is changed.
        layers: Names of layers.
        joined: Of these, those that become one product: of one input, and not one behind the other.
        dense_below_m: The M below which a layer's node runs a dense copy of its weight, where it holds one.

    Returns:
        A record for each node, in the order of the graph.

    Raises:
        PlanError: A name is no layer of the model, its layer cannot run in the plugin, or layers that are to
            become one product have not one input and type.
        ModelError: A node says something impossible.
    """
    wanted = set(layers)
    sites = {site.name: site for site in find_sites(model)}
    if unknown := sorted(wanted - sites.keys()):
        raise PlanError(f"no layer is named {', '.join(unknown)}.", "`sparseflow-trt inspect` lists them.")
    for name in wanted:
        if reason := why_no_plugin(sites[name]):
            raise PlanError(f"layer '{name}' cannot run in the plugin: {reason}.", "Plan it dense or sparse.")
    together = {name: tuple(names) for names in joined for name in names}
    products = dict.fromkeys(together.get(name, (name,)) for name in sites if name in wanted)
    packed: dict[object, _Parts] = {}  # layers that share a weight are packed once
    names = Names(model.ir)
    made = []
    for product in products:
        members = [site for name, site in sites.items() if name in product]
        _check_one_input(members)
        made.append(_replace(members, dense_below_m.get(product[0], 0), names, packed))
    if made:
        model.ir.opset_imports[PLUGIN_DOMAIN] = 1
    return tuple(made)


def _check_one_input(members: Sequence[LayerSite]) -> None:
    first = members[0]
    for other in members[1:]:
        if other.node.inputs[0] is not first.node.inputs[0] or other.node.graph is not first.node.graph:
            what = "do not read the same value"
        elif other.node.op_type != first.node.op_type or _dtype(other) != _dtype(first):
            what = "differ in type"
        else:
            continue
        raise PlanError(
            f"layers '{shown_name(first)}' and '{shown_name(other)}' cannot become one product: they {what}.",
            "Take `joined` out of the plan.",
        )


def _dtype(site: LayerSite) -> Any:
    return site.weight.tensor.dtype if isinstance(site.weight, TracedWeight) else None


def _replace(
    sites: Sequence[LayerSite], dense_below_m: int, names: Names, packed: dict[object, _Parts]
) -> PluginNodeRecord:
    """Puts one node in the place of layers of one input; of several, with a Split behind it."""
    import onnx_ir as ir

    first, n = sites[0], sum(site.n for site in sites)
    folds = _folded_alike(sites)
    parts = _joined([_pack(site, packed) for site in sites])
    attributes = {
        "n": n,
        "k": first.k,
        "activation": int(folds[0].relu),
        "values": parts.values,
        "indices": parts.indices,
        "plugin_version": PLUGIN_VERSION,
        "plugin_namespace": "",
        **({"dense_below_m": dense_below_m} if dense_below_m else {}),
        **_bias(sites, folds, parts.values.dtype),
    }
    name = JOINED.join(site.node.name or site.name for site in sites)
    new = ir.node(PLUGIN_OP, [first.node.inputs[0]], attributes, domain=PLUGIN_DOMAIN, name=name)
    new.metadata_props.update(first.node.metadata_props)
    _put_in_place(new, sites, folds, names)
    return PluginNodeRecord(
        layer=name,
        layers=tuple(site.name for site in sites),
        n=n,
        k=first.k,
        dtype=dtype_name(parts.values),
        folded=tuple(gone.name or gone.op_type for folded in folds for gone in folded.nodes[1:]),
        packed_bytes=parts.values.nbytes + parts.indices.nbytes,
        dense_bytes=n * first.k * parts.values.dtype.numpy().itemsize,
        dense_below_m=dense_below_m,
    )


def _folded_alike(sites: Sequence[LayerSite]) -> list[Folded]:
    """What is folded into each layer; a ReLU where all have one, since their node has one activation."""
    folds = [fold(site) for site in sites]
    return folds if all(folded.relu for folded in folds) else [folded.without_relu() for folded in folds]


def _bias(sites: Sequence[LayerSite], folds: Sequence[Folded], dtype: ir.DataType) -> dict[str, Any]:
    """The attribute of the layers' biases, one behind the other; nothing where none has one."""
    import onnx_ir as ir

    if all(folded.bias is None for folded in folds):
        return {}
    rows = [np.zeros(s.n) if f.bias is None else f.bias for s, f in zip(sites, folds, strict=True)]
    bias = np.concatenate([row.astype(dtype.numpy()) for row in rows])
    return {"bias": ir.Tensor(bias, dtype=dtype, name="bias")}


def _put_in_place(new: ir.Node, sites: Sequence[LayerSite], folds: Sequence[Folded], names: Names) -> None:
    """Has a node make what the layers made, and removes what only they read."""
    import onnx_ir as ir

    first = sites[0].node
    x, graph = first.inputs[0], first.graph
    assert graph is not None
    ends = [folded.output for folded in folds]
    made = [new] if len(sites) == 1 else [new, _split(new, [site.n for site in sites], names, graph)]
    for value, end in zip(made[-1].outputs, ends, strict=True):
        value.name, value.type, value.shape = end.name, end.type, end.shape
    if len(sites) > 1:
        whole, end = new.outputs[0], ends[0]
        whole.name, whole.type = names.new(f"{end.name}_joined"), end.type
        n = sum(site.n for site in sites)
        whole.shape = None if end.shape is None else ir.Shape([*end.shape[:-1], n])
    old = [node for folded in folds for node in folded.nodes]
    constants = [value for gone in old for value in gone.inputs if value is not None and value is not x]
    # of several all read what stands before the first, and others may read that one's output soon
    place = old[-1] if len(sites) == 1 else first
    ir.convenience.replace_nodes_and_values(graph, place, old, made, ends, made[-1].outputs)
    for value in constants:
        drop_unused(value)


def _split(node: ir.Node, sizes: Sequence[int], names: Names, graph: Any) -> ir.Node:
    """A Split of a node's output along its last axis."""
    import onnx_ir as ir

    name = names.new(f"{node.name}_sizes")
    constant = ir.val(name, const_value=ir.tensor(np.array(sizes, np.int64), name=name))
    graph.register_initializer(constant)
    inputs = [node.outputs[0], constant]
    return ir.node("Split", inputs, {"axis": -1}, num_outputs=len(sizes), name=f"{node.name}/Split")


def _joined(parts: Sequence[_Parts]) -> _Parts:
    """The packed weight of several, one below the other: rows are packed by themselves."""
    import onnx_ir as ir

    if len(parts) == 1:
        return parts[0]
    values = np.concatenate([part.values.numpy() for part in parts])
    indices = np.concatenate([part.indices.numpy() for part in parts])
    return _Parts(
        ir.Tensor(values, dtype=parts[0].values.dtype, name="values"), ir.Tensor(indices, name="indices")
    )


def _pack(site: LayerSite, packed: dict[object, _Parts]) -> _Parts:
    import onnx_ir as ir

    weight = site.weight
    assert isinstance(weight, TracedWeight)
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
