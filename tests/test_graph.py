"""Which weighted layers a model has, and what their weights' 2:4 state is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.graph import SparsityState, WeightedLayer, all_eligible_sparse, read_layers
from sparseflow_trt.model_file import read_model
from sparseflow_trt.pattern import prune_2to4
from sparseflow_trt.sites import find_sites

if TYPE_CHECKING:
    from tests.conftest import Array, Models, Naive

SPARSE, NOT_SPARSE, NOT_ELIGIBLE = SparsityState.SPARSE, SparsityState.NOT_SPARSE, SparsityState.NOT_ELIGIBLE


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _layers(path: Path) -> tuple[WeightedLayer, ...]:
    return read_layers(read_model(path))


def _only(path: Path) -> WeightedLayer:
    (layer,) = _layers(path)
    return layer


def _states(models: Models, node: onnx.NodeProto, weight: Array, axis: int, x: Any) -> WeightedLayer:
    """Reads a dense weight and the same pruned along `axis`; checks both states."""
    dense = _only(models.save(models.model([node], {"w": weight}, {"x": x})))
    assert dense.state is NOT_SPARSE
    assert dense.violating == dense.groups
    assert dense.k_axes == (axis,)
    assert dense.first == (0,) * weight.ndim
    assert dense.reason == f"100% of {weight.size // 4} groups hold more than two non-zeros"
    pruned = _only(models.save(models.model([node], {"w": prune_2to4(weight, axis)}, {"x": x})))
    assert pruned.state is SPARSE
    assert (pruned.violating, pruned.first, pruned.reason) == (0, None, "")
    other = 1 - axis if weight.ndim == 2 else 0
    if weight.shape[other] % 4 == 0:
        across = _only(models.save(models.model([node], {"w": prune_2to4(weight, other)}, {"x": x})))
        assert across.state is NOT_SPARSE  # 2:4 along the wrong axis
    return dense


@pytest.mark.parametrize(("x", "m"), [(("b", "s", 64), "b*s"), ((5, 64), "5"), ((64,), "1"), (None, "?")])
def test_matmul_with_the_weight_on_the_right(models: Models, x: Any, m: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    layer = _states(models, node, _random(64, 32), 0, x)
    assert (layer.name, layer.op_type, layer.side, layer.weight) == ("mm", "MatMul", "right", "w")
    assert (layer.n, layer.k, layer.batch, str(layer.m), layer.dtype) == (32, 64, 1, m, "FP32")
    assert layer.weight_shape == (64, 32)


@pytest.mark.parametrize(("x", "m"), [((64, "s"), "s"), (("b", 64, "s"), "b*s"), ((64,), "1"), (None, "?")])
def test_matmul_with_the_weight_on_the_left(models: Models, x: Any, m: str) -> None:
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="mm")
    layer = _states(models, node, _random(32, 64), 1, x)
    assert (layer.side, layer.n, layer.k, str(layer.m)) == ("left", 32, 64, m)


def test_a_vector_is_a_weight_of_one_column(models: Models) -> None:
    for inputs, side in ((["x", "w"], "right"), (["w", "x"], "left")):
        node = helper.make_node("MatMul", inputs, ["y"])
        x = ("b", 64) if side == "right" else (64, "b")
        layer = _only(models.save(models.model([node], {"w": _random(64)}, {"x": x})))
        assert (layer.side, layer.n, layer.k, layer.k_axes, str(layer.m)) == (side, 1, 64, (0,), "b")
        assert layer.name == "MatMul:y"


@pytest.mark.parametrize(("x", "m"), [((8, "s", 64), "s"), (("b", 8, "s", 64), "b*s"), (("s", 64), "s")])
def test_a_batch_of_weights(models: Models, x: Any, m: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    layer = _states(models, node, _random(8, 64, 32), 1, x)
    assert (layer.batch, layer.n, layer.k, str(layer.m)) == (8, 32, 64, m)


def test_a_batch_of_one_weight_is_one_product(models: Models) -> None:
    right = helper.make_node("MatMul", ["x", "w"], ["y"])
    layer = _only(models.save(models.model([right], {"w": _random(1, 64, 32)}, {"x": ("b", "s", 64)})))
    assert (layer.batch, str(layer.m)) == (1, "b*s")
    left = helper.make_node("MatMul", ["w", "x"], ["y"])
    layer = _only(models.save(models.model([left], {"w": _random(8, 32, 64)}, {"x": ("b", 8, 64, "s")})))
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
    model = models.model([node], {"w": _random(*shape), "bias": _random(32)}, {"x": x})
    layer = _only(models.save(model))
    axis = shape.index(64)
    assert (layer.side, layer.n, layer.k, layer.k_axes, str(layer.m)) == (side, 32, 64, (axis,), "b")
    _states(models, helper.make_node("Gemm", inputs[:2], ["y"], transA=trans_a, transB=trans_b),
            _random(*shape), axis, x)  # fmt: skip


def test_conv_is_2to4_along_its_input_channels(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3, 3], pads=[1] * 4)
    layer = _states(models, node, _random(32, 16, 3, 3), 1, ("b", 16, 10, 12))
    assert (layer.kind, layer.n, layer.k, layer.batch) == ("conv", 32, 144, 1)
    assert layer.m.evaluate({"b": 2}) == 2 * 10 * 12


def test_conv_with_groups(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4)
    layer = _states(models, node, _random(32, 4, 3, 3), 1, ("b", 16, 10, 10))
    assert (layer.n, layer.k, layer.batch) == (8, 36, 4)


def test_a_depthwise_conv_is_not_eligible(models: Models) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=32)
    layer = _only(models.save(models.model([node], {"w": _random(32, 1, 3, 3)}, {"x": ("b", 32, 9, 9)})))
    assert (layer.state, layer.reason) == (NOT_ELIGIBLE, "input channels a group=1 is not a multiple of 4")
    assert (layer.n, layer.k, layer.batch) == (1, 9, 32)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "FP32"), (np.float16, "FP16"), (ml_dtypes.bfloat16, "BF16"),
        (ml_dtypes.float8_e4m3fn, "FP8"), (ml_dtypes.float8_e5m2, "FP8-E5M2"),
        (np.int8, "INT8"), (np.uint8, "UINT8"),
    ],
)  # fmt: skip
def test_types(models: Models, dtype: Any, name: str) -> None:
    weight = (np.abs(_random(64, 32)) * 20 + 1).astype(dtype)
    assert np.all(weight.astype(np.float32) != 0)
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["y"], name="mm"),
    ]
    dense = _only(models.save(models.model(nodes, {"w": weight})))
    assert (dense.dtype, dense.state, dense.violating) == (name, NOT_SPARSE, 512)
    sparse = _only(models.save(models.model(nodes, {"w": prune_2to4(weight, 0)})))
    assert (sparse.dtype, sparse.state) == (name, SPARSE)


def test_typed_data_fields_are_read_too(models: Models) -> None:
    weight = prune_2to4(_random(64, 32).astype(np.float16), 0)
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(weight.view(np.uint16).reshape(-1).tolist())
    assert _only(models.save(model)).state is SPARSE


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (_random(66, 32), "K=66 is not a multiple of 4"),
        (_random(4, 32), "too small: K=4, a sparse FP32 instruction takes 8"),
        (_random(12, 32).astype(np.float16), "too small: K=12, a sparse FP16 instruction takes 16"),
        (_random(64, 32).astype(np.float64), "no sparse tensor core product for FP64 weights"),
        (_random(64, 32).astype(np.int32), "no sparse tensor core product for INT32 weights"),
        (_random(64, 0), "too small: the weight is empty"),
        (_random(0, 64), "too small: K=0, a sparse FP32 instruction takes 8"),
    ],
)
def test_not_eligible(models: Models, weight: Array, reason: str) -> None:
    layer = _only(models.matmul(weight))
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
    layer = _only(models.save(model))
    assert (layer.dtype, layer.reason) == ("INT4", "no sparse tensor core product for INT4 weights")
    models.externalize(model, {"w": "w.bin"})
    assert _only(models.save(model)) == layer


def test_a_computed_weight_is_not_eligible(models: Models) -> None:
    nodes = [
        helper.make_node("Softmax", ["b"], ["s"], name="soft"),
        helper.make_node("MatMul", ["x", "s"], ["y"], name="one"),
        helper.make_node("MatMul", ["x", "b"], ["z"], name="two"),
    ]
    inputs = {"x": ("m", 64), "b": (64, 32)}
    one, two = _layers(models.save(models.model(nodes, None, inputs, ["y", "z"])))
    assert one.reason == "dynamic weight: computed by Softmax 'soft'"
    assert two.reason == "dynamic weight: 'b' is an input of its graph"
    assert (two.n, two.k, two.weight, two.dtype, two.state) == (32, 64, "", "", NOT_ELIGIBLE)


def test_a_product_of_constants_is_not_eligible(models: Models) -> None:
    nodes = [helper.make_node("MatMul", ["v", "w"], ["y"])]
    layer = _only(models.save(models.model(nodes, {"v": _random(8, 64), "w": _random(64, 8)})))
    assert layer.reason == "both operands are constant: folded when the engine is built"


def test_an_initializer_may_be_an_input_too(models: Models) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = {"x": ("b", 64), "w": (64, 32)}
    assert _only(models.save(models.model(nodes, {"w": _random(64, 32)}, inputs))).state is NOT_SPARSE


# ---- the way from the stored tensor to the node


def _chain(
    models: Models, nodes: list[onnx.NodeProto], weights: dict[str, Any], **more: Any
) -> WeightedLayer:
    """Reads the one MatMul of `x` and `v`, where `nodes` make `v`."""
    last = helper.make_node("MatMul", ["x", "v"], ["y"], name="mm")
    return _only(models.save(models.model([*nodes, last], weights, **more)))


def test_through_constant_identity_and_casts(models: Models) -> None:
    weight = prune_2to4(_random(64, 32), 0)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=models.tensor("value", weight)),
        helper.make_node("Identity", ["c"], ["i"]),
        helper.make_node("Cast", ["i"], ["v"], to=TensorProto.FLOAT),
    ]
    layer = _chain(models, nodes, {})
    assert (layer.weight, layer.state, layer.weight_shape) == ("c", SPARSE, (64, 32))


def test_through_transpose(models: Models) -> None:
    weight = prune_2to4(_random(32, 64), 1)
    choices: list[dict[str, Any]] = [{}, {"perm": [1, 0]}]
    for attributes in choices:
        layer = _chain(models, [helper.make_node("Transpose", ["w"], ["v"], **attributes)], {"w": weight})
        assert (layer.k_axes, layer.n, layer.k, layer.state) == ((1,), 32, 64, SPARSE)


def test_through_reshape(models: Models) -> None:
    weight = prune_2to4(_random(2, 32, 32), 1)
    nodes = [helper.make_node("Reshape", ["w", "shape"], ["v"])]
    layer = _chain(models, nodes, {"w": weight, "shape": np.array([-1, 0], np.int64)}, opset=13)
    assert (layer.n, layer.k, layer.k_axes, layer.state) == (32, 64, (0, 1), SPARSE)


def test_through_squeeze_unsqueeze_and_flatten(models: Models) -> None:
    weight = prune_2to4(_random(1, 64, 32), 1)
    nodes = [
        helper.make_node("Squeeze", ["w"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "axes"], ["b"]),
        helper.make_node("Squeeze", ["b", "axes"], ["c"]),
        helper.make_node("Flatten", ["c"], ["v"], axis=-1),
    ]
    layer = _chain(models, nodes, {"w": weight, "axes": np.array([0, -1], np.int64)})
    assert (layer.n, layer.k, layer.k_axes, layer.state) == (32, 64, (1,), SPARSE)
    old = [helper.make_node("Squeeze", ["w"], ["v"], axes=[0])]
    assert _chain(models, old, {"w": weight}, opset=11).k_axes == (1,)


def test_k_may_be_a_part_of_an_axis(models: Models) -> None:
    nodes = [helper.make_node("Reshape", ["w", "shape"], ["v"])]
    for shape in ((2048,), (32, 64), (4, 512)):
        weight = prune_2to4(_random(64, 32), 0).reshape(shape)
        layer = _chain(models, nodes, {"w": weight, "shape": np.array([64, 32], np.int64)})
        assert layer.state is SPARSE
        assert layer.k_axes == ((0,) if len(shape) == 1 else (0, 1))


def test_a_reshape_behind_a_transpose_has_no_place_in_the_file(models: Models) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["v"]),
    ]
    layer = _chain(models, nodes, {"w": _random(32, 64), "shape": np.array([64, 32], np.int64)})
    assert (layer.k_axes, layer.state) == ((1,), NOT_SPARSE)  # reshaped to what it was
    layer = _chain(models, nodes, {"w": _random(16, 128), "shape": np.array([64, 32], np.int64)})
    assert (layer.k_axes, layer.first, layer.violating) == ((), None, 512)


@pytest.mark.parametrize(
    ("dtype", "zeros", "axis"),
    [
        (np.int8, None, None), (np.int8, 0, None), (np.int8, -7, None), (np.uint8, 128, None),
        (np.int8, "each", 0), (np.uint8, "each", 1), (np.int8, "each", -1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("transposed", ["no", "before", "after"])
def test_through_dequantize(
    models: Models, naive: Naive, dtype: Any, zeros: Any, axis: Any, transposed: str
) -> None:
    random = np.random.default_rng(1)
    weight = random.integers(0, 256, (64, 64), np.uint8).view(dtype)
    scale: Array = np.ones((), np.float32)
    zero: Array = np.zeros((), dtype)
    spread: Any = 0
    if zeros == "each":
        zero = random.integers(0, 256, 64, np.uint8).view(dtype)
        scale = np.ones(64, np.float32)
        spread = zero[:, None] if axis == 0 else zero[None, :]
        if transposed == "before":
            spread = spread.T
    elif zeros is not None:
        zero = np.array(zeros, dtype)
        spread = zeros
    k_axis = 0 if transposed == "no" else 1
    names = ["d", "s"] if zeros is None else ["d", "s", "z"]
    attributes = {} if axis is None else {"axis": axis}
    nodes = []
    if transposed == "before":
        nodes.append(helper.make_node("Transpose", ["w"], ["d"]))
    nodes.append(helper.make_node("DequantizeLinear", names, ["f"], **attributes))
    nodes.append(helper.make_node("Transpose" if transposed == "after" else "Identity", ["f"], ["v"]))
    if transposed != "before":
        nodes[0].input[0] = "w"
    dense = _chain(models, nodes, {"w": weight, "s": scale, "z": zero})
    violating = naive.violating(weight, k_axis, spread)
    assert (dense.dtype, dense.violating) == ("INT8" if dtype is np.int8 else "UINT8", sum(violating))
    assert dense.state is NOT_SPARSE
    sparse = _chain(models, nodes, {"w": prune_2to4(weight, k_axis, spread), "s": scale, "z": zero})
    assert sparse.state is SPARSE


def test_through_quantize_and_dequantize(models: Models) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["v"]),
    ]
    more = {"s": np.float32(0.1).reshape(()), "z": np.uint8(128).reshape(())}
    layer = _chain(models, nodes, {"w": prune_2to4(_random(64, 32), 0), **more})
    assert (layer.state, layer.dtype) == (SPARSE, "UINT8")
    assert _chain(models, nodes, {"w": _random(64, 32), **more}).state is NOT_SPARSE


@pytest.mark.parametrize(
    ("zero", "said", "dtype", "state"),
    [
        (np.int8(0), None, "INT8", SPARSE),
        (None, None, "UINT8", SPARSE),
        (None, TensorProto.INT8, "INT8", SPARSE),
        (None, TensorProto.FLOAT8E4M3FN, "FP8", SPARSE),
        (None, TensorProto.INT4, "INT4", NOT_ELIGIBLE),
    ],
)
def test_stored_floats_are_multiplied_as_what_they_are_quantized_to(
    zero: np.int8 | None, said: int | None, dtype: str, state: SparsityState, models: Models
) -> None:
    names = ["s"] + ["z"] * (zero is not None)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", *names], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *names], ["v"]),
    ]
    if said is not None:
        nodes[0].attribute.append(helper.make_attribute("output_dtype", said))
    more = {"s": np.float32(0.1).reshape(())} | ({} if zero is None else {"z": zero.reshape(())})
    layer = _chain(models, nodes, {"w": prune_2to4(_random(64, 32), 0), **more})
    assert (layer.state, layer.dtype) == (state, dtype)


def test_blocked_zero_points_are_named(models: Models) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=0, block_size=16, name="dq")]
    weights = {
        "w": np.ones((64, 32), np.int8),
        "s": np.ones((4, 32), np.float32),
        "z": np.arange(128, dtype=np.int8).reshape(4, 32),
    }
    layer = _chain(models, nodes, weights)
    assert layer.reason == "the zero points of DequantizeLinear 'dq' are blocked, which is not handled here"


def test_other_domains_are_other_operators(models: Models) -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["v"], domain="mine", name="mine")]
    layer = _chain(models, nodes, {"w": _random(64, 32)})
    assert layer.reason == "dynamic weight: computed by Transpose 'mine'"
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["v"], domain="com.microsoft")]
    layer = _chain(models, nodes, {"w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32)})
    assert layer.state is NOT_SPARSE
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine")
    assert _layers(models.save(models.model([node], {"w": _random(64, 32)}))) == ()


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, tuple[int, ...]]]]:
    """A stored shape and the steps that make a 2-D or 3-D operand of it with K a multiple of 4."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 4, 8, 12]), min_size=2, max_size=4)))
    size = int(np.prod(shape))
    if size < 32 or size > 4096:
        shape, size = (4, 2, 8), 64
    stored, steps = shape, []
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(len(shape)))))
            steps.append(("transpose", order))
            shape = tuple(shape[i] for i in order)
        else:
            shape = draw(_factors(size))
            steps.append(("reshape", shape))
    k = draw(st.sampled_from([d for d in range(8, size + 1, 4) if size % d == 0]))
    rest = size // k
    batch = draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
    last = (k, rest) if batch == 1 else (batch, k, rest // batch)
    if draw(st.booleans()):
        steps.append(("reshape", last))
    else:
        steps += [("reshape", (*last[:-2], last[-1], k)), ("transpose", (*range(len(last) - 2), len(last) - 1,
                                                                         len(last) - 2))]  # fmt: skip
    return stored, steps


@st.composite
def _factors(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    dims: list[int] = []
    while size > 1 and len(dims) < 3:
        dims.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= dims[-1]
    return (*dims, size)


def _apply(steps: list[tuple[str, tuple[int, ...]]], array: Array) -> Array:
    for step, argument in steps:
        array = array.transpose(argument) if step == "transpose" else array.reshape(argument)
    return array


@settings(max_examples=150)
@given(chain=chains(), seed=st.integers(0, 1000))
def test_any_chain_says_what_numpy_says(chain: Any, seed: int, naive: Naive, chain_file: Path) -> None:
    stored, steps = chain
    random = np.random.default_rng(seed)
    weight = random.normal(size=stored).astype(np.float32) * (random.random(stored) < 0.6)
    _write_chain(chain_file, steps, weight)
    layer = _only(chain_file)
    operand = _apply(steps, weight)
    axis = operand.ndim - 2
    violating = naive.violating(operand, axis)
    assert (layer.groups, layer.violating) == (len(violating), sum(violating))
    indices = _apply(steps, np.arange(weight.size).reshape(stored))
    if layer.first is not None:
        groups = indices.reshape(-1, operand.shape[axis] // 4, 4, operand.shape[-1]).transpose(0, 1, 3, 2)
        begins = groups.reshape(-1, 4)[:, 0].tolist()
        bad = [begin for begin, wrong in zip(begins, violating, strict=True) if wrong]
        # the first in the file, which need not be the first that the node sees
        assert np.ravel_multi_index(layer.first, stored) == min(bad)
    if layer.k_axes:
        along = np.moveaxis(indices, axis, -1).reshape(-1, operand.shape[axis])
        places = np.stack(np.unravel_index(along, stored), axis=-1)
        moving = tuple(np.flatnonzero((places != places[:, :1]).any(axis=(0, 1))).tolist())
        assert set(layer.k_axes) <= set(moving)  # a row that a reshape broke may go on in the axis outside


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain") / "model.onnx"


def _write_chain(path: Path, steps: list[tuple[str, tuple[int, ...]]], weight: Array) -> None:
    nodes, name = [], "w"
    shapes = []
    for i, (step, argument) in enumerate(steps):
        if step == "transpose":
            nodes.append(helper.make_node("Transpose", [name], [f"v{i}"], perm=argument))
        else:
            nodes.append(helper.make_node("Reshape", [name, f"shape{i}"], [f"v{i}"]))
            shapes.append(helper.make_tensor(f"shape{i}", TensorProto.INT64, [len(argument)], argument))
        name = f"v{i}"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [tensor, *shapes])
    path.write_bytes(helper.make_model(graph).SerializeToString())


# ---- where layers are


def test_layers_that_share_a_weight_name_each_other(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="two", transB=1),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="three"),
    ]
    weights = {"w": prune_2to4(_random(64, 32), 0), "v": _random(64, 32)}
    one, two, three = _layers(models.save(models.model(nodes, weights, outputs=["y", "z"])))
    assert (one.shared_with, two.shared_with, three.shared_with) == (("two",), ("one",), ())
    assert (one.state, two.state) == (SPARSE, NOT_SPARSE)  # each along its own K


