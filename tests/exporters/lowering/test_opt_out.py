"""One element takes a layer out of sparse kernels, costs nothing, and can be put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from sparseflow_trt.artifacts.graph_record import OptOutRecord
from sparseflow_trt.errors import ModelError, PlanError
from sparseflow_trt.exporters.lowering.opt_out import begins_2to4, opt_out, put_back
from sparseflow_trt.exporters.retyping.retype import retype
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, read_layers
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.scan import WeightReader
from sparseflow_trt.model.sites import find_sites
from tests.graphs import in_module

Array = npt.NDArray[Any]
node = helper.make_node
_TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN, "float8_e5m2": TensorProto.FLOAT8E5M2,
    "int8": TensorProto.INT8, "int64": TensorProto.INT64,
}  # fmt: skip
_HALF_STEP = 2.0**-24


def _weight(*shape: int, k_axis: int = 0, kind: Any = np.float16, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) / 8
    return prune_2to4(values.astype(kind), k_axis)


def _save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    kind: int = TensorProto.FLOAT16,
    shape: Sequence[Any] = ("n", 32),
    outputs: Sequence[str] = ("y",),
) -> Path:
    """Saves a model; its large weights lie beside it."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [
            helper.make_tensor(
                name, _TYPES[w.dtype.name], w.shape, np.ascontiguousarray(w).tobytes(), raw=True
            )
            for name, w in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=512)
    return path


def _saved(model: OnnxModel, path: Path) -> Path:
    save_model(model.ir, path)
    return path


def _layers(path: Path) -> dict[str, WeightedLayer]:
    return {layer.name: layer for layer in read_layers(read_model(path))}


def _bytes(path: Path) -> dict[str, bytes]:
    tensors: dict[str, bytes] = {}
    for value in read_model(path).ir.graph.initializers.values():
        assert value.const_value is not None and value.name
        tensors[value.name] = value.const_value.tobytes()
    return tensors


def _mlp(folder: Path, kind: Any = np.float16) -> Path:
    nodes = [
        node("MatMul", ["x", "w1"], ["h"], name="up"), node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w2"], ["g"], name="mid", transB=1), node("Relu", ["g"], ["s"]),
        node("MatMul", ["s", "w3"], ["y"], name="down"),
    ]  # fmt: skip
    weights = {
        "w1": _weight(32, 64, kind=kind), "w2": _weight(48, 64, k_axis=1, kind=kind),
        "w3": _weight(48, 16, kind=kind, seed=3),
    }  # fmt: skip
    return _save(folder, nodes, weights, _TYPES[np.dtype(kind).name])


def _check_there_and_back(path: Path, names: set[str]) -> tuple[OptOutRecord, ...]:
    """Opts layers out, saves, reads and puts back; gives the records."""
    before, model = _layers(path), read_model(path)
    records = opt_out(model, names)
    out = _saved(model, path.parent / "out.onnx")
    for name, layer in _layers(out).items():
        if name in names:
            assert (layer.state, layer.violating) == (SparsityState.NOT_SPARSE, 1), name
        else:
            assert layer == before[name]
    read = read_model(out)
    put_back(read, records)
    assert _bytes(_saved(read, path.parent / "back.onnx")) == _bytes(path)
    assert _layers(path.parent / "back.onnx") == before
    return records


@pytest.mark.parametrize(
    ("kind", "value"),
    [(np.float16, _HALF_STEP), (np.float32, _HALF_STEP), (ml_dtypes.bfloat16, 2.0**-126)],
    ids=["fp16", "fp32", "bf16"],
)
def test_one_element_there_and_back(kind: Any, value: float, tmp_path: Path) -> None:
    path = _mlp(tmp_path, kind)
    stored = {"up": _weight(32, 64, kind=kind), "mid": _weight(48, 64, k_axis=1, kind=kind)}
    records = _check_there_and_back(path, {"up", "mid"})
    assert [(r.layer, r.weight, r.route) for r in records] == [
        ("up", "w1", "element"),
        ("mid", "w2", "element"),
    ]
    for record in records:
        assert stored[record.layer][record.index] == 0
        new = np.array(record.new_bits, f"u{np.dtype(kind).itemsize}").view(kind)
        assert float(new) == value
        assert f"{value:g}" in record.reason


