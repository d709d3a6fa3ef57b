"""Networks of one product, for TensorRT to build and to be timed: plain, or as a node of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow_trt.engines.measuring.curves import Request
from sparseflow_trt.model.packing import pack_2to4
from sparseflow_trt.model.target import PLUGIN_DOMAIN, PLUGIN_OP, PLUGIN_VERSION
from sparseflow_trt.plans.plan import Plan, PlannedLayer, Precision
from sparseflow_trt.policies.policy import Dtype, Kernel

NODE = "product"
PRECISIONS: dict[Dtype, Precision] = {"FP16": "fp16", "BF16": "bf16"}

Array = npt.NDArray[Any]


def numpy_type(dtype: Dtype) -> np.dtype[Any]:
    """NumPy's type, ml_dtypes' for BF16."""
    if dtype == "FP16":
        return np.dtype(np.float16)
    import ml_dtypes

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def write_product(path: Path, request: Request, weight: Array) -> None:
    """Writes y[M, N] = x[M, K] · w[K, N] as an ONNX model with fixed shapes, all in the weight's type."""
    import onnx
    from onnx import TensorProto, helper

    curve, m = request.curve, request.m
    kind = TensorProto.FLOAT16 if curve.dtype == "FP16" else TensorProto.BFLOAT16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=NODE)],
        NODE,
        [helper.make_tensor_value_info("x", kind, [m, curve.k])],
        [helper.make_tensor_value_info("y", kind, [m, curve.n])],
        [helper.make_tensor("w", kind, [curve.k, curve.n], np.ascontiguousarray(weight).tobytes(), raw=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_plugin_product(path: Path, request: Request, weight: Array) -> None:
    """Writes the same product as one node of the plugin."""
    import onnx
    from onnx import TensorProto, helper

    curve, m = request.curve, request.m
    kind = TensorProto.FLOAT16 if curve.dtype == "FP16" else TensorProto.BFLOAT16
    packed = pack_2to4(np.ascontiguousarray(weight.T))
    parts = {"values": (kind, packed.values), "indices": (TensorProto.INT8, packed.indices)}
    tensors = {
        name: helper.make_tensor(name, dtype, array.shape, array.tobytes(), raw=True)
        for name, (dtype, array) in parts.items()
    }
    node = helper.make_node(
        PLUGIN_OP, ["x"], ["y"], name=NODE, domain=PLUGIN_DOMAIN, n=curve.n, k=curve.k, activation=0,
        plugin_version=PLUGIN_VERSION, plugin_namespace="", **tensors,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        NODE,
        [helper.make_tensor_value_info("x", kind, [m, curve.k])],
        [helper.make_tensor_value_info("y", kind, [m, curve.n])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN_DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def plan_product(request: Request, kernel: Kernel) -> Plan:
    """The plan of that model: its one layer, typed as measured."""
    curve = request.curve
    layer = PlannedLayer(
        name=NODE,
        kind=curve.kind,
        n=curve.n,
        k=curve.k,
        precision=PRECISIONS[curve.dtype],
        sparsity=kernel,
        reason="to be measured",
    )
    return Plan(precision="keep", policy="none", profiles=(), layers=(layer,))