def test_one_tensor_behind_two_zero_points_has_two_patterns(models: Models) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", f"z{i}"], [f"v{i}"]) for i in range(2)] + [
        helper.make_node("MatMul", ["x", f"v{i}"], [f"y{i}"], name=f"mm{i}") for i in range(2)
    ]
    weights = {
        "w": np.full((64, 32), 7, np.int8), "s": np.ones((), np.float32),
        "z0": np.int8(0).reshape(()), "z1": np.int8(7).reshape(()),
    }  # fmt: skip
    first, second = _layers(models.save(models.model(nodes, weights, outputs=["y0", "y1"])))
    assert (first.state, second.state) == (NOT_SPARSE, SPARSE)


def _body(nodes: list[onnx.NodeProto], output: str, inputs: Any = (), weights: Any = ()) -> onnx.GraphProto:
    out = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "body", list(inputs), out, list(weights))


def test_layers_in_branches_with_weights_from_outside_and_inside(models: Models) -> None:
    inside = models.tensor("inner", prune_2to4(_random(64, 32), 0))
    then = _body([helper.make_node("MatMul", ["x", "outer"], ["t"], name="mm")], "t")
    other = _body([helper.make_node("MatMul", ["x", "inner"], ["e"], name="mm")], "e", weights=[inside])
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["x", "outer"], ["z"], name="mm"),
    ]
    weights = {"outer": _random(64, 32), "c": np.array(True)}
    layers = {
        layer.name: layer for layer in _layers(models.save(models.model(nodes, weights, outputs=["y", "z"])))
    }
    assert set(layers) == {"if/then_branch/mm", "if/else_branch/mm", "mm"}
    assert layers["if/then_branch/mm"].state is NOT_SPARSE
    assert layers["if/then_branch/mm"].shared_with == ("mm",)
    assert layers["if/else_branch/mm"].state is SPARSE


