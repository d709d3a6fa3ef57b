"""What TensorRT's ONNX parser refuses, as our errors: which node, why, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.engines.tensorrt.log import clean, sentence
from sparseflow_trt.errors import BuildError
from sparseflow_trt.model.model_file import EXPORT_AGAIN, read_model
from sparseflow_trt.model.operators import QUANTIZED
from sparseflow_trt.model.runtimes_own import BEFORE_OPTIMISER, is_runtimes_own

# How the parser says that it knows no operator: by its condition, or as a plugin that it looked for.
_NO_OPERATOR = re.compile(r"^(Assertion failed: )?false\b|Plugin not found|not found in plugin registry")
_SAID = re.compile(r'&& "(.+)"')  # its words, behind the condition that failed
_CONSTANT = re.compile(r".*Failed to import initializer: (?P<name>.+?)\.?$", re.DOTALL)

_SCALED = ("QuantizeLinear", "DequantizeLinear")
_ELSEWHERE = "Export the model without it, or build for ONNX Runtime: --backend onnxruntime."
_RUNTIMES_OWN = (
    f"Only ONNX Runtime has it: {BEFORE_OPTIMISER}, or build for ONNX Runtime: --backend onnxruntime."
)
_AS_QDQ = (
    "TensorRT takes INT8 as QuantizeLinear and DequantizeLinear with zero points of 0: ONNX Runtime's "
    "quantize_static writes them with QuantFormat.QDQ, QInt8 as activation_type and weight_type, and "
    "extra_options={'ActivationSymmetric': True}. Or build for ONNX Runtime: --backend onnxruntime."
)
_TYPES = (
    "A strongly typed network takes types as they are written: where two differ, the model lacks a cast. "
    f"{EXPORT_AGAIN}"
)


def refusal(flavour: Flavour, model: Path, error: Any) -> BuildError:
    """The first of the parser's errors as ours; those behind it only follow from it.

    Args:
        flavour: Whose parser it is.
        model: The file.
        error: What the parser tells of it.
    """
    name, operator = _named_node(error, model)
    if not operator:
        return unreadable(flavour, model, sentence(error.desc()))
    node = f"node '{name}' ({operator})"
    if _NO_OPERATOR.search(error.desc()):
        quantized = operator.startswith((*QUANTIZED, "DynamicQuantizeLinear"))
        own = any(n.name == name and is_runtimes_own(n) for n in read_model(model).ir.graph.all_nodes())
        return BuildError(
            f"{flavour.title} {flavour.version} has no operator for {node} of {model.name}.",
            _AS_QDQ if quantized else _RUNTIMES_OWN if own else _ELSEWHERE,
        )
    # The last line is the reason; the one above it repeats the node's name.
    reason = sentence(clean(error.desc()).splitlines()[-1])
    if said := _SAID.search(reason):
        reason = sentence(said[1])
    hint = _TYPES if "API Usage Error" in reason and "type" in reason else _ELSEWHERE
    if operator in _SCALED:
        hint = _AS_QDQ
    return BuildError(f"{flavour.title} refuses {node} of {model.name}: {reason}", hint)


def unreadable(flavour: Flavour, model: Path, reason: str) -> BuildError:
    """The error for a file that the parser does not take, with its reason as a sentence.

    Of a constant the parser says that it does not take it, and not that it has no such type.
    """
    told = _CONSTANT.match(reason)
    constant = read_model(model).ir.graph.initializers.get(told["name"]) if told else None
    if constant is None or constant.dtype is None:
        return BuildError(f"{flavour.title} cannot read {model.name}: {reason}", EXPORT_AGAIN)
    quantized = any(user.op_type in _SCALED for user in constant.consumers())
    return BuildError(
        f"{flavour.title} does not take constant '{constant.name}' of {model.name}, which is "
        f"{constant.dtype.name}.",
        _AS_QDQ if quantized else _ELSEWHERE,
    )


def _named_node(error: Any, model: Path) -> tuple[str, str]:
    """The name and operator of the node that an error is about; 8.6 gives its number in the file alone."""
    if hasattr(error, "node_operator"):
        return error.node_name() or str(error.node()), error.node_operator()
    nodes = read_model(model).proto.graph.node
    number = error.node()
    return (nodes[number].name, nodes[number].op_type) if 0 <= number < len(nodes) else ("", "")
