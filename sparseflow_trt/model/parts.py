"""Parts of a stored weight: MultiheadAttention holds q, k and v in one, and a Split takes them apart.

Rows of a tensor are a range of its bytes. So in the graph in memory each part becomes a constant of its own
that lies where its rows do, and is a weight like any other; the file stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

_KEY = "sparseflow_trt.part"


@dataclass(frozen=True)
class Part:
    """Rows start..stop, along the first axis, of the initializer `name`."""

    name: str
    whole: ir.TensorProtocol
    start: int
    stop: int

    @property
    def offset(self) -> int:
        """At which byte of the whole tensor it begins."""
        return self.start * self._row_bytes

    @property
    def nbytes(self) -> int:
        """How many it has."""
        return (self.stop - self.start) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.whole.nbytes // int(self.whole.shape.numpy()[0])


def part_of(tensor: ir.TensorProtocol) -> Part | None:
    """What a tensor is a part of; None where it is stored as it is."""
    part = tensor.meta.get(_KEY)
    return part if isinstance(part, Part) else None


def take_parts(model: ir.Model) -> None:
    """Replaces each Split of an initializer's rows, in the graph in memory, by initializers that are these.

    They are called after the whole and their rows: rows 0 to 63 of `attn.in_proj_weight` are
    `attn.in_proj_weight.0:64`. A whole that nothing else reads is left out.

    Raises:
        ValueError: A Split's sizes are not those of what it splits.
        TypeError: An attribute of one has the wrong type.
        LookupError: One lacks its input.
    """
    made: dict[tuple[ir.Value, int, int], ir.Value] = {}
    names: Names | None = None
    for node in tuple(model.graph.all_nodes()):
        if not (sizes := _row_sizes(node)):
            continue
        names = names or Names(model)
        whole, start = node.inputs[0], 0
        assert whole is not None
        for output, size in zip(node.outputs, sizes, strict=True):
            key = (whole, start, start + size)
            if key not in made:
                made[key] = _make(*key, names)
            output.replace_all_uses_with(made[key])
            start += size
        read = [value for value in node.inputs if value is not None]
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        for value in read:
            if value.is_initializer() and not (value.uses() or value.is_graph_output()):
                assert value.graph is not None
                del value.graph.initializers[value.name or ""]


def _row_sizes(node: ir.Node) -> Sequence[int]:
    """How many rows each output of a Split has; () where it is no Split of an initializer's rows."""
    import onnx_ir as ir

    if node.op_type != "Split" or node.domain != ONNX_DOMAIN:
        return ()
    whole, axis = node.inputs[0], node.attributes.get("axis")
    if whole is None or not whole.is_initializer() or whole.is_graph_input() or whole.const_value is None:
        return ()
    shape = tuple(int(d) for d in whole.const_value.shape.numpy())
    along_rows = (axis.as_int() if axis else 0) in (0, -len(shape))
    if not shape or not along_rows or not all(shape) or whole.const_value.dtype.bitwidth % 8:
        return ()
    if any(output.is_graph_output() for output in node.outputs):
        return ()
    count = len(node.outputs)
    if said := node.attributes.get("split"):  # below opset 13
        sizes = tuple(said.as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = ir.convenience.get_const_tensor(node.inputs[1])
        if tensor is None:
            return ()
        sizes = tuple(int(size) for size in tensor.numpy())
    else:
        most = math.ceil(shape[0] / count)
        sizes = (*[most] * (count - 1), shape[0] - most * (count - 1))
    if len(sizes) != count or sum(sizes) != shape[0] or min(sizes) < 0:
        name = node.name or node.outputs[0].name
        raise ValueError(f"Split '{name}' makes {count} parts of {list(sizes)} rows of {shape[0]}")
    return sizes if all(sizes) else ()


def _make(whole: ir.Value, start: int, stop: int, names: Names) -> ir.Value:
    """The initializer that rows start..stop of another are, beside it."""
    import onnx_ir as ir

    tensor, graph = whole.const_value, whole.graph
    assert tensor is not None
    assert isinstance(graph, ir.Graph)
    name = names.new(f"{whole.name}.{start}:{stop}")
    part = Part(whole.name or "", tensor, start, stop)
    shape = ir.Shape([stop - start, *tensor.shape.numpy()[1:]])
    rows: ir.TensorProtocol
    if isinstance(tensor, ir.ExternalTensor):
        rows = ir.ExternalTensor(
            tensor.location,
            (tensor.offset or 0) + part.offset,
            part.nbytes,
            tensor.dtype,
            shape=shape,
            name=name,
            base_dir=tensor.base_dir,
        )
    else:
        rows = ir.Tensor(tensor.numpy()[start:stop], tensor.dtype, shape=shape, name=name)
    rows.meta[_KEY] = part
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=rows)
    graph.register_initializer(value)
    return value