def test_layers_in_a_loop(models: Models) -> None:
    def info(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, None)

    nodes = [
        helper.make_node("MatMul", ["state", "w"], ["next"], name="mm"),
        helper.make_node("MatMul", ["x", "state"], ["unused"], name="dynamic"),
        helper.make_node("Identity", ["go"], ["go_on"]),
    ]
    inputs = [info("i", TensorProto.INT64), info("go", TensorProto.BOOL), info("state", TensorProto.FLOAT)]
    outputs = [info("go_on", TensorProto.BOOL), info("next", TensorProto.FLOAT)]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body)
    weights = {"w": _random(64, 64), "n": np.array(3, np.int64)}
    static, dynamic = _layers(models.save(models.model([loop], weights)))
    assert (static.name, static.state) == ("loop/body/mm", NOT_SPARSE)
    assert (dynamic.name, dynamic.state) == ("loop/body/dynamic", NOT_ELIGIBLE)


def test_layers_in_functions_of_the_model(models: Models) -> None:
    function = helper.make_function(
        "mine", "Linear", ["a", "b"], ["c"],
        [
            helper.make_node("Constant", [], ["k"], value=models.tensor("k", prune_2to4(_random(32, 16), 0))),
            helper.make_node("MatMul", ["a", "b"], ["h"], name="outside"),
            helper.make_node("MatMul", ["h", "k"], ["c"], name="inside"),
        ],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Linear", ["x", "w"], ["y"], domain="mine", name="first"),
        helper.make_node("Linear", ["x", "w"], ["z"], domain="mine", name="second"),
    ]
    model = models.model(nodes, {"w": _random(64, 32)}, outputs=["y", "z"], functions=[function])
    layers = _layers(models.save(model))
    assert [(layer.state, layer.weight_shape) for layer in layers] == [
        (NOT_SPARSE, (64, 32)),
        (SPARSE, (32, 16)),
    ] * 2
    assert len({layer.name for layer in layers}) == 4
    assert all(len(layer.shared_with) == 1 for layer in layers)


