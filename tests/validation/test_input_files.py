from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from polygraphy.json import save_json

from sparseflow_trt.errors import InputError
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.input_files import check_ranges, load_inputs
from sparseflow_trt.validation.inputs import generate_inputs


def feeds(rows: int = 2) -> dict[str, Any]:
    ids = np.arange(rows * 3, dtype=np.int64).reshape(rows, 3)
    return {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
        "column_ids": np.zeros(1, np.int64),
    }  # fmt: skip


def write_npz(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def test_one_set_from_npz(tmp_path: Path, embedding: OnnxModel) -> None:
    (loaded,) = load_inputs(write_npz(tmp_path / "real.npz", feeds()), embedding)
    assert loaded.name == "real"
    assert loaded.seed is None
    assert "real.npz" in loaded.origin
    np.testing.assert_array_equal(loaded.feeds["input_ids"], feeds()["input_ids"])


def test_several_sets_from_npz(tmp_path: Path, embedding: OnnxModel) -> None:
    arrays = {f"{name}@{i}": array for i in range(2) for name, array in feeds(i + 1).items()}
    loaded = load_inputs(write_npz(tmp_path / "real.npz", arrays), embedding)
    assert [s.name for s in loaded] == ["real@0", "real@1"]
    assert [s.feeds["input_ids"].shape for s in loaded] == [(1, 3), (2, 3)]


def test_bf16_survives_npz_and_json(tmp_path: Path, typed_ends: OnnxModel) -> None:
    drawn = generate_inputs(typed_ends, [])
    write_npz(tmp_path / "a.npz", drawn[0].feeds)
    save_json([s.feeds for s in drawn], str(tmp_path / "a.json"))
    loaded = load_inputs(tmp_path / "a.npz", typed_ends) + load_inputs(tmp_path / "a.json", typed_ends)
    for one, two in zip(loaded, [drawn[0], *drawn], strict=True):
        assert one.feeds["brain"].dtype == ml_dtypes.bfloat16
        assert one.feeds["brain"].tobytes() == two.feeds["brain"].tobytes()


def test_polygraphys_json_as_a_list_one_dict_and_a_folder(tmp_path: Path, embedding: OnnxModel) -> None:
    save_json([feeds(1), feeds(2)], str(tmp_path / "many.json"))
    assert [s.name for s in load_inputs(tmp_path / "many.json", embedding)] == ["many@0", "many@1"]
    (tmp_path / "folder").mkdir()
    for i in range(2):
        save_json(feeds(i + 1), str(tmp_path / "folder" / f"{i:010}.json"))
    assert [s.feeds["input_ids"].shape[0] for s in load_inputs(tmp_path / "folder", embedding)] == [1, 2]


LOADER = """
import numpy as np
def one(rows):
    ids = np.zeros((rows, 3), np.int64)
    return dict(input_ids=ids, attention_mask=ids, token_type_ids=ids, column_ids=np.zeros(1, np.int64))
def load_data():
    yield one(1)
    yield one(2)
def single():
    return [one(4)]
def plain():
    return one(5)
def odd():
    return [3]
def broken():
    yield one(1)
    raise KeyError("no data")
"""


@pytest.fixture
def loader(tmp_path: Path) -> str:
    path = tmp_path / "my_inputs.py"
    path.write_text(LOADER)
    return str(path)


def test_a_loader_in_a_file(loader: str, embedding: OnnxModel) -> None:
    assert [s.name for s in load_inputs(loader, embedding)] == ["load_data@0", "load_data@1"]
    assert load_inputs(f"{loader}:single", embedding)[0].feeds["input_ids"].shape == (4, 3)
    assert [s.feeds["input_ids"].shape for s in load_inputs(f"{loader}:plain", embedding)] == [(5, 3)]


def test_a_loader_in_a_module(loader: str, embedding: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(loader).parent)
    assert len(load_inputs("my_inputs:load_data", embedding)) == 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"broken failed: KeyError: 'no data'"),
        ("missing", r"has no function 'missing'\.\nhint: It has: one, load_data, "),
        ("odd", r"odd: item 0 is a int, not a mapping"),
    ],
)
def test_a_loader_that_fails_is_quoted(
    loader: str, embedding: OnnxModel, function: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_inputs(f"{loader}:{function}", embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "input set 'real': input 'input_ids' is missing"),
        ({"pixel": np.zeros(1)}, "input set 'real': 'pixel' is not an input of the model, which takes"),
        ({"input_ids": np.zeros((2, 3), np.int32)}, "input 'input_ids' is int32; the model takes int64"),
        ({"input_ids": np.zeros(3, np.int64)}, r"'input_ids' has shape \(3,\), 1 dimension\(s\); .* takes 2"),
        ({"attention_mask": np.ones((2, 4), np.int64)}, "'attention_mask' has 4 for axis 'seq'"),
        ({"input_ids@0": np.zeros((2, 3), np.int64)}, "mixes"),
    ],
)  # fmt: skip
def test_a_set_that_does_not_fit_is_named(
    tmp_path: Path, embedding: OnnxModel, change: dict[str, Any], message: str
) -> None:
    arrays = {name: array for name, array in (feeds() | change).items() if array is not None}
    with pytest.raises(InputError, match=message):
        load_inputs(write_npz(tmp_path / "real.npz", arrays), embedding)


