"""Input sets drawn from a seed, for each shape that matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.errors import InputError
from sparseflow_trt.plans.shapes import POINTS, Dims, Point, Profile, check_profile
from sparseflow_trt.validation.feeds import Array, InputSet, InputSpec, read_input_specs
from sparseflow_trt.validation.index_bounds import index_bound

if TYPE_CHECKING:
    from sparseflow_trt.model.model_file import OnnxModel

Shapes = dict[str, tuple[int, ...]]

_STATIC_SETS = 3  # as many as a dynamic model's min, opt and max


def generate_inputs(
    model: OnnxModel, profiles: Sequence[Profile], seed: int = 0, at: Sequence[Point] = POINTS
) -> list[InputSet]:
    """Draws input sets: for each profile at its min, opt and max; for a static model three at its one shape.

    Shapes that come up again (in another profile, or where min is opt) are drawn once. The values, by
    the input's type: floating-point N(0, 1); integers that index a table (token, position and type
    ids) below its size; integers and booleans with "mask" in their name a run of ones of random length
    >= 1, then zeros, in each row; other booleans and integers 0 or 1. A row that masked all of a
    product's keys would make NaN, or what FP16 rounds at random: so none of a boolean mask is all ones,
    which may mean what is masked (one of padding means that, and is turned round), and a row of the
    others begins with 1 and ends with 0. The same model, profiles and seed give the same bytes.

    Args:
        model: The model as read.
        profiles: Its optimization profiles; none for a static model.
        seed: The first set's; each further set has the next.
        at: The points of each profile, where not all three.

    Raises:
        InputError: An input that cannot be fed, or dynamic dimensions with no profile to size them.
        ShapeError: A profile does not fit the model.
    """
    specs = read_input_specs(model)
    points = _points(model, specs, profiles, at)
    return [_draw_set(name, specs, shapes, seed + i) for i, (name, shapes) in enumerate(points)]


def draw_again(model: OnnxModel, name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> InputSet:
    """Draws one of the sets that `generate_inputs` gave, from its shapes and its own seed.

    Raises:
        InputError: The model takes an input that has no shape here, or one that cannot be fed.
    """
    specs = read_input_specs(model)
    missing = [spec.name for spec in specs if spec.name not in shapes]
    if missing:
        raise InputError(
            f"input set '{name}' has no shape for input '{missing[0]}' of {model.path}.",
            "Draw it for a model with the same inputs.",
        )
    return _draw_set(name, specs, shapes, seed)


def _draw_set(
    name: str, specs: tuple[InputSpec, ...], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> InputSet:
    rng = np.random.default_rng(seed)
    feeds = {spec.name: _draw(rng, spec, shapes[spec.name]) for spec in specs}
    return InputSet(name, feeds, seed, f"generated with seed {seed}")


def _points(
    model: OnnxModel, specs: tuple[InputSpec, ...], profiles: Sequence[Profile], at: Sequence[Point]
) -> list[tuple[str, Shapes]]:
    """The name and the shapes of each set."""
    dims: dict[str, Dims] = {}
    for spec in specs:
        if spec.dims is None:
            raise InputError(
                f"{model.path}: input '{spec.name}' has no shape, so nothing can be drawn for it.",
                "Export the model with shapes, or give your own inputs with --inputs.",
            )
        dims[spec.name] = spec.dims
    if not profiles:
        shapes = {name: _static_shape(model, name, given) for name, given in dims.items()}
        return [(f"static#{i}", shapes) for i in range(_STATIC_SETS)]
    for profile in profiles:
        check_profile(profile, dims)
    points: list[tuple[str, Shapes]] = []
    for profile in profiles:
        for point in at:
            shapes = {name: profile.inputs[name].at(point) for name in dims}
            if all(shapes != known for _, known in points):
                points.append((f"{profile.name}:{point}", shapes))
    return points


def _static_shape(model: OnnxModel, name: str, dims: Dims) -> tuple[int, ...]:
    sizes = tuple(dim for dim in dims if isinstance(dim, int))
    if len(sizes) != len(dims):
        shown = ", ".join("?" if dim is None else str(dim) for dim in dims)
        raise InputError(
            f"{model.path}: input '{name}' has dynamic dimensions ({shown}), but no "
            "profile gives their sizes.",
            "Give ranges with --dim or --shapes, or your own inputs with --inputs.",
        )
    return sizes


def zero_or_one_inputs(model: OnnxModel) -> tuple[str, ...]:
    """The inputs that are drawn as 0 and 1 since nothing says what their values mean, not even their name.

    Raises:
        InputError: An input that cannot be fed.
    """
    specs = [spec for spec in read_input_specs(model) if not spec.type.is_floating_point()]
    return tuple(spec.name for spec in specs if not _is_mask(spec) and index_bound(spec.value) is None)


def _is_mask(spec: InputSpec) -> bool:
    return "mask" in spec.name.lower()


def _draw(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...]) -> Array:
    if spec.type.is_floating_point():
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    if (bound := index_bound(spec.value)) is not None:
        # A narrow index type cannot reach all rows of a wide table.
        largest = 1 if spec.dtype.kind not in "iu" else int(np.iinfo(spec.dtype).max)
        return np.asarray(rng.integers(0, min(bound, largest + 1), shape)).astype(spec.dtype)
    return (_draw_mask if _is_mask(spec) else _draw_bits)(rng, spec, shape).astype(spec.dtype)


def _draw_mask(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...]) -> Array:
    if not shape:
        return np.ones(shape, np.int64)
    is_bool = spec.dtype.kind == "b"
    longest = max(1, shape[-1] - is_bool)
    lengths = rng.integers(1, longest + 1, (*shape[:-1], 1))
    ones = np.asarray(np.arange(shape[-1]) < lengths)
    return ~ones if is_bool and "pad" in spec.name.lower() else ones


def _draw_bits(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...]) -> Array:
    bits = np.asarray(rng.integers(0, 2, shape))
    if len(shape) > 1:  # it may be a mask, whatever it is called
        bits[..., :1] = 1
        bits[..., 1:][..., -1:] = 0
    return bits
