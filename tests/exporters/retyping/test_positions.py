"""What computes positions and sizes keeps FP32 in an FP16 plan; what only looks like it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from sparseflow_trt.building.plan_options import PlanOptions, plan_for
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.retyping.positions import nodes_of_positions
from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.plans.plan import Plan
from tests.conftest import Array

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((32, 32)) / 6).astype(np.float32)

ROTARY = """g (float[1,4,32] x, int64[1,4] at) => (float[1,4,32] y) {
 column = Unsqueeze(at, two)
 places = Cast<to=1>(column)
 angles = MatMul(places, frequencies)
 twice = Concat<axis=-1>(angles, angles)
 turned = Cos(twice)
 m = MatMul(x, w)
 y = Mul(m, turned)
}"""
BUCKETS = """g (float[1,4,32] x, int64[4] at) => (int64[4] bucket, float[1,4,32] y) {
 far = Cast<to=1>(at)
 scaled = Div(far, sixteen)
 log = Log(scaled)
 steps = Mul(log, many)
 bucket = Cast<to=7>(steps)
 y = MatMul(x, w)
}"""
SIZES = """g (float[1,1,3,1365] x) => (int64[4] size, float[1,1,3,n] y) {
 shape = Shape(x)
 floats = Cast<to=1>(shape)
 scaled = Mul(floats, scale)
 down = Floor(scaled)
 size = Cast<to=7>(down)
 y = Resize<mode="nearest">(x, , , size)
}"""
MASK = """g (float[1,4,32] x, int64[1,4] mask, int64[1,4] ids) => (float[1,4,32] y) {
 keep = Cast<to=1>(mask)
 drop = Sub(one, keep)
 fill = Mul(drop, least)
 column = Unsqueeze(fill, two)
 row = Gather(w, ids)
 m = MatMul(row, w)
 s = Sin(m)
 a = Add(s, column)
 y = Add(a, x)
}"""
CONSTANTS: dict[str, Array] = {
    "w": W,
    "frequencies": (1 / 10000 ** (np.arange(16) / 16)).reshape(1, 16).astype(np.float32),
    "two": np.array([2]),
    "sixteen": np.array(16, np.float32),
    "many": np.array(16 / np.log(8), np.float32),
    "scale": np.array([1, 1, 1, 1.9], np.float32),
    "one": np.array(1, np.float32),
    "least": np.array(-3.4e38, np.float32),
}


def _save(path: Path, text: str) -> OnnxModel:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    read = {name for node in model.graph.node for name in node.input}
    for name, values in CONSTANTS.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return read_model(path)


def _run(path: Path, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(str(path), options).run(None, feeds))


def _in_fp16(model: OnnxModel, feeds: dict[str, Array]) -> tuple[Plan, list[Array]]:
    plan = plan_for(model, read_layers(model), PlanOptions(precision="fp16"), "")
    path = model.path.with_name("typed.onnx")
    apply_plan(read_model(model.path), plan, path)
    typed = read_model(path)
    if needs_twin(typed):
        path = path.with_name("twin.onnx")
        write_twin(typed, path)
    return plan, _run(path, feeds)


X = RNG.standard_normal((1, 4, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "feeds"),
    [
        (ROTARY, {"x": X, "at": np.array([[100, 1001, 2003, 30001]])}),
        (BUCKETS, {"x": X, "at": np.array([2543, 2897, 3757, 5547])}),
        (SIZES, {"x": RNG.standard_normal((1, 1, 3, 1365)).astype(np.float32)}),
    ],
)
def test_positions_and_sizes_are_exact_in_fp16(tmp_path: Path, text: str, feeds: dict[str, Array]) -> None:
    model = _save(tmp_path / "m.onnx", text)
    expected = _run(model.path, feeds)
    _, got = _in_fp16(model, feeds)
    for left, right in zip(expected, got, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(right, left, atol=2e-2)


def test_a_product_that_makes_angles_is_planned_in_fp32(tmp_path: Path) -> None:
    model = _save(tmp_path / "m.onnx", ROTARY)
    plan, _ = _in_fp16(model, {"x": X, "at": np.array([[0, 1, 2, 3]])})
    assert {layer.name: layer.precision for layer in plan.layers} == {
        "MatMul:angles": "fp32",
        "MatMul:m": "fp16",
    }


def test_masks_and_sines_of_activations_are_no_positions(tmp_path: Path) -> None:
    assert nodes_of_positions(_save(tmp_path / "m.onnx", MASK).ir) == set()


@pytest.mark.parametrize(("text", "typed"), [(MASK.replace("Sin(m)", "Tanh(m)"), False), (ROTARY, True)])
def test_types_are_inferred_only_where_there_may_be_positions(tmp_path: Path, text: str, typed: bool) -> None:
    model = _save(tmp_path / "m.onnx", text).ir
    nodes_of_positions(model)
    assert next(value.dtype is not None for node in model.graph for value in node.outputs) is typed


def test_only_what_leads_to_an_angle_is_one(tmp_path: Path) -> None:
    found = nodes_of_positions(_save(tmp_path / "m.onnx", ROTARY).ir)
    assert {node.outputs[0].name for node in found} == {"places", "angles", "twice", "turned"}
