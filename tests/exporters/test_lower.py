"""Opset 17 for parsers that read no newer one: valid ONNX, and the same outputs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.lower import Lowered, lower_to_opset17
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.graph import read_layers
from sparseflow_trt.model_file import read_model

Array = npt.NDArray[Any]
F32, F16, BF16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64
node = helper.make_node

# Python 3.10's last ONNX Runtime, 1.23, fails on models that are compared with here, before they are lowered:
# a reduction over nothing, Resize with axes, FP16 scales (another result), and much of opset 23 and later.
_OLD_RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 31)
runs_as_given = pytest.mark.skipif(_OLD_RUNTIME, reason="this ONNX Runtime does not run the model as given")


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Any]],
    opset: int = 20,
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    out: int = F32,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
        [helper.make_tensor_value_info(name, out, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _lower(model: onnx.ModelProto, folder: Path) -> tuple[Lowered, Path, Path]:
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    read = read_model(before)
    lowered = lower_to_opset17(read.ir)
    save_model(read.ir, after)
    onnx.checker.check_model(str(after), full_check=True)
    assert read_model(after).opset == 17
    return lowered, before, after


def _run(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def _same(
    model: onnx.ModelProto, feeds: Mapping[str, Array], folder: Path, tolerance: float = 1e-5
) -> tuple[Lowered, onnx.ModelProto]:
    """Lowers a model, and checks that it is valid ONNX and has the same outputs."""
    lowered, before, after = _lower(model, folder)
    for expected, got in zip(_run(before, feeds), _run(after, feeds), strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        wide = np.asarray(expected, np.float64)
        np.testing.assert_allclose(np.asarray(got, np.float64), wide, tolerance, tolerance)
    return lowered, onnx.load(after)


def _numbers(*shape: int, kind: Any = np.float32) -> Array:
    values = np.random.default_rng(zlib.crc32(repr(shape).encode())).standard_normal(shape)
    return np.asarray(values, kind)


def _types(model: onnx.ModelProto) -> set[int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


# Gelu


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("kind", "tolerance"), [(np.float32, 1e-6), (np.float16, 2e-3)])
def test_gelu_is_written_in_its_own_type(
    approximate: str, kind: Any, tolerance: float, tmp_path: Path
) -> None:
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    gelu = node("Gelu", ["x"], ["y"], name="act", approximate=approximate)
    gelu.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'mlp', 'mlp.act']")
    x = np.linspace(-6, 6, 64, dtype=kind).reshape(8, 8)
    lowered, after = _same(
        _model([gelu], {"x": (onnx_type, ["n", 8])}, out=onnx_type), {"x": x}, tmp_path, tolerance
    )
    assert lowered == Lowered(20, {"Gelu": 1})
    assert _types(after) == {onnx_type}
    assert [n.op_type for n in after.graph.node if n.name == "act"] == [after.graph.node[0].op_type]
    assert all(n.metadata_props[0].value == "['', 'mlp', 'mlp.act']" for n in after.graph.node)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_large_half_numbers_is_finite(approximate: str, tmp_path: Path) -> None:
    x = np.array([-65504, -40000, -100, 100, 40000, 65504], np.float16)
    model = _model([node("Gelu", ["x"], ["y"], approximate=approximate)], {"x": (F16, [6])}, out=F16)
    _, _, after = _lower(model, tmp_path)
    np.testing.assert_array_equal(_run(after, {"x": x})[0], np.maximum(x, 0))


def test_gelu_in_bf16_stays_bf16(tmp_path: Path) -> None:
    _, _, after = _lower(_model([node("Gelu", ["x"], ["y"])], {"x": (BF16, [4])}, out=BF16), tmp_path)
    assert _types(onnx.load(after)) == {BF16}


# Reductions, Split, Pad, Resize, Cast


@given(
    st.sampled_from(["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]),
    st.none() | st.lists(st.integers(-3, 2), max_size=3, unique_by=lambda a: a % 3),
    st.sampled_from([0, 1]),
    st.none() | st.sampled_from([0, 1]),
    st.booleans(),
    st.sampled_from([18, 20, 23]),
)
@settings(max_examples=60)
def test_reductions(
    op: str, axes: list[int] | None, keep: int, noop: int | None, inside: bool, opset: int
) -> None:
    assume(not (_OLD_RUNTIME and noop and not axes))
    attributes: dict[str, Any] = {"keepdims": keep} | ({} if noop is None else {"noop_with_empty_axes": noop})
    nodes = [node(f"Reduce{op}", ["x", "axes"] if axes is not None else ["x"], ["y"], name="r", **attributes)]
    values = {"axes": np.array(axes or [], np.int64)} if axes is not None else {}
    if inside and axes is not None:
        nodes.insert(0, node("Constant", [], ["axes"], value=numpy_helper.from_array(values.pop("axes"))))
    with TemporaryDirectory() as folder:
        _, after = _same(
            _model(nodes, {"x": (F32, ["a", 3, 4])}, opset, values),
            {"x": np.abs(_numbers(2, 3, 4))},
            Path(folder),
        )
    assert len(after.graph.initializer) <= 1  # the axis of what is reduced over nothing


@given(st.integers(1, 12), st.integers(1, 6), st.sampled_from([0, 1, -1]))
@settings(max_examples=25)
def test_split_in_parts(size: int, parts: int, axis: int) -> None:
    if size - -(-size // parts) * (parts - 1) < 1:  # no parts of one size and a smaller, last one
        return
    shape = [size, 3] if axis == 0 else [3, size]
    names = [f"y{i}" for i in range(parts)]
    nodes = [node("Split", ["x"], names, axis=axis, num_outputs=parts)]
    with TemporaryDirectory() as folder:
        model = _model(nodes, {"x": (F32, shape)}, outputs=names)
        _same(model, {"x": _numbers(*shape)}, Path(folder))


def test_split_by_sizes_and_whole(tmp_path: Path) -> None:
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        node("Split", ["a"], ["c"], axis=0, num_outputs=1),
    ]
    model = _model(nodes, {"x": (F32, ["n", 5])}, constants={"sizes": np.array([2, 3])}, outputs=("b", "c"))
    lowered, _ = _same(model, {"x": _numbers(3, 5)}, tmp_path)
    assert lowered.replaced == {"Split": 1}


@given(
    st.lists(st.integers(-3, 2), max_size=3, unique_by=lambda a: a % 3), st.sampled_from(["constant", "edge"])
)
@settings(max_examples=20)
def test_pad_of_some_axes(axes: list[int], mode: str) -> None:
    constants = {"pads": np.arange(2 * len(axes)), "axes": np.array(axes, np.int64), "c": np.float32(7)}
    nodes = [node("Pad", ["x", "pads", "c" if mode == "constant" else "", "axes"], ["y"], mode=mode)]
    with TemporaryDirectory() as folder:
        model = _model(
            nodes, {"x": (F32, ["n", 3, 4])}, constants={k: np.asarray(v) for k, v in constants.items()}
        )
        _same(model, {"x": _numbers(2, 3, 4)}, Path(folder))


@runs_as_given
def test_resize_with_what_is_the_default(tmp_path: Path) -> None:
    attributes: dict[str, Any] = {
        "antialias": 0,
        "keep_aspect_ratio_policy": "stretch",
        "axes": [0, 1, -2, -1],
    }
    resize = node("Resize", ["x", "", "scales"], ["y"], mode="linear", **attributes)
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    lowered, after = _same(
        _model([resize], {"x": (F32, [1, 2, 3, 3])}, 19, constants), {"x": _numbers(1, 2, 3, 3)}, tmp_path
    )
    assert lowered.replaced == {"Resize": 1}
    assert [a.name for a in after.graph.node[0].attribute] == ["mode"]


def test_attributes_that_only_later_types_need(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=F16, saturate=1),
        node("Cast", ["h"], ["w"], to=F32),
        node("AveragePool", ["w"], ["y"], kernel_shape=[2, 2], dilations=[1, 1]),
    ]
    lowered, _ = _same(_model(nodes, {"x": (F32, [1, 2, 4, 4])}), {"x": _numbers(1, 2, 4, 4)}, tmp_path)
    assert lowered.replaced == {"Cast": 1, "AveragePool": 1}


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest", ""])
def test_grid_sample_has_other_names_for_its_modes(mode: str, tmp_path: Path) -> None:
    attributes = {"mode": mode} if mode else {}
    model = _model(
        [node("GridSample", ["x", "grid"], ["y"], **attributes)],
        {"x": (F32, [1, 2, 4, 4]), "grid": (F32, [1, 3, 3, 2])},
    )
    feeds = {"x": _numbers(1, 2, 4, 4), "grid": np.tanh(_numbers(1, 3, 3, 2))}
    _same(model, feeds, tmp_path)


# Quantized models


@runs_as_given
def test_half_scales_become_single(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "sx", "zx"], ["d"], name="dq"),
        node("DequantizeLinear", ["w", "sw"], ["dw"], axis=1, name="dw"),
        node("MatMul", ["d", "dw"], ["y"], name="mm"),
    ]
    w = np.random.default_rng(0).integers(-127, 128, (32, 8)).astype(np.int8)
    w[2::4] = w[3::4] = 0
    constants: dict[str, Array] = {
        "sx": np.array(0.02, np.float16), "zx": np.array(0, np.int8), "w": w,
        "sw": np.linspace(0.001, 0.01, 8).astype(np.float16),
    }  # fmt: skip
    model = _model(nodes, {"x": (F16, ["n", 32])}, 21, constants, out=F16)
    lowered, after = _same(model, {"x": _numbers(4, 32, kind=np.float16)}, tmp_path, 1e-3)
    assert lowered.replaced == {"QuantizeLinear": 1, "DequantizeLinear": 2}
    scales = [i for i in after.graph.initializer if "scale" in i.name]
    assert scales and {i.data_type for i in scales} == {F32}
    (layer,) = read_layers(read_model(tmp_path / "after.onnx"))
    assert (layer.name, layer.dtype, layer.state.value) == ("mm", "INT8", "sparse")


def test_the_type_of_quantized_numbers_is_said_by_a_zero_point(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=TensorProto.INT8),
        node("DequantizeLinear", ["q", "s"], ["y"], block_size=0),
    ]
    model = _model(nodes, {"x": (F32, [4])}, 21, {"s": np.array(0.05, np.float32)})
    _same(model, {"x": _numbers(4)}, tmp_path)


# Operators that came later, and subgraphs


@pytest.mark.parametrize(
    ("opset", "new", "inputs"),
    [
        (18, node("Mish", ["x"], ["y"], name="new"), {"x": (2, 8)}),
        (24, node("Swish", ["x"], ["y"], name="new", alpha=1.5), {"x": (2, 8)}),
        (24, node("Swish", ["x"], ["y"], name="new"), {"x": (2, 8)}),
        (18, node("CenterCropPad", ["x", "to"], ["y"], name="new"), {"x": (5, 8)}),
        (
            21,
            node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2, name="new"),
            {"x": (2, 8, 3, 3)},
        ),
        (23, node("RMSNormalization", ["x", "s"], ["y"], axis=-1, name="new"), {"x": (2, 4, 8)}),
        (23, node("Attention", ["x", "x", "x"], ["y"], name="new"), {"x": (2, 2, 4, 8)}),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else None,
)
@pytest.mark.parametrize("kind", [np.float32, np.float16], ids=["fp32", "fp16"])
def test_later_operators_are_written_out(
    opset: int, new: onnx.NodeProto, inputs: dict[str, tuple[int, ...]], kind: Any, tmp_path: Path
) -> None:
    if opset > 22 and _OLD_RUNTIME:
        pytest.skip("this ONNX Runtime does not run the model as given")
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    constants = {
        "s": _numbers(8, kind=kind), "b": _numbers(8, kind=kind), "to": np.array([8, 5]),
    }  # fmt: skip
    model = _model(
        [new],
        {name: (onnx_type, shape) for name, shape in inputs.items()},
        opset,
        {name: values for name, values in constants.items() if name in new.input},
        out=onnx_type,
    )
    feeds = {name: _numbers(*shape, kind=kind) for name, shape in inputs.items()}
    lowered, after = _same(model, feeds, tmp_path, 1e-5 if kind is np.float32 else 1e-2)
    assert lowered.replaced[new.op_type] == 1
    assert after.graph.node[0].name == "new" or any(n.name == "new" for n in after.graph.node)


def test_if_and_loop_bodies_too(tmp_path: Path) -> None:
    def body(
        name: str, *nodes: onnx.NodeProto, outputs: Sequence[str], inputs: Sequence[Any] = ()
    ) -> onnx.GraphProto:
        made = [
            helper.make_tensor_value_info(
                o, TensorProto.BOOL if o == "go" else F32, [] if o == "go" else ["m", 8]
            )
            for o in outputs
        ]
        return helper.make_graph(nodes, name, inputs, made)

    then = body("then", node("Gelu", ["x"], ["t"], name="g"), outputs=["t"])
    other = body(
        "else",
        node("ReduceL2", ["x", "axes"], ["e0"], name="r"),
        node("Expand", ["e0", "like"], ["e"]),
        outputs=["e"],
    )
    loop_inputs = [
        helper.make_tensor_value_info("i", I64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s", F32, ["n", 8]),
    ]
    loop = body(
        "loop", node("Identity", ["c"], ["go"]), node("Gelu", ["s"], ["next"], name="g", approximate="tanh"),
        outputs=["go", "next"], inputs=loop_inputs,
    )  # fmt: skip
    nodes = [
        node("If", ["flag"], ["branch"], then_branch=then, else_branch=other),
        node("Loop", ["three", "", "x"], ["y"], body=loop),
    ]
    model = _model(
        nodes,
        {"x": (F32, ["n", 8]), "flag": (TensorProto.BOOL, [])},
        constants={"axes": np.array([1]), "three": np.array(3), "like": np.array([4, 8])},
        outputs=("branch", "y"),
    )
    for output in model.graph.output:  # their shapes cannot be inferred
        output.CopyFrom(helper.make_tensor_value_info(output.name, F32, ["m", 8]))
    for flag in (True, False):
        lowered, _ = _same(model, {"x": _numbers(4, 8), "flag": np.array(flag)}, tmp_path)
    assert lowered.replaced == {"Gelu": 2, "ReduceL2": 1}


def _block(kind: Any) -> onnx.ModelProto:
    """A transformer block as exporters write one at opset 20, with a normalised output."""
    width, inner, heads = 32, 64, 4
    shapes = {
        "wq": (32, 32),
        "wk": (32, 32),
        "wv": (32, 32),
        "wo": (32, 32),
        "w1": (width, inner),
        "w2": (inner, width),
    }
    constants = {name: _numbers(*shape, kind=kind) / kind(8) for name, shape in shapes.items()}
    constants |= {name: np.ones(width, kind) for name in ("g1", "g2")} | {"b1": _numbers(inner, kind=kind)}
    constants |= {"split": np.array([0, 0, heads, -1]), "join": np.array([0, 0, -1]), "last": np.array([-1])}
    constants |= {"scale": np.array(width / heads, kind) ** kind(-0.5)}
    nodes = [node("LayerNormalization", ["x", "g1"], ["h"], name="ln1")]
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["h", f"w{name}"], [f"{name}0"], name=name),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [f"{name}2"], perm=perm),
        ]
    nodes += [
        node("MatMul", ["q2", "k2"], ["s"]), node("Mul", ["s", "scale"], ["s1"]),
        node("Softmax", ["s1"], ["p"]), node("MatMul", ["p", "v2"], ["a"]),
        node("Transpose", ["a"], ["a1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a1", "join"], ["a2"]), node("MatMul", ["a2", "wo"], ["o"], name="o"),
        node("Add", ["x", "o"], ["r"]), node("LayerNormalization", ["r", "g2"], ["n"], name="ln2"),
        node("MatMul", ["n", "w1"], ["u"], name="up"), node("Add", ["u", "b1"], ["u1"]),
        node("Gelu", ["u1"], ["act"], name="gelu"), node("MatMul", ["act", "w2"], ["d"], name="down"),
        node("Add", ["r", "d"], ["z"]), node("ReduceL2", ["z", "last"], ["norm"], keepdims=1, name="norm"),
        node("Div", ["z", "norm"], ["y"]),
    ]  # fmt: skip
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return _model(nodes, {"x": (onnx_type, ["batch", "seq", width])}, 20, constants, out=onnx_type)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(np.float32, 1e-5), (np.float16, 5e-3)], ids=["fp32", "fp16"]
)
def test_a_transformer_block(kind: Any, tolerance: float, tmp_path: Path) -> None:
    lowered, after = _same(_block(kind), {"x": _numbers(2, 5, 32, kind=kind)}, tmp_path, tolerance)
    assert lowered == Lowered(20, {"Gelu": 1, "ReduceL2": 1})
    names = [layer.name for layer in read_layers(read_model(tmp_path / "after.onnx")) if layer.weight]
    assert names == [
        layer.name for layer in read_layers(read_model(tmp_path / "before.onnx")) if layer.weight
    ]
    if kind is np.float16:
        assert F32 not in _types(after)


_STEPS: dict[str, tuple[onnx.NodeProto, ...]] = {
    "gelu": (node("Gelu", ["IN"], ["OUT"]),),
    "tanh": (node("Gelu", ["IN"], ["OUT"], approximate="tanh"),),
    "mean": (node("ReduceMean", ["IN", "last"], ["OUT_m"]), node("Sub", ["IN", "OUT_m"], ["OUT"])),
    "l2": (node("ReduceL2", ["IN", "both"], ["OUT_n"]), node("Div", ["IN", "OUT_n"], ["OUT"])),
    "max": (node("ReduceMax", ["IN"], ["OUT_m"], noop_with_empty_axes=1), node("Neg", ["OUT_m"], ["OUT"])),
    "split": (
        node("Split", ["IN"], ["OUT_a", "OUT_b", "OUT_c"], axis=2, num_outputs=3),
        node("Concat", ["OUT_c", "OUT_a", "OUT_b"], ["OUT"], axis=2),
    ),
    "pad": (
        node("Pad", ["IN", "one", "", "last"], ["OUT_p"]),
        node("Slice", ["OUT_p", "starts", "ends", "last"], ["OUT"]),
    ),
    "cast": (node("Cast", ["IN"], ["OUT"], to=F32, saturate=1),),
    "mish": (node("Mish", ["IN"], ["OUT"]),),
    "identity": (node("Identity", ["IN"], ["OUT"]),),
}


_RUN = sorted(_STEPS.keys() - ({"max"} if _OLD_RUNTIME else set()))


@given(st.lists(st.sampled_from(_RUN), min_size=1, max_size=8), st.sampled_from([20, 21, 22]))
@settings(max_examples=40)
def test_random_graphs(steps: list[str], opset: int) -> None:
    nodes = []
    for number, step in enumerate(steps):
        for template in _STEPS[step]:
            copy = onnx.NodeProto()
            copy.CopyFrom(template)
            for field in (copy.input, copy.output):
                field[:] = [
                    name.replace("OUT", f"v{number + 1}").replace("IN", f"v{number}") for name in field
                ]
            copy.name = copy.output[0]
            nodes.append(copy)
    nodes.append(node("Identity", [f"v{len(steps)}"], ["y"]))
    constants = {
        "last": np.array([-1]), "both": np.array([1, -1]), "one": np.array([1, 1]),
        "starts": np.array([1]), "ends": np.array([-1]),
    }  # fmt: skip
    used = {name for n in nodes for name in n.input}
    model = _model(
        nodes, {"v0": (F32, ["n", 4, 7])}, opset, {k: v for k, v in constants.items() if k in used}
    )
    with TemporaryDirectory() as folder:
        _, after = _same(model, {"v0": _numbers(3, 4, 7)}, Path(folder), 1e-4)
    assert not {n.op_type for n in after.graph.node} & {"Gelu", "Mish"}


# What stays, and what cannot be done


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    model = _block(np.float32)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    read = read_model(tmp_path / "m.onnx")
    before = read.ir.graph.initializers["w1"].const_value
    assert isinstance(before, ir.ExternalTensor)
    lower_to_opset17(read.ir)
    assert read.ir.graph.initializers["w1"].const_value is before


@pytest.mark.parametrize("opset", [11, 17])
def test_an_older_model_stays_as_it_is(opset: int, tmp_path: Path) -> None:
    model = _model([node("ReduceMean", ["x"], ["y"], axes=[1])], {"x": (F32, [2, 3])}, opset)
    onnx.save(model, tmp_path / "m.onnx")
    read = read_model(tmp_path / "m.onnx")
    assert lower_to_opset17(read.ir) == Lowered(opset, {})
    assert ir.serde.serialize_model(read.ir).opset_import[0].version == opset


_ROWS = (F32, ["n", 4])
_IMAGE = (F32, [1, 1, 4, 4])
_TWICE = np.array([1, 1, 2, 2], np.float32)
BOOL, INT8 = TensorProto.BOOL, TensorProto.INT8
# operator, opset, attributes, its inputs (a type and sizes, or a constant, or None), what the error says
_NO_OLDER_FORM: list[tuple[str, int, dict[str, Any], list[Any], str]] = [
    ("ReduceMean", 20, {}, [_ROWS, (I64, [1])], r"'n' \(ReduceMean\).*axes are computed"),
    ("ReduceMax", 20, {}, [(BOOL, [2])], "no BOOL there"),
    ("Split", 20, {"num_outputs": 2}, [_ROWS], "dimension that varies"),
    ("Split", 20, {"num_outputs": 4}, [(F32, [5])], "5 elements do not make 4 parts"),
    ("Pad", 20, {"mode": "wrap"}, [_ROWS, np.array([1, 1, 1, 1])], "mode='wrap' came later"),
    ("Pad", 20, {}, [_ROWS, (I64, [2]), None, np.array([1])], "pads beside axes are computed"),
    ("ScatterElements", 20, {"reduction": "max"}, [_ROWS, (I64, ["n", 4]), _ROWS], "reduction='max'"),
    ("BitwiseAnd", 20, {}, [(I64, [2]), (I64, [2])], "no such operator"),
    ("Conv", 22, {}, [(BF16, [1, 1, 4, 4]), (BF16, [1, 1, 1, 1])], "no BFLOAT16 there"),
    ("AveragePool", 20, {"kernel_shape": [2, 2], "dilations": [2, 2]}, [_IMAGE], "no attribute 'dilations'"),
    ("Resize", 20, {"antialias": 1, "mode": "linear"}, [_IMAGE, None, _TWICE], "no attribute 'antialias'"),
    ("Resize", 20, {"axes": [2]}, [_IMAGE, None, _TWICE[:1]], "only some axes"),
    ("DFT", 20, {}, [(F32, [1, 4, 1])], "its axis"),
    ("Mod", 28, {}, [_ROWS, _ROWS], "fmod=0"),
    ("GridSample", 20, {}, [(F32, [1, 1, 2, 2, 2]), (F32, [1, 2, 2, 2, 3])], "other than images"),
    (
        "DequantizeLinear", 21, {"axis": 0, "block_size": 2},
        [(INT8, [4, 2]), np.ones((2, 2), np.float32)], "no attribute 'block_size'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "opset", "attributes", "operands", "message"),
    _NO_OLDER_FORM,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_older_form_is_named(
    op: str, opset: int, attributes: dict[str, Any], operands: list[Any], message: str, tmp_path: Path
) -> None:
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this onnx does not know opset {opset}")
    names = ["" if operand is None else f"i{at}" for at, operand in enumerate(operands)]
    outputs = [f"y{i}" for i in range(attributes.get("num_outputs", 1))]
    model = _model(
        [node(op, names, outputs, name="n", **attributes)],
        {name: operand for name, operand in zip(names, operands, strict=True) if isinstance(operand, tuple)},
        opset,
        {name: value for name, value in zip(names, operands, strict=True) if isinstance(value, np.ndarray)},
        outputs,
        _IMAGE[0] if op != "ReduceMax" else BOOL,
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=f"node 'n'.*{message}|{message}") as caught:
        lower_to_opset17(read_model(tmp_path / "m.onnx").ir)
    assert f"({op})" in str(caught.value) and "opset 17" in caught.value.hint


def test_a_definition_that_has_no_older_form_either_is_named(tmp_path: Path) -> None:
    caches = {"c": _numbers(2, 4, 4), "s": _numbers(2, 4, 4)}
    rotary = node("RotaryEmbedding", ["x", "c", "s"], ["y"], name="rotary")
    onnx.save(_model([rotary], {"x": (F32, [2, 2, 4, 8])}, 23, caches), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"node 'rotary/Split_\d+'"):
        lower_to_opset17(read_model(tmp_path / "m.onnx").ir)


def test_local_functions_have_to_be_inlined_first(tmp_path: Path) -> None:
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [node("Gelu", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model = _model([node("F", ["x"], ["y"], domain="own")], {"x": _ROWS})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="local functions"):
        lower_to_opset17(read_model(tmp_path / "m.onnx").ir)
