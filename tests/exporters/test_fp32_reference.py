"""The reference in FP32, and which models have half types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.exporters.fp32_reference import has_half_types, reference_for, write_fp32_reference
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.validation.runners import ort_runner

if TYPE_CHECKING:
    from tests.conftest import Array, Models


def weights(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_reference_of_a_half_model_is_fp32_of_the_same_values(
    dtype: Any, models: Models, tmp_path: Path
) -> None:
    weight = weights(64, 32).astype(dtype)
    types = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    path = models.save(models.model([node], {"w": weight}, {"x": (4, 64)}, dtype=types[np.dtype(dtype).name]))
    write_fp32_reference(read_model(path), tmp_path / "reference.onnx")
    model = onnx.load(tmp_path / "reference.onnx")
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    stored = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(stored, weight.astype(np.float32))


def test_half_types_are_found_wherever_they_are(models: Models) -> None:
    cast = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)
    function = helper.make_function(
        "local", "Round", ["x"], ["y"], [cast, back], [helper.make_opsetid("", 21)]
    )
    call = helper.make_node("Round", ["x"], ["y"], domain="local")
    plain = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert has_half_types(read_model(models.save(models.model([cast, back]))))
    assert has_half_types(read_model(models.save(models.model([call], functions=[function]))))
    assert has_half_types(read_model(models.matmul(weights(64, 8).astype(np.float16))))
    assert not has_half_types(read_model(models.save(models.model(plain, {"w": weights(64, 8)}))))


def test_sizes_in_a_data_file_are_taken_in(models: Models, tmp_path: Path) -> None:
    """ONNX Runtime infers shapes before it reads a data file."""
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"], name="fc"),
    ]
    constants = {"sizes": np.array([-1, 64], np.int64), "w": weights(64, 32)}
    made = models.model(nodes, constants, {"x": ("batch", 2, 64)})
    assert reference_for(read_model(models.save(made)), tmp_path / "not needed.onnx") == models.save(made)
    path = tmp_path / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, size_threshold=0)
    with ort_runner(reference_for(read_model(path), tmp_path / "reference.onnx"), "reference") as runner:
        x = np.ones((1, 2, 64), np.float32)
        np.testing.assert_allclose(runner.infer({"x": x})["y"], x[0] @ constants["w"], rtol=1e-5)