def test_a_function_that_cannot_be_inlined_is_named(models: Models) -> None:
    wrong = helper.make_node("MatMul", ["a", "b"], ["c"])
    function = helper.make_function("mine", "F", ["a"], ["c"], [wrong], [helper.make_opsetid("", 21)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    with pytest.raises(ModelError, match="a function of the model cannot be inlined: "):
        _layers(models.save(models.model(nodes, functions=[function])))


def test_functions_that_call_each_other_are_refused(models: Models) -> None:
    functions = [
        helper.make_function("mine", a, ["p"], ["q"], [helper.make_node(b, ["p"], ["q"], domain="mine")],
                             [helper.make_opsetid("mine", 1)])
        for a, b in (("F", "G"), ("G", "F"))
    ]  # fmt: skip
    nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    with pytest.raises(ModelError, match="a function of the model cannot be inlined: Cyclic"):
        _layers(models.save(models.model(nodes, functions=functions)))


def test_names_are_unique(models: Models) -> None:
    names = ["mm", "mm#2", "mm", "mm", ""]
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], name=n) for i, n in enumerate(names)]
    path = models.save(models.model(nodes, {"w": _random(64, 32)}, outputs=[f"y{i}" for i in range(5)]))
    assert [layer.name for layer in _layers(path)] == ["mm", "mm#2", "mm#3", "mm#4", "MatMul:y4"]


