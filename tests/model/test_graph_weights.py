"""Weights that reach their node through others, and what of the stored tensor their 2:4 state is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import NOT_ELIGIBLE, NOT_SPARSE, SPARSE, layers_of, only_layer, random_weight

if TYPE_CHECKING:
    from tests.conftest import Array, Models, Naive


def _chain(
    models: Models, nodes: list[onnx.NodeProto], weights: dict[str, Any], **more: Any
) -> WeightedLayer:
    """Reads the one MatMul of `x` and `v`, where `nodes` make `v`."""
    last = helper.make_node("MatMul", ["x", "v"], ["y"], name="mm")
    return only_layer(models.save(models.model([*nodes, last], weights, **more)))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "FP32"), (np.float16, "FP16"), (ml_dtypes.bfloat16, "BF16"),
        (ml_dtypes.float8_e4m3fn, "FP8"), (ml_dtypes.float8_e5m2, "FP8-E5M2"),
        (np.int8, "INT8"), (np.uint8, "UINT8"),
    ],
)  # fmt: skip
def test_types(models: Models, dtype: Any, name: str) -> None:
    weight = (np.abs(random_weight(64, 32)) * 20 + 1).astype(dtype)
    assert np.all(weight.astype(np.float32) != 0)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["v"])]
    if weight.dtype.itemsize > 1:
        nodes = [helper.make_node("Identity", ["w"], ["v"])]
    scale = {"s": np.float32(1).reshape(())} if weight.dtype.itemsize == 1 else {}
    dense = _chain(models, nodes, {"w": weight, **scale})
    assert (dense.dtype, dense.state, dense.violating) == (name, NOT_SPARSE, 512)
    sparse = _chain(models, nodes, {"w": prune_2to4(weight, 0), **scale})
    assert (sparse.dtype, sparse.state) == (name, SPARSE)


@pytest.mark.parametrize(
    ("stored", "to", "dtype", "state"),
    [
        (ml_dtypes.bfloat16, TensorProto.FLOAT, "FP32", SPARSE),
        (np.float32, TensorProto.FLOAT16, "FP16", SPARSE),
        (np.float64, TensorProto.FLOAT, "FP32", SPARSE),
        (np.int8, TensorProto.FLOAT, "FP32", SPARSE),
        (np.float32, TensorProto.DOUBLE, "FP64", NOT_ELIGIBLE),
        (np.int32, TensorProto.FLOAT, "FP32", NOT_ELIGIBLE),
    ],
)
def test_a_weight_that_is_cast_is_multiplied_as_what_it_is_cast_to(
    stored: Any, to: int, dtype: str, state: SparsityState, models: Models
) -> None:
    weight = prune_2to4(np.round(random_weight(64, 32) * 20), 0).astype(stored)
    layer = _chain(models, [helper.make_node("Cast", ["w"], ["v"], to=to)], {"w": weight})
    assert (layer.dtype, layer.state) == (dtype, state)


def test_a_weight_that_is_dequantized_and_cast_is_what_it_is_stored_as(models: Models) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("Cast", ["f"], ["v"], to=TensorProto.FLOAT16),
    ]
    weights = {"w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32)}
    assert _chain(models, nodes, weights, dtype=TensorProto.FLOAT16).dtype == "INT8"


def test_through_constant_identity_and_casts(models: Models) -> None:
    weight = prune_2to4(random_weight(64, 32), 0)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=models.tensor("value", weight)),
        helper.make_node("Identity", ["c"], ["i"]),
        helper.make_node("Cast", ["i"], ["v"], to=TensorProto.FLOAT),
    ]
    layer = _chain(models, nodes, {})
    assert (layer.weight, layer.state, layer.weight_shape) == ("c", SPARSE, (64, 32))


def test_through_transpose(models: Models) -> None:
    weight = prune_2to4(random_weight(32, 64), 1)
    choices: list[dict[str, Any]] = [{}, {"perm": [1, 0]}]
    for attributes in choices:
        layer = _chain(models, [helper.make_node("Transpose", ["w"], ["v"], **attributes)], {"w": weight})
        assert (layer.k_axes, layer.n, layer.k, layer.state) == ((1,), 32, 64, SPARSE)


def test_through_reshape(models: Models) -> None:
    weight = prune_2to4(random_weight(2, 32, 32), 1)
    nodes = [helper.make_node("Reshape", ["w", "shape"], ["v"])]
    layer = _chain(models, nodes, {"w": weight, "shape": np.array([-1, 0], np.int64)}, opset=13)
    assert (layer.n, layer.k, layer.k_axes, layer.state) == (32, 64, (0, 1), SPARSE)


def test_through_squeeze_unsqueeze_and_flatten(models: Models) -> None:
    weight = prune_2to4(random_weight(1, 64, 32), 1)
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
        weight = prune_2to4(random_weight(64, 32), 0).reshape(shape)
        layer = _chain(models, nodes, {"w": weight, "shape": np.array([64, 32], np.int64)})
        assert layer.state is SPARSE
        assert layer.k_axes == ((0,) if len(shape) == 1 else (0, 1))


def test_a_reshape_behind_a_transpose_has_no_place_in_the_file(models: Models) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["v"]),
    ]
    layer = _chain(models, nodes, {"w": random_weight(32, 64), "shape": np.array([64, 32], np.int64)})
    assert (layer.k_axes, layer.state) == ((1,), NOT_SPARSE)  # reshaped to what it was
    layer = _chain(models, nodes, {"w": random_weight(16, 128), "shape": np.array([64, 32], np.int64)})
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
    layer = _chain(models, nodes, {"w": prune_2to4(random_weight(64, 32), 0), **more})
    assert (layer.state, layer.dtype) == (SPARSE, "UINT8")
    assert _chain(models, nodes, {"w": random_weight(64, 32), **more}).state is NOT_SPARSE


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
    layer = _chain(models, nodes, {"w": prune_2to4(random_weight(64, 32), 0), **more})
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
    layer = _chain(models, nodes, {"w": random_weight(64, 32)})
    assert layer.reason == "dynamic weight: computed by Transpose 'mine'"
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["v"], domain="com.microsoft")]
    layer = _chain(models, nodes, {"w": np.ones((64, 32), np.int8), "s": np.ones((), np.float32)})
    assert layer.state is NOT_SPARSE
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine")
    assert layers_of(models.save(models.model([node], {"w": random_weight(64, 32)}))) == ()


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
    k = draw(st.sampled_from([d for d in range(16, size + 1, 4) if size % d == 0]))
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
    layer = only_layer(chain_file)
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


def test_layers_that_share_a_weight_name_each_other(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="two", transB=1),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="three"),
    ]
    weights = {"w": prune_2to4(random_weight(64, 32), 0), "v": random_weight(64, 32)}
    one, two, three = layers_of(models.save(models.model(nodes, weights, outputs=["y", "z"])))
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
    first, second = layers_of(models.save(models.model(nodes, weights, outputs=["y0", "y1"])))
    assert (first.state, second.state) == (NOT_SPARSE, SPARSE)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([helper.make_node("Transpose", ["w"], ["v"], perm=[0, 5])], "has perm [0, 5] for 2 dimensions"),
        ([helper.make_node("Transpose", ["w"], ["v"], perm="ab")], "is not valid"),
        ([helper.make_node("Reshape", ["w", "huge"], ["v"])], "turns [64, 32] into [7, 9]"),
        ([helper.make_node("Reshape", ["w", "minus"], ["v"])], "turns [64, 32] into [-64, -32]"),
        ([helper.make_node("Unsqueeze", ["w", "twice"], ["v"])], "names an axis twice"),
        ([helper.make_node("Squeeze", ["w", "twice"], ["v"])], "turns [64, 32] into [32]"),
        ([helper.make_node("Constant", [], ["v"])], "must have exactly one attribute"),
        ([helper.make_node("Reshape", ["w", "minus"], ["u"]), helper.make_node("Identity", ["u"], ["v"])],
         "into [-64, -32]"),
    ],
)  # fmt: skip
def test_impossible_nodes_are_named(models: Models, nodes: list[onnx.NodeProto], says: str) -> None:
    weights = {
        "w": random_weight(64, 32), "huge": np.array([7, 9], np.int64),
        "minus": np.array([-64, -32], np.int64), "twice": np.array([0, 0], np.int64),
    }  # fmt: skip
    with pytest.raises(ModelError) as caught:
        _chain(models, nodes, weights)
    assert says in caught.value.message
    assert "the MatMul node 'mm' is not valid" in caught.value.message
    assert caught.value.hint
