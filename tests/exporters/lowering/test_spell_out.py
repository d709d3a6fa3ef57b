"""What TensorRT 8.6's parser cannot read is written out, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.exporters.lowering.spell_out import fold_dequantized, spell_out
from sparseflow_trt.model.model_file import read_model

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def spelled(
    folder: Path, nodes: list[Any], constants: dict[str, Any], output: Any
) -> tuple[dict[str, int], Any]:
    """What was rewritten, and the graph, after a check that it computes the same."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", 4])], [output],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(made), folder / "m.onnx")
    model = read_model(folder / "m.onnx")
    done = spell_out(model.ir)
    ir.save(model.ir, folder / "s.onnx")
    onnx.checker.check_model(str(folder / "s.onnx"), full_check=True)
    runs = [
        onnxruntime.InferenceSession(str(folder / f)).run(None, {"x": X})[0] for f in ("m.onnx", "s.onnx")
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    return done, onnx.load(folder / "s.onnx").graph


@pytest.mark.parametrize(
    ("limits", "rank"), [({"start": 1}, 2), ({"end": -1}, 2), ({"start": 1, "end": 2}, 1)]
)
def test_a_part_of_a_shape_becomes_a_slice(tmp_path: Path, limits: dict[str, int], rank: int) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [rank])
    done, graph = spelled(tmp_path, [helper.make_node("Shape", ["x"], ["y"], "size", **limits)], {}, output)  # type: ignore[arg-type]
    assert done == {"Shape": 1}
    assert [(n.op_type, len(n.attribute)) for n in graph.node] == [("Shape", 0), ("Slice", 0)]


def test_a_whole_shape_stays(tmp_path: Path) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [3])
    done, graph = spelled(tmp_path, [helper.make_node("Shape", ["x"], ["y"], "size")], {}, output)
    assert done == {}
    assert len(graph.node) == 1


@pytest.mark.parametrize("scale", [np.float32(0.5), np.full(4, 0.25, np.float32)])
def test_a_zero_point_that_is_left_out_is_written(tmp_path: Path, scale: Any) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], "dequantize", axis=1),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", 4])
    constants = {"q": np.arange(12, dtype=np.int8).reshape(3, 4), "scale": scale}
    done, graph = spelled(tmp_path, nodes, constants, output)
    assert done == {"DequantizeLinear": 1}
    zero = next(t for t in graph.initializer if t.name == graph.node[0].input[2])
    assert (zero.data_type, tuple(zero.dims)) == (TensorProto.INT8, np.shape(scale))


@pytest.mark.parametrize("scale", [np.float32(0.5), np.array([0.25, 0.5, 1, 2], np.float32)])
def test_an_int32_bias_is_folded_to_what_it_dequantizes_to(tmp_path: Path, scale: Any) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "scale"], ["b"], "dequantize", axis=0),
        helper.make_node("Add", ["x", "b"], ["y"], "add"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array([1, -2, 3, 70000], np.int32), "bias"),
         numpy_helper.from_array(np.asarray(scale), "scale")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(made), tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    assert fold_dequantized(model.ir) == 1
    add = next(node for node in model.ir.graph if node.op_type == "Add")
    folded = ir.convenience.get_const_tensor(add.inputs[1])  # type: ignore[arg-type]
    assert folded is not None
    np.testing.assert_array_equal(folded.numpy(), np.array([1, -2, 3, 70000]) * scale)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_quantized_number_is_folded_and_a_quantized_weight_is_not(dtype: Any, tmp_path: Path) -> None:
    """ONNX Runtime's quantizer makes such of the 1 in a GELU, and TensorRT refuses it."""
    nodes = [
        helper.make_node("DequantizeLinear", ["one", "scale", "zero"], ["o"], "number"),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["f"], "weight"),
        helper.make_node("MatMul", ["x", "f"], ["a"], "mm"),
        helper.make_node("Add", ["a", "o"], ["y"], "add"),
    ]
    constants = {"one": dtype(100), "scale": np.float32(0.02), "zero": dtype(50), "w": np.ones((4, 4), dtype)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    assert fold_dequantized(model.ir) == 1
    mm, add = (next(node for node in model.ir.graph if node.name == name) for name in ("mm", "add"))
    folded = ir.convenience.get_const_tensor(add.inputs[1])  # type: ignore[arg-type]
    assert folded is not None
    assert folded.numpy().tolist() == np.float32(50 * 0.02)
    assert mm.inputs[1] is not None
    assert mm.inputs[1].producer() is not None
