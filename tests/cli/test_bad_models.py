"""Models that cannot be read or built: one sentence from every command, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]
Left = Callable[[Path], "list[str]"]

COMMANDS = ("inspect", "prune", "plan", "build")


def _empty(path: Path, models: Models) -> None:
    path.write_bytes(b"")


def _truncated(path: Path, models: Models) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _text(path: Path, models: Models) -> None:
    path.write_text("once upon a time")


def _folder(path: Path, models: Models) -> None:
    path.unlink()
    path.mkdir()


def _missing(path: Path, models: Models) -> None:
    path.unlink()


def _external(place: str, keep: int) -> Callable[[Path, Models], None]:
    def damage(path: Path, models: Models) -> None:
        weight = np.ones((64, 32), np.float32)
        model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], {"w": weight})
        models.externalize(model, {"w": "w.bin"})
        model.graph.initializer[0].external_data[0].value = place
        models.save(model)
        data = path.parent / "w.bin"
        data.write_bytes(data.read_bytes()[:keep])

    return damage


def _opset(path: Path, models: Models) -> None:
    model = models.model([helper.make_node("Relu", ["x"], ["y"])])
    model.opset_import[0].version = 9999
    models.save(model)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_missing, "model.onnx does not exist."),
        (_folder, "model.onnx is a folder, not an ONNX file."),
        (_empty, "model.onnx is empty."),
        (_truncated, "is not an ONNX model, or is truncated"),
        (_text, "is not an ONNX model"),
        (_external("gone.bin", 1 << 20), "the data file 'gone.bin' of tensor 'w' is missing."),
        (
            _external("w.bin", 100),
            "the data file 'w.bin' is too short: tensor 'w' ends at byte 8192, the file at 100.",
        ),
        (_external("../w.bin", 1 << 20), "lies in '../w.bin', outside the model's folder."),
        (_opset, "is written in opset 9999; onnx "),
    ],
)
def test_a_model_that_cannot_be_read(
    command: str, damage: Callable[[Path, Models], None], says: str, sparseflow: Sparseflow, mlp: MakeModel,
    models: Models, own_folder: Path, left: Left,
) -> None:  # fmt: skip
    path = mlp()
    damage(path, models)
    before = left(own_folder)
    ended = sparseflow(command, path, "--json")
    assert ended.code == 1
    assert says in ended.error
    assert left(own_folder) == before


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("op", "domain", "says"),
    [
        ("Bogus", "", "node 'strange' is a 'Bogus', which opset 21 does not have."),
        ("Swish", "", "node 'strange' is a 'Swish', which opset 21 does not have (it came with opset 24)."),
        ("Odd", "my.domain", "'strange'"),
    ],
)
def test_an_operator_that_nobody_has_is_named_with_its_node(
    backend: str, op: str, domain: str, says: str, sparseflow: Sparseflow, models: Models, own_folder: Path,
    left: Left,
) -> None:  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
        helper.make_node(op, ["a"], ["y"], name="strange", domain=domain),
    ]
    model = models.model(nodes, {"w": np.ones((64, 32), np.float32)})
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    path = models.save(model)
    error = sparseflow("build", path, "--dim", "batch=4", "--backend", backend).error
    assert says in error
    assert op in error
    assert left(own_folder) == ["model.onnx"]


def test_inputs_that_cannot_be_fed(
    sparseflow: Sparseflow, models: Models, own_folder: Path, left: Left
) -> None:
    model = models.model([helper.make_node("Identity", ["x"], ["y"])], dtype=TensorProto.STRING)
    ended = sparseflow("build", models.save(model), "--dim", "batch=4", "--backend", "onnxruntime")
    assert "only numeric tensors can be fed" in ended.error
    assert left(own_folder) == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("net.py", "is Python code, not an ONNX model.", "FILE.py:FUNCTION"),
        ("model.safetensors", "is a checkpoint, not an ONNX model.", "sparseflow-trt export"),
        ("weights.PT", "is a checkpoint, not an ONNX model.", "sparseflow-trt export"),
        ("model.engine", "is an engine, not an ONNX model.", "artifact's folder"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_another_kind_of_file_is_called_by_what_it_is(
    sparseflow: Sparseflow, own_folder: Path, command: str, name: str, said: str, hint: str
) -> None:
    (own_folder / name).write_text("once upon a time")
    ended = sparseflow(command, name)
    assert (ended.code, ended.out) == (1, "")
    assert f"error: {name} {said}" in ended.err
    assert hint in ended.err.split("hint:")[1]


@pytest.mark.parametrize("place", ["name", "folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_no_text_is_refused(
    sparseflow: Sparseflow, models: Models, own_folder: Path, command: str, place: str
) -> None:
    path = models.matmul(np.ones((64, 32), np.float32))
    odd = own_folder / os.fsdecode(b"odd\xff.onnx")
    if place == "folder":
        odd.mkdir()
        odd /= "model.onnx"
    path.rename(odd)
    ended = sparseflow(command, odd)
    assert (ended.code, ended.out) == (1, "")
    assert "odd\\xff." in ended.err
    assert "is not UTF-8" in ended.err
    assert "Rename the file or its folder" in ended.err


def test_an_artifact_whose_name_is_no_text_is_refused_before_the_build(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    output = own_folder / os.fsdecode(b"odd\xff.artifact")
    ended = sparseflow("build", mlp(), "--dim", "batch=1,2,4", "--backend", "onnxruntime", "-o", output)
    assert (ended.code, ended.out) == (1, "")
    assert "odd\\xff.artifact is not UTF-8" in ended.err
    assert not output.exists()
