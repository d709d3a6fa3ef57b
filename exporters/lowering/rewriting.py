"""What the rules of lowering rewrite nodes with: new nodes and constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.constants import constant_of
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.pattern import Array

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 17
_HINT = "Export the model with opset 17."


def not_lowered(node: ir.Node, why: str) -> ModelError:
    """The error that names a node for which there is no form in opset 17."""
    name = node.name or next((v.name for v in node.outputs if v.name), "")
    return ModelError(f"node '{name}' ({node.op_type}) cannot be written in opset {OPSET}: {why}.", _HINT)


class Rewriting:
    """One node being rewritten: new nodes gather here until `replace` puts them in its place.

    `opset` is the one that the node was written in.
    """

    def __init__(self, node: ir.Node, names: Names, opset: int) -> None:
        self.node, self.opset = node, opset
        self._names, self._nodes = names, list[Any]()

    def add(
        self, op_type: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """A new node's output; of the first input's type unless said otherwise."""
        import onnx_ir as ir

        first = next(v for v in inputs if v is not None)
        new = ir.node(op_type, inputs, attributes, name=part_name(self.node, op_type, len(self._nodes)))
        new.metadata_props.update(self.node.metadata_props)
        new.outputs[0].name = self._names.new(f"{self.node.outputs[0].name}_{op_type.lower()}")
        new.outputs[0].type = ir.TensorType(dtype) if dtype else first.type
        self._nodes.append(new)
        return new.outputs[0]

    def constant(self, values: Array, what: str) -> ir.Value:
        """A new initializer of the node's graph."""
        import onnx_ir as ir

        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        name = self._names.new(f"{self.node.outputs[0].name}_{what}")
        value = ir.val(name, const_value=ir.tensor(values, name=name))
        graph.register_initializer(value)
        return value

    def replace(self, output: ir.Value) -> None:
        """Puts the new nodes in the place of the old one, whose output's name `output` takes."""
        import onnx_ir as ir

        graph = self.node.graph
        assert graph is not None
        outputs = self.node.outputs[:1]
        ir.convenience.replace_nodes_and_values(graph, self.node, [self.node], self._nodes, outputs, [output])

    def ints(self, index: int, what: str) -> tuple[int, ...] | None:
        """The integers of a constant input, or None where it is left out.

        Raises:
            ModelError: It is not constant.
        """
        value = input_of(self.node, index)
        if value is None:
            return None
        tensor = constant_of(value)
        if tensor is None:
            raise not_lowered(self.node, f"its {what} are computed, and are an attribute or constant there")
        return tuple(int(i) for i in tensor.numpy().reshape(-1))

    def pop_int(self, name: str, default: int = 0) -> int:
        """An integer attribute, which the node loses."""
        attribute = self.node.attributes.pop(name, None)
        return attribute.as_int() if attribute is not None else default


def part_name(node: ir.Node, op_type: str, number: int) -> str:
    """The name of the number-th node that takes a node's place: the first has that one's own."""
    return f"{node.name}/{op_type}_{number}" if number and node.name else node.name or ""


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """A node's input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def sizes_of(node: ir.Node) -> tuple[int | None, ...]:
    """The sizes of a node's first input, None for those that vary.

    Raises:
        ModelError: Not even their number is known.
    """
    value = input_of(node, 0)
    if value is None or value.shape is None:
        raise not_lowered(node, "the rank of its input is not known")
    return tuple(d if isinstance(d, int) else None for d in value.shape)
