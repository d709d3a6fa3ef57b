"""What a graph measures of itself, against the same figures in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.exporters.retyping.measured import OUTPUT, add_measurements
from sparseflow_trt.exporters.retyping.node_types import infer_types
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.ranges import measure_ranges

if TYPE_CHECKING:
    from pathlib import Path

    from sparseflow_trt.model.node_range import NodeRange
    from tests.conftest import Array, Models

RNG = np.random.default_rng(0)


def _measure(path: Path, *feeds: Array) -> dict[str, NodeRange]:
    model = read_model(path)
    infer_types(model.ir)
    rows = add_measurements(model.ir, narrower=True)
    measured = path.with_name("measured.onnx")
    save_model(model.ir, measured)
    sets = [InputSet(str(i), {"x": x}, 0, "drawn") for i, x in enumerate(feeds)]
    return measure_ranges(measured, OUTPUT, rows, sets)


def _error(got: Array, true: Array) -> float:
    return float(np.linalg.norm(got - true) / np.linalg.norm(true))


@pytest.mark.parametrize(("field", "dtype"), [("fp16_error", np.float16), ("bf16_error", ml_dtypes.bfloat16)])
def test_a_product_s_own_error_in_a_narrower_type(models: Models, field: str, dtype: type) -> None:
    w = RNG.standard_normal((64, 32)).astype(np.float32)
    x = RNG.standard_normal((8, 64)).astype(np.float32)
    found = _measure(models.matmul(w), x)["mm"]

    def rounded(values: Array) -> Array:
        return np.asarray(values.astype(dtype).astype(np.float32))

    expected = _error(rounded(rounded(x) @ rounded(w)), x @ w)
    assert getattr(found, field) == pytest.approx(expected, rel=1e-2)
    assert found.largest == pytest.approx(np.abs(x @ w).max(), rel=1e-5)
    assert found.sum_bound == pytest.approx((np.abs(x) @ np.abs(w)).max(), rel=1e-5)
    assert (found.size, found.k, found.work) == (256, 64, 8 * 32 * 64)


def test_overflow_fills_and_subnormals_are_counted(models: Models) -> None:
    node = helper.make_node("Identity", ["x"], ["a"], name="moved")
    relu = helper.make_node("Relu", ["a"], ["y"], name="relu")
    path = models.save(models.model([node, relu], {}, {"x": (6,)}))
    x = np.array([1.0, 1e5, 3e38, np.inf, 2.0**-20, 0.0], np.float32)
    found = _measure(path, x)
    assert list(found) == ["relu"]  # what only moves values has no figures of its own
    assert (found["relu"].above, found["relu"].fills, found["relu"].overflows) == (1, 2, True)
    assert found["relu"].largest == 1e5
    assert found["relu"].tiny == pytest.approx(1 / 6)
    assert found["relu"].fp16_error == np.inf


def test_the_worst_of_several_runs_counts_and_no_elements_are_no_error(models: Models) -> None:
    w = np.eye(4, dtype=np.float32)
    empty, small, large = (np.full((n, 4), n, np.float32) for n in (0, 1, 3))
    found = _measure(models.matmul(w), empty, large, small)["mm"]
    assert (found.size, found.largest, found.fp16_error) == (12, 3.0, 0.0)


def test_other_products(models: Models) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], name="conv"),
        helper.make_node("Flatten", ["a"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "g", "b"], ["y"], name="gemm", transB=1),
    ]
    weights = {
        "c": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32),
        "g": RNG.standard_normal((5, 8 * 16)).astype(np.float32),
        "b": np.ones(5, np.float32),
    }
    path = models.save(models.model(nodes, weights, {"x": ("batch", 4, 6, 6)}))
    found = _measure(path, RNG.standard_normal((2, 4, 6, 6)).astype(np.float32))
    assert (found["conv"].k, found["conv"].size) == (36, 2 * 8 * 16)
    assert (found["gemm"].k, found["gemm"].size) == (128, 10)
    assert 0 < (found["gemm"].fp16_error or 0) < 1e-2


def test_a_node_that_rounding_throws_off(models: Models) -> None:
    """Two large numbers whose difference is small: FP16's steps there are larger than it."""
    nodes = [helper.make_node("Sub", ["x", "c"], ["y"], name="sub")]
    path = models.save(models.model(nodes, {"c": np.asarray(np.float32(3e4))}, {"x": ("batch", 8)}))
    x = (3e4 + RNG.standard_normal((4, 8))).astype(np.float32)
    error = _measure(path, x)["sub"].fp16_error
    assert error is not None
    assert error > 0.5


def test_a_first_output_left_out_and_sequences_are_no_obstacle(models: Models) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["steps"], name="unsqueeze"),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], name="lstm", hidden_size=2),
        helper.make_node("SplitToSequence", ["last", "one"], ["parts"], name="split", axis=2),
        helper.make_node("SequenceAt", ["parts", "first"], ["y"], name="at"),
    ]
    weights = {
        "w": RNG.standard_normal((1, 8, 4)).astype(np.float32),
        "r": RNG.standard_normal((1, 8, 2)).astype(np.float32),
        "axis": np.array([0]), "one": np.array(1), "first": np.array(0),
    }  # fmt: skip
    path = models.save(models.model(nodes, weights, {"x": (3, 4)}))
    found = _measure(path, RNG.standard_normal((3, 4)).astype(np.float32))
    assert found["lstm"].size == 6
    assert found["lstm"].fp16_error is None
    assert "split" not in found
    assert found["at"].size == 3


def test_an_opset_before_bf16_is_measured_in_fp16_alone(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    w = RNG.standard_normal((64, 32)).astype(np.float32)
    path = models.save(models.model([node], {"w": w}, {"x": ("batch", 64)}, opset=11))
    found = _measure(path, RNG.standard_normal((8, 64)).astype(np.float32))["mm"]
    assert found.fp16_error is not None
    assert 0 < found.fp16_error < 1e-2
    assert found.bf16_error == np.inf


def test_what_sizes_its_output_by_numbers_is_not_computed_from_rounded_ones(models: Models) -> None:
    nodes = [
        helper.make_node("Range", ["zero", "many", "one"], ["r"], name="range"),
        helper.make_node("Resize", ["x", "", "scales"], ["wide"], name="resize"),
        helper.make_node("ReduceMax", ["r"], ["most"], name="max", keepdims=0),
        helper.make_node("Add", ["wide", "most"], ["y"], name="add"),
    ]
    weights = {
        "zero": np.array(0, np.float32), "one": np.array(1, np.float32), "many": np.array(5001, np.float32),
        "scales": np.array([1, 1.9], np.float32),
    }  # fmt: skip
    found = _measure(
        models.save(models.model(nodes, weights, {"x": (1, 1365)})), np.ones((1, 1365), np.float32)
    )
    assert (found["range"].size, found["resize"].size) == (5001, 2593)
    assert found["range"].fp16_error is None
    assert found["resize"].fp16_error is None
