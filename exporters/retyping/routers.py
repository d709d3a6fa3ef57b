"""Which nodes compute what is chosen by: a router's product, which gives a token its experts, up to its TopK.

Where two experts are all but alike to a router, half precision's rounding gives a token other experts, and
with them other outputs: no tolerance of types covers that. DeepSeek's routers add biases of several units to
probabilities, where BF16 has steps of 1/32. So transformers computes them in FP32, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.subgraphs import bodies_of
from sparseflow_trt.model.trace import trace_weight
from sparseflow_trt.model.weights import TracedWeight

if TYPE_CHECKING:
    import onnx_ir as ir

_CHOICES = {"ArgMax", "ArgMin", "TopK"}
_PRODUCTS = {"Conv", "Einsum", "Gemm", "MatMul"}
_SIZES = {"Shape", "Size"}


def nodes_of_routers(model: ir.Model) -> set[ir.Node]:
    """The nodes from a small product with a weight to what chooses among its columns, both included.

    Small is a product that gives fewer columns than it takes. What is chosen has to lead to another product,
    or to weigh what one made, as with no head a model's last router does: a classifier's label is no route.

    Args:
        model: A model whose local functions are inlined.
    """
    choices = [n for n in model.graph.all_nodes() if n.op_type in _CHOICES and n.domain == ONNX_DOMAIN]
    if not choices:
        return set()
    gates = _gates(model)
    leading = _before_products(model, gates)
    found: set[ir.Node] = set()
    for choice in choices:
        gate = gates.get(choice.inputs[0]) if choice.inputs[0] is not None else None
        if gate is not None and choice in leading:
            found |= _way(choice, gate, gates)
    return found


def _gates(model: ir.Model) -> dict[ir.Value, ir.Node | None]:
    """The small product that each value is computed of, with constants and sizes besides.

    None where it is computed of anything else; what is computed of constants and sizes alone is left out.
    """
    gates: dict[ir.Value, ir.Node | None] = {}
    for node in model.graph.all_nodes():  # in topological order: makers come first
        read = {gates.get(v) for v in node.inputs if v is not None and not _is_known(v, gates)}
        gate: ir.Node | None = None
        if node.op_type in _SIZES or not (read or bodies_of(node)):
            continue
        if node.op_type in _PRODUCTS:
            gate = node if _is_small(node) else None
        elif len(read) == 1 and not bodies_of(node):
            (gate,) = read
        gates.update(dict.fromkeys(node.outputs, gate))
    return gates


def _is_known(value: ir.Value, gates: dict[ir.Value, ir.Node | None]) -> bool:
    """Whether a value is a constant, or computed of constants and sizes."""
    return value.is_initializer() or (value.producer() is not None and value not in gates)


def _is_small(node: ir.Node) -> bool:
    weight = trace_weight(node.inputs[1])
    if node.op_type not in ("Gemm", "MatMul") or not isinstance(weight, TracedWeight):
        return False
    *_, k, n = (0, 0, *weight.operand_shape)
    transposed = node.attributes.get("transB")
    return k < n if transposed is not None and transposed.as_int() else n < k


def _before_products(model: ir.Model, gates: dict[ir.Value, ir.Node | None]) -> set[ir.Node]:
    """The nodes whose outputs lead to a product, or to where they weigh what another product made."""
    made = _made_by_products(model)
    found: set[ir.Node] = set()

    def ends(value: ir.Value, reader: ir.Node) -> bool:
        if reader.op_type != "Mul" or (gate := gates.get(value)) is None:
            return reader.op_type in _PRODUCTS
        others = (other for other in reader.inputs if other is not None)
        return any(other in made and gates.get(other) is not gate for other in others)

    for node in reversed(tuple(model.graph.all_nodes())):
        readers = ((value, reader) for value in node.outputs for reader in value.consumers())
        if any(reader in found or ends(value, reader) for value, reader in readers):
            found.add(node)
    return found


def _made_by_products(model: ir.Model) -> set[ir.Value]:
    """The values that are computed of a product's."""
    made: set[ir.Value] = set()
    for node in model.graph.all_nodes():
        if node.op_type in _PRODUCTS or any(value in made for value in node.inputs):
            made.update(node.outputs)
    return made


def _way(choice: ir.Node, gate: ir.Node, gates: dict[ir.Value, ir.Node | None]) -> set[ir.Node]:
    """The nodes from a product to a choice that is made by it alone."""
    way = {choice, gate}
    ends = [choice]
    while ends:
        for value in ends.pop().inputs:
            node = value.producer() if value is not None and gates.get(value) is gate else None
            if node is not None and node not in way:
                way.add(node)
                ends.append(node)
    return way
