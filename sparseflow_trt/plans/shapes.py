"""Optimization profiles: for each input with dynamic dimensions, the shapes min, opt and max."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import model_validator

from sparseflow_trt._listing import did_you_mean
from sparseflow_trt._schema import Record
from sparseflow_trt.errors import ShapeError
from sparseflow_trt.model.symbolic import SymbolicM

Dims = tuple[int | str | None, ...]
Point = Literal["min", "opt", "max"]
POINTS: tuple[Point, ...] = ("min", "opt", "max")

DEFAULT_PROFILE = "default"
MOST_PROFILES = 16

_HINT = "Give ranges by axis (--dim batch=1,8,32) or by input (--shapes input_ids:1x8,8x128,32x256)."


# A min of 0 is an empty tensor, which TensorRT takes: a KV cache that holds nothing yet. Kernels are chosen
# at opt, where there has to be something to compute.
ORDER = "0 ≤ min ≤ opt ≤ max with opt > 0"


def is_range(low: int, opt: int, high: int) -> bool:
    """Whether sizes are those of a profile's dimension."""
    return 0 <= low <= opt <= high and opt > 0


class ShapeRange(Record):
    """The shapes of one input in one profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max differ in rank")
        if not all(map(is_range, self.min, self.opt, self.max)):
            raise ValueError(f"not {ORDER}: {self.min}, {self.opt}, {self.max}")
        return self

    def at(self, point: Point) -> tuple[int, ...]:
        """The shape at min, opt or max."""
        return {"min": self.min, "opt": self.opt, "max": self.max}[point]


class Profile(Record):
    """One optimization profile: a range for every input of the model."""

    name: str
    inputs: dict[str, ShapeRange]


def dims_at(input_dims: dict[str, Dims], profile: Profile, point: Point) -> dict[str, int]:
    """The value of each named dimension at a point of a profile."""
    values: dict[str, int] = {}
    for name, dims in input_dims.items():
        if name in profile.inputs:
            for dim, size in zip(dims, profile.inputs[name].at(point), strict=True):
                if isinstance(dim, str):
                    values[dim] = size
    return values


def opts_of(m: SymbolicM, profiles: tuple[Profile, ...], input_dims: dict[str, Dims]) -> list[int | None]:
    """M at each profile's opt, or what it is where there are none; None where it is not known."""
    return [m.evaluate(dims_at(input_dims, p, "opt") if p else {}) for p in profiles or (None,)]


def parse_axis_range(text: str) -> tuple[str, tuple[int, int, int]]:
    """Reads "batch=1,8,32", or "batch=8" for one size.

    Raises:
        ShapeError: It reads otherwise.
    """
    match = re.fullmatch(r"\s*([^=\s](?:[^=]*[^=\s])?)\s*=\s*(\d+)(?:,(\d+),(\d+))?\s*", text)
    if not match:
        raise ShapeError(f"'{text}' is not a range of an axis.", _HINT, usage=True)
    low, opt, high = int(match[2]), int(match[3] or match[2]), int(match[4] or match[2])
    if not is_range(low, opt, high):
        raise ShapeError(f"'{text}' is not a range of an axis: it has to be {ORDER}.", _HINT, usage=True)
    return match[1], (low, opt, high)


def parse_input_range(text: str) -> tuple[str, ShapeRange]:
    """Reads "input_ids:1x8,8x128,32x256", or "input_ids:8x128" for one shape.

    Raises:
        ShapeError: It reads otherwise, or is not min ≤ opt ≤ max.
    """
    match = re.fullmatch(r"\s*(.+):(\d+(?:x\d+)*)(?:,(\d+(?:x\d+)*),(\d+(?:x\d+)*))?\s*", text)
    if not match:
        raise ShapeError(f"'{text}' is not a range of shapes of an input.", _HINT, usage=True)
    texts = (match[2], match[3] or match[2], match[4] or match[2])
    low, opt, high = (tuple(int(d) for d in part.split("x")) for part in texts)
    try:
        return match[1], ShapeRange(min=low, opt=opt, max=high)
    except ValueError as error:
        raise ShapeError(f"'{text}' is not a range of shapes: min, opt and max need the same rank and must "
                         "not shrink from left to right.", _HINT, usage=True) from error  # fmt: skip


