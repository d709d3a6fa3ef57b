"""Each operator in its form of opset 17: valid ONNX, and the same outputs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from tests.exporters.lowering.lowered import (
    BF16,
    F16,
    F32,
    OLD_RUNTIME,
    Array,
    check_same,
    lower,
    model_of,
    node,
    numbers,
    run_model,
    runs_as_given,
    types_in,
)

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
    lowered, after = check_same(
        model_of([gelu], {"x": (onnx_type, ["n", 8])}, out=onnx_type), {"x": x}, tmp_path, tolerance
    )
    assert lowered == {"Gelu": 1}
    assert types_in(after) == {onnx_type}
    assert [n.op_type for n in after.graph.node if n.name == "act"] == [after.graph.node[0].op_type]
    assert all(n.metadata_props[0].value == "['', 'mlp', 'mlp.act']" for n in after.graph.node)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_large_half_numbers_is_finite(approximate: str, tmp_path: Path) -> None:
    x = np.array([-65504, -40000, -100, 100, 40000, 65504], np.float16)
    model = model_of([node("Gelu", ["x"], ["y"], approximate=approximate)], {"x": (F16, [6])}, out=F16)
    _, _, after = lower(model, tmp_path)
    np.testing.assert_array_equal(run_model(after, {"x": x})[0], np.maximum(x, 0))


def test_gelu_in_bf16_stays_bf16(tmp_path: Path) -> None:
    _, _, after = lower(model_of([node("Gelu", ["x"], ["y"])], {"x": (BF16, [4])}, out=BF16), tmp_path)
    assert types_in(onnx.load(after)) == {BF16}


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
    assume(not (OLD_RUNTIME and noop and not axes))
    attributes: dict[str, Any] = {"keepdims": keep} | ({} if noop is None else {"noop_with_empty_axes": noop})
    nodes = [node(f"Reduce{op}", ["x", "axes"] if axes is not None else ["x"], ["y"], name="r", **attributes)]
    values = {"axes": np.array(axes or [], np.int64)} if axes is not None else {}
    if inside and axes is not None:
        nodes.insert(0, node("Constant", [], ["axes"], value=numpy_helper.from_array(values.pop("axes"))))
    with TemporaryDirectory() as folder:
        _, after = check_same(
            model_of(nodes, {"x": (F32, ["a", 3, 4])}, opset, values),
            {"x": np.abs(numbers(2, 3, 4))},
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
        model = model_of(nodes, {"x": (F32, shape)}, outputs=names)
        check_same(model, {"x": numbers(*shape)}, Path(folder))


def test_split_by_sizes_and_whole(tmp_path: Path) -> None:
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        node("Split", ["a"], ["c"], axis=0, num_outputs=1),
    ]
    model = model_of(nodes, {"x": (F32, ["n", 5])}, constants={"sizes": np.array([2, 3])}, outputs=("b", "c"))
    lowered, _ = check_same(model, {"x": numbers(3, 5)}, tmp_path)
    assert lowered == {"Split": 1}


@given(
    st.lists(st.integers(-3, 2), max_size=3, unique_by=lambda a: a % 3), st.sampled_from(["constant", "edge"])
)
@settings(max_examples=20)
def test_pad_of_some_axes(axes: list[int], mode: str) -> None:
    constants = {"pads": np.arange(2 * len(axes)), "axes": np.array(axes, np.int64), "c": np.float32(7)}
    nodes = [node("Pad", ["x", "pads", "c" if mode == "constant" else "", "axes"], ["y"], mode=mode)]
    with TemporaryDirectory() as folder:
        model = model_of(
            nodes, {"x": (F32, ["n", 3, 4])}, constants={k: np.asarray(v) for k, v in constants.items()}
        )
        check_same(model, {"x": numbers(2, 3, 4)}, Path(folder))


@runs_as_given
def test_resize_with_what_is_the_default(tmp_path: Path) -> None:
    attributes: dict[str, Any] = {
        "antialias": 0,
        "keep_aspect_ratio_policy": "stretch",
        "axes": [0, 1, -2, -1],
    }
    resize = node("Resize", ["x", "", "scales"], ["y"], mode="linear", **attributes)
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    lowered, after = check_same(
        model_of([resize], {"x": (F32, [1, 2, 3, 3])}, 19, constants), {"x": numbers(1, 2, 3, 3)}, tmp_path
    )
    assert lowered == {"Resize": 1}
    assert [a.name for a in after.graph.node[0].attribute] == ["mode"]


def test_attributes_that_only_later_types_need(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=F16, saturate=1),
        node("Cast", ["h"], ["w"], to=F32),
        node("AveragePool", ["w"], ["y"], kernel_shape=[2, 2], dilations=[1, 1]),
    ]
    lowered, _ = check_same(model_of(nodes, {"x": (F32, [1, 2, 4, 4])}), {"x": numbers(1, 2, 4, 4)}, tmp_path)
    assert lowered == {"Cast": 1, "AveragePool": 1}


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest", ""])
def test_grid_sample_has_other_names_for_its_modes(mode: str, tmp_path: Path) -> None:
    attributes = {"mode": mode} if mode else {}
    model = model_of(
        [node("GridSample", ["x", "grid"], ["y"], **attributes)],
        {"x": (F32, [1, 2, 4, 4]), "grid": (F32, [1, 3, 3, 2])},
    )
    feeds = {"x": numbers(1, 2, 4, 4), "grid": np.tanh(numbers(1, 3, 3, 2))}
    check_same(model, feeds, tmp_path)


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
    model = model_of(nodes, {"x": (F16, ["n", 32])}, 21, constants, out=F16)
    lowered, after = check_same(model, {"x": numbers(4, 32, kind=np.float16)}, tmp_path, 1e-3)
    assert lowered == {"QuantizeLinear": 1, "DequantizeLinear": 2}
    scales = [i for i in after.graph.initializer if "scale" in i.name]
    assert scales and {i.data_type for i in scales} == {F32}
    (layer,) = read_layers(read_model(tmp_path / "after.onnx"))
    assert (layer.name, layer.dtype, layer.state.value) == ("mm", "INT8", "sparse")


def test_the_type_of_quantized_numbers_is_said_by_a_zero_point(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=TensorProto.INT8),
        node("DequantizeLinear", ["q", "s"], ["y"], block_size=0),
    ]
    model = model_of(nodes, {"x": (F32, [4])}, 21, {"s": np.array(0.05, np.float32)})
    check_same(model, {"x": numbers(4)}, tmp_path)


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
    if opset > 22 and OLD_RUNTIME:
        pytest.skip("this ONNX Runtime does not run the model as given")
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    constants = {
        "s": numbers(8, kind=kind), "b": numbers(8, kind=kind), "to": np.array([8, 5]),
    }  # fmt: skip
    model = model_of(
        [new],
        {name: (onnx_type, shape) for name, shape in inputs.items()},
        opset,
        {name: values for name, values in constants.items() if name in new.input},
        out=onnx_type,
    )
    feeds = {name: numbers(*shape, kind=kind) for name, shape in inputs.items()}
    lowered, after = check_same(model, feeds, tmp_path, 1e-5 if kind is np.float32 else 1e-2)
    assert lowered[new.op_type] == 1
    assert "new" in [n.name for n in after.graph.node]
