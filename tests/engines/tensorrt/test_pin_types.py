"""Precision constraints of a weakly typed TensorRT, whose API is stood in for: its builder needs a GPU.

What TensorRT 8.6 makes of them is shown in tests/gpu (test_mixed_precision_runs_as_planned).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.engines.tensorrt.pin_types import pin_types
from sparseflow_trt.errors import BuildError

TRT: Any = SimpleNamespace(
    BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8", OBEY_PRECISION_CONSTRAINTS="obey"),
    LayerType=SimpleNamespace(CONSTANT="constant", SHAPE="shape", CAST="cast", MATMUL="matmul"),
    DataType=SimpleNamespace(FLOAT="float", HALF="half", INT32="int32"),
)


@dataclass
class Layer:
    """One of the parsed network's, which reads FP32 whatever the graph says."""

    name: str
    type: str = "matmul"
    metadata: str = ""
    outputs: tuple[str, ...] = ("float",)
    precision: str = ""
    set_types: dict[int, str] = field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, i: int) -> Any:
        return SimpleNamespace(dtype=self.outputs[i]) if i < len(self.outputs) else None

    def set_output_type(self, i: int, dtype: str) -> None:
        self.set_types[i] = dtype


def pinned(model: Path, *layers: Layer, trt: Any = TRT) -> list[str]:
    """Pins the layers; gives the builder's flags that were set."""
    flags: list[str] = []
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])
    pin_types(trt, "8.6.0", network, SimpleNamespace(set_flag=flags.append), model)
    return flags


def write(path: Path, dtype: int) -> Path:
    """A product in a type, a Softmax in FP32 behind it, and a product between Q and DQ."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "up_proj"),
        helper.make_node("Cast", ["a"], ["b"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["b"], ["c"], "softmax"),
        helper.make_node("QuantizeLinear", ["u", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("MatMul", ["d", "v"], ["e"], "down_proj"),
        helper.make_node("QuantizeLinear", ["e", "s", "z"], ["f"], "quantize_again"),
        helper.make_node("DequantizeLinear", ["f", "s", "z"], ["y"], "dequantize_again"),
    ]
    tensors = [
        numpy_helper.from_array(np.ones((4, 4)).astype(kind), "w"),
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
        numpy_helper.from_array(np.ones((4, 4), np.float32), "v"),
    ]
    ends = [
        helper.make_tensor_value_info("x", dtype, [2, 4]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "ucy"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_each_layer_gets_the_type_of_its_node(tmp_path: Path) -> None:
    up = Layer("MatMul_12", metadata="[ONNX Layer: up_proj]")
    softmax = Layer("softmax", outputs=("float", "int32"))
    flags = pinned(write(tmp_path / "m.onnx", TensorProto.FLOAT16), up, softmax)
    assert (up.precision, up.set_types) == ("half", {0: "half"})
    assert (softmax.precision, softmax.set_types) == ("float", {0: "float"})
    assert flags[0] == "obey"
    assert set(flags) == {"obey", "FP16", "INT8"}


def test_what_has_a_type_of_its_own_is_left_alone(tmp_path: Path) -> None:
    layers = [
        Layer("up_proj", type="constant"),
        Layer("cast", type="cast"),
        Layer("a layer of no node"),
        Layer("up_proj", outputs=("int32",)),
        Layer("up_proj", outputs=()),
        Layer("down_proj"),  # between Q and DQ the builder may choose INT8
    ]
    pinned(write(tmp_path / "m.onnx", TensorProto.FLOAT16), *layers)
    assert [(layer.precision, layer.set_types) for layer in layers] == [("", {})] * len(layers)


def test_a_type_that_this_tensorrt_lacks_is_refused_by_the_nodes_name(tmp_path: Path) -> None:
    bf16 = write(tmp_path / "bf16.onnx", TensorProto.BFLOAT16)
    with pytest.raises(BuildError, match=r"TensorRT 8\.6\.0 has no BF16, .* 'up_proj'"):
        pinned(bf16)
    no_int8 = SimpleNamespace(
        **{**vars(TRT), "BuilderFlag": SimpleNamespace(FP16="FP16", OBEY_PRECISION_CONSTRAINTS="obey")}
    )
    with pytest.raises(BuildError, match=r"has no INT8, .* 'dequantize'"):
        pinned(write(tmp_path / "m.onnx", TensorProto.FLOAT16), trt=no_int8)
