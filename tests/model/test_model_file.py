"""Model files that cannot be read: one sentence each, and never another kind of error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError, SparseflowError
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import ONNX_DOMAIN, data_files, input_dims, read_model
from sparseflow_trt.model.operators import check_operators
from sparseflow_trt.model.tensor_data import tensor_protos

if TYPE_CHECKING:
    from tests.conftest import Models

WEIGHT = np.ones((64, 32), np.float32)


def _refused(path: Path, *says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_model(path)
    message = caught.value.message
    assert str(path) in message
    for words in says:
        assert words in message
    assert message.endswith(".")
    assert "\n" not in message
    assert caught.value.hint


def test_a_model_is_read_without_its_weights(models: Models) -> None:
    model = read_model(models.matmul(WEIGHT))
    assert model.opset == 21
    assert input_dims(model) == {"x": ("batch", 64)}
    assert data_files(model) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"Hello, this is a text file.\n" * 9, "is not an ONNX model"),
        (bytes(range(256)), "is not an ONNX model"),
        (b"\x08\x07", "has no graph"),
        (b"PK\x03\x04" + bytes(99), "is not an ONNX model"),
        (b'{"json": true}', "is not an ONNX model"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    _refused(path, says)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    _refused(tmp_path / "nothing.onnx", "does not exist")
    _refused(tmp_path, "is a folder")
    (tmp_path / "file").touch()
    _refused(tmp_path / "file" / "model.onnx", "cannot be read")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    _refused(tmp_path / "loop", "cannot be read")


def test_a_hugging_face_folder_is_to_be_exported(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a folder, not an ONNX file") as caught:
        read_model(folder)
    assert caught.value.hint == f"Export it first: sparseflow-trt export '{folder}'"


def test_a_truncated_model(models: Models) -> None:
    path = models.matmul(WEIGHT)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _refused(path, "truncated", f"{len(whole) // 2} bytes")


@pytest.mark.parametrize(("opset", "says"), [(9999, "opset 9999"), (0, "opset 0"), (-3, "opset -3")])
def test_an_unknown_opset(models: Models, opset: int, says: str) -> None:
    model = models.model([helper.make_node("Identity", ["x"], ["y"])])
    model.opset_import[0].version = opset
    _refused(models.save(model), says, "supports 1 to")


def test_no_opset(models: Models) -> None:
    model = models.model([helper.make_node("Identity", ["x"], ["y"])])
    del model.opset_import[:]
    _refused(models.save(model), "names no ONNX opset")


def test_maps(models: Models) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("ZipMap", ["y"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    model = models.model(nodes)
    probabilities = helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    )
    model.graph.output.append(helper.make_value_info("p", helper.make_sequence_type_proto(probabilities)))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    _refused(models.save(model), "'p' is a map, not a tensor, as ZipMap makes them")


def test_the_domain_has_two_names(models: Models) -> None:
    model = models.model([helper.make_node("Identity", ["x"], ["y"], domain="ai.onnx")])
    model.opset_import[0].domain = "ai.onnx"
    read = read_model(models.save(model))
    assert read.opset == 21
    assert read.ir.opset_imports == {ONNX_DOMAIN: 21}
    assert [node.domain for node in read.ir.graph] == [ONNX_DOMAIN]


# ---- tensors


def _tensor_case(models: Models, change: Callable[[onnx.TensorProto], None]) -> Path:
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    change(model.graph.initializer[0])
    return models.save(model)


def _typed(tensor: onnx.TensorProto, field: str, number: int) -> None:
    tensor.ClearField("raw_data")
    getattr(tensor, field).extend([1] * number)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: setattr(t, "raw_data", t.raw_data[:-4]),
            "of shape [64, 32] needs 8192 bytes and has 8188",
        ),
        (lambda t: setattr(t, "raw_data", b""), "needs 8192 bytes and has 0"),
        (lambda t: t.dims.__setitem__(0, -64), "has a negative dimension"),
        (lambda t: t.dims.__setitem__(0, 2**62), "needs"),
        (lambda t: setattr(t, "data_type", 99), "has data type 99"),
        (lambda t: setattr(t, "data_type", 0), "has data type 0"),
        (lambda t: t.ClearField("raw_data"), "needs 2048 values and has 0"),
        (lambda t: _typed(t, "float_data", 7), "needs 2048 values and has 7"),
        (lambda t: _typed(t, "int32_data", 2048), "needs 2048 values and has 0"),
        (lambda t: t.dims.append(2), "of shape [64, 32, 2] needs 16384 bytes"),
        (lambda t: t.dims.extend([1] * 31), "has 33 dimensions"),
        (lambda t: t.dims.extend([2**62, 2**62, 0]), "has an impossible shape"),
    ],
)
def test_a_tensor_that_does_not_hold_what_it_says(
    models: Models, change: Callable[[onnx.TensorProto], None], says: str
) -> None:
    _refused(_tensor_case(models, change), "'w'", says)


@pytest.mark.parametrize(
    ("kind", "field", "shape", "number"),
    [
        (TensorProto.FLOAT, "float_data", (3, 5), 15),
        (TensorProto.DOUBLE, "double_data", (3, 5), 15),
        (TensorProto.INT64, "int64_data", (3, 5), 15),
        (TensorProto.UINT32, "uint64_data", (3, 5), 15),
        (TensorProto.UINT64, "uint64_data", (3, 5), 15),
        (TensorProto.FLOAT16, "int32_data", (3, 5), 15),
        (TensorProto.BFLOAT16, "int32_data", (3, 5), 15),
        (TensorProto.INT8, "int32_data", (3, 5), 15),
        (TensorProto.BOOL, "int32_data", (3, 5), 15),
        (TensorProto.INT4, "int32_data", (3, 5), 8),
        (TensorProto.COMPLEX64, "float_data", (3, 5), 30),
        (TensorProto.FLOAT8E5M2, "int32_data", (3, 5), 15),
        (TensorProto.FLOAT, "float_data", (0, 5), 0),
        (TensorProto.FLOAT, "float_data", (), 1),
    ],
)
def test_every_typed_field_is_counted(
    models: Models, kind: int, field: str, shape: tuple[int, ...], number: int
) -> None:
    model = models.model([helper.make_node("Identity", ["x"], ["y"])])
    tensor = TensorProto(name="t", data_type=kind, dims=shape)
    getattr(tensor, field).extend([1] * number)
    model.graph.initializer.append(tensor)
    whole = read_model(models.save(model))
    values = whole.ir.graph.initializers["t"].const_value
    assert values is not None
    assert values.numpy().shape == shape
    getattr(model.graph.initializer[0], field).append(1)
    _refused(models.save(model), f"needs {number} values and has {number + 1}")


def test_strings_are_counted(models: Models) -> None:
    model = models.model([helper.make_node("Identity", ["x"], ["y"])])
    model.graph.initializer.append(
        TensorProto(name="s", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"])
    )
    read_model(models.save(model))
    model.graph.initializer[0].string_data.append(b"c")
    _refused(models.save(model), "needs 2 values and has 3")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("location", "missing.bin", "the data file 'missing.bin' of tensor 'w' is missing"),
        ("location", "", "outside the model's folder"),
        ("location", "../data.bin", "outside the model's folder"),
        ("location", "/etc/passwd", "outside the model's folder"),
        ("location", "sub/../../data.bin", "outside the model's folder"),
        ("location", "link.bin", "outside the model's folder"),
        ("location", "folder/secret.bin", "outside the model's folder"),
        ("location", "loop.bin", "is missing"),
        ("location", "n" * 999, "is missing"),
        ("location", "a\0b", "is missing"),
        ("location", ".", "is missing"),
        ("offset", "4096", "is too short: tensor 'w' ends at byte 12288, the file at 8192"),
        ("offset", "-4", "offset '-4'"),
        ("offset", "four", "offset 'four'"),
        ("offset", "1_0", "offset '1_0'"),
        ("length", "8188", "needs 8192 bytes of external data and names 8188"),
        ("length", "-1", "length '-1'"),
        ("length", "9" * 99, "names 999"),
    ],
)
def test_external_data_that_is_not_there(models: Models, key: str, value: str, says: str) -> None:
    outside = models.folder
    models.folder = outside / "inside"
    models.folder.mkdir()
    (outside / "data.bin").write_bytes(WEIGHT.tobytes())
    (outside / "secret.bin").write_bytes(WEIGHT.tobytes())
    (models.folder / "link.bin").symlink_to(outside / "secret.bin")
    (models.folder / "folder").symlink_to(outside, target_is_directory=True)
    (models.folder / "loop.bin").symlink_to("loop.bin")
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    models.externalize(model, {"w": "data.bin"})
    assert len(data_files(read_model(models.save(model)))) == 1
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    _refused(models.save(model), "'w'", says)


def test_an_absolute_location_inside_the_folder_is_refused_too(models: Models) -> None:
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    models.externalize(model, {"w": "w.bin"})
    model.graph.initializer[0].external_data[0].value = str(models.folder / "w.bin")
    _refused(models.save(model), "outside the model's folder")


def test_external_data_too_short(models: Models) -> None:
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    models.externalize(model, {"w": "w.bin"}, length=False)
    path = models.save(model)
    read_model(path)
    os.truncate(models.folder / "w.bin", 8191)
    _refused(path, "'w.bin' is too short")


def test_data_files_are_found_everywhere_and_named_once(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def external(name: str, location: str) -> onnx.TensorProto:
        tensor = models.tensor(name, WEIGHT)
        model = models.model([helper.make_node("Identity", ["x"], ["y"])])
        model.graph.initializer.append(tensor)
        models.externalize(model, {name: location})
        return tensor_of(model)

    def tensor_of(model: onnx.ModelProto) -> onnx.TensorProto:
        (tensor,) = model.graph.initializer
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        return copy

    body = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["t"])],
        "g",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [external("b", "sub/b.bin")],
    )
    function = helper.make_function(
        "mine",
        "F",
        ["a"],
        ["c"],
        [helper.make_node("Constant", [], ["c"], value=external("c", "c.bin"))],
        [helper.make_opsetid("", 21)],
    )
    nodes = [
        helper.make_node("If", ["if"], ["y"], then_branch=body, else_branch=body),
        helper.make_node("F", ["x"], ["z"], domain="mine"),
    ]
    model = models.model(nodes, {"if": np.array(True)}, outputs=["y", "z"], functions=[function])
    model.graph.initializer.extend([external("v", "c.bin"), external("w", "./c.bin")])
    path = models.save(model)
    read = read_model(path)
    assert data_files(read) == [models.folder / "c.bin", models.folder / "sub/b.bin"]
    assert len(list(tensor_protos(read.proto))) == 6
    (models.folder / "sub/b.bin").unlink()
    _refused(path, "'sub/b.bin' of tensor 'b' is missing")
    monkeypatch.chdir(path.parent)
    with pytest.raises(ModelError) as caught:
        read_model(Path(path.name))
    assert caught.value.hint.endswith(f"beside it, in '{path.parent}'.")


# ---- graphs that contradict themselves


def test_two_nodes_that_make_one_value(models: Models) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="a"),
        helper.make_node("Abs", ["x"], ["y"], name="b"),
    ]
    _refused(models.save(models.model(nodes)), "'y'")


def test_a_value_that_nothing_makes(models: Models) -> None:
    relu = helper.make_node("Relu", ["nothing"], ["y"], name="relu")
    _refused(models.save(models.model([relu])), "node 'relu' reads 'nothing', which nothing produces")
    _refused(
        models.save(models.model([helper.make_node("Relu", ["x"], ["z"])])), "nothing produces the output 'y'"
    )


def test_names_that_are_no_text(models: Models) -> None:
    data = models.save(models.model([helper.make_node("Relu", ["x"], ["y"], name="a name")])).read_bytes()
    path = models.folder / "bytes.onnx"
    for name in (b"Relu", b"a name", b"batch"):
        path.write_bytes(data.replace(name, b"\xff" * len(name)))
        _refused(path, "a name in it is not text")


def test_sparse_tensors_are_refused_by_name(models: Models) -> None:
    nodes = [helper.make_node("Add", ["x", "s"], ["y"])]
    model = models.model(nodes)
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(models.tensor("s", np.ones(2, np.float32)))
    sparse.indices.CopyFrom(models.tensor("", np.arange(2)))
    sparse.dims.extend([4])
    assert len(list(tensor_protos(model))) == 2
    with pytest.raises(ModelError, match="stores 's' as an ONNX sparse tensor") as caught:
        read_model(models.save(model))
    assert caught.value.hint == "Store it as a dense tensor with its zeros: 2:4 is found in those."
    made = helper.make_node("Constant", [], ["made"], sparse_value=sparse)
    _refused(models.save(models.model([made, helper.make_node("Add", ["x", "made"], ["y"])])), "'made'")

    models.externalize(model, {})
    sparse.values.raw_data = b""
    _refused(models.save(model), "'s'", "needs 8 bytes")


# ---- whatever else: bytes changed at random


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder, and a small model with one of everything."""
    folder = tmp_path_factory.mktemp("fuzz")
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64

    def info(name: str, dims: tuple[int | str, ...] | None = None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, f32, dims)

    inner = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["t"], name="in")], "then", [], [info("t")]
    )
    function = helper.make_function(
        "m",
        "F",
        ["p"],
        ["q"],
        [helper.make_node("Gemm", ["p", "p"], ["q"], transB=1)],
        [helper.make_opsetid("", 18)],
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["q8", "s", "z"], ["d"], axis=0),
        helper.make_node("Transpose", ["d"], ["dt"], perm=[1, 0]),
        helper.make_node("Reshape", ["dt", "shape"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["a"], name="one"),
        helper.make_node("Gemm", ["a", "w"], ["b"], name="two", transB=0, alpha=1.0),
        helper.make_node("If", ["c"], ["e"], then_branch=inner, else_branch=inner),
        helper.make_node("F", ["e"], ["f"], domain="m"),
        helper.make_node("Conv", ["img", "k"], ["g"], group=1, kernel_shape=[1, 1]),
        helper.make_node("Constant", [], ["h"], value_floats=[1.0, 2.0]),
    ]
    data = np.arange(128, dtype=np.int8).tobytes()
    tensors = [
        helper.make_tensor("q8", TensorProto.INT8, (8, 16), data, raw=True),
        helper.make_tensor("s", f32, (8,), [1.0] * 8),
        helper.make_tensor("z", TensorProto.INT8, (8,), bytes(range(8)), raw=True),
        helper.make_tensor("shape", i64, (2,), [16, 8]),
        helper.make_tensor("w", f32, (8, 8), np.arange(64, dtype=np.float32).tobytes(), raw=True),
        helper.make_tensor("c", TensorProto.BOOL, (), [True]),
        helper.make_tensor("k", f32, (4, 8, 1, 1), np.ones(32, np.float32).tobytes(), raw=True),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", ("n", 16)), info("img", ("n", 8, 2, 2))],
        [info("f"), info("g"), info("h")],
        tensors,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("m", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    return folder, model.SerializeToString()


def _use(folder: Path, data: bytes) -> None:
    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        model = read_model(path)
        check_operators(model)
        read_layers(model)
        prune_model(read_model(path), folder / "pruned.onnx")
        read_layers(read_model(folder / "pruned.onnx"))
    except SparseflowError as error:
        assert error.message.endswith(".")
        assert error.hint


def test_the_specimen_itself_is_fine(specimen: tuple[Path, bytes]) -> None:
    folder, data = specimen
    _use(folder, data)
    assert (folder / "pruned.onnx").exists()


@settings(max_examples=400)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
@example(changes=[(0.041015625, 0)])  # an attribute of no type
@example(changes=[(0.9558480482618941, 128)])  # an opset's domain that is no text
@example(changes=[(0.07566623630969606, 1)])  # a Reshape whose shape is FP32
def test_changed_bytes_are_read_or_refused(
    changes: list[tuple[float, int]], specimen: tuple[Path, bytes]
) -> None:
    folder, data = specimen
    changed = bytearray(data)
    for where, value in changes:
        changed[int(where * (len(data) - 1))] = value
    _use(folder, bytes(changed))


@settings(max_examples=150)
@given(begin=st.floats(0, 1), size=st.integers(0, 60))
def test_missing_bytes_are_read_or_refused(begin: float, size: int, specimen: tuple[Path, bytes]) -> None:
    folder, data = specimen
    at = int(begin * len(data))
    _use(folder, data[:at])
    _use(folder, data[:at] + data[at + size :])
