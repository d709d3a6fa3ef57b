from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import InputError, ShapeError
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.inputs import generate_inputs


def profile(name: str, low: int, opt: int, high: int) -> Profile:
    rows = ShapeRange(min=(1, low), opt=(2, opt), max=(64, high))
    columns = ShapeRange(min=(1,), opt=(9,), max=(400,))
    names = ("input_ids", "attention_mask", "token_type_ids")
    return Profile(name=name, inputs={**dict.fromkeys(names, rows), "column_ids": columns})


def as_bytes(sets: list[InputSet]) -> list[tuple[str, dict[str, bytes]]]:
    return [(s.name, {name: array.tobytes() for name, array in s.feeds.items()}) for s in sets]


def test_indices_stay_inside_the_tables_they_reach(embedding: OnnxModel) -> None:
    largest = generate_inputs(embedding, [profile("p", 1, 8, 32)])[-1].feeds
    assert {name: int(array.max()) for name, array in largest.items()} == {
        "input_ids": 10, "attention_mask": 1, "token_type_ids": 2, "column_ids": 4,
    }  # fmt: skip
    assert all(array.min() == 0 and array.dtype == np.int64 for array in largest.values())


def test_a_mask_is_a_run_of_ones_then_zeros_in_each_row(embedding: OnnxModel) -> None:
    mask = generate_inputs(embedding, [profile("p", 1, 8, 32)])[-1].feeds["attention_mask"]
    assert mask.shape == (64, 32)
    assert (mask[:, 0] == 1).all()
    assert (np.diff(mask, axis=1) <= 0).all()
    assert len(set(mask.sum(axis=1))) > 10


@pytest.mark.parametrize(
    ("name", "dtype", "keys"),
    [("in1", TensorProto.INT64, 3), ("in1", TensorProto.BOOL, 3), ("src_mask", TensorProto.BOOL, 3),
     ("key_padding_mask", TensorProto.BOOL, 3), ("key_padding_mask", TensorProto.BOOL, 1)],
)  # fmt: skip
def test_no_row_of_what_may_be_a_mask_masks_everything(
    name: str, dtype: int, keys: int, tmp_path: Path, save: Callable[..., Path]
) -> None:
    nodes = [helper.make_node("Cast", [name], ["y"], to=TensorProto.FLOAT)]
    save(tmp_path / "m.onnx", nodes, [(name, dtype, [200, keys])], [("y", TensorProto.FLOAT, [200, keys])])
    drawn = generate_inputs(read_model(tmp_path / "m.onnx"), [])[0].feeds[name]
    ones = drawn.astype(np.int64).sum(axis=1)
    assert set(ones) == {0} if keys == 1 else {1, 2}  # whether 1 keeps a key, or masks it as PyTorch's do


def test_each_shape_is_drawn_once(embedding: OnnxModel) -> None:
    sets = generate_inputs(embedding, [profile("a", 1, 8, 32), profile("b", 2, 8, 32)])
    assert [s.name for s in sets] == ["a:min", "a:opt", "a:max", "b:min"]
    assert [s.seed for s in sets] == list(range(4))
    (at_opt,) = generate_inputs(embedding, [profile("a", 1, 8, 32)], at=("opt",))
    assert (at_opt.name, at_opt.feeds["input_ids"].shape) == ("a:opt", (2, 8))


def test_a_seed_gives_the_same_bytes_and_another_gives_others(embedding: OnnxModel) -> None:
    profiles = [profile("p", 1, 8, 32)]
    first = as_bytes(generate_inputs(embedding, profiles, seed=5))
    assert first == as_bytes(generate_inputs(embedding, profiles, seed=5))
    assert first != as_bytes(generate_inputs(embedding, profiles, seed=6))
    # A set is its own seed's: set 1 of seed 5 is drawn like set 0 of seed 6, at its own shapes.
    assert generate_inputs(embedding, profiles, seed=5)[1].seed == 6


def test_a_static_model_gets_several_seeds_in_its_types(typed_ends: OnnxModel) -> None:
    sets = generate_inputs(typed_ends, [])
    assert [s.name for s in sets] == ["static#0", "static#1", "static#2"]
    feeds = sets[0].feeds
    assert {name: array.dtype for name, array in feeds.items()} == {
        "brain": np.dtype(ml_dtypes.bfloat16), "half": np.dtype(np.float16),
        "flag": np.dtype(bool), "pixel": np.dtype(np.uint8),
    }  # fmt: skip
    assert feeds["pixel"].max() <= 1
    assert as_bytes(sets)[0][1] != as_bytes(sets)[1][1]


def test_a_narrow_index_type_stays_inside_itself(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
         helper.make_node("Gather", ["table", "wide"], ["y"])],
        [("ids", TensorProto.INT8, [500])],
        [("y", TensorProto.FLOAT, [500])],
        {"table": np.zeros(1000, np.float32)},
    )  # fmt: skip
    ids = generate_inputs(read_model(path), [])[0].feeds["ids"]
    assert ids.min() >= 0
    assert ids.max() > 100


def test_a_table_behind_a_cast_bounds_too(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Cast", ["table"], ["wide"], to=TensorProto.FLOAT),
         helper.make_node("Concat", ["ids", "ids"], ["both"], axis=0),
         helper.make_node("Gather", ["wide", "both"], ["y"])],
        [("ids", TensorProto.INT64, [200])],
        [("y", TensorProto.FLOAT, [400])],
        {"table": np.zeros(7, np.float16)},
    )  # fmt: skip
    assert generate_inputs(read_model(path), [])[0].feeds["ids"].max() == 6


def test_dynamic_dimensions_need_a_profile(embedding: OnnxModel) -> None:
    with pytest.raises(InputError, match=r"'input_ids' has dynamic dimensions \(batch, seq\)"):
        generate_inputs(embedding, [])


def test_a_profile_has_to_fit(embedding: OnnxModel) -> None:
    short = Profile(name="short", inputs={"input_ids": ShapeRange(min=(1,), opt=(1,), max=(1,))})
    with pytest.raises(ShapeError, match="short"):
        generate_inputs(embedding, [short])


def test_strings_cannot_be_fed(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["text"], ["y"])],
        [("text", TensorProto.STRING, [2])],
        [("y", TensorProto.STRING, [2])],
    )
    with pytest.raises(InputError, match=r"input 'text' is .*only numeric tensors"):
        generate_inputs(read_model(path), [])
