"""Which weighted layers a model has, and what their weights' 2:4 state is."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.graph import (
    SparsityState,
    WeightedLayer,
    all_eligible_sparse,
    left_as_they_are,
    read_layers,
    weights_computed,
)
from sparseflow_trt.model.model_file import input_dims, read_model
from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import NOT_ELIGIBLE, NOT_SPARSE, SPARSE, layers_of, only_layer, random_weight

if TYPE_CHECKING:
    from tests.conftest import Array, Models


def _states(models: Models, node: onnx.NodeProto, weight: Array, axis: int, x: Any) -> WeightedLayer:
    """Reads a dense weight and the same pruned along `axis`; checks both states."""
    dense = only_layer(models.save(models.model([node], {"w": weight}, {"x": x})))
    assert dense.state is NOT_SPARSE
    assert dense.violating == dense.groups
    assert dense.k_axes == (axis,)
    assert dense.first == (0,) * weight.ndim
    assert dense.reason == f"100% of {weight.size // 4} groups hold more than two non-zeros"
    pruned = only_layer(models.save(models.model([node], {"w": prune_2to4(weight, axis)}, {"x": x})))
    assert pruned.state is SPARSE
    assert (pruned.violating, pruned.first, pruned.reason) == (0, None, "")
    other = 1 - axis if weight.ndim == 2 else 0
    if weight.shape[other] % 4 == 0:
        across = only_layer(models.save(models.model([node], {"w": prune_2to4(weight, other)}, {"x": x})))
        assert across.state is NOT_SPARSE  # 2:4 along the wrong axis
        along_n = weight.ndim != 3  # else along the batch's
        assert (across.otherwise == "it is 2:4 along N, not K") is along_n, across.otherwise
    return dense


@pytest.mark.parametrize(("x", "m"), [(("b", "s", 64), "b*s"), ((5, 64), "5"), ((64,), "1"), (None, "?")])
def test_matmul_with_the_weight_on_the_right(models: Models, x: Any, m: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    layer = _states(models, node, random_weight(64, 32), 0, x)
    assert (layer.name, layer.op_type, layer.side, layer.weight) == ("mm", "MatMul", "right", "w")
    assert (layer.n, layer.k, layer.batch, str(layer.m), layer.dtype) == (32, 64, 1, m, "FP32")
    assert layer.weight_shape == (64, 32)


@pytest.mark.parametrize(("x", "m"), [((64, "s"), "s"), (("b", 64, "s"), "b*s"), ((64,), "1"), (None, "?")])
def test_matmul_with_the_weight_on_the_left(models: Models, x: Any, m: str) -> None:
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="mm")
    layer = _states(models, node, random_weight(32, 64), 1, x)
    assert (layer.side, layer.n, layer.k, str(layer.m)) == ("left", 32, 64, m)


def test_a_vector_is_a_weight_of_one_column(models: Models) -> None:
    for inputs, side in ((["x", "w"], "right"), (["w", "x"], "left")):
        node = helper.make_node("MatMul", inputs, ["y"])
        x = ("b", 64) if side == "right" else (64, "b")
        layer = only_layer(models.save(models.model([node], {"w": random_weight(64)}, {"x": x})))
        assert (layer.side, layer.n, layer.k, layer.k_axes, str(layer.m)) == (side, 1, 64, (0,), "b")
        assert layer.name == "MatMul:y"


@pytest.mark.parametrize(("x", "m"), [((8, "s", 64), "s"), (("b", 8, "s", 64), "b*s"), (("s", 64), "s")])
def test_a_batch_of_weights(models: Models, x: Any, m: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    layer = _states(models, node, random_weight(8, 64, 32), 1, x)
    assert (layer.batch, layer.n, layer.k, str(layer.m)) == (8, 32, 64, m)


def test_a_batch_of_one_weight_is_one_product(models: Models) -> None:
    right = helper.make_node("MatMul", ["x", "w"], ["y"])
    layer = only_layer(
        models.save(models.model([right], {"w": random_weight(1, 64, 32)}, {"x": ("b", "s", 64)}))
    )
    assert (layer.batch, str(layer.m)) == (1, "b*s")
    left = helper.make_node("MatMul", ["w", "x"], ["y"])
    layer = only_layer(
        models.save(models.model([left], {"w": random_weight(8, 32, 64)}, {"x": ("b", 8, 64, "s")}))
    )
    assert (layer.batch, layer.n, str(layer.m), layer.k_axes) == (8, 32, "b*s", (2,))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(models: Models, side: str, trans_a: int, trans_b: int) -> None:
    inputs = ["x", "w", "bias"] if side == "right" else ["w", "x", "bias"]
    node = helper.make_node("Gemm", inputs, ["y"], name="gemm", transA=trans_a, transB=trans_b)
    flipped, x_flipped = (trans_b, trans_a) if side == "right" else (trans_a, trans_b)
    shape = (64, 32) if (side == "right") != bool(flipped) else (32, 64)
    x = ("b", 64) if (side == "right") != bool(x_flipped) else (64, "b")
    model = models.model([node], {"w": random_weight(*shape), "bias": random_weight(32)}, {"x": x})
    layer = only_layer(models.save(model))
    axis = shape.index(64)
    assert (layer.side, layer.n, layer.k, layer.k_axes, str(layer.m)) == (side, 32, 64, (axis,), "b")
    _states(models, helper.make_node("Gemm", inputs[:2], ["y"], transA=trans_a, transB=trans_b),
            random_weight(*shape), axis, x)  # fmt: skip


def test_conv_is_2to4_along_its_input_channels(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3, 3], pads=[1] * 4)
    layer = _states(models, node, random_weight(32, 16, 3, 3), 1, ("b", 16, 10, 12))
    assert (layer.kind, layer.n, layer.k, layer.batch) == ("conv", 32, 144, 1)
    assert layer.m.evaluate({"b": 2}) == 2 * 10 * 12


def test_conv_with_groups(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4)
    layer = _states(models, node, random_weight(32, 4, 3, 3), 1, ("b", 16, 10, 10))
    assert (layer.n, layer.k, layer.batch) == (8, 36, 4)


def test_a_depthwise_conv_is_not_eligible(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=32)
    layer = only_layer(
        models.save(models.model([node], {"w": random_weight(32, 1, 3, 3)}, {"x": ("b", 32, 9, 9)}))
    )
    assert (layer.state, layer.reason) == (NOT_ELIGIBLE, "input channels a group=1 is not a multiple of 4")
    assert (layer.n, layer.k, layer.batch) == (1, 9, 32)


def test_typed_data_fields_are_read_too(models: Models) -> None:
    weight = prune_2to4(random_weight(64, 32).astype(np.float16), 0)
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(weight.view(np.uint16).reshape(-1).tolist())
    assert only_layer(models.save(model)).state is SPARSE


# of TF32 they take one of two, not two of four
_IN_16_BITS = "a sparse FP16 or BF16 instruction takes 16"


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (random_weight(66, 32), "K=66 is not a multiple of 4"),
        (random_weight(4, 32), f"too small: K=4, {_IN_16_BITS}"),
        (random_weight(12, 32), f"too small: K=12, {_IN_16_BITS}"),
        (random_weight(12, 32).astype(np.float16), "too small: K=12, a sparse FP16 instruction takes 16"),
        (random_weight(64, 32).astype(np.float64), "no sparse tensor core product for FP64 weights"),
        (random_weight(64, 32).astype(np.int32), "no sparse tensor core product for INT32 weights"),
        (random_weight(64, 0), "too small: the weight is empty"),
        (random_weight(0, 64), f"too small: K=0, {_IN_16_BITS}"),
    ],
)
def test_not_eligible(models: Models, weight: Array, reason: str) -> None:
    layer = only_layer(models.matmul(weight))
    assert (layer.state, layer.reason, layer.eligible) == (NOT_ELIGIBLE, reason, False)
    assert all_eligible_sparse((layer,))


def test_int4_is_not_eligible(models: Models) -> None:
    model = models.model(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["w32"]),
            helper.make_node("MatMul", ["x", "w32"], ["y"]),
        ],
        {"s": np.ones((), np.float32)},
    )
    model.graph.initializer.append(
        helper.make_tensor("w", TensorProto.INT4, (64, 32), b"\x11" * 1024, raw=True)
    )
    layer = only_layer(models.save(model))
    assert (layer.dtype, layer.reason) == ("INT4", "no sparse tensor core product for INT4 weights")
    models.externalize(model, {"w": "w.bin"})
    assert only_layer(models.save(model)) == layer


def test_a_computed_weight_is_not_eligible(models: Models) -> None:
    nodes = [
        helper.make_node("Softmax", ["b"], ["s"], name="soft"),
        helper.make_node("MatMul", ["x", "s"], ["y"], name="one"),
        helper.make_node("MatMul", ["x", "b"], ["z"], name="two"),
    ]
    inputs = {"x": ("m", 64), "b": (64, 32)}
    one, two = layers_of(models.save(models.model(nodes, None, inputs, ["y", "z"])))
    assert one.reason == "dynamic weight: computed by Softmax 'soft'"
    assert two.reason == "dynamic weight: 'b' is an input of its graph"
    assert (two.n, two.k, two.weight, two.dtype, two.state) == (32, 64, "", "", NOT_ELIGIBLE)


@pytest.mark.parametrize("other", ["mask", "scale", "x2"])
def test_a_mask_that_is_apart_is_told_from_a_weight_that_is_computed(other: str, models: Models) -> None:
    nodes = [
        helper.make_node("Mul", ["w", other], ["masked"], name="mul"),
        helper.make_node("Transpose", ["masked"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="one"),
    ]
    weights = {
        "w": np.ones((32, 64), np.float32),
        "mask": np.ones((32, 64), np.float32),
        "scale": np.ones((32, 1), np.float32),
    }
    inputs = {"x": ("m", 64), "x2": (32, 64)}
    (one,) = layers_of(models.save(models.model(nodes, weights, inputs)))
    assert (one.computed, one.reason) == {
        "mask": (True, "its mask is still separate: the graph multiplies its weight by it"),
        "scale": (
            True,
            "its weight is computed from constants by Mul 'mul': make it one parameter before the export",
        ),
        "x2": (False, "dynamic weight: computed by Mul 'mul'"),
    }[other]
    said = weights_computed((replace(one, module="h.0.up"),))
    assert ("and stay as they are: 'h.0.up'." in said) == (other == "scale")
    assert one.state is NOT_ELIGIBLE


def test_a_product_of_constants_is_not_eligible(models: Models) -> None:
    nodes = [helper.make_node("MatMul", ["v", "w"], ["y"])]
    layer = only_layer(
        models.save(models.model(nodes, {"v": random_weight(8, 64), "w": random_weight(64, 8)}))
    )
    assert layer.reason == "both operands are constant: folded when the engine is built"


def test_an_initializer_may_be_an_input_too(models: Models) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = {"x": ("b", 64), "w": (64, 32)}
    assert (
        only_layer(models.save(models.model(nodes, {"w": random_weight(64, 32)}, inputs))).state is NOT_SPARSE
    )


def test_the_exporters_module_and_kind_are_read(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="node_linear_3")
    scopes = "['', 'model.layers.0', 'model.layers.0.self_attn.q_proj', 'linear']"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    layer = only_layer(models.save(models.model([node], {"w": random_weight(64, 64)})))
    assert (layer.module, layer.kind) == ("model.layers.0.self_attn.q_proj", "qkv")


@pytest.mark.parametrize("scopes", ["", "no list", "[", "['only']", "{}", "(" * 500])
def test_metadata_of_another_form_is_no_module(models: Models, scopes: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert only_layer(models.save(models.model([node], {"w": random_weight(64, 64)}))).module == ""


def test_axes_without_a_name_are_called_after_their_input(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = models.save(models.model([node], {"w": random_weight(64, 32)}, {"x": (-1, None, 64)}))
    assert str(only_layer(path).m) == "x.0*x.1"
    assert input_dims(read_model(path)) == {"x": ("x.0", "x.1", 64)}


def test_a_name_that_is_taken_is_no_axis(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = models.model([node], {"w": random_weight(64, 32)}, {"x": (None, "x.0", 64)})
    assert str(only_layer(models.save(model)).m) == "?*x.0"


def test_unknown_dimensions_stay_unknown(models: Models) -> None:
    """tf2onnx calls every dimension unk__ and a number: those of inputs are axes, the others nobody knows."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="known"),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="unknown"),
    ]
    inputs = {"x": ("unk__7", 64), "shape": (2,)}
    model = models.model(nodes, {"w": random_weight(64, 64)}, inputs)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["unk__8", 64]))
    layers = layers_of(models.save(model))
    assert [(layer.name, str(layer.m)) for layer in layers] == [("known", "unk__7"), ("unknown", "?")]


