"""What `inspect` says can be pruned is what `prune` prunes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.graph import SparsityState, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.prunable import choose_weights, prunable
from tests.conftest import Models

if TYPE_CHECKING:
    from tests.conftest import Array

SIDE = 32  # of a stored weight: K may lie on either axis, on both, or on none
NAMES = ("up_proj", "down_proj", "lm_head", "router")


@st.composite
def user(draw: st.DrawFn, index: int, weight: str) -> list[onnx.NodeProto]:
    """Nodes that make something of a stored weight: products along either axis of it, or other readers."""
    nodes: list[onnx.NodeProto] = []
    value, to = weight, f"{weight}_{index}"

    def then(op: str, *more: str, **attributes: Any) -> None:
        nonlocal value
        nodes.append(helper.make_node(op, [value, *more], [f"{to}_{len(nodes)}"], **attributes))
        value = nodes[-1].output[0]

    then("Reshape", draw(st.sampled_from(["square", "long", "tall"])))
    if draw(st.booleans()):
        then("Transpose")
    then("Reshape", draw(st.sampled_from(["square", "odd"])))
    if draw(st.booleans()):
        then("DequantizeLinear", "one", draw(st.sampled_from(["zero", "seven"])))
    else:
        then("Cast", to=onnx.TensorProto.FLOAT)
    name = f"{draw(st.sampled_from(NAMES))}.{to}"
    kind = draw(st.sampled_from(["MatMul", "MatMul", "Gemm", "left", "Conv", "Gather", "output"]))
    if kind == "Conv":
        then("Reshape", "kernel")
        nodes.append(helper.make_node("Conv", ["image", value], [to], name=name))
    elif kind == "left":
        nodes.append(helper.make_node("MatMul", [value, "x"], [to], name=name))
    elif kind == "Gather":
        nodes.append(helper.make_node("Gather", [value, "ids"], [to], name=name))
    elif kind == "output":
        nodes.append(helper.make_node("Identity", [value], [to], name=name))
    else:
        attributes: dict[str, Any] = {"transB": draw(st.integers(0, 1))} if kind == "Gemm" else {}
        nodes.append(helper.make_node(kind, ["x", value], [to], name=name, **attributes))
    return nodes


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Products that share a few stored INT8 weights, each dense, 2:4 one way or 2:4 the other."""
    random = np.random.default_rng(draw(st.integers(0, 99)))
    weights: dict[str, Array] = {}
    nodes = []
    for weight in ("w", "v")[: draw(st.integers(1, 2))]:
        values = random.integers(1, 90, (SIDE, SIDE)).astype(np.int8)
        axis = draw(st.sampled_from([None, 0, 1]))
        weights[weight] = values if axis is None else prune_2to4(values, axis)
        for index in range(draw(st.integers(1, 3))):
            nodes += draw(user(index, weight))
    return nodes, weights


@settings(max_examples=150)
@given(graph=graphs(), external=st.booleans())
def test_inspect_says_what_prune_does(graph: Any, external: bool, folder: Path) -> None:
    nodes, weights = graph
    shapes = {
        "square": (SIDE, SIDE), "long": (SIDE * SIDE,), "tall": (4, SIDE // 4, SIDE),
        "odd": (SIDE * 16, SIDE // 16), "kernel": (SIDE, SIDE, 1, 1),
    }  # fmt: skip
    constants = {
        **{name: np.array(shape, np.int64) for name, shape in shapes.items()},
        "one": np.float32(1).reshape(()), "zero": np.int8(0).reshape(()), "seven": np.int8(7).reshape(()),
        "ids": np.array([1], np.int64),
    }  # fmt: skip
    made = {name for node in nodes for name in node.output} - {n for node in nodes for n in node.input}
    models = Models(folder)
    for file in folder.iterdir():
        file.unlink()
    inputs = {"x": (None, None), "image": (1, SIDE, 8, 8)}
    model = models.model(nodes, {**weights, **constants}, inputs, outputs=sorted(made))
    if external:
        models.externalize(model, dict.fromkeys(weights, "weights.bin"))
    path = models.save(model)

    before = read_model(path)
    layers = read_layers(before)
    said = {layer.name for layer in prunable(layers, choose_weights(before))}
    report = prune_model(read_model(path), folder / "pruned.onnx")
    assert said == {name for weight in report.pruned if weight.zeroed for name in weight.layers}
    after = {layer.name: layer for layer in read_layers(read_model(report.output))}
    for layer in layers:
        expected = SparsityState.SPARSE if layer.name in said else layer.state
        assert after[layer.name].state is expected
        assert layer.name in said or after[layer.name].mask_hash == layer.mask_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for every example: each begins by emptying it."""
    return tmp_path_factory.mktemp("graphs")


def test_two_reshapes_of_one_layout_are_one_axis(models: Models) -> None:
    """K lies on one axis of the stored weight here, on both there: the groups of four are the same."""
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], name="rows", transB=1),
        helper.make_node("Reshape", ["w", "flat"], ["v"]),
        helper.make_node("MatMul", ["z", "v"], ["a"], name="whole"),
    ]
    weights = {"w": weight, "flat": np.array([256, 1])}
    path = models.save(models.model(nodes, weights, {"x": ("b", 64), "z": ("b", 256)}, ["y", "a"]))
    model = read_model(path)
    layers = read_layers(model)
    assert [layer.k_axes for layer in layers] == [(1,), (0, 1)]
    assert prunable(layers, choose_weights(model)) == layers


def test_an_embedding_that_is_a_product_too_cannot_be_pruned(models: Models) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="project"),
    ]
    model = read_model(models.save(models.model(nodes, {"w": weight, "ids": np.array([[1]])})))
    choice = choose_weights(model)
    assert prunable(read_layers(model), choice) == ()
    assert choice.conflicts == (
        ("project", "weight 'w' is also read by Gather 'embed', which pruning would change"),
    )


def test_a_layer_whose_weight_is_computed_is_left_with_the_reason(models: Models) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["w", "scale"], ["scaled"], name="mul"),
        helper.make_node("MatMul", ["x", "scaled"], ["a"], name="computed"),
        helper.make_node("MatMul", ["a", "x"], ["y"], name="scores"),
    ]
    weights = {"w": weight, "scale": np.array(2, np.float32)}
    model = read_model(models.save(models.model(nodes, weights)))
    why = (
        "computed",
        "its weight is computed from constants by Mul 'mul': make it one parameter before the export",
    )
    assert choose_weights(model).skipped == (why,)
    named = choose_weights(model, include=("comp*", "scores"))
    assert named.skipped == (why, ("scores", "dynamic weight: 'x' is an input of its graph"))
