"""What a model takes, and whether a set of arrays is that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparseflow_trt.errors import InputError
from sparseflow_trt.plans.shapes import Dims

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparseflow_trt.model.model_file import OnnxModel

Array = npt.NDArray[Any]

_HINT = "Run `sparseflow-trt inspect MODEL` for the model's inputs, their types and dimensions."


@dataclass(frozen=True)
class InputSet:
    """Values for every input of a model, to run it once.

    Attributes:
        name: Names the set in verdicts.
        feeds: An array for each input, by name. BF16 and FP8 are arrays of ml_dtypes' types.
        seed: What the values were drawn with, None where they were not drawn.
        origin: Where they are from, in words.
    """

    name: str
    feeds: dict[str, Array]
    seed: int | None
    origin: str


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        value: The graph's value, to follow it to what reads it.
        dims: A size, a symbol, or None where nothing is said; None for all where the rank is not known.
    """

    name: str
    type: ir.DataType
    dims: Dims | None
    value: ir.Value

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type, ml_dtypes' for BF16 and FP8."""
        return self.type.numpy()


def read_input_specs(model: OnnxModel) -> tuple[InputSpec, ...]:
    """The inputs of a model that have to be fed: initializers that old models list as inputs are not.

    Raises:
        InputError: An input is no tensor, or holds strings.
    """
    import onnx_ir as ir

    specs = []
    for value in model.ir.graph.inputs:
        name = value.name or ""
        if name in model.ir.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.STRING):
            raise InputError(
                f"{model.path}: input '{name}' is {value.type or 'of no type'}, but only numeric "
                "tensors can be fed.",
                "Export the model with tensors of numbers as inputs.",
            )
        specs.append(InputSpec(name, ir.DataType(value.dtype), _dims(value), value))
    return tuple(specs)


def checked_feeds(name: str, feeds: Mapping[str, Any], specs: tuple[InputSpec, ...]) -> dict[str, Array]:
    """The arrays of one set in the model's order, each checked against its input.

    BF16 and FP8 arrays come out of files as raw bytes ("void") of the same width, since NumPy's format
    has no name for these types; they are taken as what the model wants.

    Raises:
        InputError: An input is missing or unknown, or its dtype, rank or a fixed dimension differs, or
            one axis has two sizes; with the set's and the input's name.
    """
    known = {spec.name for spec in specs}
    unknown = [given for given in feeds if given not in known]
    if unknown:
        takes = ", ".join(f"'{spec.name}'" for spec in specs) or "none"
        raise InputError(
            f"input set '{name}': '{unknown[0]}' is not an input of the model, which takes {takes}.", _HINT
        )
    checked: dict[str, Array] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise InputError(f"input set '{name}': input '{spec.name}' is missing.", _HINT)
        array = np.asarray(feeds[spec.name])
        if array.dtype == np.dtype(f"V{spec.dtype.itemsize}") and spec.dtype.kind == "V":
            array = array.view(spec.dtype)
        _check_array(name, spec, array, sizes)
        checked[spec.name] = array
    return checked


def _check_array(name: str, spec: InputSpec, array: Array, sizes: dict[str, tuple[int, str]]) -> None:
    where = f"input set '{name}': input '{spec.name}'"
    if array.dtype != spec.dtype:
        raise InputError(f"{where} is {array.dtype}; the model takes {spec.dtype}.",
                         f"Convert it with .astype('{spec.dtype}').")  # fmt: skip
    if spec.dims is None:
        return
    if array.ndim != len(spec.dims):
        raise InputError(f"{where} has shape {array.shape}, {array.ndim} dimension(s); the model takes "
                         f"{len(spec.dims)}.", _HINT)  # fmt: skip
    for axis, (dim, size) in enumerate(zip(spec.dims, array.shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise InputError(
                f"{where} has shape {array.shape}; the model fixes dimension {axis} to {dim}.", _HINT
            )
        if isinstance(dim, str) and sizes.setdefault(dim, (size, spec.name))[0] != size:
            other, by = sizes[dim]
            raise InputError(
                f"{where} has {size} for axis '{dim}', and input '{by}' has {other}.",
                "Give both the same size.",
            )


def _dims(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