def test_progress_ends_at_the_whole(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["y"], transB=1),
        helper.make_node("MatMul", ["x", "odd"], ["z"]),
    ]
    model = models.model(nodes, {"w": random_weight(64, 32), "odd": random_weight(66, 3)}, outputs=["y", "z"])
    seen: list[tuple[int, int]] = []
    read_layers(read_model(models.save(model)), lambda done, total: seen.append((done, total)))
    assert seen == [(64 * 32 * 4, 2 * 64 * 32 * 4), (2 * 64 * 32 * 4, 2 * 64 * 32 * 4)]


def test_the_state_alone_is_that_of_the_whole_reading(models: Models) -> None:
    """And where less was read, what a layer says of it is said of that part."""
    dense = np.ones((2048, 1024), np.float16)  # two pieces
    sparse = dense.copy()
    sparse.reshape(512, 4, 1024)[:, 2:] = 0
    odd = np.ones((66, 3), np.float16)
    nodes = [helper.make_node("MatMul", ["x", name], [f"y{name}"]) for name in ("dense", "sparse", "odd")]
    weights = {"dense": dense, "sparse": sparse, "odd": odd}
    model = read_model(models.save(models.model(nodes, weights, outputs=["ydense", "ysparse", "yodd"])))
    seen: list[tuple[int, int]] = []
    whole, begun = read_layers(model), read_layers(model, lambda *at: seen.append(at), state_only=True)
    assert [layer.state for layer in begun] == [layer.state for layer in whole]
    assert begun[1:] == whole[1:]
    assert whole[0].reason == "100% of 524288 groups hold more than two non-zeros"
    assert begun[0].reason == "100% of the first 262144 groups hold more than two non-zeros"
    assert (begun[0].mask_hash, begun[0].first) == ("", (0, 0))
    assert seen[-1] == (dense.nbytes + sparse.nbytes,) * 2


