"""Rewrites a graph so that each node computes in the floating-point type it is told.

Strongly typed TensorRT reads precision from the graph's types, so this is how a plan's precision is
said to every backend. The model's own inputs and outputs keep their types. Where types meet, one Cast is
put for each value and type; constants are stored again in the type their reader wants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.retyping.converted_constants import ConvertedConstants, name_as
from sparseflow_trt.exporters.retyping.node_types import floating_types, infer_types, types_of
from sparseflow_trt.model.constants import constant_of
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

PrecisionOf = Callable[["ir.Node"], "ir.DataType | None"]


@dataclass(frozen=True)
class Clamped:
    """A constant that does not fit its new type: `elements` finite values were set to the largest one."""

    name: str
    elements: int
    largest: float


@dataclass(frozen=True)
class Retyped:
    """What `retype` did. `clamped` fills when constants are read: while the model is saved, and before."""

    nodes: int
    casts: int
    clamped: list[Clamped]


def retype(model: ir.Model, precision_of: PrecisionOf, keep_outputs: bool = True) -> Retyped:
    """Gives every node the type that `precision_of` says for it, in place.

    Args:
        model: A model whose local functions are inlined. FP64 is left alone everywhere.
        precision_of: FLOAT, FLOAT16 or BFLOAT16 for a node, or None to leave it as it is typed. An
            operator that ONNX does not define for that type, and one with subgraphs, is left as typed.
        keep_outputs: Whether the main graph's outputs are cast back to the types they had.

    Returns:
        How many nodes changed and how many Casts there are more.

    Raises:
        ModelError: The model still has local functions.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    if model.functions:
        raise ModelError(
            "the model has local functions, which have no types of their own.", "Inline them first."
        )
    infer_types(model)
    work = _Work(model, precision_of)
    work.graph(model.graph)
    if keep_outputs:
        work.restore_outputs(model.graph)
    RemoveUnusedNodesPass()(model)
    work.constants.keep_names()
    return Retyped(work.nodes, work.casts, work.clamped)


class _Work:
    """One run of the rewriting: the casts and converted constants made so far."""

    def __init__(self, model: ir.Model, precision_of: PrecisionOf) -> None:
        self._opset = model.opset_imports.get(ONNX_DOMAIN, 1)
        self._precision_of = precision_of
        self._floats = floating_types()
        self._original: dict[ir.Value, ir.DataType | None] = {}
        self._names = Names(model)
        self.nodes = 0
        self.casts = 0
        self.clamped: list[Clamped] = []
        self.constants = ConvertedConstants(
            self._names, lambda tensor, dtype: _convert(tensor, dtype, self.clamped)
        )

    def graph(self, graph: ir.Graph) -> None:
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for node in tuple(graph):
            for _, body in bodies_of(node):
                self.graph(body)
                self.restore_outputs(body)
            self._node(graph, node, casts)

    def _node(
        self, graph: ir.Graph, node: ir.Node, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]
    ) -> None:
        for output in node.outputs:
            self._original[output] = output.dtype
        if node.op_type == "Constant" and node.domain == ONNX_DOMAIN:
            return
        wanted = types_of(node, self._precision_of(node), self._opset, self._original)
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype in self._floats:
                # a formal type that is not rewritten takes what stood there before
                dtype = wanted.inputs.get(i, self._original.get(value, value.dtype))
                if dtype is not None and dtype != value.dtype:
                    node.replace_input_with(i, self._as(graph, node, value, dtype, casts))
        changed = False
        for i, output in enumerate(node.outputs):
            dtype = wanted.outputs.get(i)
            if dtype is not None and output.dtype in self._floats and dtype != output.dtype:
                output.dtype = dtype
                changed = True
        if changed:
            self.nodes += 1
            _retype_attributes(node, self.clamped)

    def _as(
        self,
        graph: ir.Graph,
        reader: ir.Node,
        value: ir.Value,
        dtype: ir.DataType,
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
    ) -> ir.Value:
        import onnx_ir as ir

        if (tensor := constant_of(value)) is not None:
            return self.constants.make(value, tensor, dtype)
        if (value, dtype) not in casts:
            name = self._names.new(name_as(value, dtype))
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], name=f"Cast_{name}")
            cast.outputs[0].name, cast.outputs[0].dtype = name, dtype
            cast.outputs[0].shape = value.shape
            graph.insert_before(reader, cast)
            casts[value, dtype] = cast.outputs[0]
            self.casts += 1
        return casts[value, dtype]

    def restore_outputs(self, graph: ir.Graph) -> None:
        """Casts a graph's outputs back to the types they had: its callers know them by those."""
        import onnx_ir as ir

        for i, value in enumerate(tuple(graph.outputs)):
            before = self._original.get(value, value.dtype)
            if value.producer() is None or before is None or before == value.dtype:
                continue
            public = value.name
            assert value.dtype is not None
            value.name = self._names.new(name_as(value, value.dtype))
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", before)], name=f"Cast_{public}")
            cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = public, before, value.shape
            graph.append(cast)
            graph.outputs[i] = cast.outputs[0]
            self.casts += 1


def _convert(tensor: ir.TensorProtocol, dtype: ir.DataType, clamped: list[Clamped]) -> Array:
    """The tensor's values rounded to `dtype`; finite values beyond its range become its largest one."""
    import ml_dtypes

    values = tensor.numpy()
    target = dtype.numpy()
    with np.errstate(over="ignore"):
        converted: Array = values.astype(target)
    beyond = np.isinf(converted)
    if beyond.any():
        beyond &= np.isfinite(values)
        count = int(np.count_nonzero(beyond))
        if count:
            lost = values[beyond].astype(np.float64)
            found = Clamped(tensor.name or "", count, float(np.abs(lost).max()))
            if found not in clamped:  # a constant is converted whenever it is read
                clamped.append(found)
            converted[beyond] = np.copysign(float(ml_dtypes.finfo(target).max), lost).astype(target)
    return converted


def _retype_attributes(node: ir.Node, clamped: list[Clamped]) -> None:
    """Gives the attribute that types a node's output the type that the output has now."""
    import onnx_ir as ir

    dtype = node.outputs[0].dtype
    if dtype is None:  # of an LSTM that leaves out all but its last state, say
        return
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", dtype)
    elif node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        fill = value.as_tensor().numpy() if value else np.zeros(1, np.float32)
        tensor = ir.Tensor(_convert(ir.Tensor(fill, name=node.outputs[0].name), dtype, clamped), dtype)
        node.attributes["value"] = ir.AttrTensor("value", tensor)
