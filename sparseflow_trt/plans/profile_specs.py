"""Optimization profiles as a person asks for them, several at a time, and what a model makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from sparseflow_trt._schema import Record, load_yaml, parse, read_text
from sparseflow_trt.errors import ShapeError
from sparseflow_trt.plans.shapes import (
    DEFAULT_PROFILE,
    MOST_PROFILES,
    ORDER,
    Dims,
    Profile,
    ShapeRange,
    is_range,
    make_profile,
    parse_axis_range,
    terms,
)

_PROFILE_HINT = "Name one and give it ranges by axis: --profile prefill:batch=1,4,8:seq=128,512,1024."
_FILE_HINT = (
    "A shapes file is a list of profiles: `- {name: prefill, axes: {batch: [1, 4, 8]}}`, with "
    "`shapes: {INPUT: {min: […], opt: […], max: […]}}` where axes do not say it all."
)


def _growing(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    if not is_range(*sizes):
        raise ValueError(f"not {ORDER}: {', '.join(map(str, sizes))}")
    return sizes


AxisRange = Annotated[tuple[int, int, int], AfterValidator(_growing)]


class ProfileSpec(Record):
    """A profile as a person asks for it: ranges by axis, and by input where axes do not say it all."""

    name: str = Field(min_length=1)
    axes: dict[str, AxisRange] = Field(default_factory=dict)
    shapes: dict[str, ShapeRange] = Field(default_factory=dict)


class _ShapesFile(Record):
    profiles: tuple[ProfileSpec, ...]


def parse_profile(text: str) -> ProfileSpec:
    """Reads "prefill:batch=1,8,32:seq=128,512,1024".

    Raises:
        ShapeError: It reads otherwise, or gives an axis two ranges.
    """
    name, *ranges = (part.strip() for part in text.split(":"))
    if not name or "=" in name or not ranges:
        raise ShapeError(
            f"'{text}' is not a profile: a name, then a range for each axis.", _PROFILE_HINT, usage=True
        )
    axes: dict[str, tuple[int, int, int]] = {}
    for part in ranges:
        try:
            axis, sizes = parse_axis_range(part)
        except ShapeError as error:
            raise ShapeError(f"profile '{name}': {error.message}", _PROFILE_HINT, usage=True) from error
        if axis in axes:
            raise ShapeError(f"profile '{name}' gives axis '{axis}' two ranges.", _PROFILE_HINT, usage=True)
        axes[axis] = sizes
    return ProfileSpec(name=name, axes=axes)


def read_shapes_file(path: Path) -> tuple[ProfileSpec, ...]:
    """Reads a YAML list of profiles.

    Raises:
        ShapeError: The file is missing, is not YAML or has wrong fields, which are named.
    """
    data = load_yaml(read_text(path, ShapeError, "shapes file"), str(path), ShapeError, _FILE_HINT)
    if not isinstance(data, list) or not data:
        raise ShapeError(f"{path} does not hold a list of profiles.", _FILE_HINT)
    return parse(_ShapesFile, {"profiles": data}, str(path), ShapeError, _FILE_HINT).profiles


def make_profiles(
    specs: tuple[ProfileSpec, ...],
    input_dims: dict[str, Dims],
    axes: dict[str, tuple[int, int, int]],
    inputs: dict[str, ShapeRange],
) -> tuple[Profile, ...]:
    """The profiles that are asked for, or the one that `axes` and `inputs` make; none for static shapes.

    Args:
        specs: What each profile says of itself.
        input_dims: Each input's dimensions, by name.
        axes: Ranges of the axes that a profile leaves out.
        inputs: Ranges of the inputs that a profile leaves out.

    Raises:
        ShapeError: A profile does not fit the model, two have one name, or there are too many.
    """
    if not specs:
        made = make_profile(DEFAULT_PROFILE, input_dims, axes, inputs)
        return (made,) if made else ()
    check_specs(specs)
    profiles = []
    for spec in specs:
        _refuse_conflicts(spec, input_dims, inputs)
        made = make_profile(spec.name, input_dims, {**axes, **spec.axes}, {**inputs, **spec.shapes})
        if made is None:
            raise ShapeError(
                f"profile '{spec.name}' has nothing to say: all shapes of the model are static.",
                "Build it without profiles.",
            )
        profiles.append(made)
    return tuple(profiles)


def check_before_export(
    specs: tuple[ProfileSpec, ...],
    input_dims: dict[str, Dims],
    axes: dict[str, tuple[int, int, int]],
    inputs: dict[str, ShapeRange],
) -> None:
    """Raises what `make_profiles` will of a module's export, as far as its inputs tell that beforehand.

    An input that the module does not read is none of its export. So an axis that only one of several inputs
    has may be missing here: it is asked for when the file is there.

    Args:
        specs: What each profile says of itself.
        input_dims: The dimensions of the module's inputs, by name.
        axes: Ranges of the axes that a profile leaves out.
        inputs: Ranges of the inputs that a profile leaves out.

    Raises:
        ShapeError: As `make_profiles` does.
    """
    among = Counter(
        axis
        for dims in input_dims.values()
        for axis in {term for dim in dims if isinstance(dim, str) for term in terms(dim)}
    )
    unsure = {axis: (1, 1, 1) for axis, count in among.items() if count == 1 and len(input_dims) > 1}
    make_profiles(specs, input_dims, {**unsure, **axes}, inputs)


def check_specs(specs: tuple[ProfileSpec, ...], usage: bool = False) -> None:
    """Checks that profiles are not too many, and have names of their own.

    Args:
        specs: The profiles.
        usage: Whether all of them stand in the command, and none in a file.

    Raises:
        ShapeError: They are, or two have one name.
    """
    if len(specs) > MOST_PROFILES:
        said = f"{len(specs)} profiles are too many: {MOST_PROFILES} at most."
        raise ShapeError(said, "Leave some out.", usage=usage)
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        said = f"profile '{twice[0]}' is given twice."
        raise ShapeError(said, "Give each profile a name of its own.", usage=usage)


def _refuse_conflicts(spec: ProfileSpec, input_dims: dict[str, Dims], inputs: dict[str, ShapeRange]) -> None:
    """An input's shapes go before axes: those given for all profiles must not hide what this one says."""
    for name in inputs.keys() - spec.shapes.keys():
        for axis in spec.axes:
            if axis in input_dims.get(name, ()):
                raise ShapeError(
                    f"profile '{spec.name}' gives axis '{axis}' a range, and so do the shapes of input "
                    f"'{name}' that are for all profiles.",
                    "Leave out one of them.",
                )