@pytest.mark.parametrize(
    ("op", "shape"), [("Gemm", (64,)), ("Gemm", (2, 64, 32)), ("Conv", (8, 8)), ("MatMul", ())]
)
def test_a_weight_of_the_wrong_rank_is_named(models: Models, op: str, shape: tuple[int, ...]) -> None:
    path = models.save(models.model([helper.make_node(op, ["x", "w"], ["y"])], {"w": random_weight(*shape)}))
    with pytest.raises(
        ModelError, match=f"the {op} node without a name is not valid.*'w' has {len(shape)} dim"
    ):
        layers_of(path)


def test_a_model_that_shape_inference_refuses_is_read_quietly(
    models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
        helper.make_node("Concat", ["a", "w"], ["y"], axis=9),
    ]
    layer = only_layer(models.save(models.model(nodes, {"w": random_weight(64, 32)})))
    assert (layer.state, str(layer.m)) == (NOT_ELIGIBLE, "batch")
    assert layer.reason == "weight 'w' is also read by Concat 'y', which pruning would change"
    assert not caplog.records


def test_a_path_of_another_folder_does_not_matter(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.matmul(random_weight(64, 32))
    with tempfile.TemporaryDirectory() as elsewhere:
        monkeypatch.chdir(elsewhere)
        assert only_layer(models.folder / "model.onnx").state is NOT_SPARSE
    monkeypatch.chdir(models.folder)
    assert only_layer(Path("model.onnx")).state is NOT_SPARSE


def test_a_weight_of_an_operator_without_a_2to4_path_is_listed_with_the_reason(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up"),
        helper.make_node("Einsum", ["x", "x"], ["z"], name="scores", equation="abc,abc->abc"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 18])],
        [numpy_helper.from_array(np.ones((8, 4, 3), np.float32), "w")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "m"
    )
    (layer,) = read_layers(read_model(tmp_path / "m"))
    assert (layer.name, layer.state) == ("up", SparsityState.NOT_ELIGIBLE)
    assert layer.reason == "ConvTranspose multiplies by its weight in a way that has no 2:4 path here"


