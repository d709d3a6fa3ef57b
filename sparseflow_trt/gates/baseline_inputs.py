"""A baseline's input sets: stored as seeds where they can be drawn again, and made again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.artifacts.artifact import hash_arrays
from sparseflow_trt.errors import InputError
from sparseflow_trt.gates.baseline import BaselineInputs
from sparseflow_trt.gates.stored_array import array_from, store_array
from sparseflow_trt.validation.feeds import InputSet, checked_feeds, read_input_specs
from sparseflow_trt.validation.inputs import draw_again

if TYPE_CHECKING:
    from sparseflow_trt.model.model_file import OnnxModel

_MOST_ELEMENTS = 1 << 28  # of an input: what a line in a file may at most have drawn


def store_inputs(given: InputSet, typed: OnnxModel) -> BaselineInputs:
    """An input set by its seed, where that gives the same arrays again, else with its arrays.

    Args:
        given: The set.
        typed: The artifact's typed model, from whose inputs it is drawn again.

    Raises:
        InputError: An array of it cannot be stored.
    """
    shapes = {name: array.shape for name, array in given.feeds.items()}
    digest = hash_arrays([given.feeds])
    again = None if given.seed is None else draw_again(typed, given.name, shapes, given.seed)
    drawn = again is not None and hash_arrays([again.feeds]) == digest
    return BaselineInputs(
        name=given.name,
        origin=given.origin,
        seed=given.seed if drawn else None,
        shapes=shapes,
        sha256=digest,
        arrays={}
        if drawn
        else {name: store_array(array, f"input '{name}'") for name, array in given.feeds.items()},
    )


def restore_inputs(given: BaselineInputs, typed: OnnxModel, path: Path) -> InputSet:
    """The arrays of a stored input set, the same bit for bit, and checked against what the model takes.

    Args:
        given: What `store_inputs` gave.
        typed: The typed model of the artifact that is to run it.
        path: The baseline's file, for errors.

    Raises:
        InputError: The set does not fit the model, or the arrays are not the same.
    """
    if given.seed is None:
        arrays = {
            name: array_from(array, f"{path}: input '{name}' of set '{given.name}'")
            for name, array in given.arrays.items()
        }
        feeds = checked_feeds(given.name, arrays, read_input_specs(typed))
    else:
        for name, shape in given.shapes.items():
            if math.prod(shape) > _MOST_ELEMENTS:
                raise InputError(
                    f"{path}: input '{name}' of set '{given.name}' has shape {shape}, which is not drawn.",
                    "Create the baseline again with smaller inputs.",
                )
        feeds = draw_again(typed, given.name, given.shapes, given.seed).feeds
        checked_feeds(given.name, feeds, read_input_specs(typed))
    if hash_arrays([feeds]) != given.sha256:
        raise InputError(
            f"{path}: input set '{given.name}' cannot be drawn again: this model takes different inputs from "
            "the baseline's (a table of another size, other types), or this NumPy draws different numbers.",
            "Create the baseline again; with --inputs, its inputs are stored as they are.",
        )
    return InputSet(given.name, feeds, given.seed, given.origin)