def make_profile(
    name: str,
    input_dims: dict[str, Dims],
    axes: dict[str, tuple[int, int, int]],
    inputs: dict[str, ShapeRange],
) -> Profile | None:
    """The profile that ranges by axis and by input make together; None where every shape is static.

    Raises:
        ShapeError: An axis or input that the model does not have, a dynamic dimension with no range, a
            shape that the model does not take, or a dimension below 0 in the model.
    """
    for input_name, dims in input_dims.items():
        if below := [i for i, dim in enumerate(dims) if isinstance(dim, int) and dim < 0]:
            raise ShapeError(
                f"dimension {below[0]} of input '{input_name}' is {dims[below[0]]} in the model, "
                "which is not a size.",
                "Where it is dynamic, name it: in onnx.load(MODEL).graph.input, "
                "`type.tensor_type.shape.dim[i].dim_param = 'batch'`.",
            )
    known_axes = {d for dims in input_dims.values() for d in dims if isinstance(d, str)}
    known_axes |= {term for d in known_axes for term in terms(d)}
    axes = _with_sums(axes, known_axes)
    # the default is a name that nobody gave: messages leave it out
    where = "" if name == DEFAULT_PROFILE else f"profile '{name}': "
    _refuse_unknown(axes, known_axes, f"{where}axis")
    _refuse_unknown(inputs, set(input_dims), f"{where}input")
    if all(isinstance(d, int) for dims in input_dims.values() for d in dims) and not inputs:
        return None
    ranges = {
        input_name: inputs.get(input_name) or _range_of(input_name, dims, axes, name)
        for input_name, dims in input_dims.items()
    }
    profile = Profile(name=name, inputs=ranges)
    check_profile(profile, input_dims)
    return profile


def _range_of(input_name: str, dims: Dims, axes: dict[str, tuple[int, int, int]], profile: str) -> ShapeRange:
    """The shapes of one input that follow from the ranges of axes.

    Raises:
        ShapeError: A dynamic dimension has no range, or they are no shapes of a profile.
    """
    default = profile == DEFAULT_PROFILE
    lacking = [d for d in dims if not isinstance(d, int) and d not in axes]
    missing = [t for d in lacking for t in (terms(d) if d else ("(unnamed)",)) if t not in axes]
    if missing:
        teller = "no profile says" if default else f"profile '{profile}' does not say"
        raise ShapeError(
            f"input '{input_name}' has dynamic dimensions {', '.join(missing)} and {teller} their ranges.",
            _HINT,
        )
    low, opt, high = (
        tuple(axes[d][i] if isinstance(d, str) else int(d or 0) for d in dims) for i in range(3)
    )
    try:
        return ShapeRange(min=low, opt=opt, max=high)
    except ValueError as error:
        where = "" if default else f"profile '{profile}': "
        said = f"{where}input '{input_name}' would get the shapes {low}, {opt}, {high}"
        raise ShapeError(f"{said}, which are not {ORDER}.", _HINT) from error


def with_something(profile: Profile, input_dims: dict[str, Dims]) -> Profile:
    """The profile with 1 in place of each 0 in its min, and with the sums that follow from it ("past + seq").

    An axis that is 0 at min is 1 at least at opt, so what comes of it is within the profile.
    """
    at_min = dims_at(input_dims, profile, "min")
    raised = {axis: 1 if size == 0 else size for axis, size in at_min.items()}
    for axis in at_min:
        parts = terms(axis)
        if len(parts) > 1 and all(part in raised for part in parts):
            raised[axis] = at_min[axis] + sum(raised[part] - at_min[part] for part in parts)
    inputs = {}
    for name, shapes in profile.inputs.items():
        dims = input_dims.get(name, (None,) * len(shapes.min))
        low = (
            raised[dim] if isinstance(dim, str) else max(size, 1)
            for dim, size in zip(dims, shapes.min, strict=True)
        )
        inputs[name] = shapes.model_copy(update={"min": tuple(low)})
    return profile.model_copy(update={"inputs": inputs})


