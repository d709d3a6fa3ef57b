"""Layers that run dense get their unpruned weights back, and another model's are refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.artifacts.graph_record import RestoreRecord
from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.pruning.restore import restore_dense
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import in_module

if TYPE_CHECKING:
    from tests.conftest import Array, Models


def _dense(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "up": rng.standard_normal((64, 128)).astype(np.float32),
        "down": rng.standard_normal((128, 32)).astype(np.float32),
    }


def _pruned(weights: dict[str, Array]) -> dict[str, Array]:
    return {name: prune_2to4(w, 0) for name, w in weights.items()}


def _save(
    models: Models, weights: dict[str, Array], name: str, names: tuple[str, str] = ("up", "down")
) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", names[0]], ["a"], name="first"),
        helper.make_node("MatMul", ["a", names[1]], ["y"], name="second"),
    ]
    return models.save(models.model(nodes, dict(zip(names, weights.values(), strict=True))), name)


def _restore(model: Path, unpruned: Path, *layers: str) -> tuple[tuple[RestoreRecord, ...], dict[str, Array]]:
    read = read_model(model)
    found = restore_dense(read, read_model(unpruned), layers)
    save_model(read.ir, model.with_name("restored.onnx"))
    written = onnx.load(model.with_name("restored.onnx")).graph.initializer
    return found, {tensor.name: numpy_helper.to_array(tensor) for tensor in written}


def test_dense_layers_alone_get_theirs(models: Models) -> None:
    weights = _dense()
    pruned = _pruned(weights)
    model, dense = _save(models, pruned, "pruned.onnx"), _save(models, weights, "dense.onnx")
    before = model.read_bytes()
    found, written = _restore(model, dense, "second")
    changed = int(np.count_nonzero(weights["down"] != pruned["down"]))
    assert found == (
        RestoreRecord(layer="second", weight="down", route="restored", reason="", elements=changed),
    )
    np.testing.assert_array_equal(written["down"], weights["down"])
    np.testing.assert_array_equal(written["up"], pruned["up"])
    assert model.read_bytes() == before
    assert _restore(model, model, "first", "second")[0] == ()


def test_weights_of_another_name_are_found_by_their_layer(models: Models) -> None:
    weights = _dense()
    model = _save(models, _pruned(weights), "pruned.onnx")
    _, written = _restore(model, _save(models, weights, "dense.onnx", ("val_7", "val_9")), "first", "second")
    np.testing.assert_array_equal(written["down"], weights["down"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_each_weight_keeps_its_type(models: Models, dtype: Any) -> None:
    weights = _dense()
    half = {name: w.astype(dtype) for name, w in _pruned(weights).items()}
    model = _save(models, half, "pruned.onnx")
    read = read_model(model)
    restore_dense(read, read_model(_save(models, weights, "dense.onnx")), ["second"])
    got = read.ir.graph.initializers["down"].const_value
    assert got is not None
    np.testing.assert_array_equal(got.numpy(), weights["down"].astype(dtype))


def test_what_a_sparse_layer_reads_as_well_stays(models: Models) -> None:
    square = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        in_module(helper.make_node("MatMul", ["x", "w"], ["a"], name="first"), "layers.0.up"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
    ]
    model = models.save(models.model(nodes, {"w": prune_2to4(square, 0)}), "pruned.onnx")
    dense = models.save(models.model(nodes, {"w": square}), "dense.onnx")
    (kept,) = _restore(model, dense, "second")[0]
    assert (kept.route, kept.reason) == (
        "kept",
        "weight 'w' is shared with 'layers.0.up', which is planned sparse",
    )
    found, written = _restore(model, dense, "first", "second")
    assert [(r.layer, r.route, r.reason) for r in found] == [
        ("first", "restored", ""),
        ("second", "restored", "with 'layers.0.up'"),
    ]
    np.testing.assert_array_equal(written["w"], square)


def test_a_weight_that_a_constant_node_holds(models: Models) -> None:
    def save(values: Array, name: str) -> Path:
        nodes = [
            helper.make_node("Constant", [], ["w"], value=models.tensor("w", values)),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        ]
        return models.save(models.model(nodes), name)

    weight = _dense()["up"]
    read = read_model(save(prune_2to4(weight, 0), "pruned.onnx"))
    (found,) = restore_dense(read, read_model(save(weight, "dense.onnx")), ["first"])
    assert found.route == "restored"
    constant = next(node for node in read.ir.graph if node.op_type == "Constant")
    np.testing.assert_array_equal(constant.attributes["value"].as_tensor().numpy(), weight)


def test_quantized_weights_stay(models: Models) -> None:
    stored = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="first"),
    ]
    scale = np.asarray(np.float32(0.1))
    model = models.save(models.model(nodes, {"w": prune_2to4(stored, 0), "s": scale}), "pruned.onnx")
    dense = models.save(models.model(nodes, {"w": stored, "s": scale}), "dense.onnx")
    (kept,) = _restore(model, dense, "first")[0]
    assert kept.route == "kept"
    assert "go with their scales" in kept.reason
    assert _restore(dense, dense, "first")[0] == ()


def test_training_after_pruning_is_no_other_model(models: Models) -> None:
    weights = _dense()
    trained = {name: w * (1 + 0.3 * np.sign(w)) for name, w in _pruned(weights).items()}
    found, _ = _restore(
        _save(models, {n: w.astype(np.float32) for n, w in trained.items()}, "trained.onnx"),
        _save(models, weights, "dense.onnx"),
        "second",
    )
    assert found[0].route == "restored"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: _dense(seed=1), r"where weight 'up' of layer 'first' is not 0, its values there have"),
        (lambda w: {"up": w["up"][:, :96], "down": w["down"][:96]}, r"has shape \[64, 96\] there, not"),
        (lambda w: {"up": w["up"]}, "weight 'down' of layer 'second' is not in it"),
    ],
)  # fmt: skip
def test_another_model_is_refused(models: Models, change: Any, says: str) -> None:
    weights = _dense()
    model = _save(models, _pruned(weights), "pruned.onnx")
    other = change(weights)
    if "down" in other:
        path = _save(models, other, "other.onnx")
    else:
        node = helper.make_node("MatMul", ["x", "up"], ["y"], name="only")
        path = models.save(models.model([node], other), "other.onnx")
    with pytest.raises(ModelError, match=says) as caught:
        _restore(model, path, "first", "second")
    assert "other.onnx is another model: " in caught.value.message


def test_other_inputs_and_outputs_are_refused(models: Models) -> None:
    weights = _dense()
    model = _save(models, _pruned(weights), "pruned.onnx")
    node = helper.make_node("MatMul", ["z", "up"], ["y"], name="first")
    other = models.model([node], {"up": weights["up"]}, {"z": ("batch", 64)})
    with pytest.raises(ModelError, match="its inputs are 'z', not 'x'"):
        _restore(model, models.save(other, "other.onnx"), "first")
    other.graph.input[0].name = other.graph.node[0].input[0] = "x"
    other.graph.node[0].output[0] = "q"
    other.graph.output[0].CopyFrom(helper.make_tensor_value_info("q", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="its outputs are 'q', not 'y'"):
        _restore(model, models.save(other, "other.onnx"), "first")
