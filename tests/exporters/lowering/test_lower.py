"""Opset 17 for parsers that read no newer one: valid ONNX, and the same outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.lowering.lower import lower_to_opset17
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from tests.exporters.lowering.lowered import (
    BF16,
    F32,
    I64,
    OLD_RUNTIME,
    check_same,
    model_of,
    node,
    numbers,
    types_in,
)


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
    model = model_of(
        nodes,
        {"x": (F32, ["n", 8]), "flag": (TensorProto.BOOL, [])},
        constants={"axes": np.array([1]), "three": np.array(3), "like": np.array([4, 8])},
        outputs=("branch", "y"),
    )
    for output in model.graph.output:  # their shapes cannot be inferred
        output.CopyFrom(helper.make_tensor_value_info(output.name, F32, ["m", 8]))
    for flag in (True, False):
        lowered, _ = check_same(model, {"x": numbers(4, 8), "flag": np.array(flag)}, tmp_path)
    assert lowered == {"Gelu": 2, "ReduceL2": 1}


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
    constants = {name: numbers(*shape, kind=kind) / kind(8) for name, shape in shapes.items()}
    constants |= {name: np.ones(width, kind) for name in ("g1", "g2")} | {"b1": numbers(inner, kind=kind)}
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
    return model_of(nodes, {"x": (onnx_type, ["batch", "seq", width])}, 20, constants, out=onnx_type)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(np.float32, 1e-5), (np.float16, 5e-3)], ids=["fp32", "fp16"]
)
def test_a_transformer_block(kind: Any, tolerance: float, tmp_path: Path) -> None:
    lowered, after = check_same(_block(kind), {"x": numbers(2, 5, 32, kind=kind)}, tmp_path, tolerance)
    assert lowered == {"Gelu": 1, "ReduceL2": 1}
    names = [layer.name for layer in read_layers(read_model(tmp_path / "after.onnx")) if layer.weight]
    assert names == [
        layer.name for layer in read_layers(read_model(tmp_path / "before.onnx")) if layer.weight
    ]
    if kind is np.float16:
        assert F32 not in types_in(after)


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


_RUN = sorted(_STEPS.keys() - ({"max"} if OLD_RUNTIME else set()))


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
    model = model_of(
        nodes, {"v0": (F32, ["n", 4, 7])}, opset, {k: v for k, v in constants.items() if k in used}
    )
    with TemporaryDirectory() as folder:
        _, after = check_same(model, {"v0": numbers(3, 4, 7)}, Path(folder), 1e-4)
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
    model = model_of([node("ReduceMean", ["x"], ["y"], axes=[1])], {"x": (F32, [2, 3])}, opset)
    onnx.save(model, tmp_path / "m.onnx")
    read = read_model(tmp_path / "m.onnx")
    assert lower_to_opset17(read.ir) == {}
    assert ir.serde.serialize_model(read.ir).opset_import[0].version == opset


_ROWS = (F32, ["n", 4])


_IMAGE = (F32, [1, 1, 4, 4])


_TWICE = np.array([1, 1, 2, 2], np.float32)


BOOL, INT8 = TensorProto.BOOL, TensorProto.INT8


# operator, opset, attributes, its inputs (a type and sizes, or a constant, or None), what the error says
_NO_OLDER_FORM: list[tuple[str, int, dict[str, Any], list[Any], str]] = [
    ("ReduceMean", 20, {}, [_ROWS, (I64, [1])], r"'n' \(ReduceMean\).*axes are computed"),
    ("ReduceMax", 20, {}, [(BOOL, [2])], "no BOOL there"),
    ("Split", 20, {"num_outputs": 2}, [_ROWS], "dynamic dimension"),
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
    model = model_of(
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
    caches = {"c": numbers(2, 4, 4), "s": numbers(2, 4, 4)}
    rotary = node("RotaryEmbedding", ["x", "c", "s"], ["y"], name="rotary")
    onnx.save(model_of([rotary], {"x": (F32, [2, 2, 4, 8])}, 23, caches), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"node 'rotary/Split_\d+'"):
        lower_to_opset17(read_model(tmp_path / "m.onnx").ir)


def test_local_functions_have_to_be_inlined_first(tmp_path: Path) -> None:
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [node("Gelu", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model = model_of([node("F", ["x"], ["y"], domain="own")], {"x": _ROWS})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="local functions"):
        lower_to_opset17(read_model(tmp_path / "m.onnx").ir)
