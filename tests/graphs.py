"""What the tests of reading a model's layers share, and a graph that those of engines do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.model.graph import SparsityState, WeightedLayer, read_layers
from sparseflow_trt.model.model_file import read_model

if TYPE_CHECKING:
    import onnx

    from tests.conftest import Array


SPARSE, NOT_SPARSE, NOT_ELIGIBLE = SparsityState.SPARSE, SparsityState.NOT_SPARSE, SparsityState.NOT_ELIGIBLE


def random_weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def in_module(node: onnx.NodeProto, module: str) -> onnx.NodeProto:
    """The node as torch's exporter leaves it: it says in the metadata which module it comes from."""
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', '{module}', 'linear']")
    return node


def layers_of(path: Path) -> tuple[WeightedLayer, ...]:
    return read_layers(read_model(path))


def only_layer(path: Path) -> WeightedLayer:
    (layer,) = layers_of(path)
    return layer


def quantized_concat(path: Path) -> Path:
    """Writes a model: x[batch, 64] beside -x, as quantizers surround a Concat, with FP16 scales."""
    constants = [numpy_helper.from_array(np.array(0.01, np.float16), "s"),
                 numpy_helper.from_array(np.array(0, np.int8), "z")]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("QuantizeLinear", ["n", "s", "z"], ["nq"]),
        helper.make_node("DequantizeLinear", ["nq", "s", "z"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", size])
        for name, size in (("x", 64), ("y", 128))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path
