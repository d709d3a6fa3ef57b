"""Asks a weakly typed TensorRT (8.6, early 10) for the types that the typed graph says, layer by layer.

Such a network forgets the graph's types: after parsing, every floating tensor reads FP32, and with FP16
enabled the builder takes for each layer whichever type is faster. Precision constraints, obeyed, bind it.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from sparseflow_trt.engines.tensorrt.typed_nodes import TypedNode, typed_nodes
from sparseflow_trt.errors import BuildError

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
    found = typed_nodes(model)
    nodes = {node.name: node for node in found if node.name}
    config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for node in found:
        for dtype in node.writes:
            _enable(module, version, config, node, dtype)
        if node.op_type == "DequantizeLinear":
            config.set_flag(_quantized_flag(module, version, node))
    left_alone = {getattr(module.LayerType, name) for name in _LEFT_ALONE if hasattr(module.LayerType, name)}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        origin = nodes.get(_origin(layer))
        # Between Q and DQ the builder chooses INT8, which a pin would forbid.
        if layer.type in left_alone or origin is None or origin.quantized:
            continue
        _pin(module, layer, origin)


def _pin(module: ModuleType, layer: Any, node: TypedNode) -> None:
    dtype = _type_of(module, node)
    floats = {module.DataType.FLOAT, module.DataType.HALF}
    if dtype is None or layer.get_output(0) is None or layer.get_output(0).dtype not in floats:
        return
    layer.precision = dtype
    for j in range(layer.num_outputs):
        if layer.get_output(j).dtype in floats:
            layer.set_output_type(j, dtype)


def _type_of(module: ModuleType, node: TypedNode) -> Any:
    name = node.writes[0]
    if name == "FLOAT":
        return module.DataType.FLOAT
    return getattr(module.DataType, _FLAGS[name][1]) if name in _FLAGS else None


def _enable(module: ModuleType, version: str, config: Any, node: TypedNode, dtype: str) -> None:
    if dtype not in _FLAGS:
        return
    flag = _FLAGS[dtype][0]
    if not hasattr(module.BuilderFlag, flag):
        raise BuildError(
            f"TensorRT {version} has no {flag}, which node '{node.name}' is planned in.",
            "Plan it in fp16 or fp32 (--precision fp16), or build with TensorRT 10 or later.",
        )
    config.set_flag(getattr(module.BuilderFlag, flag))


def _quantized_flag(module: ModuleType, version: str, node: TypedNode) -> Any:
    flag = "FP8" if node.reads in ("FLOAT8E4M3FN", "FLOAT8E5M2") else "INT8"
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