@pytest.mark.parametrize(
    ("op_type", "shape", "more"),
    [
        ("FusedMatMul", (64, 32), {}),
        ("FusedGemm", (64, 32), {}),
        ("FusedConv", (32, 64, 3, 3), {}),
        ("nchwc.Conv", (32, 64, 3, 3), {}),
        ("Attention", (64, 192), {"num_heads": 4}),
    ],
)
def test_what_the_onnx_runtime_fuses_with_a_weight_is_said(
    op_type: str, shape: tuple[int, ...], more: dict[str, int], models: Models
) -> None:
    domain, _, op = f"com.microsoft.{op_type}".rpartition(".")
    node = helper.make_node(op, ["x", "w"], ["y"], name="fused", domain=domain, **more)  # type: ignore[arg-type]
    layer = only_layer(models.save(models.model([node], {"w": random_weight(*shape)})))
    assert (layer.name, layer.op_type, layer.state) == ("fused", op_type, NOT_ELIGIBLE)
    before = "give the file from before ONNX Runtime's optimiser"
    assert layer.reason == f"{op_type} multiplies by its weight in a way that has no 2:4 path here: {before}"
    assert left_as_they_are((layer,))[0].endswith(f"Of what is fused, {before}.")


@pytest.mark.parametrize(("op_type", "domain"), [("QLinearMatMul", ""), ("QGemm", "com.microsoft")])
def test_what_the_onnx_runtime_quantizes_without_q_and_dq_says_what_to_do(
    op_type: str, domain: str, models: Models
) -> None:
    inputs = ["x", "s", "z", "w", "s", "z", "s", "z"]
    node = helper.make_node(op_type, inputs, ["y"], name="mm", domain=domain)
    weights = {"w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32), "z": np.zeros((), np.int8)}
    layer = only_layer(models.save(models.model([node], weights)))
    assert layer.reason.endswith("path here: quantized by quantize_static with QuantFormat.QDQ it has one")
    (said,) = left_as_they_are((layer,))
    assert f" by their weights in a way that has no 2:4 path here ({op_type})" in said
    assert "quantize it by ONNX Runtime's quantize_static with QuantFormat.QDQ, which keeps 2:4" in said


def test_attention_of_onnx_has_no_weight(models: Models) -> None:
    node = helper.make_node("Attention", ["x", "x", "x", "mask"], ["y"], name="attention")
    mask = {"mask": np.zeros((8, 8), np.float32)}
    assert layers_of(models.save(models.model([node], mask, {"x": (1, 2, 8, 16)}, opset=23))) == ()


@pytest.mark.parametrize(
    ("before", "product"),
    [
        ([], "FP32"),
        ([helper.make_node("Relu", ["xd"], ["r"])], "FP32"),
        ([helper.make_node("Transpose", ["xd"], ["r"], perm=[0, 1])], "INT8"),
        (None, "INT8"),
    ],
)
def test_a_quantized_weight_is_multiplied_as_a_float_beside_one(
    before: list[onnx.NodeProto] | None, product: str, models: Models
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        *(before or []),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
        helper.make_node("MatMul", ["xd" if before is None else "r" if before else "x", "v"], ["y"]),
    ]
    weights = {"w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32), "z": np.zeros((), np.int8)}
    layer = only_layer(models.save(models.model(nodes, weights)))
    assert (layer.dtype, layer.product) == ("INT8", product)


def test_a_weight_that_is_computed_of_constants_is_said(models: Models) -> None:
    nodes = [
        helper.make_node("Split", ["w"], ["left", "right"], axis=1, num_outputs=2, name="split"),
        helper.make_node("MatMul", ["x", "left"], ["a"], name="right_operand"),
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Transpose", ["right"], ["r"], perm=[1, 0]),
        helper.make_node("MatMul", ["r", "t"], ["b"], name="left_operand"),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="activations"),
    ]
    model = models.model(nodes, {"w": random_weight(64, 64)}, outputs=("a", "b", "y"))
    layers = layers_of(models.save(model))
    assert layers[-1].reason == "dynamic weight: 'x' is an input of its graph"
    by = "its weight is computed from constants by Split 'split'"
    why = f"{by}, and no range of rows: make it one parameter before the export"
    said = {layer.name: (layer.computed, layer.state) for layer in layers}
    assert said == {
        "right_operand": (True, NOT_ELIGIBLE),
        "left_operand": (True, NOT_ELIGIBLE),
        "activations": (False, NOT_ELIGIBLE),
    }
    assert [layer.reason for layer in layers[:2]] == [why, why]


def test_parts_of_a_dequantized_weight_are_taken_before(models: Models) -> None:
    """Folded they would be floats."""
    behind = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("Split", ["d"], ["v", "rest"], num_outputs=2, name="split"),
    ]
    before = [
        helper.make_node("Split", ["w"], ["q", "rest"], num_outputs=2, name="split"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["v"]),
    ]
    product = helper.make_node("MatMul", ["x", "v"], ["y"])
    weights = {"w": np.ones((128, 32), np.int8), "s": np.ones((), np.float32)}
    refused = only_layer(models.save(models.model([*behind, product], weights)))
    assert refused.reason == (
        "its weight is computed from constants by Split 'split' behind a DequantizeLinear: do it before, and "
        "dequantize last"
    )
    taken = only_layer(models.save(models.model([*before, product], weights)))
    assert (taken.dtype, taken.n, taken.k, taken.state) == ("INT8", 32, 64, NOT_SPARSE)


