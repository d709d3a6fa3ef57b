"""Says where a comparison failed by what was drawn: numbers by the model's own nodes, or its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparseflow_trt._listing import listed
from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.model.model_file import ONNX_DOMAIN, OnnxModel
from sparseflow_trt.model.sites import name_of
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.inputs import zero_or_one_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

_DRAW = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
_MOST_NAMED = 3


def with_what_is_drawn(validation: Validation, model: OnnxModel) -> Validation:
    """The validation, where it failed and the model draws with no step to blame, and the node that draws.

    No two runs of such a model are the same, and none is a measure.
    """
    drawn = next((node for node in model.ir.graph.all_nodes() if _draws(node)), None)
    if drawn is None or validation.verdict != "fail" or validation.attribution is None:
        return validation
    training = drawn.op_type == "Dropout"
    how, instead = (
        ("it is in training mode", "Export the model in eval mode")
        if training
        else ("it has no seed", "Give the model its noise as an input")
    )
    reason = (
        f"No step is to blame: '{name_of(drawn)}' ({drawn.op_type}) draws random numbers ({how}), so "
        f"no two runs of the model are the same. {instead}."
    )
    told = validation.attribution.model_copy(update={"blamed": "", "reason": reason, "input_set": ""})
    return validation.model_copy(update={"attribution": told})


def with_drawn_inputs(validation: Validation, model: OnnxModel, inputs: Sequence[InputSet]) -> Validation:
    """The validation, where it failed on inputs of 0 and 1 that were drawn, and which these are.

    Args:
        validation: What was found.
        model: The model as read.
        inputs: What it was found on.
    """
    if validation.verdict != "fail" or validation.attribution is None or inputs[0].seed is None:
        return validation
    names = [f"'{name}'" for name in zero_or_one_inputs(model)]
    if not names:
        return validation
    reason = (
        f"{validation.attribution.reason} The model does not say which values {listed(names, _MOST_NAMED)} "
        "may have, so 0 and 1 were drawn: give real ones with --inputs before you trust this."
    )
    told = validation.attribution.model_copy(update={"reason": reason})
    return validation.model_copy(update={"attribution": told})


def _draws(node: ir.Node) -> bool:
    import onnx_ir as ir

    if node.domain != ONNX_DOMAIN or "seed" in node.attributes:
        return False
    if node.op_type != "Dropout":
        return node.op_type in _DRAW
    training = node.inputs[2] if len(node.inputs) > 2 else None  # an input from opset 12 on
    tensor = ir.convenience.get_const_tensor(training) if training is not None else None
    return tensor is not None and bool(tensor.numpy())
