"""Whether a model's operators are ones that backends take."""

from __future__ import annotations

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import ONNX_DOMAIN, OnnxModel

# What ONNX Runtime's quantizers write where they are not asked for Q and DQ: how the operators' names begin.
QUANTIZED = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")

_OLDEST_OPSET = 7  # before it operators broadcast by attributes, which ONNX Runtime and TensorRT do not read


def check_operators(model: OnnxModel) -> None:
    """Checks that a model's opset is one that backends take, and has each operator of ONNX's own domain.

    Raises:
        ModelError: It is too old, or has not; the operator is named with its node.
    """
    import onnx

    if model.opset < _OLDEST_OPSET:
        raise ModelError(
            f"{model.path} is written in opset {model.opset}, but backends need {_OLDEST_OPSET} or later.",
            "Export it again with a later one, or convert it, which needs sizes in place of named axes: "
            f"onnx.save(onnx.version_converter.convert_version(onnx.load('{model.path}'), 17), 'new.onnx')",
        )
    for node in model.ir.graph.all_nodes():
        if node.domain != ONNX_DOMAIN or node.op_identifier() in model.ir.functions:
            continue
        try:
            onnx.defs.get_schema(node.op_type, model.opset, ONNX_DOMAIN)
        except onnx.defs.SchemaError as error:
            versions = [
                schema.since_version
                for schema in onnx.defs.get_all_schemas_with_history()
                if schema.name == node.op_type and schema.domain == ONNX_DOMAIN
            ]
            since = f" (it came with opset {min(versions)})" if versions else ""
            name = node.name or next((output.name for output in node.outputs), "")
            raise ModelError(
                f"{model.path}: node '{name}' is a '{node.op_type}', which opset {model.opset} "
                f"does not have{since}.",
                "Export with an opset that has it, or replace the operator.",
            ) from error
