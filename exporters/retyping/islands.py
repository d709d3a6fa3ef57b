"""Which nodes compute in FP32 whatever the plan says: its islands, and what stands between Q and DQ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from sparseflow_trt._listing import did_you_mean
from sparseflow_trt.artifacts.graph_record import IslandsRecord
from sparseflow_trt.errors import PlanError
from sparseflow_trt.exporters.retyping.positions import nodes_of_positions
from sparseflow_trt.exporters.retyping.routers import nodes_of_routers
from sparseflow_trt.model.sites import module_of, name_of
from sparseflow_trt.plans.plan import DEFAULT_ISLANDS, Plan

if TYPE_CHECKING:
    import onnx_ir as ir

# What a normalisation is made of where it is no operator of its own: variances and their roots leave
# FP16's range at both ends.
_DECOMPOSED = {"Exp", "Log", "Pow", "Reciprocal", "Softplus", "Sqrt"}
_ELEMENTWISE = {"Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub"}
_ACTIVATIONS = {"Clip", "Elu", "Erf", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid", "Tanh"}


def check_islands(model: ir.Model, plan: Plan) -> None:
    """Checks that every island of a plan is an operator of ONNX's or the model's, a layer, or a node's name.

    Raises:
        PlanError: One is none of these: it would change nothing.
    """
    named = set(plan.islands) - set(DEFAULT_ISLANDS) - {layer.name for layer in plan.layers}
    if not named:
        return
    import onnx

    operators = {schema.name for schema in onnx.defs.get_all_schemas()}.union(DEFAULT_ISLANDS)
    nodes = {name_of(node) for node in model.graph.all_nodes()}
    operators.update(node.op_type for node in model.graph.all_nodes())
    unknown = sorted(named - operators - nodes)
    if unknown:
        raise PlanError(
            f"the plan's island '{unknown[0]}' is neither an operator of ONNX nor a node of the model.",
            did_you_mean(unknown[0], operators | nodes) or "Name an operator's type, or a node.",
        )


def fp32_islands(model: ir.Model, plan: Plan) -> set[ir.Node]:
    """The plan's islands, by operator or name, with the elementwise nodes of normalisations written out.

    What computes positions and sizes is one, too (see `positions`), what chooses experts (see `routers`), and
    what scales the sums of integer products, which are beyond FP16's range.
    """
    named = set(plan.islands)
    islands = nodes_of_positions(model) | nodes_of_routers(model) | _scaled_sums(model)
    decomposed: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        if node.op_type in named or name_of(node) in named:
            islands.add(node)
            if node.op_type in _DECOMPOSED or node.op_type.startswith("Reduce"):
                decomposed.add(node)
        elif node.op_type in _ELEMENTWISE and _belongs(node, decomposed, named):
            islands.add(node)
            decomposed.add(node)
    return islands


def islands_by_layer(
    model: ir.Model, islands: Collection[ir.Node], layers: Mapping[ir.Node, str]
) -> tuple[IslandsRecord, ...]:
    """The operators of the islands between one layer and the next, module by module, in the graph's order.

    Args:
        model: The model.
        islands: Some of its nodes.
        layers: The names of those that are weighted layers.

    Returns:
        For each layer with islands behind it those of each module: the torch module that the exporter left,
        else what stands before the last slash of the node's name, else "".
    """
    found: dict[tuple[str, str], list[str]] = {}
    last = ""
    for node in model.graph.all_nodes():
        last = layers.get(node, last)
        if node in islands and node not in layers:
            module = module_of(node) or (node.name or "").rpartition("/")[0]
            found.setdefault((last, module), []).append(node.op_type)
    return tuple(
        IslandsRecord(after=layer, operators=tuple(operators), module=module)
        for (layer, module), operators in found.items()
    )


def _scaled_sums(model: ir.Model) -> set[ir.Node]:
    """The Casts of integer products to floats, and the Mul behind each, which scales them."""
    casts: set[ir.Node] = set()
    scaled: set[ir.Node] = set()
    for node in model.graph.all_nodes():  # in topological order: makers come first
        makers = {value.producer() for value in node.inputs if value is not None}
        if node.op_type == "Cast" and any(m is not None and _sums_integers(m) for m in makers):
            casts.add(node)
        elif node.op_type == "Mul" and makers & casts:
            scaled.add(node)
    return casts | scaled


def _sums_integers(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    integers = node.op_type in ("Gemm", "MatMul") and dtype is not None and dtype.is_integer()
    return integers or node.op_type in ("ConvInteger", "MatMulInteger")


def _belongs(node: ir.Node, decomposed: set[ir.Node], named: set[str]) -> bool:
    """Whether an elementwise node is a part of a normalisation written out in small operators."""
    import onnx_ir as ir

    read = [v for v in node.inputs if v is not None and ir.convenience.get_const_tensor(v) is None]
    makers = [v.producer() for v in read]
    if makers and all(maker in decomposed for maker in makers):
        return True
    if any(
        maker is not None and maker in decomposed and maker.op_type in ("Sqrt", "Reciprocal")
        for maker in makers
    ):
        return True  # x / sqrt(variance): its reciprocal is beyond FP16 for small variances
    squares = node.op_type == "Mul" and len(read) == 2 and read[0] is read[1]
    readers = [reader.op_type for v in node.outputs for reader in v.consumers()]
    return squares and bool(readers) and all(r in named and r.startswith("Reduce") for r in readers)


def quantized_region(model: ir.Model, opset: int, floats: Collection[ir.Node] = frozenset()) -> set[ir.Node]:
    """The nodes between DequantizeLinear and QuantizeLinear, where both speak FP32 alone (before opset 19).

    A Cast in between would hide from TensorRT that the product can be an INT8 one. `floats` are the products
    that cannot.
    """
    if opset >= 19:
        return set()
    region: set[ir.Node] = set()
    for node in model.graph.all_nodes():  # in topological order: makers come first
        makers = [value.producer() for value in node.inputs if value is not None]
        dequantized = any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        follows = node.op_type in _ELEMENTWISE | _ACTIVATIONS and any(maker in region for maker in makers)
        if (dequantized or follows) and node not in floats:
            region.add(node)
    return region