def test_a_fixed_dimension_is_checked(tmp_path: Path, typed_ends: OnnxModel) -> None:
    drawn = generate_inputs(typed_ends, [])[0].feeds
    wrong = write_npz(tmp_path / "real.npz", drawn | {"pixel": np.zeros(3, np.uint8)})
    with pytest.raises(InputError, match=r"'pixel' has shape \(3,\); the model fixes dimension 0 to 2"):
        load_inputs(wrong, typed_ends)


def test_raw_bytes_are_no_integers(tmp_path: Path, embedding: OnnxModel) -> None:
    wrong = write_npz(tmp_path / "real.npz", feeds() | {"input_ids": np.zeros((2, 3), "V8")})
    with pytest.raises(InputError, match=r"is \|V8; the model takes int64"):
        load_inputs(wrong, embedding)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.npz", None, "gone.npz does not exist"),
        ("text.npz", b"hello", "cannot be read as .npz: it is not an archive of arrays"),
        ("cut.npz", b"PK\x03\x04 cut", "cannot be read as .npz"),
        ("gone.json", None, "cannot be read as Polygraphy's JSON"),
        ("text.json", b"{", "cannot be read as Polygraphy's JSON"),
        (
            "array.json",
            b'[{"array": "!", "polygraphy_class": "ndarray"}]',
            "cannot be read as Polygraphy's JSON",
        ),
        ("number.json", b"[3]", "item 0 is a int"),
        ("empty.json", b"[]", "holds no input set"),
        ("gone.py", None, "does not exist"),
        ("cut.py", b"def", "failed: SyntaxError"),
        ("script.py", b"import sys; sys.exit(0)", "failed: SystemExit: 0"),
        ("inputs.csv", b"1,2", "is not a source of inputs"),
        ("no.such.module:load", None, "failed: ModuleNotFoundError"),
    ],
)
def test_a_source_that_cannot_be_read(
    tmp_path: Path, embedding: OnnxModel, name: str, content: bytes | None, message: str
) -> None:
    source = name if ":" in name else str(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_inputs(source, embedding)


def test_a_single_array_is_no_archive(tmp_path: Path, embedding: OnnxModel) -> None:
    with (tmp_path / "one.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(InputError, match="a single array"):
        load_inputs(tmp_path / "one.npz", embedding)


def test_pickles_are_refused(tmp_path: Path, embedding: OnnxModel) -> None:
    wrong = write_npz(tmp_path / "real.npz", {"input_ids": np.array([object()])})
    with pytest.raises(InputError, match="pickle"):
        load_inputs(wrong, embedding)


def test_nothing_is_printed(tmp_path: Path, embedding: OnnxModel, capfd: pytest.CaptureFixture[str]) -> None:
    save_json([feeds()], str(tmp_path / "a.json"))
    capfd.readouterr()
    load_inputs(tmp_path / "a.json", embedding)
    assert capfd.readouterr() == ("", "")


def test_what_fits_no_profile_is_told_what_they_take() -> None:
    shapes = ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))
    given = InputSet("mine", {"x": np.zeros((9, 4), np.float32)}, None, "here")
    with pytest.raises(InputError, match=r"'mine' .* fits none of the plan's 1 profile") as caught:
        check_ranges([given], (Profile(name="small", inputs={"x": shapes}),))
    assert caught.value.hint == "Give inputs within 'small' (x 1x4 to 8x4), or plan a profile for these."