def terms(axis: str) -> tuple[str, ...]:
    """The axes that one is the sum of ("past + seq"), or the one itself."""
    parts = tuple(part.strip() for part in axis.split(" + "))
    return parts if len(parts) > 1 and all(part.isidentifier() for part in parts) else (axis,)


def _with_sums(axes: dict[str, tuple[int, int, int]], known: set[str]) -> dict[str, tuple[int, int, int]]:
    """Ranges with those of the sums that follow from them."""
    sums = {}
    for axis in known - set(axes):
        ranges = [axes[term] for term in terms(axis) if term in axes]
        if len(ranges) == len(terms(axis)):
            low, opt, high = (sum(sizes) for sizes in zip(*ranges, strict=True))
            sums[axis] = (low, opt, high)
    return {**axes, **sums}


def check_profiles(profiles: tuple[Profile, ...], input_dims: dict[str, Dims]) -> None:
    """Checks that profiles fit the model's inputs, and that there is one where shapes are dynamic.

    Raises:
        ShapeError: One does not fit, or a dynamic dimension has no range.
    """
    for profile in profiles:
        check_profile(profile, input_dims)
    if not profiles:
        make_profile(DEFAULT_PROFILE, input_dims, {}, {})


def check_profile(profile: Profile, input_dims: dict[str, Dims]) -> None:
    """Checks that a profile fits the model's inputs.

    Raises:
        ShapeError: An unknown or missing input, a rank or a fixed dimension that differs, or one axis
            with two sizes.
    """
    where = f"profile '{profile.name}'"
    _refuse_unknown(profile.inputs, set(input_dims), f"{where}: input")
    for name, dims in input_dims.items():
        if name not in profile.inputs:
            raise ShapeError(f"{where} has no shapes for input '{name}'.", _HINT)
        ranges = profile.inputs[name]
        if len(ranges.min) != len(dims):
            raise ShapeError(
                f"{where} gives input '{name}' {len(ranges.min)} dimensions; the model takes {len(dims)}.",
                _HINT,
            )
        for i, dim in enumerate(dims):
            sizes = (ranges.min[i], ranges.opt[i], ranges.max[i])
            if isinstance(dim, int) and set(sizes) != {dim}:
                raise ShapeError(
                    f"{where} gives dimension {i} of input '{name}' {sizes}; the model fixes it to {dim}.",
                    _HINT,
                )
    for point in POINTS:
        seen: dict[str, tuple[int, str]] = {}
        for name, dims in input_dims.items():
            for dim, size in zip(dims, profile.inputs[name].at(point), strict=True):
                if isinstance(dim, str) and seen.setdefault(dim, (size, name))[0] != size:
                    raise ShapeError(
                        f"{where} gives axis '{dim}' two sizes at its {point}: {seen[dim][0]} in "
                        f"'{seen[dim][1]}' and {size} in '{name}'.",
                        _HINT,
                    )
        for axis, (size, name) in seen.items():
            parts = [seen[term][0] for term in terms(axis) if term in seen]
            if len(parts) == len(terms(axis)) and sum(parts) != size:
                raise ShapeError(
                    f"{where} gives axis '{axis}' of '{name}' {size} at its {point}; its terms add up to "
                    f"{sum(parts)}.",
                    _HINT,
                )


def _refuse_unknown(given: Iterable[str], known: set[str], what: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        there = ", ".join(sorted(known)) or "none"
        hint = did_you_mean(unknown[0], known, "Name one of these." if known else _HINT)
        raise ShapeError(f"{what} '{unknown[0]}' is not in the model, which has: {there}.", hint)
