"""Asks a weakly typed TensorRT (8.6, early 10) for the types that the typed graph says, layer by layer.

Such a network forgets the graph's types: after parsing, every floating tensor reads FP32, and with FP16
enabled the builder takes for each layer whichever type is faster. Precision constraints, obeyed, bind it.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import BuildError
from sparseflow_trt.model_file import read_model

if TYPE_CHECKING:
    import onnx_ir as ir

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# What they compute with is not asked for: constants, shapes and conversions have types of their own.
_LEFT_ALONE = ("CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE")
_FLAGS = {"FLOAT16": ("FP16", "HALF"), "BFLOAT16": ("BF16", "BF16")}  # builder flag, TensorRT's type


def pin_types(module: ModuleType, version: str, network: Any, config: Any, model: Path) -> None:
    """Sets each layer's precision and output types to those of the ONNX node that it comes from.

    Args:
        module: TensorRT's Python API.
        version: Its version, for errors.
        network: The parsed network.
        config: The builder's configuration; the flags of the types that occur are set.
        model: The typed ONNX file that was parsed.

    Raises:
        BuildError: A node has a type that this TensorRT does not have.
    """
    import onnx_ir as ir

    graph = read_model(model).ir.graph
    nodes = {node.name: node for node in graph.all_nodes() if node.name}
    config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for node in graph.all_nodes():
        for value in node.outputs:
            _enable(module, version, config, node, value.dtype)
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            config.set_flag(_quantized_flag(module, version, node, ir.DataType))
    left_alone = {getattr(module.LayerType, name) for name in _LEFT_ALONE if hasattr(module.LayerType, name)}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        origin = nodes.get(_origin(layer))
        if layer.type in left_alone or origin is None or _is_quantized(origin):
            continue
        _pin(module, layer, origin)


def _is_quantized(node: ir.Node) -> bool:
    """Whether a node stands between Q and DQ: there the builder chooses INT8, which a pin would forbid."""
    makers = [value.producer() for value in node.inputs if value is not None]
    readers = [reader for value in node.outputs for reader in value.consumers()]
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers) or any(
        reader.op_type == "QuantizeLinear" for reader in readers
    )


def _pin(module: ModuleType, layer: Any, node: ir.Node) -> None:
    dtype = _type_of(module, node)
    floats = {module.DataType.FLOAT, module.DataType.HALF}
    if dtype is None or layer.get_output(0) is None or layer.get_output(0).dtype not in floats:
        return
    layer.precision = dtype
    for j in range(layer.num_outputs):
        if layer.get_output(j).dtype in floats:
            layer.set_output_type(j, dtype)


def _type_of(module: ModuleType, node: ir.Node) -> Any:
    name = node.outputs[0].dtype.name if node.outputs[0].dtype else ""
    if name == "FLOAT":
        return module.DataType.FLOAT
    return getattr(module.DataType, _FLAGS[name][1]) if name in _FLAGS else None


def _enable(module: ModuleType, version: str, config: Any, node: ir.Node, dtype: ir.DataType | None) -> None:
    if dtype is None or dtype.name not in _FLAGS:
        return
    flag = _FLAGS[dtype.name][0]
    if not hasattr(module.BuilderFlag, flag):
        raise BuildError(
            f"TensorRT {version} has no {flag}, which node '{node.name}' is planned in.",
            "Plan it in fp16 or fp32 (--precision fp16), or build with TensorRT 10 or later.",
        )
    config.set_flag(getattr(module.BuilderFlag, flag))


def _quantized_flag(module: ModuleType, version: str, node: ir.Node, types: Any) -> Any:
    stored = node.inputs[0].dtype if node.inputs[0] is not None else None
    flag = "FP8" if stored in (types.FLOAT8E4M3FN, types.FLOAT8E5M2) else "INT8"
    if not hasattr(module.BuilderFlag, flag):
        raise BuildError(
            f"TensorRT {version} has no {flag}, which node '{node.name}' dequantizes.",
            "Quantize to INT8, or build with a newer TensorRT.",
        )
    return getattr(module.BuilderFlag, flag)


def _origin(layer: Any) -> str:
    """The ONNX node a layer was made for; TensorRT 8.6 and later write it into the layer's metadata."""
    found = _NODE.search(getattr(layer, "metadata", "") or "")
    return found[1] if found else str(layer.name)
