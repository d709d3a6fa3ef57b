"""Finds the dimensions that onnx's inference leaves unknown, by following shapes with numbers for the axes.

A graph that computes its shapes, as torch's TorchScript exporter and PyTorch's `expand` write it, ends what
onnx follows by name: behind it no M would be known. With numbers each of these small nodes can be computed,
and what a dimension is of the axes is read from what it is at several sizes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.stand_ins import stand_ins
from sparseflow_trt.model.symbolic import SymbolicM

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_SMALL = 64  # elements: what is computed are shapes, and indices of axes
# Rows of numbers for the axes, a·i + b: no axis is the same multiple of another, or as much larger, in two of
# them.
_ROWS = ((2, 3), (3, 7), (5, 11))
_STEP = 32  # what models that halve their input several times take multiples of
_DIVISORS = (2, 4, 8, 14, 16, 32, 64, 160, 320)  # of strides one after the other, and of patches


def lacks_dims(model: ir.Model, values: Iterable[ir.Value | None]) -> bool:
    """Whether a dimension of some values does not follow from the inputs' axes."""
    ones = dict.fromkeys(_axes(model.graph), 1)
    return any(
        value is not None and (value.shape is None or any(_number(dim, ones) is None for dim in value.shape))
        for value in values
    )


def find_dims(model: ir.Model) -> None:
    """Names dimensions of values that are unknown, or called as no axis is, by the inputs' axes.

    What does not follow from trying stays as it is.
    """
    import onnx_ir as ir

    axes = _axes(model.graph)
    trials = _trials(axes)
    with stand_ins(model), np.errstate(all="ignore"):
        followed = [_follow(model, trial) for trial in trials]
    terms = {axis: tuple(_terms(axis, trials, step > 1)) for axis, step in axes.items()}
    names: dict[tuple[int | None, ...], int | str | None] = {}
    for value in (output for node in model.graph for output in node.outputs):
        seen = [sizes.get(value.name or "") for sizes in followed]
        ranks = {len(sizes) for sizes in seen if sizes is not None}
        if None in seen[: len(_ROWS)] or len(ranks) != 1:
            continue
        dims: list[int | ir.SymbolicDim] = [ir.SymbolicDim(None)] * max(ranks)
        dims = list(value.shape) if value.shape is not None else dims
        if len(dims) != max(ranks):
            continue
        for i, dim in enumerate(dims):
            numbers = tuple(sizes[i] if sizes is not None else None for sizes in seen)
            if numbers not in names:
                names[numbers] = _expression(numbers, terms)
            if _number(dim, trials[0]) is None and (found := names[numbers]) is not None:
                dims[i] = found if isinstance(found, int) else ir.SymbolicDim(found)
        value.shape = ir.Shape(dims)


def _axes(graph: ir.Graph) -> dict[str, int]:
    """The axes of the inputs, each with what its numbers are multiples of."""
    axes: dict[str, int] = {}
    for value in graph.inputs:
        pixels = value.dtype is not None and value.dtype.is_floating_point()
        for i, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim.value and " + " not in dim.value:
                axes[dim.value] = min(axes.get(dim.value, _STEP), _STEP if pixels and i else 1)
    return axes


def _trials(axes: Mapping[str, int]) -> list[dict[str, int]]:
    """Sizes of the axes.

    Those behind _ROWS are large and odd, and a model may not take them: where it does, they tell which axis
    was halved how often, how halves are rounded, and what is the same for small sizes alone.
    """
    rows = [{axis: step * (a * i + b) for i, (axis, step) in enumerate(axes.items())} for a, b in _ROWS]
    above = {axis: 64 * (5 * i + 16) + 1 for i, axis in enumerate(axes)}
    return [*rows, above, {axis: 64 * (7 * i + 23) - 1 for i, axis in enumerate(axes)}]


