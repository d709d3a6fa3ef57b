"""The rewriting keeps what a graph computes, and gives each node the type that it was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.retyping.retype import retype
from sparseflow_trt.model.model_file import OnnxModel, read_model

F, H, B = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def save(
    path: Path, nodes: list[Any], outputs: list[Any], constants: dict[str, Any], opset: int = 20
) -> OnnxModel:
    """A model with the input x of shape (n, 8)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return read_model(path)


def output(name: str = "y", dtype: int = TensorProto.FLOAT, shape: Any = ("n", 8)) -> Any:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def run(path: Path, x: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return list(onnxruntime.InferenceSession(str(path), options).run(None, {"x": x}))


def saved(model: OnnxModel, path: Path) -> Path:
    ir.save(model.ir, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)


def test_a_node_computes_in_the_type_it_is_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "third"),
    ]
    model = save(tmp_path / "m.onnx", nodes, [output()], {"w": W})
    done = retype(model.ir, lambda node: H if node.name != "third" else F)
    types = {n.name: n.outputs[0].dtype for n in model.ir.graph if n.op_type != "Cast"}
    assert types == {"first": H, "second": H, "third": F}
    assert done.nodes == 2
    assert done.casts == 2  # x to FP16, b to FP32
    new = run(saved(model, tmp_path / "t.onnx"), X)[0]
    np.testing.assert_allclose(new, run(tmp_path / "m.onnx", X)[0], atol=0.05)


def test_inputs_and_outputs_keep_their_names_and_types(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, [output("a"), output("y")], {"w": W})
    retype(model.ir, lambda _: H)
    graph = onnx.load(saved(model, tmp_path / "t.onnx")).graph
    assert [(o.name, o.type.tensor_type.elem_type) for o in graph.output] == [("a", 1), ("y", 1)]
    assert [i.name for i in graph.input] == ["x"]


def test_a_shared_constant_is_stored_once_for_each_type_and_keeps_its_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [a, "w"], [b], b) for a, b in (("x", "a"), ("a", "b"), ("b", "y"))]
    model = save(tmp_path / "m.onnx", nodes, [output()], {"w": W})
    retype(model.ir, lambda node: F if node.name == "y" else H)
    stored = {t.name: t.data_type for t in onnx.load(saved(model, tmp_path / "t.onnx")).graph.initializer}
    assert stored == {"w": TensorProto.FLOAT, "w_as_f16": TensorProto.FLOAT16}

    model = read_model(tmp_path / "m.onnx")
    retype(model.ir, lambda _: H)
    stored = {t.name: t.data_type for t in onnx.load(saved(model, tmp_path / "t.onnx")).graph.initializer}
    assert stored == {"w": TensorProto.FLOAT16}


def test_values_beyond_fp16_are_clamped_and_said(tmp_path: Path) -> None:
    far = np.array([3.4e38, -3.4e38, 1.0, np.inf, 70000, 0, 65504, -1], np.float32)
    model = save(
        tmp_path / "m.onnx", [helper.make_node("Min", ["x", "far"], ["y"])], [output()], {"far": far}
    )
    done = retype(model.ir, lambda _: H)
    stored = numpy_helper.to_array(onnx.load(saved(model, tmp_path / "t.onnx")).graph.initializer[0])
    assert stored.tolist() == [65504, -65504, 1, np.inf, 65504, 0, 65504, -1]
    assert [c.elements for c in done.clamped] == [3]
    assert done.clamped[0].largest == pytest.approx(3.4e38)


def test_an_operator_without_fp16_stays_as_it_is(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["limit"], keepdims=0),
        helper.make_node("Range", ["zero", "limit", "one"], ["r"]),  # ONNX has it for FP32 and FP64 alone
        helper.make_node("Add", ["r", "one"], ["y"]),
    ]  # as many as the largest value of x
    constants = {"zero": np.float32(0), "one": np.float32(1)}
    model = save(
        tmp_path / "m.onnx", nodes, [output(shape=["r"])], {k: np.asarray(v) for k, v in constants.items()}
    )
    retype(model.ir, lambda _: H)
    by_type = {n.op_type: n.outputs[0].dtype for n in model.ir.graph if n.op_type != "Cast"}
    assert by_type == {"ReduceMax": H, "Range": F, "Add": H}
    np.testing.assert_allclose(run(saved(model, tmp_path / "t.onnx"), X)[0], run(tmp_path / "m.onnx", X)[0])


