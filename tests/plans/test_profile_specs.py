"""Profiles as they are asked for: on the command line, in a file, and made to fit a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseflow_trt.errors import ShapeError
from sparseflow_trt.plans.profile_specs import (
    ProfileSpec,
    check_before_export,
    make_profiles,
    parse_profile,
    read_shapes_file,
)
from sparseflow_trt.plans.shapes import Dims, ShapeRange, make_profile

DIMS: dict[str, Dims] = {"ids": ("batch", "seq"), "mask": ("batch", "seq"), "image": ("batch", 3, 8)}
AXES = {"batch": (1, 8, 32), "seq": (16, 128, 512)}


def test_a_profile_is_read_as_written() -> None:
    spec = parse_profile("prefill:batch=1,8,32 : seq=128")
    assert spec == ProfileSpec(name="prefill", axes={"batch": (1, 8, 32), "seq": (128, 128, 128)})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not a profile"),
        ("prefill", "'prefill' is not a profile: a name, then a range for each axis."),
        (":batch=1", "':batch=1' is not a profile"),
        ("batch=1,8,32", "'batch=1,8,32' is not a profile"),
        ("batch=1,8,32:seq=1", "is not a profile"),
        ("p:", "profile 'p': '' is not a range of an axis."),
        ("p:batch=1,8", "profile 'p': 'batch=1,8' is not a range of an axis."),
        ("p:batch=8,1,32", "profile 'p': 'batch=8,1,32' is not a range of an axis: it has to be 0 ≤ min"),
        ("p:batch=1;seq=2", "profile 'p': 'batch=1;seq=2' is not a range"),
        ("p:batch=1:batch=2", "profile 'p' gives axis 'batch' two ranges."),
    ],
)
def test_no_profile(text: str, says: str) -> None:
    with pytest.raises(ShapeError) as caught:
        parse_profile(text)
    assert says in caught.value.message
    assert "--profile prefill:" in caught.value.hint


def test_a_shapes_file(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    path.write_text(
        "- {name: prefill, axes: {batch: [1, 8, 32]}}\n"
        "- name: decode\n"
        "  shapes: {ids: {min: [1, 1], opt: [8, 1], max: [32, 1]}}\n"
    )
    assert read_shapes_file(path) == (
        ProfileSpec(name="prefill", axes={"batch": (1, 8, 32)}),
        ProfileSpec(name="decode", shapes={"ids": ShapeRange(min=(1, 1), opt=(8, 1), max=(32, 1))}),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not hold a list of profiles."),
        ("name: p", "does not hold a list of profiles."),
        ("[", "is not YAML"),
        ("[]", "does not hold a list of profiles."),
        ("[p]", "profiles.0: Input should be a valid dictionary"),
        ("- axes: {b: [1, 2, 3]}", "profiles.0.name: Field required"),
        ("- {name: ''}", "profiles.0.name: String should have at least 1 character"),
        ("- {name: p}\n- {name: q, axis: {}}", "profiles.1.axis: Extra inputs are not permitted"),
        ("- {name: p, axes: {b: [1, 2]}}", "profiles.0.axes.b.2: Field required"),
        ("- {name: p, axes: {b: [1, x, 3]}}", "profiles.0.axes.b.1: Input should be a valid integer"),
        ("- {name: p, axes: {b: [8, 1, 32]}}", "profiles.0.axes.b: Value error, not 0 ≤ min ≤ opt ≤ max"),
        ("- {name: p, shapes: {x: {min: [1], opt: [1]}}}", "profiles.0.shapes.x.max: Field required"),
        ("- {name: p, shapes: {x: {min: [2], opt: [1], max: [3]}}}", "profiles.0.shapes.x: Value error"),
    ],
)
def test_no_shapes_file(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    path.write_text(text)
    with pytest.raises(ShapeError) as caught:
        read_shapes_file(path)
    assert caught.value.message.startswith(str(path))
    assert says in caught.value.message
    assert "A shapes file is a list of profiles" in caught.value.hint


def test_a_shapes_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="does not exist"):
        read_shapes_file(tmp_path / "none.yaml")
    with pytest.raises(ShapeError, match="cannot be read: Is a directory"):
        read_shapes_file(tmp_path)


def test_a_profile_takes_what_it_leaves_out_from_all() -> None:
    image = ShapeRange(min=(1, 3, 8), opt=(2, 3, 8), max=(4, 3, 8))
    specs = (
        ProfileSpec(name="a", axes={"seq": (1, 1, 1)}),
        ProfileSpec(name="b", axes={"batch": (1, 2, 4)}, shapes={"image": image}),
    )
    a, b = make_profiles(specs, DIMS, AXES, {})
    assert (a.name, a.inputs["ids"]) == ("a", ShapeRange(min=(1, 1), opt=(8, 1), max=(32, 1)))
    assert (b.name, b.inputs["ids"]) == ("b", ShapeRange(min=(1, 16), opt=(2, 128), max=(4, 512)))
    assert make_profiles((), DIMS, AXES, {}) == (make_profile("default", DIMS, AXES, {}),)
    assert make_profiles((), {"x": (1,)}, {}, {}) == ()


@pytest.mark.parametrize(
    ("specs", "dims", "inputs", "says"),
    [
        (
            [("a", {"batch": (1, 1, 1)}), ("a", {})],
            DIMS,
            {},
            "profile 'a' is given twice.",
        ),
        (
            [("a", {"seq": (1, 2, 3)}), ("b", {"length": (1, 1, 1)})],
            DIMS,
            {},
            "profile 'b': axis 'length' is not in the model, which has: batch, seq.",
        ),
        ([("a", {})], {"x": ("batch", "time")}, {}, "time and profile 'a' does not say their ranges."),
        (
            [("a", {})],
            {"x": (1, 2)},
            {},
            "profile 'a' has nothing to say: all shapes of the model are static.",
        ),
        ([(f"p{i}", {}) for i in range(17)], DIMS, {}, "17 profiles are too many: 16 at most."),
        (
            [("a", {"batch": (8, 8, 8)})],
            DIMS,
            {"ids": (1, 1)},
            "profile 'a' gives axis 'batch' a range, and so do the shapes of input 'ids' that are for all",
        ),
        (
            [("a", {"seq": (8, 8, 8)})],
            {"x": ("batch",), "y": ("seq",)},
            {"z": (1,)},
            "profile 'a': input 'z' is not in the model",
        ),
    ],
)
def test_profiles_that_do_not_fit_are_named(
    specs: list[tuple[str, dict[str, tuple[int, int, int]]]],
    dims: dict[str, Dims],
    inputs: dict[str, tuple[int, ...]],
    says: str,
) -> None:
    known = {dim for shape in dims.values() for dim in shape}
    axes = {axis: sizes for axis, sizes in AXES.items() if axis in known}
    ranges = {name: ShapeRange(min=shape, opt=shape, max=shape) for name, shape in inputs.items()}
    asked = tuple(ProfileSpec(name=name, axes=given) for name, given in specs)
    with pytest.raises(ShapeError) as caught:
        make_profiles(asked, dims, axes, ranges)
    assert says in caught.value.message
    assert caught.value.hint


def test_before_an_export_only_what_is_certain_is_missing() -> None:
    """An axis of one input of several may be of an input that nothing reads."""
    both: dict[str, Dims] = {"x": ("batch", "src"), "y": ("batch", "tgt"), "z": (4,)}
    with pytest.raises(ShapeError, match="input 'x' has dynamic dimensions batch and no profile says"):
        check_before_export((), both, {}, {})
    check_before_export((), both, {"batch": (1, 2, 4)}, {})
    with pytest.raises(ShapeError, match="axis 'seq' is not in the model"):
        check_before_export((), both, {"batch": (1, 2, 4), "seq": (1, 2, 4)}, {})
    with pytest.raises(ShapeError, match="input 'x' has dynamic dimensions src and no profile says"):
        check_before_export((), {"x": both["x"]}, {"batch": (1, 2, 4)}, {})
    cached: dict[str, Dims] = {
        "ids": ("batch", "seq"),
        "past": ("batch", "past"),
        "mask": ("batch", "past + seq"),
    }
    check_before_export((), cached, dict.fromkeys(("batch", "seq", "past"), (1, 2, 4)), {})
    with pytest.raises(ShapeError, match="profile 'p' does not say"):
        check_before_export(
            (ProfileSpec(name="p", axes={"seq": (1, 2, 4)}),), cached, {"past": (0, 1, 2)}, {}
        )
    check_before_export((), {"x": (2, 3)}, {}, {})