def test_an_fp32_weight_is_broken_after_a_conversion_too(tmp_path: Path) -> None:
    model = read_model(_mlp(tmp_path, np.float32))
    opt_out(model, {"up"})
    out = _saved(model, tmp_path / "out.onnx")
    model = read_model(out)
    retype(model.ir, lambda _: ir.DataType.FLOAT16)
    up = _layers(_saved(model, tmp_path / "half.onnx"))["up"]
    assert (up.dtype, up.violating) == ("FP16", 1)


def test_the_typed_model_in_memory(tmp_path: Path) -> None:
    path = _mlp(tmp_path, np.float32)
    model = read_model(path)
    retype(model.ir, lambda _: ir.DataType.FLOAT16)
    records = opt_out(model, {"down"})
    layers = _layers(_saved(model, tmp_path / "out.onnx"))
    assert [(r.dtype, r.weight) for r in records] == [("FP16", "w3")]
    assert {name: layer.violating for name, layer in layers.items()} == {"up": 0, "mid": 0, "down": 1}
    put_back(model, records)
    assert not any(layer.violating for layer in _layers(_saved(model, tmp_path / "back.onnx")).values())


def test_weights_are_not_loaded(tmp_path: Path) -> None:
    model = read_model(_mlp(tmp_path))
    given_tensors = {name: value.const_value for name, value in model.ir.graph.initializers.items()}
    opt_out(model, {"up"})
    for name, value in model.ir.graph.initializers.items():
        if name == "w1":
            assert isinstance(value.const_value, ir.LazyTensor) and not value.const_value.cache
        else:
            assert value.const_value is given_tensors[name]
            assert isinstance(value.const_value, ir.ExternalTensor)


def test_the_effect_is_far_below_rounding(tmp_path: Path) -> None:
    path = _mlp(tmp_path)
    x = np.random.default_rng(7).standard_normal((64, 32)).astype(np.float16)

    def run(file: Path, feed: Array) -> Array:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": feed})[0], np.float64)

    model = read_model(path)
    retype(model.ir, lambda _: ir.DataType.FLOAT, keep_outputs=False)
    for value in model.ir.graph.inputs:
        value.dtype = ir.DataType.FLOAT
    for made in tuple(model.ir.graph):  # the input's cast, which has nothing to do now
        if made.op_type == "Cast":
            made.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    reference = run(_saved(model, tmp_path / "fp32.onnx"), x.astype(np.float32))
    model = read_model(path)
    assert len(opt_out(model, {"up", "mid", "down"})) == 3
    given_out, opted_out = run(path, x), run(_saved(model, tmp_path / "out.onnx"), x)
    rounding = np.linalg.norm(given_out - reference) / np.linalg.norm(reference)
    effect = np.linalg.norm(opted_out - given_out) / np.linalg.norm(reference)
    assert 1e-5 < rounding < 2e-3
    assert effect < rounding / 20

    # and in exact arithmetic, layer by layer: the change against half a unit in the last place of the sum
    for name in ("w1", "w3"):
        before = model.ir.graph.initializers[name].const_value
        old = _weight(32, 64) if name == "w1" else _weight(48, 16, seed=3)
        assert before is not None
        change = np.abs(before.numpy().astype(np.float64) - old.astype(np.float64))
        assert change.sum() == _HALF_STEP
        assert 2.0**-11 * np.abs(old).max() >= _HALF_STEP


# Layouts


def _one(
    folder: Path, op: onnx.NodeProto, weight: Array, *above: onnx.NodeProto, shape: Sequence[Any] = ("n", 32),
    **more: Array,
) -> Path:  # fmt: skip
    return _save(folder, [*above, op], {"w": weight} | more, shape=shape)


def test_a_weight_on_the_left(tmp_path: Path) -> None:
    _check_there_and_back(
        _one(
            tmp_path, node("MatMul", ["w", "x"], ["y"], name="l"), _weight(8, 32, k_axis=1), shape=(32, "n")
        ),
        {"l"},
    )


def test_batches_of_weights(tmp_path: Path) -> None:
    path = _one(
        tmp_path,
        node("MatMul", ["x", "w"], ["y"], name="l"),
        _weight(3, 32, 16, k_axis=1),
        shape=(3, "n", 32),
    )
    (record,) = _check_there_and_back(path, {"l"})
    assert len(record.index) == 3


