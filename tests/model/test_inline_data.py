"""A skeleton is the model with its large tensors left in the file: filled in again, it is the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.model.inline_data import LEAST_BYTES, read_skeleton
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.tensor_data import external_fields, is_external, tensor_protos

LARGE = np.arange(LEAST_BYTES, dtype=np.float32).reshape(64, -1)
SMALL = np.arange(8, dtype=np.float32)


def model_with(*, initializers: list[Any], nodes: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    made.metadata_props.add(key="kept", value="yes")
    return made


def filled(skeleton: bytes, path: Path) -> onnx.ModelProto:
    """The skeleton's tensors read back from the file."""
    model = onnx.ModelProto()
    model.ParseFromString(skeleton)
    data = path.read_bytes()
    for tensor in tensor_protos(model):
        if is_external(tensor):
            fields = external_fields(tensor)
            assert fields["location"] == path.name
            begin, length = int(fields["offset"]), int(fields["length"])
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data[begin : begin + length]
    return model


def product(name: str = "w") -> Any:
    return helper.make_node("MatMul", ["x", name], ["y"], "product")


def test_large_tensors_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = model_with(
        initializers=[numpy_helper.from_array(LARGE, "w"), numpy_helper.from_array(SMALL, "b")],
        nodes=[product()],
    )
    onnx.save(whole, path)
    skeleton = read_skeleton(path)
    assert skeleton is not None
    assert len(skeleton) < 1000
    assert filled(skeleton, path) == whole


def test_constants_and_bodies_are_walked(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(LARGE))
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("MatMul", ["x", "v"], ["r"])], "body", [], [result],
                             [numpy_helper.from_array(LARGE * 2, "v")])  # fmt: skip
    branch = helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)
    condition = numpy_helper.from_array(np.asarray(True), "c")
    whole = model_with(initializers=[condition], nodes=[constant, product(), branch])
    onnx.save(whole, path)
    skeleton = read_skeleton(path)
    assert skeleton is not None
    assert len(skeleton) < 2000
    assert filled(skeleton, path) == whole
    tensors = read_model(path).ir.graph
    assert tensors is not None


def test_a_file_without_large_tensors_has_no_skeleton(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model_with(initializers=[numpy_helper.from_array(SMALL, "w")], nodes=[product()]), path)
    assert read_skeleton(path) is None
    path.write_bytes(b"")
    assert read_skeleton(path) is None


def test_a_link_to_a_model_elsewhere_is_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "here").mkdir()
    onnx.save(
        model_with(initializers=[numpy_helper.from_array(LARGE, "w")], nodes=[product()]),
        tmp_path / "store/b",
    )
    link = tmp_path / "here" / "m.onnx"
    link.symlink_to(tmp_path / "store" / "b")
    model = read_model(link)
    assert not model.maps_itself
    np.testing.assert_array_equal(model.ir.graph.initializers["w"].const_value.numpy(), LARGE)  # type: ignore[union-attr]


@pytest.mark.parametrize("cut", [1, 100, LEAST_BYTES, 3 * LEAST_BYTES])
def test_a_truncated_file_is_left_to_protobuf(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model_with(initializers=[numpy_helper.from_array(LARGE, "w")], nodes=[product()]), path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_skeleton(path) is None


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([1, LEAST_BYTES // 4 - 1, LEAST_BYTES // 4, LEAST_BYTES, 20000]), max_size=5
    ),
    raw=st.booleans(),
    docs=st.text(max_size=20),
)
def test_law_a_filled_skeleton_is_the_model(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], raw: bool, docs: str
) -> None:
    path = tmp_path_factory.mktemp("law") / "m.onnx"
    tensors = []
    for i, size in enumerate(sizes):
        values = np.arange(size, dtype=np.float32)
        tensor = numpy_helper.from_array(values, f"w{i}")
        if not raw:
            tensor = helper.make_tensor(f"w{i}", TensorProto.FLOAT, [size], values)
        tensor.doc_string = docs
        tensors.append(tensor)
    whole = model_with(initializers=tensors, nodes=[product()])
    onnx.save(whole, path)
    skeleton = read_skeleton(path)
    if raw and any(4 * size >= LEAST_BYTES for size in sizes):
        assert skeleton is not None
        assert filled(skeleton, path) == whole
    else:
        assert skeleton is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_law_any_bytes_are_taken_or_left(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "m.onnx"
    path.write_bytes(data)
    assert read_skeleton(path) is None
