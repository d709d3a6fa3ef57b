"""Routers keep FP32 in an FP16 and a BF16 plan; labels, large products and sorted activations do not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest

from sparseflow_trt.building.plan_options import PlanOptions, plan_for
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.retyping.routers import nodes_of_routers
from sparseflow_trt.exporters.retyping.twin import write_twin
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.sites import find_sites
from tests.conftest import Array

RNG = np.random.default_rng(0)
TOKENS, K, EXPERTS = 512, 32, 16
CONSTANTS: dict[str, Array] = {
    "gate": (RNG.standard_normal((K, EXPERTS)) / 6).astype(np.float32),
    "bias": np.linspace(7.9, 8.1, EXPERTS, dtype=np.float32),
    "expert": (RNG.standard_normal((EXPERTS, K)) / 4).astype(np.float32),
    "up": (RNG.standard_normal((K, 2 * K)) / 6).astype(np.float32),
    "down": (RNG.standard_normal((2 * K, K)) / 8).astype(np.float32),
    "narrow": (RNG.standard_normal((2 * K, EXPERTS)) / 8).astype(np.float32),
    "two": np.array([2]),
    "depth": np.array(EXPERTS),
    "onoff": np.array([0, 1], np.float32),
    "one": np.array([1]),
}
# DeepSeek's: biases are for the choice alone, and groups of experts (here all of them) are masked.
ROUTER = """g (float[512,32] x) => (int64[512,2] chosen, float[512,32] y) {
 logits = MatMul(x, gate)
 scores = Sigmoid(logits)
 biased = Add(scores, bias)
 size = Shape(x)
 first = Slice(size, zero, one)
 columns = Shape(gate)
 last = Slice(columns, one, two)
 shape = Concat<axis=0>(first, last)
 rows = Reshape(biased, shape)
 best, chosen = TopK(rows, two)
 parts = GatherElements<axis=1>(scores, chosen)
 hot = OneHot<axis=-1>(chosen, depth, onoff)
 column = Unsqueeze(parts, two)
 weighed = Mul(hot, column)
 routes = ReduceSum<keepdims=0>(weighed, one)
 y = MatMul(routes, expert)
}"""
LABEL = """g (float[512,32] x) => (int64[512] label, float[512,2] y) {
 m = MatMul(x, gate)
 label = ArgMax<axis=1, keepdims=0>(m)
 y, places = TopK(m, two)
}"""
# Only the largest hidden activations go on: a layer's own products, not a gate beside them.
SORTED = """g (float[512,32] x) => (float[512,32] y) {
 m = MatMul(x, up)
 best, places = TopK(m, two)
 kept = ScatterElements<axis=1>(m, places, best)
 y = MatMul(kept, down)
}"""
# The last experts of a model with no head: no product follows.
WEIGHING = """g (float[512,32] x) => (float[512,16] y) {
 logits = MatMul(x, gate)
 scores = Softmax<axis=-1>(logits)
 best, chosen = TopK(scores, two)
 shape = Shape(scores)
 zeros = ConstantOfShape(shape)
 routes = ScatterElements<axis=1>(zeros, chosen, best)
 hidden = MatMul(x, up)
 made = MatMul(hidden, narrow)
 y = Mul(made, routes)
}"""
# What is weighed is no product's.
SCALED = WEIGHING.replace("made = MatMul(hidden, narrow)", "made = Slice(x, zero16, ten, one)")
MIXED = ROUTER.replace("biased = Add(scores, bias)", "n = Slice(x, zero16, ten, one) biased = Add(scores, n)")


def _save(path: Path, text: str) -> OnnxModel:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    read = {name for node in model.graph.node for name in node.input}
    more = {"zero": np.array([0]), "zero16": np.array([16]), "ten": np.array([32])}
    for name, values in (CONSTANTS | more).items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return read_model(path)


def _run(path: Path) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.random.default_rng(1).standard_normal((TOKENS, K)).astype(np.float32)
    return list(onnxruntime.InferenceSession(str(path), options).run(None, {"x": x}))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_token_keeps_its_experts(tmp_path: Path, precision: Literal["fp16", "bf16"]) -> None:
    model = _save(tmp_path / "m.onnx", ROUTER)
    expected = _run(model.path)
    plan = plan_for(model, read_layers(model), PlanOptions(precision=precision), "")
    assert {layer.name: layer.precision for layer in plan.layers} == {
        "MatMul:logits": "fp32",
        "MatMul:y": precision,
    }
    why = (
        "FP32, because it makes a choice (of experts, for example) that half precision would make differently"
    )
    assert [why in layer.reason for layer in plan.layers] == [True, False]
    apply_plan(read_model(model.path), plan, tmp_path / "typed.onnx")
    write_twin(read_model(tmp_path / "typed.onnx"), tmp_path / "twin.onnx")
    chosen, y = _run(tmp_path / "twin.onnx")
    np.testing.assert_array_equal(chosen, expected[0])
    np.testing.assert_allclose(y, expected[1], atol=0.05)


def test_in_fp16_a_router_would_choose_others(tmp_path: Path) -> None:
    """That the test above can fail: the same router as the layers around it would have it."""
    model = _save(tmp_path / "m.onnx", ROUTER)
    expected = _run(model.path)
    find_sites(model)
    router = nodes_of_routers(model.ir)
    proto = onnx.load(str(model.path))
    for node in proto.graph.node:
        if node.op_type == "Add":  # the biased scores, rounded to FP16
            half = onnx.helper.make_node("Cast", ["exact"], ["half"], to=onnx.TensorProto.FLOAT16)
            back = onnx.helper.make_node("Cast", ["half"], [node.output[0]], to=onnx.TensorProto.FLOAT)
            node.output[0] = "exact"
            at = list(proto.graph.node).index(node) + 1
            proto.graph.node.insert(at, half)
            proto.graph.node.insert(at + 1, back)
            break
    onnx.save(proto, tmp_path / "half.onnx")
    chosen, _ = _run(tmp_path / "half.onnx")
    assert (chosen != expected[0]).any(axis=1).sum() > 5
    assert {n.outputs[0].name for n in router} == {"logits", "scores", "biased", "rows", "best"}


def test_what_weighs_experts_is_a_router_where_no_product_follows(tmp_path: Path) -> None:
    model = _save(tmp_path / "m.onnx", WEIGHING)
    find_sites(model)
    assert {n.outputs[0].name for n in nodes_of_routers(model.ir)} == {"logits", "scores", "best"}


@pytest.mark.parametrize("text", [LABEL, SORTED, MIXED, SCALED], ids=["label", "sorted", "mixed", "scaled"])
def test_what_is_no_router(tmp_path: Path, text: str) -> None:
    model = _save(tmp_path / "m.onnx", text)
    find_sites(model)
    assert nodes_of_routers(model.ir) == set()


def test_a_model_in_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    model = _save(tmp_path / "m.onnx", ROUTER)
    plan = plan_for(model, read_layers(model), PlanOptions(precision="keep"), "")
    assert [(layer.precision, "chooses" in layer.reason) for layer in plan.layers] == [("fp32", False)] * 2
