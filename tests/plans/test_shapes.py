"""Optimization profiles, and the ranges they are made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparseflow_trt.errors import ShapeError
from sparseflow_trt.plans.shapes import (
    Dims,
    Profile,
    ShapeRange,
    check_profile,
    check_profiles,
    dims_at,
    make_profile,
    parse_axis_range,
    parse_input_range,
)

DIMS: dict[str, Dims] = {"ids": ("batch", "seq"), "mask": ("batch", "seq"), "image": ("batch", 3, 8)}
AXES = {"batch": (1, 8, 32), "seq": (16, 128, 512)}


@given(st.tuples(*[st.integers(1, 10**6)] * 3))
def test_an_axis_range_is_read_as_written(sizes: tuple[int, int, int]) -> None:
    low, opt, high = sorted(sizes)
    assert parse_axis_range(f"batch={low},{opt},{high}") == ("batch", (low, opt, high))
    assert parse_axis_range(f" batch = {low} ") == ("batch", (low, low, low))


@pytest.mark.parametrize(
    "text", ["", "batch", "batch=", "=1", "batch=1,2", "batch=1,2,3,4", "batch=x", "batch=-1"]
)
def test_no_axis_range(text: str) -> None:
    with pytest.raises(ShapeError, match="is not a range of an axis") as caught:
        parse_axis_range(text)
    assert "--dim" in caught.value.hint


@pytest.mark.parametrize("text", ["batch=8,1,32", "batch=0", "batch=1,9,8", "batch=0,0,2"])
def test_an_axis_range_grows(text: str) -> None:
    with pytest.raises(ShapeError, match="has to be 0 ≤ min ≤ opt ≤ max"):
        parse_axis_range(text)


def test_an_input_range_is_read_as_written() -> None:
    name, ranges = parse_input_range("input.1:0:1x8,8x128,32x256")  # TensorFlow's names end in :0
    assert name == "input.1:0"
    assert ranges == ShapeRange(min=(1, 8), opt=(8, 128), max=(32, 256))
    assert parse_input_range("x:7")[1] == ShapeRange(min=(7,), opt=(7,), max=(7,))


@pytest.mark.parametrize(
    "text", ["", "x", "x:", ":1x2", "x:1x", "x:1,2", "x:1x2,3", "x:8,1,32", "x:1,1x2,3", "x:0", "x:axb"]
)
def test_no_input_range(text: str) -> None:
    with pytest.raises(ShapeError, match="is not a range of shapes") as caught:
        parse_input_range(text)
    assert "--shapes" in caught.value.hint


def test_axes_and_inputs_make_a_profile() -> None:
    profile = make_profile("p", DIMS, AXES, {})
    assert profile is not None
    assert profile.inputs["image"] == ShapeRange(min=(1, 3, 8), opt=(8, 3, 8), max=(32, 3, 8))
    assert profile.inputs["ids"].at("opt") == (8, 128)
    given = {"ids": ShapeRange(min=(1, 1), opt=(1, 2), max=(1, 3))}
    profile = make_profile("p", {"ids": ("batch", None)}, {}, given)
    assert profile is not None
    assert profile.inputs == given


def test_static_shapes_need_no_profile() -> None:
    assert make_profile("p", {"x": (1, 2)}, {}, {}) is None
    assert make_profile("p", {"x": ()}, {}, {}) is None
    check_profiles((), {"x": (1, 2)})


@pytest.mark.parametrize(
    ("dims", "axes", "inputs", "says"),
    [
        (
            DIMS,
            {"batch": (1, 1, 1)},
            {},
            "input 'ids' has dynamic dimensions seq and profile 'p' does not say",
        ),
        ({"x": (None, "b")}, {}, {}, "input 'x' has dynamic dimensions (unnamed), b and profile 'p'"),
        (
            DIMS,
            {**AXES, "sequence": (1, 1, 1)},
            {},
            "profile 'p': axis 'sequence' is not in the model, which has: batch, seq",
        ),
        (DIMS, AXES, {"idz": (1, 1)}, "input 'idz' is not in the model, which has: ids, image, mask"),
        ({"x": (1,)}, {"b": (1, 1, 1)}, {}, "axis 'b' is not in the model, which has: none"),
        (DIMS, AXES, {"ids": (1, 1, 1)}, "gives input 'ids' 3 dimensions; the model takes 2"),
        (
            DIMS,
            AXES,
            {"image": (1, 4, 8)},
            "gives dimension 1 of input 'image' (4, 4, 4); the model fixes it to 3",
        ),
        (
            DIMS,
            AXES,
            {"ids": (2, 128)},
            "gives axis 'batch' two sizes at its min: 2 in 'ids' and 1 in 'mask'",
        ),
        ({"x": ("b",)}, {"b": (8, 1, 32)}, {}, "would get the shapes (8,), (1,), (32,)"),
        ({"x": ("b", 0)}, {"b": (1, 1, 1)}, {}, "would get the shapes (1, 0), (1, 0), (1, 0)"),
    ],
)
def test_what_does_not_fit_is_named(
    dims: dict[str, Dims],
    axes: dict[str, tuple[int, int, int]],
    inputs: dict[str, tuple[int, ...]],
    says: str,
) -> None:
    ranges = {name: ShapeRange(min=shape, opt=shape, max=shape) for name, shape in inputs.items()}
    with pytest.raises(ShapeError) as caught:
        make_profile("p", dims, axes, ranges)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_profile_has_all_inputs_and_no_others() -> None:
    one = ShapeRange(min=(1,), opt=(2,), max=(3,))
    with pytest.raises(ShapeError, match="profile 'p' has no shapes for input 'y'"):
        check_profile(Profile(name="p", inputs={"x": one}), {"x": ("a",), "y": ("b",)})
    with pytest.raises(ShapeError, match="profile 'p': input 'y' is not in the model"):
        check_profile(Profile(name="p", inputs={"x": one, "y": one}), {"x": ("a",)})
    with pytest.raises(ShapeError, match="no profile says their ranges"):
        check_profiles((), {"x": ("a",)})
    check_profiles((Profile(name="p", inputs={"x": one}),), {"x": ("a",)})


@pytest.mark.parametrize(
    "shapes", [((1, 2), (1,), (1, 2)), ((2,), (1,), (3,)), ((0,), (0,), (2,)), ((-1,), (1,), (2,))]
)
def test_a_range_is_ordered(shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValidationError):
        ShapeRange(min=shapes[0], opt=shapes[1], max=shapes[2])


def test_dims_at_a_point() -> None:
    profile = make_profile("p", DIMS, AXES, {})
    assert profile is not None
    assert dims_at(DIMS, profile, "min") == {"batch": 1, "seq": 16}
    assert dims_at(DIMS, profile, "max") == {"batch": 32, "seq": 512}


CACHE: dict[str, tuple[int | str | None, ...]] = {
    "input_ids": ("batch", "seq"),
    "attention_mask": ("batch", "past + seq"),
    "past_key_values.0.key": ("batch", 2, "past", 16),
}


def test_a_dimension_below_0_is_refused() -> None:
    """Some exporters write -1 for a dynamic one."""
    with pytest.raises(
        ShapeError, match="dimension 1 of input 'x' is -1 in the model, which is not a size"
    ) as got:
        make_profile("default", {"x": (2, -1)}, {}, {})
    assert "dim_param" in got.value.hint


def test_an_axis_may_have_blanks_in_its_name() -> None:
    assert parse_axis_range(" batch size * 2 = 1,2,4") == ("batch size * 2", (1, 2, 4))


def test_an_axis_that_is_a_sum_follows_from_its_terms() -> None:
    axes = {"batch": (1, 2, 4), "seq": (1, 1, 8), "past": (0, 128, 512)}
    profile = make_profile("default", CACHE, axes, {})
    assert profile is not None
    assert profile.inputs["attention_mask"] == ShapeRange(min=(1, 1), opt=(2, 129), max=(4, 520))
    assert profile.inputs["past_key_values.0.key"].min == (1, 2, 0, 16)  # empty


def test_the_missing_term_of_a_sum_is_named() -> None:
    with pytest.raises(ShapeError, match=r"'attention_mask' has dynamic dimensions past and"):
        make_profile("default", CACHE, {"batch": (1, 2, 4), "seq": (1, 1, 8)}, {})


def test_a_sum_that_its_terms_do_not_make_is_refused() -> None:
    axes = {"batch": (1, 1, 1), "seq": (1, 1, 1), "past": (4, 4, 4), "past + seq": (7, 7, 7)}
    with pytest.raises(
        ShapeError, match=r"axis 'past \+ seq' of 'attention_mask' 7 at its min; its terms add up to 5"
    ):
        make_profile("default", CACHE, axes, {})