@pytest.mark.parametrize(
    ("made", "computed"),
    [
        (helper.make_node("Mul", ["w", "s"], ["v"]), True),
        (helper.make_node("Mul", ["w", "given"], ["v"]), False),
        (helper.make_node("RandomNormal", [], ["v"], shape=[64, 32]), False),
        (helper.make_node("RandomNormalLike", ["w"], ["v"]), False),
    ],
)
def test_what_is_given_or_drawn_is_no_constant(made: onnx.NodeProto, computed: bool, models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "v"], ["y"], name="mm")
    scales = {"s": np.ones((), np.float32), "given": np.ones(32, np.float32)}
    model = models.model([made, node], {"w": random_weight(64, 32), **scales})
    model.graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [32]))
    assert only_layer(models.save(model)).computed is computed


def test_a_recurrent_layer_whose_weights_are_put_in_order_in_the_graph_is_listed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.onnx.export(
        torch.nn.LSTM(32, 16).eval(),
        (torch.randn(5, 2, 32),),
        tmp_path / "m.onnx",
        dynamo=True,
        verbose=False,
    )
    (layer,) = layers_of(tmp_path / "m.onnx")
    assert (layer.op_type, layer.state) == ("LSTM", NOT_ELIGIBLE)
    assert layer.reason == "LSTM multiplies by its weight in a way that has no 2:4 path here"
