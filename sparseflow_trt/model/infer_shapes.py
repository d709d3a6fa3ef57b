"""onnx's inference of types and shapes, past custom operators, and without its traceback where it fails."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.stand_ins import stand_ins
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

# The pass tells of its failures, and of values whose shape a file says and whose type it does not.
_LOGGERS = ("onnx_ir.passes.common.shape_inference", "onnx_ir.serde")
_RECURRENT = {"GRU", "LSTM", "RNN"}
_MAKE_SEQUENCES = {
    "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence",
}  # fmt: skip


def infer_shapes(model: ir.Model) -> None:
    """Adds types and shapes that the file does not say and onnx can tell; a failure leaves them unknown."""
    from onnx_ir.passes.common import ShapeInferencePass

    with _quiet(*_LOGGERS), stand_ins(model):
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    _type_sequences(model.graph)
    _type_what_is_alike(model)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silences loggers: what stays unknown is said of each layer."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def forget_made_up_dims(model: ir.Model) -> None:
    """Takes the names off dimensions that nobody knows: onnx's inference and tf2onnx call each unk__1, …

    An input's own is an axis as any other, whatever it is called.
    """
    import onnx_ir as ir

    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    given = {dim.value for shape in shapes for dim in shape if not isinstance(dim, int)}
    for value in (output for node in model.graph.all_nodes() for output in node.outputs):
        dims = _dims_of(value.shape) if value.shape is not None else []
        made_up = [isinstance(dim, str) and dim.startswith("unk__") and dim not in given for dim in dims]
        if any(made_up):
            value.shape = ir.Shape(None if no else dim for dim, no in zip(dims, made_up, strict=True))


def reshape_behind_recurrence(model: ir.Model) -> None:
    """Lets onnx say the shapes behind recurrent nodes of torch's files: they have the length of the trace.

    A dimension that the file has a name for keeps it where onnx finds none; its numbers are not believed.
    Where the inputs have no named axis they are right.
    """
    import onnx_ir as ir

    behind: dict[ir.Value, ir.Shape | None] = {}
    for node in model.graph:
        if node.op_type in _RECURRENT or any(value in behind for value in node.inputs):
            behind |= {value: value.shape for value in node.outputs}
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    static = all(isinstance(dim, int) for shape in shapes for dim in shape)
    if not behind or static or model.producer_name != "pytorch":
        return
    for value in behind:
        value.shape = None
    infer_shapes(model)
    forget_made_up_dims(model)
    for value, before in behind.items():
        if before is None or (value.shape is not None and len(value.shape) != len(before)):
            continue
        found = _dims_of(value.shape or ir.Shape([None] * len(before)))
        named = (old if isinstance(old, str) else None for old in _dims_of(before))
        value.shape = ir.Shape(old if new is None else new for new, old in zip(found, named, strict=True))


def _dims_of(shape: ir.Shape) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _type_sequences(graph: ir.Graph) -> None:
    """Makes sequences of values that are: the pass gives them the type of their elements."""
    import onnx_ir as ir

    for node in graph:
        for _, body in bodies_of(node):
            _type_carried(node, body)
            _type_sequences(body)
        if node.domain != ONNX_DOMAIN:
            continue
        for index, value in enumerate(node.outputs):
            if isinstance(value.type, ir.TensorType) and _is_sequence(node, index):
                value.type = ir.SequenceType(value.type)


def _type_carried(node: ir.Node, body: ir.Graph) -> None:
    """Makes sequences of what a Loop hands its body, where it is handed sequences."""
    import onnx_ir as ir

    if node.op_type != "Loop":
        return
    for given, carried in zip(node.inputs[2:], body.inputs[2:], strict=False):
        if given is not None and isinstance(given.type, ir.SequenceType):
            carried.type = copy.deepcopy(given.type)


def _is_sequence(node: ir.Node, index: int) -> bool:
    """Whether an output is a sequence: its operator makes them, or passes on one that it has."""
    import onnx_ir as ir

    source: ir.Value | None = None
    if node.op_type in _MAKE_SEQUENCES:
        return True
    if node.op_type == "Identity":
        source = node.inputs[0]
    elif node.op_type == "If":
        source = node.attributes["then_branch"].as_graph().outputs[index]
    elif node.op_type == "Loop" and index < len(node.inputs) - 2:  # behind these lie stacked tensors
        source = node.attributes["body"].as_graph().outputs[index + 1]
    return source is not None and isinstance(source.type, ir.SequenceType)


def _type_what_is_alike(model: ir.Model) -> None:
    """Types what custom operators make, and what follows from it, by those who read it.

    onnx knows nothing of such an output. A MatMul of it and a weight says that it is of the weight's type.
    """
    import onnx

    opset = model.opset_imports.get(ONNX_DOMAIN, 1)
    nodes = [node for node in model.graph.all_nodes() if node.domain == ONNX_DOMAIN]
    nodes = [node for node in nodes if _untyped(node) and onnx.defs.has(node.op_type, opset)]
    known = True
    while known:
        known = False
        for node in nodes:
            alike: dict[str, list[ir.Value]] = {}
            schema = onnx.defs.get_schema(node.op_type, opset, ONNX_DOMAIN)
            for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
                for index, value in enumerate(values):
                    formal = formals[min(index, len(formals) - 1)]  # the last may be variadic
                    if value is not None and value.name and formal.is_homogeneous:
                        alike.setdefault(formal.type_str, []).append(value)
            for values in alike.values():
                told = next((value.type for value in values if value.type is not None), None)
                for value in values:
                    if value.type is None and told is not None:
                        value.type, known = copy.deepcopy(told), True  # types are changed in place


def _untyped(node: ir.Node) -> bool:
    return any(v is not None and v.name and v.type is None for v in (*node.inputs, *node.outputs))