def test_the_exporters_module_and_kind_are_read(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="node_linear_3")
    scopes = "['', 'model.layers.0', 'model.layers.0.self_attn.q_proj', 'linear']"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    layer = _only(models.save(models.model([node], {"w": _random(64, 64)})))
    assert (layer.module, layer.kind) == ("model.layers.0.self_attn.q_proj", "qkv")


@pytest.mark.parametrize("scopes", ["", "no list", "[", "['only']", "{}", "(" * 500])
def test_metadata_of_another_form_is_no_module(models: Models, scopes: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert _only(models.save(models.model([node], {"w": _random(64, 64)}))).module == ""


def test_unknown_dimensions_stay_unknown(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    layer = _only(models.save(models.model([node], {"w": _random(64, 32)}, {"x": (-1, None, 64)})))
    assert str(layer.m) == "?*?"


def test_progress_ends_at_the_whole(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["y"], transB=1),
        helper.make_node("MatMul", ["x", "odd"], ["z"]),
    ]
    model = models.model(nodes, {"w": _random(64, 32), "odd": _random(66, 3)}, outputs=["y", "z"])
    seen: list[tuple[int, int]] = []
    read_layers(read_model(models.save(model)), lambda done, total: seen.append((done, total)))
    assert seen == [(64 * 32 * 4, 2 * 64 * 32 * 4), (2 * 64 * 32 * 4, 2 * 64 * 32 * 4)]


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([helper.make_node("Transpose", ["w"], ["v"], perm=[0, 5])], "has perm [0, 5] for 2 dimensions"),
        ([helper.make_node("Transpose", ["w"], ["v"], perm="ab")], "is not valid"),
        ([helper.make_node("Reshape", ["w", "huge"], ["v"])], "makes [7, 9] of [64, 32]"),
        ([helper.make_node("Reshape", ["w", "minus"], ["v"])], "makes [-64, -32] of [64, 32]"),
        ([helper.make_node("Unsqueeze", ["w", "twice"], ["v"])], "names an axis twice"),
        ([helper.make_node("Squeeze", ["w", "twice"], ["v"])], "makes [32] of [64, 32]"),
        ([helper.make_node("Constant", [], ["v"])], "must have exactly one attribute"),
        ([helper.make_node("Reshape", ["w", "minus"], ["u"]), helper.make_node("Identity", ["u"], ["v"])],
         "makes [-64, -32]"),
    ],
)  # fmt: skip
def test_impossible_nodes_are_named(models: Models, nodes: list[onnx.NodeProto], says: str) -> None:
    weights = {
        "w": _random(64, 32), "huge": np.array([7, 9], np.int64),
        "minus": np.array([-64, -32], np.int64), "twice": np.array([0, 0], np.int64),
    }  # fmt: skip
    with pytest.raises(ModelError) as caught:
        _chain(models, nodes, weights)
    assert says in caught.value.message
    assert "the MatMul node 'mm' is not valid" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("op", "shape"), [("Gemm", (64,)), ("Gemm", (2, 64, 32)), ("Conv", (8, 8)), ("MatMul", ())]
)
def test_a_weight_of_the_wrong_rank_is_named(models: Models, op: str, shape: tuple[int, ...]) -> None:
    path = models.save(models.model([helper.make_node(op, ["x", "w"], ["y"])], {"w": _random(*shape)}))
    with pytest.raises(
        ModelError, match=f"the {op} node without a name is not valid.*'w' has {len(shape)} dim"
    ):
        _layers(path)


def test_a_model_that_shape_inference_refuses_is_read_quietly(
    models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
        helper.make_node("Concat", ["a", "w"], ["y"], axis=9),
    ]
    layer = _only(models.save(models.model(nodes, {"w": _random(64, 32)})))
    assert (layer.state, str(layer.m)) == (NOT_SPARSE, "batch")
    assert not caplog.records


def test_finding_sites_twice_finds_the_same(models: Models) -> None:
    model = read_model(models.matmul(_random(64, 32)))
    assert [site.name for site in find_sites(model)] == [site.name for site in find_sites(model)]


def test_a_path_of_another_folder_does_not_matter(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.matmul(_random(64, 32))
    with tempfile.TemporaryDirectory() as elsewhere:
        monkeypatch.chdir(elsewhere)
        assert _only(models.folder / "model.onnx").state is NOT_SPARSE
    monkeypatch.chdir(models.folder)
    assert _only(Path("model.onnx")).state is NOT_SPARSE


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
