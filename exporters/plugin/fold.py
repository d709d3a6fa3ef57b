"""What becomes part of a plugin's node with its product: the bias and the ReLU behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseflow_trt.model.constants import constant_of
from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.sites import LayerSite

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Folded:
    """A layer with what is folded into it.

    Attributes:
        nodes: Its own node and those behind it, the last of which makes its output.
        bias: [N], None where it has none.
        relu: Whether the last node is a ReLU.
    """

    nodes: tuple[ir.Node, ...]
    bias: Array | None
    relu: bool

    @property
    def output(self) -> ir.Value:
        """What the layer makes."""
        return self.nodes[-1].outputs[0]

    def without_relu(self) -> Folded:
        """The same, but for its ReLU, which stays a node."""
        return Folded(self.nodes[:-1], self.bias, relu=False) if self.relu else self


def fold(site: LayerSite) -> Folded:
    """Finds the bias of a MatMul or Gemm and the ReLU behind it."""
    node, x, product = site.node, site.node.inputs[0], site.node.outputs[0]
    nodes, bias = [node], None
    if node.op_type == "Gemm":
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = bias_of(node.inputs[2], site.n, 2)
    elif (add := _only_user(product, "Add")) is not None:
        other = next((v for v in add.inputs if v is not product), None)
        rank = None if x is None or x.shape is None else len(x.shape)
        bias = bias_of(other, site.n, rank) if other is not None else None
        if bias is not None:
            nodes.append(add)
    relu = _only_user(nodes[-1].outputs[0], "Relu")
    if relu is not None:
        nodes.append(relu)
    return Folded(tuple(nodes), bias, relu is not None)


def why_not_gemm(node: ir.Node) -> str:
    """Why a Gemm is no x · W + b, "" where it is."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if attributes.get("transA", 0):
        return "Gemm transposes its input"
    if attributes.get("alpha", 1.0) != 1 or (attributes.get("beta", 1.0) != 1 and len(node.inputs) > 2):
        return "Gemm scales its product or its bias"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias_of(bias, _columns(node), 2) is None:
        return "the bias is not a constant with one number per column"
    return ""


def _columns(node: ir.Node) -> int:
    shape = node.outputs[0].shape
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else -1


def bias_of(value: ir.Value, n: int, rank: int | None) -> Array | None:
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
    """The one node that reads a value, if it is of a type, in the same graph, and the value is no output."""
    uses, maker = value.uses(), value.producer()
    if value.is_graph_output() or len(uses) != 1 or maker is None:
        return None
    user = next(iter(uses)).node
    beside = user.graph is maker.graph  # and not in the body of an If
    return user if beside and user.op_type == op_type and user.domain == ONNX_DOMAIN else None