def test_conv_along_its_input_channels(tmp_path: Path) -> None:
    conv = node("Conv", ["x", "w"], ["y"], name="l")
    _check_there_and_back(_one(tmp_path, conv, _weight(8, 16, 3, 3, k_axis=1), shape=("n", 16, 8, 8)), {"l"})


def test_behind_transpose(tmp_path: Path) -> None:
    path = _one(
        tmp_path,
        node("MatMul", ["x", "t"], ["y"], name="l"),
        _weight(64, 32, k_axis=1),
        node("Transpose", ["w"], ["t"]),
    )
    _check_there_and_back(path, {"l"})


def test_behind_a_reshape_of_a_transpose(tmp_path: Path) -> None:
    operand = _weight(32, 24)
    stored = operand.reshape(4, 8, 24).transpose(1, 0, 2).copy()  # no view of it is the operand
    path = _one(
        tmp_path, node("MatMul", ["x", "r"], ["y"], name="l"), stored,
        node("Transpose", ["w"], ["t"], perm=[1, 0, 2]), node("Reshape", ["t", "s"], ["r"]),
        s=np.array([32, 24]),
    )  # fmt: skip
    (record,) = _check_there_and_back(path, {"l"})
    assert stored[record.index] == 0


@pytest.mark.parametrize("listed", [True, False], ids=["numbers", "tensor"])
def test_constant_nodes(listed: bool, tmp_path: Path) -> None:
    weight = _weight(32, 1, kind=np.float32)
    nodes = [node("Reshape", ["c", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"], name="l")]
    if listed:
        constant = node("Constant", [], ["c"], value_floats=weight.reshape(-1).tolist())
    else:
        tensor = helper.make_tensor("c", TensorProto.FLOAT, [32], weight.tobytes(), raw=True)
        constant = node("Constant", [], ["c"], value=tensor)
    path = _save(tmp_path, [constant, *nodes], {"s": np.array([32, 1])}, TensorProto.FLOAT)
    _check_there_and_back(path, {"l"})


def test_in_a_subgraph(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("t", TensorProto.FLOAT16, ["n", 16])]
    then = helper.make_graph([node("MatMul", ["x", "w"], ["t"], name="mm")], "then", [], out)
    out = [helper.make_tensor_value_info("e", TensorProto.FLOAT16, ["n", 16])]
    other = helper.make_graph([node("MatMul", ["x", "v"], ["e"], name="mm")], "else", [], out)
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Cast", ["m"], ["flag"], to=TensorProto.BOOL),
        node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other),
    ]
    path = _save(tmp_path, nodes, {"w": _weight(32, 16), "v": _weight(32, 16, seed=1)})
    _check_there_and_back(path, {"if/else_branch/mm"})


_SIZES = st.tuples(st.sampled_from([16, 32, 48]), st.integers(1, 9))


@given(hnp.arrays(np.float16, _SIZES, elements=st.floats(-4, 4, width=16)), st.booleans())
@settings(max_examples=40)
def test_any_weight_has_one_violating_group_or_none(values: Array, transposed: bool) -> None:
    weight = prune_2to4(values, 0)
    per_group = np.count_nonzero(weight.reshape(len(weight) // 4, 4, -1), axis=1)
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    op = node("Gemm", ["x", "w"], ["y"], name="l", transB=int(transposed))
    with TemporaryDirectory() as folder:
        path = _one(Path(folder), op, stored, shape=("n", len(weight)))
        model = read_model(path)
        (record,) = opt_out(model, {"l"})
        layer = _layers(_saved(model, Path(folder) / "out.onnx"))["l"]
    assert layer.violating == (record.route == "element")
    if record.route == "element":
        assert stored[record.index] == 0
    elif (per_group == 2).any():
        assert "too small" in record.reason


# What cannot be taken out


def _none(path: Path, names: set[str]) -> str:
    """Opts out what cannot be; nothing may change. Gives the reasons."""
    model = read_model(path)
    records = opt_out(model, names)
    assert {record.route for record in records} == {"none"}
    assert {record.layer for record in records} == names
    assert _bytes(_saved(model, path.parent / "out.onnx")) == _bytes(path)
    put_back(model, records)
    return "; ".join(record.reason for record in records)


def _quantized(folder: Path, weight: Array, kind: int) -> Path:
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], ["d"], name="dq"),
        node("MatMul", ["x", "d"], ["y"], name="l"),
    ]
    zero = np.zeros((), weight.dtype)
    return _save(folder, nodes, {"w": weight, "s": np.array(0.01, np.float32), "z": zero}, kind, ("n", 64))