def test_casts_in_the_model_follow_its_new_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    model = save(tmp_path / "m.onnx", nodes, [output()], {})
    retype(model.ir, lambda _: H)
    made = {n.outputs[0].name: n.outputs[0].dtype for n in model.ir.graph}
    assert made["f"] == H
    assert made["i"] == ir.DataType.INT64
    np.testing.assert_allclose(
        run(saved(model, tmp_path / "t.onnx"), X)[0], run(tmp_path / "m.onnx", X)[0], atol=5e-3
    )


def test_a_layer_norm_gives_its_mean_in_the_type_it_had(tmp_path: Path) -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"], axis=-1)]
    model = save(
        tmp_path / "m.onnx", nodes, [output(), output("mean", shape=("n", 1))], {"s": np.ones(8, np.float32)}
    )
    retype(model.ir, lambda _: B)
    node = next(n for n in model.ir.graph if n.op_type == "LayerNormalization")
    assert [o.dtype for o in node.outputs] == [B, F]
    saved(model, tmp_path / "t.onnx")


def test_an_lstm_may_leave_out_its_first_output(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["steps"]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "y"], hidden_size=2),
    ]
    weights = {"w": W[None], "r": W[None, :, :2], "axis": np.array([0])}
    model = save(tmp_path / "m.onnx", nodes, [output(shape=(1, "n", 2))], weights)
    retype(model.ir, lambda _: H)
    node = next(n for n in model.ir.graph if n.op_type == "LSTM")
    assert node.outputs[1].dtype == H
    np.testing.assert_allclose(
        run(saved(model, tmp_path / "t.onnx"), X)[0], run(tmp_path / "m.onnx", X)[0], atol=5e-3
    )


@pytest.mark.parametrize("told", [True, False])
def test_what_passes_through_a_sequence_keeps_its_type(tmp_path: Path, told: bool) -> None:
    """Also where the file does not say what a Loop hands its body, as of torch's EmbeddingBag."""

    def sequence(name: str) -> onnx.ValueInfoProto:
        if not told:
            return onnx.ValueInfoProto(name=name)
        return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Tanh", ["x"], ["more"]),
            helper.make_node("SequenceInsert", ["so_far", "more"], ["longer"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            sequence("so_far"),
        ],
        [
            output("go_on", TensorProto.BOOL, ()),
            sequence("longer"),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("SplitToSequence", ["a", "half"], ["parts"], axis=1),
        helper.make_node("Loop", ["trips", "", "parts"], ["all"], body=body),
        helper.make_node("Identity", ["all"], ["same"]),
        helper.make_node("ConcatFromSequence", ["same"], ["y"], axis=1),
    ]
    constants = {"w": W, "half": np.array(4), "trips": np.array(2)}
    model = save(tmp_path / "m.onnx", nodes, [output(shape=("n", "k"))], constants)
    retype(model.ir, lambda _: H)
    made = saved(model, tmp_path / "t.onnx")
    onnx.checker.check_model(str(made), full_check=True)
    np.testing.assert_allclose(run(made, X)[0], run(tmp_path / "m.onnx", X)[0], atol=5e-3)


def test_behind_a_custom_operator_types_follow_from_the_weights(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", alpha=0.5),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["c"]),
            helper.make_node("BiasGelu", ["c", "bias"], ["d"], domain="com.microsoft"),
            helper.make_node("Tanh", ["d"], ["e"]),
            helper.make_node("Identity", ["e"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(W[0], "bias")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    retype(model.ir, lambda _: H)
    made = {node.op_type: node.outputs[0].dtype for node in model.ir.graph if node.op_type != "Cast"}
    assert made == {"FusedMatMul": F, "Relu": H, "MatMul": H, "BiasGelu": F, "Tanh": H, "Identity": H}
    ir.save(model.ir, tmp_path / "t.onnx")
    np.testing.assert_allclose(run(tmp_path / "t.onnx", X)[0], run(tmp_path / "m.onnx", X)[0], atol=5e-3)


def test_what_no_type_is_known_of_stays_as_it_is(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mixed", ["x", "w"], ["a"], domain="com.example"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mixed", ["b", "w"], ["y"], domain="com.example"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(W, "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    assert retype(model.ir, lambda _: H).casts == 0


def test_bodies_of_if_and_loop_keep_their_interface(tmp_path: Path) -> None:
    inner = TensorProto.FLOAT
    then = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["t"])], "then", [], [output("t", inner)]
    )
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["e"])], "else", [], [output("e", inner)])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "w"], ["scaled"]),
            helper.make_node("Tanh", ["scaled"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 8]),
        ],
        [output("go_on", TensorProto.BOOL, ()), output("next")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["cond"]),
        helper.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["trips", "", "b"], ["y"], body=body),
    ]
    constants = {"w": W / 4, "zero": np.asarray(np.float32(0)), "trips": np.asarray(3)}
    model = save(tmp_path / "m.onnx", nodes, [output()], constants)
    retype(model.ir, lambda _: H)
    typed = saved(model, tmp_path / "t.onnx")
    products = [n for n in model.ir.graph.all_nodes() if n.op_type == "MatMul"]
    assert [n.outputs[0].dtype for n in products] == [H, H]
    np.testing.assert_allclose(run(typed, X)[0], run(tmp_path / "m.onnx", X)[0], atol=5e-3)


