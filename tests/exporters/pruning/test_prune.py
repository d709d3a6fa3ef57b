"""Pruning a model: its weights become 2:4, and nothing else changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import ArtifactError, ModelError
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.graph import SparsityState, all_eligible_sparse, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from tests.exporters.pruning.pruned import MATMUL, check_same, hashes_of, prune, random_weight, values_in

if TYPE_CHECKING:
    from tests.conftest import Models, Naive


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        np.int8,
        np.uint8,
    ],
)
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    ("op", "shape", "axis", "attributes"),
    [
        ("MatMul", (64, 32), 0, {}),
        ("MatMul", (3, 64, 8), 1, {}),
        ("Gemm", (64, 32), 0, {}),
        ("Gemm", (32, 64), 1, {"transB": 1}),
        ("Conv", (8, 16, 3, 3), 1, {}),
        ("Conv", (8, 32, 1, 1), 1, {"group": 2}),
    ],
)
def test_every_type_and_axis(
    models: Models, naive: Naive, dtype: Any, external: bool, op: str, shape: Any, axis: int, attributes: Any
) -> None:
    weight = (random_weight(*shape) * 30 + 40).clip(1, 120).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT),
        helper.make_node(op, ["x", "v"], ["y"], name="node", **attributes),
    ]
    x = ("b", 64, 9, 9) if op == "Conv" else ("b", 64)
    model = models.model(nodes, {"w": weight}, {"x": x})
    if external:
        models.externalize(model, {"w": "w.bin"}, padding=7)
    path = models.save(model)
    report, proto = prune(path)
    expected = naive.prune(weight, axis)
    check_same(values_in(proto, report.output.parent, {"w": weight})["w"], expected)
    (pruned,) = report.pruned
    assert (pruned.weight, pruned.layers, pruned.elements) == ("w", ("node",), weight.size)
    assert pruned.zeroed == np.count_nonzero(weight != expected)
    assert not report.conflicts
    assert not report.skipped
    assert all_eligible_sparse(read_layers(read_model(report.output)))


@pytest.mark.parametrize(
    ("nodes", "shape", "axis"),
    [
        ([helper.make_node("Transpose", ["w"], ["v"])], (32, 64), 1),
        ([helper.make_node("Reshape", ["w", "to"], ["v"])], (2, 32, 32), None),
        (
            [helper.make_node("Transpose", ["w"], ["a"]), helper.make_node("Reshape", ["a", "to"], ["v"])],
            (16, 128),
            None,
        ),
        (
            [helper.make_node("Identity", ["w"], ["a"]), helper.make_node("Cast", ["a"], ["v"], to=1)],
            (64, 32),
            0,
        ),
    ],
)
@pytest.mark.parametrize("external", [False, True])
def test_through_a_chain(
    models: Models, naive: Naive, nodes: Any, shape: Any, axis: Any, external: bool
) -> None:
    weight = random_weight(*shape)
    nodes = [*nodes, helper.make_node("MatMul", ["x", "v"], ["y"])]
    model = models.model(nodes, {"w": weight, "to": np.array([64, 32], np.int64)})
    if external:
        models.externalize(model, {"w": "w.bin"})
    report, proto = prune(models.save(model))
    pruned = values_in(proto, report.output.parent, {"w": weight})["w"]
    if axis is not None:
        check_same(pruned, naive.prune(weight, axis))
    assert np.count_nonzero(pruned) == weight.size // 2
    (layer,) = read_layers(read_model(report.output))
    assert layer.state is SparsityState.SPARSE


def test_asymmetric_integers_are_pruned_to_their_zero_points(models: Models, naive: Naive) -> None:
    weight = np.random.default_rng(0).integers(0, 256, (64, 32), np.uint8)
    zero = np.random.default_rng(1).integers(0, 256, 32, np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=1),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    path = models.save(models.model(nodes, {"w": weight, "s": np.ones(32, np.float32), "z": zero}))
    report, proto = prune(path)
    check_same(values_in(proto, path.parent, {"w": weight})["w"], naive.prune(weight, 0, zero[None, :]))
    assert all_eligible_sparse(read_layers(read_model(report.output)))


def test_typed_data_becomes_raw(models: Models) -> None:
    weight = random_weight(64, 32)
    model = models.model(MATMUL, {})
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, (64, 32), weight.reshape(-1)))
    _, proto = prune(models.save(model))
    assert not proto.graph.initializer[0].float_data
    check_same(values_in(proto, models.folder, {"w": weight})["w"], prune_2to4(weight, 0))


def test_a_constant_node_is_pruned_and_a_list_of_numbers_is_left(models: Models) -> None:
    weight = random_weight(64, 32)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=models.tensor("t", weight)),
        helper.make_node("MatMul", ["x", "c"], ["y"], name="tensor"),
        helper.make_node("Constant", [], ["l"], value_floats=random_weight(64).tolist()),
        helper.make_node("MatMul", ["x", "l"], ["z"], name="list"),
    ]
    report, proto = prune(models.save(models.model(nodes, outputs=["y", "z"])))
    assert [p.layers for p in report.pruned] == [("tensor",)]
    assert report.skipped == (("list", "weight 'l' is a list of numbers, not a tensor"),)
    assert proto.graph.node[0].attribute[0].t.raw_data == prune_2to4(weight, 0).tobytes()


# ---- everything else stays


def _rich(models: Models) -> onnx.ModelProto:
    """A model with something in every corner that a rewrite could lose."""
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [models.tensor("inner", random_weight(64, 32))],
    )
    function = helper.make_function(
        "mine",
        "F",
        ["a"],
        ["c"],
        [
            helper.make_node("Constant", [], ["k"], value=models.tensor("k", random_weight(32, 16))),
            helper.make_node("MatMul", ["a", "k"], ["c"], name="infn"),
        ],
        [helper.make_opsetid("", 21)],
    )
    nodes = [
        *MATMUL,
        helper.make_node("If", ["if"], ["br"], name="if", then_branch=inner, else_branch=inner),
        helper.make_node("F", ["y"], ["fn"], domain="mine"),
        helper.make_node("Gather", ["table", "ids"], ["g"], doc_string="a lookup"),
    ]
    weights = {
        "w": random_weight(64, 32),
        "if": np.array(True),
        "table": random_weight(10, 64),
        "ids": np.array([1, 2]),
    }
    model = models.model(nodes, weights, outputs=["y", "br", "fn", "g"], functions=[function])
    model.opset_import.add(domain="com.microsoft", version=1)
    model.producer_name, model.producer_version, model.domain = "somebody", "1.2.3", "here"
    model.model_version, model.doc_string = 7, "what it is"
    helper.set_model_props(model, {"author": "somebody", "license": "some"})
    model.graph.doc_string = "the main graph"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'm.q_proj', 'mm']")
    model.graph.value_info.add().CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 32))
    )
    note = model.graph.quantization_annotation.add(tensor_name="w")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.graph.initializer[0].doc_string = "a weight"
    model.graph.initializer[0].metadata_props.add(key="who", value="me")
    # fields that this version of ONNX does not know
    data = model.SerializeToString() + b"\xfa\xff\xff\x7f\x03new"
    model.ParseFromString(data)
    return model


@pytest.mark.parametrize(
    "files", [{}, {"w": "one.bin"}, {"w": "one.bin", "table": "one.bin", "ids": "sub/two.bin"}]
)
def test_all_but_the_weights_is_byte_identical(models: Models, files: dict[str, str]) -> None:
    model = _rich(models)
    models.externalize(model, files, padding=13)
    path = models.save(model)
    report, proto = prune(path)
    assert {p.weight for p in report.pruned} >= {"w", "inner"}
    assert sum(p.weight not in ("w", "inner") for p in report.pruned) == 1  # the function's
    assert len(report.pruned) == 4  # both branches hold their own copy of 'inner'
    before, after = _tensors(model), _tensors(proto)
    assert [t.name for t in before] == [t.name for t in after]
    for old, new in zip(before, after, strict=True):
        if new.data_location == TensorProto.EXTERNAL:
            was = {entry.key: entry.value for entry in old.external_data}
            now = {entry.key: entry.value for entry in new.external_data}
            assert now.pop("location").startswith("pruned.onnx.data")
            was.pop("location")
            assert now == was
            new.ClearField("external_data")
            new.external_data.extend(old.external_data)
        elif old.name in ("w", "inner", "k"):
            assert new.raw_data != old.raw_data
            new.raw_data = old.raw_data
    assert proto.SerializeToString() == path.read_bytes()
    for name in dict.fromkeys(files.values()):
        size = (path.parent / name).stat().st_size
        renamed = [f for f in report.output.parent.iterdir() if f.stat().st_size == size]
        old_bytes, new_bytes = (path.parent / name).read_bytes(), renamed[0].read_bytes()
        if name == "one.bin":
            weight = random_weight(64, 32)
            end = 13 + weight.nbytes
            assert new_bytes[13:end] == prune_2to4(weight, 0).tobytes()
            new_bytes = new_bytes[:13] + weight.tobytes() + new_bytes[end:]
        assert new_bytes == old_bytes
    assert len(list(report.output.parent.iterdir())) == 1 + len(set(files.values()))


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    tensors = list(proto.graph.initializer)
    for node in proto.graph.node:
        tensors += [t for a in node.attribute if a.HasField("g") for t in a.g.initializer]
    return tensors + [a.t for f in proto.functions for n in f.node for a in n.attribute if a.HasField("t")]


def test_a_2to4_model_is_written_as_it_was(models: Models) -> None:
    path = models.matmul(prune_2to4(random_weight(64, 32), 0))
    report, _ = prune(path)
    assert [p.zeroed for p in report.pruned] == [0]
    assert report.output.read_bytes() == path.read_bytes()


def test_a_model_in_memory_can_be_used_again(models: Models) -> None:
    model = models.model(MATMUL, {"w": random_weight(64, 32)})
    models.externalize(model, {"w": "w.bin"})
    read = read_model(models.save(model))
    before = read.proto.SerializeToString()
    for name in ("a.onnx", "b.onnx"):
        prune_model(read, models.folder / name)
        assert read.proto.SerializeToString() == before
    assert (models.folder / "a.onnx.data").read_bytes() == (models.folder / "b.onnx.data").read_bytes()
    assert all_eligible_sparse(read_layers(read_model(models.folder / "b.onnx")))


def test_one_file_under_several_names(models: Models) -> None:
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)]
    weights = {f"w{i}": random_weight(64, 32, seed=i) for i in range(3)}
    model = models.model(nodes, weights, outputs=["y0", "y1", "y2"])
    (models.folder / "sub").mkdir()
    models.externalize(model, {"w0": "w.bin", "w1": "./w.bin", "w2": "sub/../w.bin"})
    report, proto = prune(models.save(model))
    assert len(report.pruned) == 3
    assert sorted(p.name for p in report.output.parent.iterdir()) == ["pruned.onnx", "pruned.onnx.data"]
    for name, values in values_in(proto, report.output.parent, weights).items():
        check_same(values, prune_2to4(weights[name], 0))


def test_progress_ends_at_the_whole(models: Models) -> None:
    model = _rich(models)
    models.externalize(model, {"table": "t.bin"})
    seen: list[tuple[int, int]] = []
    prune(models.save(model), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---- places that cannot be written


def test_the_input_is_never_written(models: Models) -> None:
    model = models.model(MATMUL, {"w": random_weight(64, 32)})
    models.externalize(model, {"w": "other.onnx.data"})
    path = models.save(model)
    (models.folder / "link.onnx").symlink_to(path)
    os.link(path, models.folder / "hard.onnx")
    before = hashes_of(models.folder)
    read = read_model(path)
    for name, says in (
        ("model.onnx", "is the input itself"),
        ("link.onnx", "is the input itself"),
        ("hard.onnx", "is the input itself"),
        ("other.onnx", r"other\.onnx\.data is a file of the input itself"),
        ("other.onnx.data", r"other\.onnx\.data is a file of the input itself"),
    ):
        with pytest.raises(ModelError, match=says):
            prune_model(read, models.folder / name)
    assert hashes_of(models.folder) == before
    moved = path.rename(models.folder / "short.data")
    with pytest.raises(ModelError, match=r"short\.data is a file of the input itself"):
        prune_model(read_model(moved), models.folder / "short")


@pytest.mark.parametrize("place", ["missing/out.onnx", "file/out.onnx", "folder", "n" * 250])
def test_a_place_that_cannot_be_written(models: Models, place: str) -> None:
    (models.folder / "file").touch()
    (models.folder / "folder").mkdir()
    path = models.matmul(random_weight(64, 32))
    before = sorted(models.folder.iterdir())
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        prune_model(read_model(path), models.folder / place)
    assert caught.value.hint
    assert sorted(models.folder.iterdir()) == before


def test_an_interrupt_leaves_nothing(models: Models) -> None:
    model = models.model(MATMUL, {"w": random_weight(64, 32)})
    models.externalize(model, {"w": "w.bin"})
    path = models.save(model)
    before = hashes_of(models.folder)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(read_model(path), models.folder / "out.onnx", progress=interrupt)
    assert hashes_of(models.folder) == before


_RUN = """
import os, resource, signal, sys
from pathlib import Path
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.model_file import read_model

path, output, how = sys.argv[1:]
progress = None
if how == "kill":
    progress = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    prune_model(read_model(Path(path)), Path(output), progress=progress)
except ArtifactError as error:
    print(error)
"""


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_process_that_dies_or_runs_out_of_room_leaves_nothing(
    models: Models, how: str, external: bool
) -> None:
    model = models.model(MATMUL, {"w": random_weight(64, 32)})
    if external:
        models.externalize(model, {"w": "w.bin"})
    path = models.save(model)
    before = hashes_of(models.folder)
    output = models.folder / "out.onnx"
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path), str(output), how], capture_output=True, text=True, check=False
    )
    if how == "full":
        assert "cannot be written: File too large." in done.stdout, done.stderr
        assert hashes_of(models.folder) == before
        return
    assert done.returncode == -signal.SIGKILL
    left = {
        name: value for name, value in hashes_of(models.folder).items() if not name.startswith(".out.onnx.")
    }
    assert left == before  # nobody can remove what a killed process wrote under a temporary name …
    prune_model(read_model(path), output)
    new = {"out.onnx", "out.onnx.data"} if external else {"out.onnx"}
    assert set(hashes_of(models.folder)) == set(before) | new  # … but the next run