def _number(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    return dim if isinstance(dim, int) else SymbolicM((dim.value,)).evaluate(dict(sizes))


_Term = tuple[str, tuple[int, ...]]  # what is made of one axis, and what it is at each trial


def _terms(axis: str, trials: Sequence[Mapping[str, int]], divided: bool) -> Iterator[_Term]:
    """An axis itself and, where it is of pixels or samples, what strides and patches leave of it."""
    sizes = tuple(trial[axis] for trial in trials)
    yield axis, sizes
    for by in _DIVISORS if divided and axis.isidentifier() else ():
        yield f"({axis}//{by})", tuple(size // by for size in sizes)
        yield f"(({axis} + {by - 1})//{by})", tuple((size + by - 1) // by for size in sizes)


def _expression(seen: tuple[int | None, ...], terms: Mapping[str, tuple[_Term, ...]]) -> int | str | None:
    """What a dimension is of the axes, from what it was at each trial, as far as it is known."""
    first = seen[0] or 0
    if set(seen) <= {first, None}:
        return first
    named = [axis for axis in terms if axis.isidentifier()]  # others do not read as parts of an expression
    for axis, (bare, *_) in terms.items():
        if _fits(seen, bare[1]):
            return axis
    for count in (1, 2, 3) if len(named) < 5 else (1, 2):
        for some in itertools.combinations(named, count):
            for parts in itertools.product(*(terms[axis] for axis in some)):
                texts, rows = (
                    [text for text, _ in parts],
                    list(zip(*(sizes for _, sizes in parts), strict=True)),
                )
                factor = first // max(math.prod(rows[0]), 1)
                if factor and _fits(seen, [factor * math.prod(row) for row in rows]):
                    return "*".join([str(factor), *texts] if factor > 1 else texts)
                more = first - sum(rows[0])
                if _fits(seen, [more + sum(row) for row in rows]):
                    return " + ".join(texts) + (f" {'+-'[more < 0]} {abs(more)}" if more else "")
    return None


def _fits(seen: Sequence[int | None], sizes: Sequence[int]) -> bool:
    return all(one is None or one == size for one, size in zip(seen, sizes, strict=True))


def _follow(model: ir.Model, trial: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each value of the main graph that is known where the axes have these sizes."""
    import onnx

    types: dict[str, onnx.TypeProto] = {}
    known: dict[str, np.ndarray[Any, Any]] = {}
    opsets = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _take(value, trial, types, known)
    for node in model.graph:
        for read in (*node.inputs, *node.outputs):
            if read is not None:
                _take(read, trial, types, known)
        with contextlib.suppress(
            Exception
        ):  # one that is not valid, or takes no such sizes: unknown it stays
            _compute(node, opsets, types, known)
    return {name: _sizes(found) for name, found in types.items() if _is_known(found)}


def _take(
    value: ir.Value,
    trial: Mapping[str, int],
    types: dict[str, onnx.TypeProto],
    known: dict[str, np.ndarray[Any, Any]],
) -> None:
    """Takes what the model itself says of a value, as far as that follows from the axes."""
    import onnx

    if not value.name or value.dtype is None or value.shape is None or value.name in types:
        return
    sizes = [_number(dim, trial) for dim in value.shape]
    if None not in sizes:
        types[value.name] = onnx.helper.make_tensor_type_proto(int(value.dtype), sizes)
        constant = value.const_value
        if constant is not None and constant.size <= _SMALL and value.is_initializer():
            known[value.name] = constant.numpy()


def _compute(
    node: ir.Node,
    opsets: list[onnx.OperatorSetIdProto],
    types: dict[str, onnx.TypeProto],
    known: dict[str, np.ndarray[Any, Any]],
) -> None:
    """Computes a node's shapes where the model does not say them, and its values where they are few."""
    import onnx
    import onnx_ir as ir

    names = [value.name for value in node.outputs if value.name]
    given = [value.name for value in node.inputs if value is not None and value.name]
    if node.domain != ONNX_DOMAIN or any(name not in types for name in given):
        return
    version = next((item.version for item in opsets if not item.domain), 1)
    if not onnx.defs.has(node.op_type, version):
        return
    proto = ir.serde.serialize_node(node)
    if any(name not in types for name in names):
        schema = onnx.defs.get_schema(node.op_type, version, ONNX_DOMAIN)
        given = given[: schema.max_input]  # what stands in for another operator has what that one had, too
        del proto.input[schema.max_input :], proto.output[schema.max_output :]
        for i in reversed(range(len(proto.attribute))):
            if proto.attribute[i].name not in schema.attributes:
                del proto.attribute[i]
        data = {name: onnx.numpy_helper.from_array(known[name], name) for name in given if name in known}
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, {name: types[name] for name in given}, data, opset_imports=opsets
        )
        types.update((name, kind) for name, kind in found.items() if _is_known(kind))
    if all(name in types and math.prod(_sizes(types[name])) <= _SMALL for name in names):
        known.update(_values(node, proto, given, names, opsets, types, known))


def _values(
    node: ir.Node,
    proto: onnx.NodeProto,
    given: Sequence[str],
    names: Sequence[str],
    opsets: list[onnx.OperatorSetIdProto],
    types: Mapping[str, onnx.TypeProto],
    known: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, np.ndarray[Any, Any]]:
    """What a small node gives, where all that it is given is known."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type in ("Shape", "Size"):  # they read no values
        known = {given[0]: np.broadcast_to(np.int8(0), _sizes(types[given[0]]))}
    elif any(name not in known for name in given) or not (given or node.op_type == "Constant"):
        return {}
    run = ReferenceEvaluator(proto, opsets={item.domain: item.version for item in opsets})
    made = run.run(None, {name: known[name] for name in given})
    return dict(zip(names, map(np.asarray, made), strict=False))


def _is_known(kind: onnx.TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _sizes(kind: onnx.TypeProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in kind.tensor_type.shape.dim)
