"""Parts of a stored weight: attention often holds q, k and v in one, and a Split or Slices take them apart.

Rows of a tensor are a range of its bytes. So in the graph in memory each part becomes a constant of its own
that lies where its rows do, and is a weight like any other; the file stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from sparseflow_trt.model.constants import drop_unused
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import ONNX_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

_KEY = "sparseflow_trt.part"

Ranges = Sequence[tuple[int, int]]


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


@dataclass(frozen=True)
class _Cut:
    """Which rows of an initializer a node's outputs are; `perm` is that of a Transpose in between, if any."""

    whole: ir.Value
    perm: tuple[int, ...]
    ranges: Ranges


def take_parts(model: ir.Model) -> None:
    """Replaces each Split and Slice of an initializer's rows, in the graph in memory, by initializers.

    They are called after the whole and their rows: rows 0 to 63 of `attn.in_proj_weight` are
    `attn.in_proj_weight.0:64`. A whole that nothing else reads is left out. Where a Transpose lies between,
    each part gets one of its own.

    Raises:
        ValueError: A Split's sizes are not those of what it splits, or a Slice's step is 0.
        TypeError: An attribute of one has the wrong type.
        LookupError: One lacks its input.
    """
    made: dict[tuple[ir.Value, int, int], ir.Value] = {}
    names: Names | None = None
    for node in tuple(model.graph.all_nodes()):
        if (cut := _cut_of(node)) is None:
            continue
        names = names or Names(model)
        for output, (start, stop) in zip(node.outputs, cut.ranges, strict=True):
            key = (cut.whole, start, stop)
            if key not in made:
                made[key] = _make(*key, names)
            part = _transpose(made[key], cut.perm, node, names) if cut.perm else made[key]
            output.replace_all_uses_with(part)
        drop_unused(node.outputs[0])


def _cut_of(node: ir.Node) -> _Cut | None:
    """How a node takes an initializer's rows apart; None where it does not."""
    ranges_of = {"Split": _split_ranges, "Slice": _slice_ranges}.get(node.op_type)
    if ranges_of is None or node.domain != ONNX_DOMAIN or any(o.is_graph_output() for o in node.outputs):
        return None
    whole = node.inputs[0]
    perm: tuple[int, ...] = ()
    between = whole.producer() if whole is not None else None
    if between is not None and between.op_type == "Transpose" and between.domain == ONNX_DOMAIN:
        whole, given = between.inputs[0], between.attributes.get("perm")
        perm = tuple(given.as_ints()) if given else (1, 0)
    if whole is None or not whole.is_initializer() or whole.is_graph_input() or whole.const_value is None:
        return None
    shape = tuple(int(d) for d in whole.const_value.shape.numpy())
    if not shape or not all(shape) or whole.const_value.dtype.bitwidth % 8:
        return None
    if perm and sorted(perm) != list(range(len(shape))):
        return None
    ranges = ranges_of(node, tuple(shape[i] for i in perm) or shape, perm.index(0) if perm else 0)
    return _Cut(whole, perm, ranges) if ranges and all(start < stop for start, stop in ranges) else None


def _split_ranges(node: ir.Node, shape: tuple[int, ...], rows: int) -> Ranges:
    """What each output of a Split takes of the axis `rows`; () where it splits another."""
    axis = node.attributes.get("axis")
    if (axis.as_int() if axis else 0) not in (rows, rows - len(shape)):
        return ()
    count = len(node.outputs)
    if said := node.attributes.get("split"):  # below opset 13
        sizes: Sequence[int] = said.as_ints()
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        if not (sizes := _ints(node.inputs[1])):
            return ()
    else:
        most = math.ceil(shape[rows] / count)
        sizes = (*[most] * (count - 1), shape[rows] - most * (count - 1))
    if len(sizes) != count or sum(sizes) != shape[rows] or min(sizes) < 0:
        name = node.name or node.outputs[0].name
        raise ValueError(f"Split '{name}' makes {count} parts of {list(sizes)} rows of {shape[rows]}")
    return tuple(pairwise(accumulate(sizes, initial=0)))


def _slice_ranges(node: ir.Node, shape: tuple[int, ...], rows: int) -> Ranges:
    """What a Slice takes of the axis `rows`; () where that is no range, or where it leaves out of another."""
    starts, ends, axes, steps = (*node.inputs[1:], None, None, None, None)[:4]
    begins = _ints(starts)  # below opset 10 it has attributes
    found: Ranges = ()
    for begin, end, axis, step in zip(
        begins, _ints(ends), _ints(axes, range(len(begins))), _ints(steps, [1] * len(begins)), strict=False
    ):
        taken = range(shape[axis])[begin:end:step]
        if axis % len(shape) == rows and step == 1:
            found = ((taken.start, taken.stop),)
        elif taken != range(shape[axis]):
            return ()
    return found


def _ints(value: ir.Value | None, left_out: Sequence[int] = ()) -> Sequence[int]:
    """The integers that an input is; () where it is not constant."""
    import onnx_ir as ir

    if value is None:
        return left_out
    tensor = ir.convenience.get_const_tensor(value)
    return () if tensor is None else tuple(int(each) for each in tensor.numpy())


def _transpose(rows: ir.Value, perm: tuple[int, ...], before: ir.Node, names: Names) -> ir.Value:
    """A part as it lies behind a Transpose, which is put before a node."""
    import onnx_ir as ir

    name = names.new(f"{rows.name}.transposed")
    assert rows.shape is not None
    value = ir.Value(name=name, type=rows.type, shape=ir.Shape([rows.shape[i] for i in perm]))
    node = ir.Node("", "Transpose", [rows], [ir.AttrInt64s("perm", perm)], outputs=[value], name=name)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return value


def _make(whole: ir.Value, start: int, stop: int, names: Names) -> ir.Value:
    """The initializer that rows start..stop of another are, beside it."""
    import onnx_ir as ir

    tensor, graph, name = whole.const_value, whole.graph, whole.name or ""
    assert tensor is not None
    if (of := part_of(tensor)) is not None:  # parts of a part: all are the stored tensor's
        tensor, name, start, stop = of.whole, of.name, of.start + start, of.start + stop
    assert isinstance(graph, ir.Graph)
    part = Part(name, tensor, start, stop)
    name = names.new(f"{name}.{start}:{stop}")
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
