"""What decides a build, whether it was done already, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.artifact import build_key, check_place, hash_arrays, place_for, record_model
from sparseflow_trt.artifacts.manifest import NAME
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.model.model_file import read_model

if TYPE_CHECKING:
    from tests.conftest import Array, Models


def test_a_model_is_recorded_with_its_data(models: Models, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    model = models.model(nodes, {"w": np.ones((64, 8), np.float32), "b": np.ones(8, np.float32)})
    models.externalize(model, {"w": "sub/w.bin", "b": "b.bin"})
    path = models.save(model)
    record = record_model(read_model(path))
    assert record.file == "model.onnx"
    assert record.sha256 == sha256_of(path)
    assert record.data == {name: sha256_of(tmp_path / name) for name in ("sub/w.bin", "b.bin")}
    assert record.opset == 21
    assert record.bytes == path.stat().st_size + 64 * 8 * 4 + 8 * 4


def test_keys_differ_where_facts_do() -> None:
    key = build_key(a=1, b={"x": [1, 2], "y": None})
    assert key == build_key(b={"y": None, "x": [1, 2]}, a=1)
    assert key != build_key(a=2, b={"x": [1, 2], "y": None})
    assert key != build_key(a=1, b={"x": [2, 1], "y": None})


def test_arrays_are_hashed_by_name_type_shape_and_values() -> None:
    x = np.arange(6, dtype=np.float32)
    sets: list[list[dict[str, Array]]] = [
        [{"x": x}], [{"y": x}], [{"x": x + 1}], [{"x": x.astype(np.int32)}], [{"x": x.reshape(2, 3)}],
        [{"x": x}, {"x": x}], [{"x": x, "y": x}], [{"x": x}, {"y": x}], [{"x": x.astype(ml_dtypes.bfloat16)}],
    ]  # fmt: skip
    assert len({hash_arrays(given) for given in sets}) == len(sets)
    assert hash_arrays([{"x": x}]) == hash_arrays([{"x": x.copy()}])
    assert hash_arrays([{"x": x.reshape(2, 3).T}]) == hash_arrays([{"x": x.reshape(2, 3).T.copy()}])


def test_a_free_place_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_place(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert check_place(tmp_path / "empty") == tmp_path / "empty"
    monkeypatch.chdir(tmp_path / "empty")
    assert check_place(Path()) == tmp_path / "empty"
    assert check_place(Path("new")) == Path("new")


@pytest.mark.parametrize(
    "make",
    [
        lambda place: place.write_text("a file"),
        lambda place: (place.mkdir(), (place / "notes").write_text("mine")),
        lambda place: place.symlink_to("nowhere/at/all"),
        lambda place: (place.mkdir(), (place / NAME).mkdir()),
    ],
)
def test_anything_else_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "taken")
    with pytest.raises(ArtifactError) as caught:
        check_place(tmp_path / "taken")
    assert caught.value.hint


def test_where_a_failed_one_goes(tmp_path: Path) -> None:
    assert place_for(tmp_path / "new", "fail") == tmp_path / "new"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / NAME).write_text("damaged")
    assert place_for(tmp_path / "old", "fail") == tmp_path / "old"
    assert place_for(tmp_path / "old", "pass") == tmp_path / "old"
