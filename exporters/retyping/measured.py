"""Adds measurements to a graph, so that one run tells each node's range and what narrower types cost it.

They are computed in the graph and come out as one small output: no intermediate tensor has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflow_trt.exporters.retyping.node_types import floating_types
from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.node_range import COLUMNS, FILL, LARGEST_FP16, SMALLEST_FP16
from sparseflow_trt.model.sites import name_of
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

OUTPUT = "sparseflow_measured"
OLDEST_OPSET = 9  # that has all that measures: Where came with it

PRODUCTS = ("MatMul", "Gemm", "Conv")
# They move values and do not change them: in a narrower type they round what they are given, no more.
MOVERS = frozenset(
    ("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
     "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)  # fmt: skip
_RANDOM = frozenset(("Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"))
# The size of what they make follows from numbers.
_SIZED = frozenset(("Range", "Resize", "Unique", "Upsample"))
_UNMEASURED = (
    MOVERS | _RANDOM | _SIZED | {"Cast", "Constant", "ConstantOfShape", "DequantizeLinear", "QuantizeLinear"}
)


def add_measurements(model: ir.Model, narrower: bool) -> tuple[tuple[str, bool], ...]:
    """Adds one output, OUTPUT: a row of `node_range.COLUMNS` for each floating-point node of the main graph.

    Args:
        model: Its local functions are inlined and its values typed; changed in place.
        narrower: Whether each node is computed again from FP16 and from BF16 inputs, and a product from
            its operands' magnitudes; those that only move values have no row. Asks for a model in FP32.

    Returns:
        For each row the node's name, and whether it was computed in narrower types. An opset before 13 has
        no BF16: its error is infinite there.
    """
    graph = model.graph
    work = _Measuring(graph, model.opset_imports.get(ONNX_DOMAIN, 1))
    rows: list[tuple[str, bool]] = []
    for node in tuple(graph):
        output = first_float(node)
        if output is None or (narrower and node.op_type in MOVERS):
            continue
        deep = narrower and _is_computed(node)
        work.row(node, output, deep)
        rows.append((name_of(node), deep))
    work.finish()
    return tuple(rows)


def first_float(node: ir.Node) -> ir.Value | None:
    """The first floating-point output of a node that is no constant, or None."""
    if node.op_type == "Constant":
        return None
    import onnx_ir as ir

    tensors = (v for v in node.outputs if isinstance(v.type, ir.TensorType))  # and no sequences of such
    return next((v for v in tensors if v.dtype in floating_types()), None)


def _is_computed(node: ir.Node) -> bool:
    import onnx_ir as ir

    return (
        node.op_type not in _UNMEASURED
        and node.domain == ONNX_DOMAIN
        and [v for v in node.outputs if v.name] == [node.outputs[0]]
        and not any(v is not None and isinstance(v.type, ir.SequenceType) for v in node.inputs)
        and not bodies_of(node)
    )


class _Measuring:
    """One graph's measurements: the nodes so far, and the rounded copies of its values."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        import onnx_ir as ir

        self._graph = graph
        self._nodes: list[ir.Node] = []
        self._rows: list[ir.Value] = []
        self._rounded: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._types = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16 if opset >= 13 else None)

    def row(self, node: ir.Node, output: ir.Value, narrower: bool) -> None:
        op, number = self._op, self._number
        wide = self._flat(output if output.dtype == floating_types()[0] else self._float(output))
        size = op("Abs", wide)
        inside = op("Less", size, number(FILL))  # false for NaN
        known = op("Where", inside, size, number(0.0))
        # with an element more, since there is no largest of none: of a cache of no tokens, say
        largest = op("ReduceMax", op("Concat", known, number(0.0), axis=0), keepdims=1)
        unit = op("Max", largest, number(1e-30))
        tiny = op("And", op("Less", known, number(SMALLEST_FP16)), op("Greater", known, number(0.0)))
        columns = [
            self._float(op("Shape", wide)),
            self._sum(self._float(op("Not", inside))),
            largest,
            self._sum(self._float(op("Greater", known, number(LARGEST_FP16)))),
            self._sum(self._float(tiny)),
            self._squares(known, unit),
        ]
        if narrower:
            for dtype in self._types:
                if dtype is None:
                    columns.append(number(np.inf))
                    continue
                again = self._round(self._again(node, lambda value: self._round(value, dtype)), dtype)  # noqa: B023
                off = op("Where", inside, op("Sub", self._flat(again), wide), number(0.0))
                columns.append(self._squares(off, unit))  # NaN or infinite where `again` is
            columns += self._product(node)
        self._rows += [*columns, *[number(0.0)] * (len(COLUMNS) - len(columns))]

    def finish(self) -> None:
        made = self._op("Concat", *(self._rows or [self._number(0.0)] * len(COLUMNS)), axis=0)
        made = self._op("Reshape", made, self._ints((-1, len(COLUMNS))))
        made.name, made.dtype = OUTPUT, floating_types()[0]
        self._graph.extend(self._nodes)
        self._graph.outputs.append(made)

    def _product(self, node: ir.Node) -> list[ir.Value]:
        if node.op_type not in PRODUCTS or any(v is None for v in node.inputs[:2]):
            return [self._number(1.0), self._number(0.0)]
        op, (a, b) = self._op, node.inputs[:2]
        assert a is not None and b is not None
        if node.op_type == "Conv":  # the elements of one filter
            k = op("Div", op("Shape", self._flat(b)), op("Gather", op("Shape", b), self._ints((0,))))
        else:
            turned = node.op_type == "Gemm" and (flag := node.attributes.get("transA")) and flag.as_int()
            k = op("Gather", op("Shape", a), self._ints((0 if turned else -1,)))
        bound = self._flat(self._again(node, lambda value: op("Abs", value), inputs=2))
        bound = op("Concat", op("Abs", bound), self._number(0.0), axis=0)
        return [self._float(k), op("ReduceMax", bound, keepdims=1)]

    def _again(
        self, node: ir.Node, change: Callable[[ir.Value], ir.Value], inputs: int | None = None
    ) -> ir.Value:
        """The node once more, each of its floating-point inputs changed."""
        changed = [
            change(value) if value is not None and value.dtype in floating_types() else value
            for value in node.inputs[:inputs]
        ]
        return self._op(node.op_type, *changed, attributes=tuple(node.attributes.values()))

    def _round(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self._rounded:
            narrow = self._op("Cast", value, to=dtype)
            self._rounded[value, dtype] = self._op("Cast", narrow, to=floating_types()[0])
        return self._rounded[value, dtype]

    def _flat(self, value: ir.Value) -> ir.Value:
        return self._op("Reshape", value, self._ints((-1,)))

    def _float(self, value: ir.Value) -> ir.Value:
        return self._op("Cast", value, to=floating_types()[0])

    def _sum(self, flat: ir.Value) -> ir.Value:
        return self._op("ReduceSum", flat, keepdims=1)

    def _squares(self, flat: ir.Value, unit: ir.Value) -> ir.Value:
        scaled = self._op("Div", flat, unit)
        return self._sum(self._op("Mul", scaled, scaled))

    def _number(self, value: float) -> ir.Value:
        return self._constant(np.asarray([value], np.float32))

    def _ints(self, values: tuple[int, ...]) -> ir.Value:
        return self._constant(np.asarray(values, np.int64))

    def _constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        import onnx_ir as ir

        key = (array.dtype.name, array.shape, *array.reshape(-1).tolist())
        if key not in self._constants:
            name = f"{OUTPUT}_constant_{len(self._constants)}"
            made = ir.val(name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(made)
            self._constants[key] = made
        return self._constants[key]

    def _op(
        self, op_type: str, *inputs: ir.Value | None, attributes: tuple[ir.Attr, ...] = (), **named: int
    ) -> ir.Value:
        import onnx_ir as ir

        own = [ir.AttrInt64(name, value) for name, value in named.items()]
        name = f"{OUTPUT}_{len(self._nodes)}"
        node = ir.Node("", op_type, list(inputs), [*attributes, *own], name=name)
        node.outputs[0].name = name
        self._nodes.append(node)
        return node.outputs[0]