def test_int8_has_no_value_small_enough(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-127, 128, (64, 16)).astype(np.int8)
    path = _quantized(tmp_path, prune_2to4(values, 0), TensorProto.FLOAT)
    assert "INT8 weights have no value" in _none(path, {"l"})


@pytest.mark.parametrize(
    ("kind", "value"),
    [(ml_dtypes.float8_e4m3fn, 2.0**-9), (ml_dtypes.float8_e5m2, 2.0**-16)],
    ids=["e4m3", "e5m2"],
)
def test_fp8_has_one_where_weights_fill_its_range(kind: Any, value: float, tmp_path: Path) -> None:
    weight = prune_2to4((_weight(64, 16, kind=np.float32) * 400).astype(kind), 0)
    (record,) = _check_there_and_back(_quantized(tmp_path, weight, TensorProto.FLOAT), {"l"})
    assert float(np.array(record.new_bits, np.uint8).view(kind)) == value


def test_fp8_weights_that_do_not_fill_it_stay(tmp_path: Path) -> None:
    weight = prune_2to4((_weight(64, 16, kind=np.float32) / 32).astype(ml_dtypes.float8_e4m3fn), 0)
    assert "too small" in _none(_quantized(tmp_path, weight, TensorProto.FLOAT), {"l"})


def test_a_weight_that_the_graph_quantizes(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["x", "d"], ["y"], name="l"),
    ]
    weights: dict[str, Array] = {"w": _weight(32, 16, kind=np.float32)}
    weights |= {"s": np.array(0.01, np.float32), "z": np.array(0, np.int8)}
    path = _save(tmp_path, nodes, weights, TensorProto.FLOAT)
    assert "is quantized in the graph" in _none(path, {"l"})


def test_bf16_that_the_graph_casts_takes_what_survives_that(tmp_path: Path) -> None:
    weight = _weight(32, 16, kind=ml_dtypes.bfloat16)
    cast = node("Cast", ["w"], ["c"], to=TensorProto.FLOAT16)
    path = _one(tmp_path, node("MatMul", ["x", "c"], ["y"], name="l"), weight, cast)
    (record,) = _check_there_and_back(path, {"l"})
    assert float(np.array(record.new_bits, np.uint16).view(ml_dtypes.bfloat16)) == _HALF_STEP


def test_weights_as_small_as_the_smallest_number(tmp_path: Path) -> None:
    tiny = _weight(32, 16) * np.float16(2**-14)
    assert "too small for 5.96046e-08" in _none(
        _one(tmp_path, node("MatMul", ["x", "w"], ["y"], name="l"), tiny), {"l"}
    )


def test_a_weight_with_no_full_group(tmp_path: Path) -> None:
    weight = _weight(32, 16)
    weight.reshape(8, 4, 16)[:, 1:] = 0
    assert "no group of four" in _none(
        _one(tmp_path, node("MatMul", ["x", "w"], ["y"], name="l"), weight), {"l"}
    )


def test_infinities_say_nothing_about_size(tmp_path: Path) -> None:
    weight = _weight(32, 16)
    weight[0, 0], weight[1:4, 0] = np.inf, [1, 0, 0]
    (record,) = _check_there_and_back(
        _one(tmp_path, node("MatMul", ["x", "w"], ["y"], name="l"), weight), {"l"}
    )
    assert not (record.index[0] < 4 and record.index[1] == 0)


def test_layers_that_cannot_be_sparse_anyway(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="odd"),
        node("MatMul", ["h", "h2"], ["y"], name="dynamic"),
    ]
    nodes.insert(1, node("Transpose", ["h"], ["h2"]))
    path = _save(tmp_path, nodes, {"w": _weight(32, 6)[:30]}, shape=("n", 30))
    reasons = _none(path, {"odd", "dynamic"})
    assert "not a multiple of 4" in reasons and "computed by MatMul 'odd'" in reasons