def test_dequantize_follows_where_the_opset_allows(tmp_path: Path) -> None:
    quantized = (W * 20).clip(-127, 127).astype(np.int8)
    for opset, expected in ((13, F), (19, H)):
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        constants = {"q": quantized, "scale": np.asarray(np.float32(0.05))}
        model = save(tmp_path / "m.onnx", nodes, [output()], constants, opset)
        retype(model.ir, lambda _: H)
        node = next(n for n in model.ir.graph if n.op_type == "DequantizeLinear")
        assert node.outputs[0].dtype == expected
        new = run(saved(model, tmp_path / "t.onnx"), X)[0]
        np.testing.assert_allclose(new, run(tmp_path / "m.onnx", X)[0], atol=0.05)


def test_none_leaves_a_node_as_it_is_typed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["a"], "product"),
        helper.make_node("Cast", ["a"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["f"], ["y"]),
    ]
    model = save(tmp_path / "m.onnx", nodes, [output()], {"w": W.astype(np.float16)})
    before = onnx.load(tmp_path / "m.onnx").graph.node
    assert retype(model.ir, lambda _: None).nodes == 0
    after = onnx.load(saved(model, tmp_path / "t.onnx")).graph.node
    assert [(n.op_type, n.input, n.output) for n in after] == [(n.op_type, n.input, n.output) for n in before]


def test_a_half_model_becomes_an_fp32_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    model = save(tmp_path / "m.onnx", nodes, [output("y", TensorProto.FLOAT16)], {"w": W.astype(np.float16)})
    retype(model.ir, lambda _: F, keep_outputs=False)
    wide = run(saved(model, tmp_path / "t.onnx"), X)[0]
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide, X @ W.astype(np.float16).astype(np.float32), rtol=1e-5, atol=1e-5)


def test_local_functions_are_refused(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="local")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])], [output()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="local functions"):
        retype(read_model(tmp_path / "m.onnx").ir, lambda _: H)


UNARY = ("Relu", "Tanh", "Neg", "Abs", "Sigmoid", "Softmax", "Identity")
BINARY = ("Add", "Sub", "Mul", "Max", "MatMul")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Any], list[str]]:
    """Nodes over values of shape (n, 8), and the values that nobody reads."""
    values, nodes = ["x"], []
    for i in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(UNARY + BINARY))
        inputs = [draw(st.sampled_from(values))]
        if op in BINARY:
            inputs.append("w" if op == "MatMul" else draw(st.sampled_from([*values, "w1"])))
        nodes.append(helper.make_node(op, inputs, [f"v{i}"], f"n{i}"))
        values.append(f"v{i}")
    read = {name for node in nodes for name in node.input}
    return nodes, [v for v in values if v not in read and v != "x"]


@settings(max_examples=40, deadline=None)
@given(graphs(), st.data())
def test_a_rewritten_graph_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[list[Any], list[str]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("law")
    nodes, results = made
    constants = {"w": W / 8, "w1": W[:1]}
    model = save(folder / "m.onnx", nodes, [output(name) for name in results], constants)
    chosen = {n.name: data.draw(st.sampled_from([F, H, None])) for n in nodes}
    retype(model.ir, lambda node: chosen[node.name or ""])
    for node in model.ir.graph:
        if node.op_type != "Cast":
            assert node.outputs[0].dtype == (chosen[node.name or ""] or F)
    new, old = run(saved(model, folder / "t.onnx"), X), run(folder / "m.onnx", X)
    for a, b in zip(new, old, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05)
