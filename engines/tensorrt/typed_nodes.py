"""What a typed ONNX file says of its nodes' types, read of its protobuf alone.

A build's child process asks this for a weakly typed TensorRT. Importing onnx-ir there, which imports sympy,
would take longer than all that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class TypedNode:
    """A node with its types, in ONNX's words ("FLOAT16"), "" where the file does not tell one.

    Attributes:
        name: Its name.
        op_type: Its operator.
        reads: The type of its first input.
        writes: The types of its outputs.
        quantized: Whether it stands between DequantizeLinear and QuantizeLinear.
    """

    name: str
    op_type: str
    reads: str
    writes: tuple[str, ...]
    quantized: bool


@dataclass
class _Value:
    dtype: str
    maker: str = ""
    readers: set[str] = field(default_factory=set)


_Uses = list[tuple["onnx.NodeProto", list[_Value], list[_Value]]]


def typed_nodes(model: Path) -> tuple[TypedNode, ...]:
    """The nodes of a model's graph, each before those of its subgraphs.

    Args:
        model: An ONNX file that a parser has taken. Its external data is not looked at.
    """
    import onnx

    graph = onnx.load_model(str(model), load_external_data=False).graph
    return tuple(
        TypedNode(
            node.name,
            node.op_type,
            reads[0].dtype if reads else "",
            tuple(value.dtype for value in writes),
            any(value.maker == "DequantizeLinear" for value in reads)
            or any("QuantizeLinear" in value.readers for value in writes),
        )
        for node, reads, writes in _walk(graph, {})
    )


def _walk(graph: onnx.GraphProto, outer: Mapping[str, _Value]) -> _Uses:
    """The nodes with what they read and write; `outer` are the values that a subgraph sees around it."""
    from onnx import TensorProto

    def name_of(dtype: int) -> str:
        return TensorProto.DataType.Name(dtype) if dtype else ""

    types = {
        value.name: name_of(value.type.tensor_type.elem_type)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    seen = {
        **outer,
        **{value.name: _Value(types[value.name]) for value in graph.input},
        **{tensor.name: _Value(name_of(tensor.data_type)) for tensor in graph.initializer},
        **{name: _Value(types.get(name, ""), node.op_type) for node in graph.node for name in node.output},
    }
    uses: _Uses = []
    for node in graph.node:
        reads = [seen.get(name, _Value("")) if name else _Value("") for name in node.input]
        for value in reads:
            value.readers.add(node.op_type)
        uses.append((node, reads, [seen[name] for name in node.output]))
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                uses += _walk(inner, seen)
    return uses
