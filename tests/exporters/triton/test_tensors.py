"""Inputs and outputs of ONNX files as Triton names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.tensors import TENSORRT_TYPES, TRITON_TYPES, ServedTensor, read_ends
from sparseflow_trt.model.model_file import read_model

if TYPE_CHECKING:
    from tests.conftest import Models

RELU = [helper.make_node("Relu", ["x"], ["y"])]


def test_inference_tells_what_the_file_does_not(models: Models) -> None:
    path = models.matmul(np.ones((64, 32), np.float32))
    ends = read_ends(read_model(path))
    assert ends.inputs == (ServedTensor("x", "FP32", ("batch", 64)),)
    assert ends.outputs == (ServedTensor("y", "FP32", ("batch", 32)),)


def test_what_inference_names_by_itself_has_no_name(models: Models) -> None:
    path = models.save(models.model(RELU, inputs={"x": (None, "seq", 64)}))
    ends = read_ends(read_model(path))
    assert [tensor.dims for tensor in (*ends.inputs, *ends.outputs)] == [(None, "seq", 64)] * 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [(TensorProto.BFLOAT16, "BF16"), (TensorProto.INT8, "INT8"), (TensorProto.DOUBLE, "FP64")],
)
def test_types_are_tritons(kind: int, name: str, models: Models) -> None:
    path = models.save(models.model(RELU, dtype=kind))
    assert {tensor.type for tensor in read_ends(read_model(path)).inputs} == {name}


def test_a_type_that_triton_lacks_is_refused(models: Models) -> None:
    path = models.save(models.model(RELU, dtype=TensorProto.FLOAT8E4M3FN))
    with pytest.raises(DeployError, match="'x' is of type FLOAT8E4M3FN"):
        read_ends(read_model(path))


def test_a_rank_that_nothing_tells_is_what_was_seen(models: Models) -> None:
    reshape = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = {"x": ("batch", 64), "shape": None}
    path = models.save(models.model(reshape, inputs=inputs, opset=13))
    proto = onnx.load(str(path))
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    proto.graph.input[1].type.tensor_type.shape.dim.add(dim_param="rank")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(DeployError, match="'y' has no known rank"):
        read_ends(read_model(path))
    seen = [{"y": (1, 8, 8)}, {"y": (4, 8, 8)}]
    assert read_ends(read_model(path), seen).outputs == (ServedTensor("y", "FP32", (None, 8, 8)),)


def test_a_scalar_has_no_dimensions(models: Models) -> None:
    path = models.save(models.model(RELU, inputs={"x": ()}))
    assert read_ends(read_model(path)).inputs == (ServedTensor("x", "FP32", ()),)


def test_types_are_those_of_tritons_own_configuration(models: Models) -> None:
    pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    named = {name.removeprefix("TYPE_") for name in pb.DataType.keys()}  # noqa: SIM118 - no dict
    assert named - {"INVALID", "STRING"} == set(TRITON_TYPES.values())
    assert set(TENSORRT_TYPES) < named