# Weights that layers share


def _shared(folder: Path, second: onnx.NodeProto, weight: Array) -> Path:
    first = in_module(node("MatMul", ["x", "w"], ["h"], name="a"), "layers.0.up")
    nodes = [first, node("Relu", ["h"], ["r"]), second]
    return _save(folder, nodes, {"w": weight})


def test_shared_with_a_layer_that_stays_sparse(tmp_path: Path) -> None:
    path = _shared(tmp_path, node("MatMul", ["r", "w"], ["y"], name="b"), _weight(32, 32))
    assert "shared with 'b', which is 2:4" in _none(path, {"a"})
    assert "shared with 'layers.0.up', which is 2:4" in _none(path, {"b"})


def test_shared_by_layers_that_all_go_dense(tmp_path: Path) -> None:
    path = _shared(tmp_path, node("MatMul", ["r", "w"], ["y"], name="b"), _weight(32, 32))
    first, second = _check_there_and_back(path, {"a", "b"})
    assert (first.index, first.old_bits, first.new_bits) == (second.index, second.old_bits, second.new_bits)
    assert second.reason == "by the element changed for 'layers.0.up'"


def test_shared_along_the_other_axis(tmp_path: Path) -> None:
    path = _shared(tmp_path, node("Gemm", ["r", "w"], ["y"], name="b", transB=1), _weight(32, 32))
    model = read_model(path)
    assert [r.route for r in opt_out(model, {"a"})] == ["element"]  # b is not 2:4, whatever a's weight is
    both = prune_2to4(prune_2to4(_weight(32, 32), 1), 0)
    path = _shared(tmp_path, node("Gemm", ["r", "w"], ["y"], name="b", transB=1), both)
    assert _layers(path)["b"].state is SparsityState.SPARSE
    records = opt_out(read_model(path), {"a", "b"})
    assert [r.route for r in records] == ["element", "none"]
    assert "changed for 'layers.0.up', whose K lies on another axis" in records[1].reason


# Weights that are not 2:4 but begin so


@pytest.mark.parametrize(("kind", "passes"), [("float16", True), ("float32", True), ("int8", False)])
def test_a_weight_that_begins_2to4_is_told_and_has_a_place(tmp_path: Path, kind: str, passes: bool) -> None:
    weight = _weight(32, 32, kind=np.float32) * 64
    weight[8:16, 5] = 2.0  # two groups that are full
    model = read_model(_save(tmp_path, [node("MatMul", ["x", "w"], ["y"], name="a")],
                             {"w": weight.astype(kind)}, _TYPES[kind]))  # fmt: skip
    (site,) = find_sites(model)
    with WeightReader() as reader:
        assert begins_2to4(reader, site) == passes
    if passes:
        (record,) = opt_out(model, {"a"})
        assert (record.route, record.index[0] // 4, record.index[1]) == ("element", 0, 0)


def test_a_weight_whose_first_group_is_full_does_not_begin_2to4(tmp_path: Path) -> None:
    weight = _weight(32, 32)
    weight[:4, 0] = 1.0
    (site,) = find_sites(read_model(_save(tmp_path, [node("MatMul", ["x", "w"], ["y"])], {"w": weight})))
    with WeightReader() as reader:
        assert not begins_2to4(reader, site)


# Names and records that do not fit


def test_a_name_that_is_no_layer(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no layer is named nowhere"):
        opt_out(read_model(_mlp(tmp_path)), {"up", "nowhere"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "gone"}, "of layer 'gone' is gone"),
        ({"dtype": "BF16"}, "is gone"),
        ({"new_bits": 7}, "holds 0x1 at .*, not 0x7"),
        ({"index": (4096, 0)}, r"is of shape \[32, 64\]"),
        ({"index": (1,)}, r"is of shape \[32, 64\]"),
    ],
)
def test_a_record_of_another_model(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = read_model(_mlp(tmp_path))
    (record,) = opt_out(model, {"up"})
    with pytest.raises(ModelError, match=message):
        put_back(model, [record.model_copy(update=changes)])
    put_back(model, [record])
    with pytest.raises(ModelError, match="holds 0x0"):
        put_back(model, [record])
