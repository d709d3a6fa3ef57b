"""onnx's inference of types and shapes, without its traceback where it fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_MAKE_SEQUENCES = {
    "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence",
}  # fmt: skip


def infer_shapes(model: ir.Model) -> None:
    """Adds types and shapes that the file does not say and onnx can tell; a failure leaves them unknown."""
    from onnx_ir.passes.common import ShapeInferencePass

    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    before, logger.disabled = logger.disabled, True  # what stays unknown is said of each layer
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.disabled = before
    _type_sequences(model.graph)


def _type_sequences(graph: ir.Graph) -> None:
    """Makes sequences of values that are: the pass gives them the type of their elements."""
    import onnx_ir as ir

    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _type_sequences(attribute.as_graph())
        if node.domain not in ("", "ai.onnx"):
            continue
        for index, value in enumerate(node.outputs):
            if isinstance(value.type, ir.TensorType) and _is_sequence(node, index):
                value.type = ir.SequenceType(value.type)


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
