"""Layers go into the plugin's nodes and out of them, and the model computes what it computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError, PlanError
from sparseflow_trt.exporters.plugin.nodes import plugin_layers, put_into_plugin
from sparseflow_trt.exporters.plugin.reference import expand_plugin_nodes
from sparseflow_trt.exporters.saving import save_model, save_plugin_model
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.packing import Packed24, pack_2to4, unpack_2to4
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.target import PLUGIN_OP
from sparseflow_trt.plans.decide import PluginUse
from sparseflow_trt.plans.planning import make_plan

Array = npt.NDArray[Any]
node = helper.make_node
K, N = 64, 48
_TYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def _weight(k: int = K, n: int = N, kind: Any = np.float16, k_axis: int = 0, seed: int = 0) -> Array:
    shape = (k, n) if k_axis == 0 else (n, k)
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(k)
    return prune_2to4(values.astype(kind), k_axis)


def _bias(n: int = N, kind: Any = np.float16) -> Array:
    return np.random.default_rng(9).standard_normal(n).astype(kind)


def _save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, Array],
    kind: int = TensorProto.FLOAT16,
    dims: Sequence[Any] = ("batch", "seq", K),
    outputs: Mapping[str, Any] | None = None,
) -> Path:
    shapes = outputs or {"y": (*dims[:-1], N)}
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        [
            helper.make_tensor(
                name, _TYPES[t.dtype.name], t.shape, np.ascontiguousarray(t).tobytes(), raw=True
            )
            for name, t in tensors.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def _linear(name: str = "layer", *, add: str = "Add", relu: bool = False) -> list[onnx.NodeProto]:
    """x · w, with a bias and a ReLU behind it."""
    nodes = [node("MatMul", ["x", "w"], ["product"], name)]
    if add:
        nodes.append(node(add, ["product", "b"], ["sum"], "add"))
    if relu:
        nodes.append(node("Relu", [nodes[-1].output[0]], ["activated"], "relu"))
    nodes[-1].output[0] = "y"
    return nodes


def _through_plugin(model: Path, layers: Sequence[str] = ("layer",)) -> tuple[Path, Path]:
    """The model with plugin nodes, and that one as read again and expanded."""
    typed = read_model(model)
    put_into_plugin(typed, layers)
    plugin = model.with_name("plugin.onnx")
    save_plugin_model(typed.ir, plugin)
    onnx.checker.check_model(str(plugin))
    again = read_model(plugin)
    assert expand_plugin_nodes(again.ir) == len(layers)
    expanded = model.with_name("expanded.onnx")
    save_model(again.ir, expanded)
    onnx.checker.check_model(str(expanded), full_check=True)
    return plugin, expanded


def _run(model: Path, x: Array, name: str = "y") -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([name], {"x": x})[0])


def _x(*shape: int) -> Array:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float16)


def _nodes(model: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(model, load_external_data=False).graph.node)


def _attributes(one: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in one.attribute}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", ["", "Add"])
def test_a_layer_with_what_is_behind_it_becomes_one_node(tmp_path: Path, add: str, relu: bool) -> None:
    tensors = {"w": _weight(), **({"b": _bias()} if add else {})}
    model = _save(tmp_path, _linear(add=add, relu=relu), tensors)
    plugin, expanded = _through_plugin(model)
    (one,) = _nodes(plugin)
    assert (one.domain, one.op_type, one.name) == ("sparseflow", PLUGIN_OP, "layer")
    attributes = _attributes(one)
    assert (attributes["n"], attributes["k"], attributes["activation"]) == (N, K, int(relu))
    assert ("bias" in attributes) == bool(add)
    assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"")
    x = _x(2, 3, K)
    # FP16 rounds behind each node; the plugin rounds once
    np.testing.assert_allclose(_run(expanded, x), _run(model, x), rtol=2e-3, atol=2e-3)


def test_types_of_the_attributes_are_those_that_tensorrt_8_6_reads(tmp_path: Path) -> None:
    plugin, _ = _through_plugin(_save(tmp_path, _linear(), {"w": _weight(), "b": _bias()}))
    types = {a.name: a.t.data_type for a in _nodes(plugin)[0].attribute if a.type == a.TENSOR}
    assert types == {
        "values": TensorProto.FLOAT16,
        "indices": TensorProto.INT8,
        "bias": TensorProto.FLOAT16,
    }


def test_the_packed_weight_is_the_reference_s(tmp_path: Path) -> None:
    weight = _weight()
    typed = read_model(_save(tmp_path, _linear(add=""), {"w": weight}))
    (record,) = put_into_plugin(typed, ["layer"])
    (made,) = typed.ir.graph
    packed = pack_2to4(np.ascontiguousarray(weight.T))
    assert np.array_equal(made.attributes["values"].as_tensor().numpy(), packed.values)
    assert np.array_equal(made.attributes["indices"].as_tensor().numpy().view(np.uint8), packed.indices)
    assert record.packed_bytes * 16 == record.dense_bytes * 9
    assert (record.layer, record.n, record.k, record.dtype, record.folded) == ("layer", N, K, "FP16", ())


def test_what_is_folded_is_named_and_shapes_stay_dynamic(tmp_path: Path) -> None:
    typed = read_model(_save(tmp_path, _linear(relu=True), {"w": _weight(), "b": _bias()}))
    (record,) = put_into_plugin(typed, ["layer"])
    assert record.folded == ("add", "relu")
    shape = typed.ir.graph.outputs[0].shape
    assert shape is not None
    assert [str(d) for d in shape] == ["batch", "seq", str(N)]


def test_dense_weights_are_gone_and_packed_ones_lie_beside(tmp_path: Path) -> None:
    model = _save(tmp_path, _linear(), {"w": _weight(), "b": _bias()})
    plugin, _ = _through_plugin(model)
    proto = onnx.load(plugin, load_external_data=False)
    assert not proto.graph.initializer
    (one,) = proto.graph.node
    places = {a.name: a.t.data_location for a in one.attribute if a.type == a.TENSOR}
    assert places["values"] == TensorProto.EXTERNAL
    assert places["bias"] == TensorProto.DEFAULT  # as small as a constant that stays in the file
    assert (tmp_path / "plugin.onnx.packed").stat().st_size == K * N  # 16 bits of half the elements
    assert onnx.load(model).graph.initializer


def test_a_small_model_has_no_file_beside_it(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], "layer")]
    model = _save(tmp_path, nodes, {"w": _weight(16, 16)}, dims=("m", 16), outputs={"y": ("m", 16)})
    typed = read_model(model)
    put_into_plugin(typed, ["layer"])
    save_plugin_model(typed.ir, tmp_path / "plugin.onnx")
    assert not (tmp_path / "plugin.onnx.packed").exists()
    assert typed.ir.graph[0].attributes["values"].as_tensor().nbytes == 256


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("shape", [None, (N,), (1, N)])
def test_gemm(tmp_path: Path, trans_b: int, shape: tuple[int, ...] | None) -> None:
    tensors = {"w": _weight(k_axis=1 if trans_b else 0)}
    inputs = ["x", "w"]
    if shape:
        tensors["b"] = _bias().reshape(shape)
        inputs.append("b")
    nodes = [node("Gemm", inputs, ["y"], "layer", transB=trans_b)]
    model = _save(tmp_path, nodes, tensors, dims=("m", K))
    plugin, expanded = _through_plugin(model)
    assert ("bias" in _attributes(_nodes(plugin)[0])) == (shape is not None)
    x = _x(5, K)
    np.testing.assert_allclose(_run(expanded, x), _run(model, x), rtol=2e-3, atol=2e-3)


def test_a_weight_behind_a_transpose(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["stored"], ["w"], "turn", perm=[1, 0]), *_linear(add="")]
    model = _save(tmp_path, nodes, {"stored": _weight(k_axis=1)})
    plugin, expanded = _through_plugin(model)
    assert [one.op_type for one in _nodes(plugin)] == [PLUGIN_OP]
    x = _x(1, 4, K)
    np.testing.assert_allclose(_run(expanded, x), _run(model, x), rtol=2e-3, atol=2e-3)


def test_layers_that_share_a_weight_share_its_place(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], "first"), node("MatMul", ["x", "w"], ["z"], "second")]
    shapes = dict.fromkeys(("y", "z"), ("batch", "seq", N))
    model = _save(tmp_path, nodes, {"w": _weight()}, outputs=shapes)
    plugin, expanded = _through_plugin(model, ["first", "second"])
    assert (tmp_path / "plugin.onnx.packed").stat().st_size == K * N
    x = _x(1, 4, K)
    assert np.array_equal(_run(expanded, x, "y"), _run(expanded, x, "z"))
    assert len(_nodes(plugin)) == 2


def test_a_layer_that_stays_keeps_the_weight(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], "first"), node("MatMul", ["x", "w"], ["z"], "second")]
    shapes = dict.fromkeys(("y", "z"), ("batch", "seq", N))
    model = _save(tmp_path, nodes, {"w": _weight()}, outputs=shapes)
    plugin, expanded = _through_plugin(model, ["second"])
    assert [one.op_type for one in _nodes(plugin)] == ["MatMul", PLUGIN_OP]
    x = _x(1, 4, K)
    np.testing.assert_allclose(_run(expanded, x, "z"), _run(model, x, "y"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("nodes", "tensors", "behind"),
    [
        # the product is an output of the model as well
        (
            [
                node("MatMul", ["x", "w"], ["p"], "layer"),
                node("Add", ["p", "b"], ["y"], "add"),
                node("Identity", ["p"], ["q"]),
            ],
            {},
            ["Add", "Identity"],
        ),
        # a bias of the rows, and one that has as many elements as the whole
        (
            [node("MatMul", ["x", "w"], ["p"], "layer"), node("Add", ["p", "wide"], ["y"])],
            {"wide": np.zeros((4, N), np.float16)},
            ["Add"],
        ),
        # computed, not constant
        ([node("MatMul", ["x", "w"], ["p"], "layer"), node("Add", ["p", "p"], ["y"])], {}, ["Add"]),
        # GELU's parts and others stay where they are
        ([node("MatMul", ["x", "w"], ["p"], "layer"), node("Erf", ["p"], ["y"])], {}, ["Erf"]),
    ],
)
def test_what_cannot_be_folded_stays(
    tmp_path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, Array], behind: list[str]
) -> None:
    outputs = {made.output[0]: (2, 4, N) for made in nodes if made.output[0] in ("y", "q")}
    model = _save(tmp_path, nodes, {"w": _weight(), "b": _bias(), **tensors}, dims=(2, 4, K), outputs=outputs)
    plugin, expanded = _through_plugin(model)
    assert [one.op_type for one in _nodes(plugin)] == [PLUGIN_OP, *behind]
    if behind != ["Erf"]:  # which ONNX Runtime's CPU has not in FP16
        x = _x(2, 4, K)
        np.testing.assert_allclose(_run(expanded, x), _run(model, x), rtol=2e-3, atol=4e-3)


def test_what_stands_in_the_body_of_an_if_stays_there(tmp_path: Path) -> None:
    def body(name: str, op_type: str, inputs: list[str]) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
        return helper.make_graph([node(op_type, inputs, [name], op_type.lower())], name, [], [output])

    bodies = {"then_branch": body("t", "Add", ["p", "b"]), "else_branch": body("e", "Identity", ["x"])}
    nodes = [
        node("MatMul", ["x", "w"], ["p"], "layer"),
        node("If", ["always"], ["y"], "if", **bodies),
    ]
    square = {"w": _weight(K, K), "b": _bias(K), "always": np.array(True)}
    model = _save(tmp_path, nodes, square, outputs={"y": ("batch", "seq", K)})
    plugin, expanded = _through_plugin(model)
    assert [one.op_type for one in _nodes(plugin)] == [PLUGIN_OP, "If"]
    assert "bias" not in _attributes(_nodes(plugin)[0])
    x = _x(2, 4, K)
    np.testing.assert_allclose(_run(expanded, x), _run(model, x), rtol=2e-3, atol=4e-3)


def test_bf16_runs_on_the_cpu_when_expanded(tmp_path: Path) -> None:
    kind = np.dtype(ml_dtypes.bfloat16)
    nodes = [
        node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        node("MatMul", ["narrow", "w"], ["product"], "layer"),
        node("Add", ["product", "b"], ["sum"]),
        node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT16),
    ]
    weight, bias = _weight(kind=kind), _bias(kind=kind)
    plugin, expanded = _through_plugin(_save(tmp_path, nodes, {"w": weight, "b": bias}))
    (one,) = (n for n in _nodes(plugin) if n.op_type == PLUGIN_OP)
    assert {a.name: a.t.data_type for a in one.attribute}["values"] == TensorProto.BFLOAT16
    x = _x(1, 3, K)
    exact = x.astype(kind).astype(np.float32) @ weight.astype(np.float32) + bias.astype(np.float32)
    assert np.array_equal(_run(expanded, x), exact.astype(kind).astype(np.float16))


@pytest.mark.parametrize(
    ("nodes", "tensors", "kind", "message"),
    [
        (_linear(add=""), {"w": np.ones((K, N), np.float16)}, TensorProto.FLOAT16, "it is not 2:4"),
        (_linear(add=""), {"w": _weight(kind=np.float32)}, TensorProto.FLOAT, "and BF16 weights, not FP32"),
        (
            [
                node("Squeeze", ["x", "zero"], ["x2"]),
                node("Gemm", ["x2", "w"], ["y"], "layer", alpha=2.0),
            ],
            {"w": _weight(), "zero": np.zeros(1, np.int64)},
            TensorProto.FLOAT16,
            "Gemm scales its product",
        ),
        (
            [
                node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
                node("MatMul", ["v", "t"], ["y"], "layer"),
            ],
            {"v": _weight(k_axis=1)},
            TensorProto.FLOAT16,
            "the weight is the left operand",
        ),
    ],
)  # fmt: skip
def test_layers_that_cannot_run_in_the_plugin_are_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, Array], kind: int, message: str
) -> None:
    model = _save(tmp_path, nodes, tensors, kind, dims=(1, 4, K), outputs={"y": None})
    with pytest.raises(PlanError, match=message):
        put_into_plugin(read_model(model), ["layer"])


def test_a_weight_that_is_an_input_too_is_left_where_it_is(tmp_path: Path) -> None:
    model = _save(tmp_path, _linear(add=""), {"w": _weight(kind=np.float32)}, TensorProto.FLOAT)
    proto = onnx.load(model)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (K, N)))
    onnx.save(proto, model)  # as old exporters write all weights
    said = plugin_layers(read_model(model))["layer"].why_not
    assert said == "the weight is also a graph input, so a caller may replace it"
    plan = make_plan(
        read_layers(read_model(model)), (), {}, None, "fp16", "plugin",
        plugin=PluginUse(True, plugin_layers(read_model(model))),
    )  # fmt: skip
    assert [(layer.sparsity, said in layer.reason) for layer in plan.layers] == [("dense", True)]


def test_sizes_that_are_no_multiple_of_sixteen_are_refused(tmp_path: Path) -> None:
    model = _save(tmp_path, _linear(add=""), {"w": _weight(K, 24)}, outputs={"y": None})
    with pytest.raises(PlanError, match="N=24 and K=64 are not both multiples of 16"):
        put_into_plugin(read_model(model), ["layer"])


def test_an_unknown_layer_is_named(tmp_path: Path) -> None:
    model = read_model(_save(tmp_path, _linear(add=""), {"w": _weight()}))
    with pytest.raises(PlanError, match="no layer is named absent"):
        put_into_plugin(model, ["layer", "absent"])
    assert [one.op_type for one in model.ir.graph] == ["MatMul"]


def test_a_damaged_node_is_named(tmp_path: Path) -> None:
    typed = read_model(_save(tmp_path, _linear(add=""), {"w": _weight()}))
    put_into_plugin(typed, ["layer"])
    del typed.ir.graph[0].attributes["indices"]
    with pytest.raises(ModelError, match="node 'layer' is not valid"):
        expand_plugin_nodes(typed.ir)


def test_a_model_without_plugin_nodes_is_left_alone(tmp_path: Path) -> None:
    typed = read_model(_save(tmp_path, _linear(add=""), {"w": _weight()}))
    assert expand_plugin_nodes(typed.ir) == 0
    assert [one.op_type for one in typed.ir.graph] == ["MatMul"]


def test_what_is_in_the_node_is_the_weight(tmp_path: Path) -> None:
    weight = _weight()
    plugin, _ = _through_plugin(_save(tmp_path, _linear(add=""), {"w": weight}))
    (one,) = read_model(plugin).ir.graph
    values, indices = (one.attributes[name].as_tensor().numpy() for name in ("values", "indices"))
    assert np.array_equal(unpack_2to4(Packed24(values, indices.view(np.uint8))), weight.T)


def _two(relu: str = "") -> list[onnx.NodeProto]:
    """x · w + b and x · v of one input, with a ReLU behind those named."""
    return [
        node("MatMul", ["x", "w"], ["p"], "first"),
        node("Add", ["p", "b"], ["s"], "add"),
        node("Relu", ["s"], ["y"], "relu1") if "1" in relu else node("Identity", ["s"], ["y"], "end1"),
        node("MatMul", ["x", "v"], ["q"], "second"),
        node("Relu", ["q"], ["z"], "relu2") if "2" in relu else node("Identity", ["q"], ["z"], "end2"),
    ]


@pytest.mark.parametrize("relu", ["", "1", "12"])
def test_layers_of_one_input_become_one_product(tmp_path: Path, relu: str) -> None:
    tensors = {"w": _weight(), "v": _weight(n=96, seed=1), "b": _bias()}
    shapes = {"y": ("batch", "seq", N), "z": ("batch", "seq", 96)}
    model = _save(tmp_path, _two(relu), tensors, outputs=shapes)
    said = plugin_layers(read_model(model))
    assert [said[name].relu for name in ("first", "second")] == ["1" in relu, "2" in relu]
    typed = read_model(model)
    (record,) = put_into_plugin(typed, ["second", "first"], [["second", "first"]], {"first": 64})
    assert (record.layer, record.layers, record.n) == ("first || second", ("first", "second"), N + 96)
    assert record.folded == (("add", "relu1", "relu2") if relu == "12" else ("add",))
    assert (record.dense_bytes, record.packed_bytes) == (K * (N + 96) * 2, K * (N + 96) * 2 * 9 // 16)
    save_plugin_model(typed.ir, tmp_path / "plugin.onnx")
    onnx.checker.check_model(str(tmp_path / "plugin.onnx"))
    again = read_model(tmp_path / "plugin.onnx")
    assert expand_plugin_nodes(again.ir) == 1
    save_model(again.ir, tmp_path / "expanded.onnx")
    x = _x(2, 3, K)
    for name in ("y", "z"):
        np.testing.assert_allclose(
            _run(tmp_path / "expanded.onnx", x, name), _run(model, x, name), rtol=2e-3, atol=2e-3
        )


def test_the_m_below_which_it_is_dense_is_an_attribute_where_there_is_one(tmp_path: Path) -> None:
    for below, expected in ((64, 64), (0, None)):
        typed = read_model(_save(tmp_path, _linear(), {"w": _weight(), "b": _bias()}))
        (record,) = put_into_plugin(typed, ["layer"], dense_below_m={"layer": below})
        attribute = typed.ir.graph[0].attributes.get("dense_below_m")
        assert (attribute.as_int() if attribute else None) == expected
        assert record.dense_below_m == below


def test_layers_of_two_inputs_do_not_become_one(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["p"], "first"),
        node("Relu", ["x"], ["other"]),
        node("MatMul", ["other", "v"], ["y"], "second"),
        node("Identity", ["p"], ["z"]),
    ]
    shapes = dict.fromkeys(("y", "z"), ("batch", "seq", N))
    model = _save(tmp_path, nodes, {"w": _weight(), "v": _weight(seed=1)}, outputs=shapes)
    with pytest.raises(PlanError, match="'first' and 'second' cannot become one product: they do not read"):
        put_into_plugin(read_model(model), ["first", "second"], [["first", "second"]])
