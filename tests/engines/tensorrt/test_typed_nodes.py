"""What the protobuf alone says of nodes' types, held against what onnx-ir reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.engines.tensorrt.typed_nodes import TypedNode, typed_nodes
from sparseflow_trt.model.model_file import read_model

FLOAT, FLOAT16, INT8, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.BOOL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An FP16 product between Q and DQ, and an If whose branches have a value of one name and two types."""
    info, node = helper.make_tensor_value_info, helper.make_node
    branches = {
        f"{name}_branch": helper.make_graph(
            [
                node("Cast", [read], ["inner"], f"cast_{name}", to=to),
                node("Cast", ["inner"], [name], to=FLOAT),
            ],
            name,
            [],
            [info(name, FLOAT, [4])],
            value_info=[info("inner", to, [4])],
        )
        for name, read, to in (("then", "p", FLOAT16), ("else", "x", TensorProto.DOUBLE))
    }
    graph = helper.make_graph(
        [
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
            node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dq"),
            node("Add", ["d", "d"], ["p"], "behind"),
            node("Clip", ["x", "", "scale"], ["untold"], "clip"),
            node("Relu", ["untold"], ["r"], "relu"),
            node("QuantizeLinear", ["r", "scale", "zero"], ["rq"], "before"),
            node("If", ["asked"], ["y"], "if", **branches),
        ],
        "typed",
        [info("x", FLOAT, [4]), info("asked", BOOL, [])],
        [info("y", FLOAT, [4]), info("rq", INT8, [4])],
        [
            helper.make_tensor("scale", FLOAT, [], [0.5]),
            helper.make_tensor("zero", INT8, [], [0]),
        ],
        value_info=[
            info("q", INT8, [4]),
            info("d", FLOAT, [4]),
            info("p", FLOAT, [4]),
            info("r", FLOAT, [4]),
        ],
    )
    path = tmp_path / "typed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_types_are_those_that_onnx_ir_reads(model: Path) -> None:
    def name_of(value: ir.Value | None) -> str:
        return value.dtype.name if value is not None and value.dtype else ""

    expected = [
        (node.name or "", node.op_type, name_of(node.inputs[0]), tuple(map(name_of, node.outputs)))
        for node in read_model(model).ir.graph.all_nodes()
    ]
    assert len(expected) == 11
    assert [(n.name, n.op_type, n.reads, n.writes) for n in typed_nodes(model)] == expected


def test_a_value_of_each_branch_has_its_own_type(model: Path) -> None:
    nodes = {node.name: node for node in typed_nodes(model)}
    assert nodes["cast_then"] == TypedNode("cast_then", "Cast", "FLOAT", ("FLOAT16",), quantized=False)
    assert nodes["cast_else"] == TypedNode("cast_else", "Cast", "FLOAT", ("DOUBLE",), quantized=False)
    assert nodes["clip"].writes == ("",)


def test_what_stands_between_q_and_dq_is_told(model: Path) -> None:
    told = {node.name for node in typed_nodes(model) if node.quantized}
    # dq: it reads what was quantized, and is not between
    assert told == {"behind", "relu"}
