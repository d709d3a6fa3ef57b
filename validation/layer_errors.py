"""The error of one step layer by layer: what each node adds itself, and what has gathered up to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sparseflow_trt.artifacts.verdict import LayerError, StepName
from sparseflow_trt.validation.feeds import Array
from sparseflow_trt.validation.narrow import widen
from sparseflow_trt.validation.runners import open_session
from sparseflow_trt.validation.steps import relative_size, root_mean_square

_TYPES: dict[str, Any] = {"FLOAT16": np.dtype(np.float16), "BFLOAT16": np.dtype(ml_dtypes.bfloat16)}
_CHUNK = 48 << 20  # elements whose values are in memory at a time, about 20 bytes each


@dataclass(frozen=True)
class Probe:
    """One value that two models have in common; `dtype` is its ONNX type in the second.

    Where it is `masked`, it goes into nothing but Softmax: an overflow to minus infinity is no error there.
    """

    value: str
    layer: str
    op_type: str
    module: str
    dtype: str
    masked: bool = False


@dataclass(frozen=True)
class ProbeWriters:
    """Write graphs of the two models, each at a path with the named values as outputs.

    Attributes:
        sizes: Of the first model: each value's number of elements, VALUE`size_suffix`.
        whole: The first and the second model.
        units: The same with every common value fed to its readers, as VALUE`given_suffix`.
    """

    sizes: Callable[[Sequence[str], Path], None]
    whole: tuple[Callable[[Sequence[str], Path], None], Callable[[Sequence[str], Path], None]]
    units: tuple[Callable[[Sequence[str], Path], None], Callable[[Sequence[str], Path], None]]
    size_suffix: str
    given_suffix: str


def measure_layers(
    step: StepName,
    probes: Sequence[Probe],
    write: ProbeWriters,
    feeds: Mapping[str, Array],
    folder: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LayerError, ...]:
    """Measures each node's error on one input set, a part of the graph at a time.

    Args:
        step: The step that leads from the first model to the second.
        probes: The values that both have, in the order of the graph.
        write: Writes their graphs.
        feeds: The inputs.
        folder: An existing folder for the graphs.
        report: Told of each part as it ends.

    Returns:
        The nodes that add an error, the one that adds most first: those that make NaN or infinity before
        all, in the order of the graph.
    """
    found: list[LayerError] = []
    inputs = {name: widen(array) for name, array in feeds.items()}
    parts = list(_parts(probes, _sizes(probes, write, inputs, folder)))
    for number, part in enumerate(parts, 1):
        found += _measure(step, part, {p.value: p for p in probes}, write, inputs, folder)
        report(number, len(parts))
    return tuple(sorted(found, key=_rank))


def _rank(error: LayerError) -> tuple[bool, float]:
    own = error.own if error.own is not None else float("inf")
    return not error.nonfinite, 0.0 if error.nonfinite else -own


def _sizes(
    probes: Sequence[Probe], write: ProbeWriters, inputs: Mapping[str, Array], folder: Path
) -> list[int]:
    path = folder / "sizes.onnx"
    write.sizes([p.value for p in probes], path)
    sizes = _run(path, inputs)
    return [int(sizes[f"{p.value}{write.size_suffix}"]) for p in probes]


def _parts(probes: Sequence[Probe], sizes: Sequence[int]) -> Iterator[list[Probe]]:
    part: list[Probe] = []
    elements = 0
    for probe, size in zip(probes, sizes, strict=True):
        if part and elements + size > _CHUNK:
            yield part
            part, elements = [], 0
        part.append(probe)
        elements += size
    if part:
        yield part


def _measure(
    step: StepName,
    part: Sequence[Probe],
    probes: Mapping[str, Probe],
    write: ProbeWriters,
    inputs: Mapping[str, Array],
    folder: Path,
) -> list[LayerError]:
    names = [p.value for p in part]
    paths = [folder / f"{which}.onnx" for which in ("before", "after", "own-before", "own-after")]
    for writer, path in zip((write.whole[1], *write.units), paths[1:], strict=True):
        writer(names, path)
    units = [open_session(path) for path in paths[2:]]
    suffix = write.given_suffix
    fed = {end.name.removesuffix(suffix) for unit in units for end in unit.get_inputs()} & set(probes)
    write.whole[0](list(dict.fromkeys((*names, *fed))), paths[0])
    exact = _run(paths[0], inputs)
    given = {f"{name}{suffix}": _rounded(exact[name], probes[name].dtype) for name in fed}
    own = [_run_session(unit, {**inputs, **given}) for unit in units]
    gathered = _run(paths[1], inputs)
    errors = []
    for probe in part:
        name = probe.value
        mine = _difference(own[0][name], own[1][name], probe)
        whole = _difference(exact[name], gathered[name], probe)
        if mine.size or mine.nonfinite or mine.saturated:
            errors.append(
                LayerError(
                    step=step, layer=probe.layer, op_type=probe.op_type, module=probe.module, value=name,
                    own=mine.size, accumulated=whole.size, nonfinite=mine.nonfinite,
                    accumulated_nonfinite=whole.nonfinite, saturated=mine.saturated,
                )
            )  # fmt: skip
    return errors


@dataclass(frozen=True)
class _Difference:
    size: float | None
    nonfinite: int
    saturated: int


def _difference(before: Array, after: Array, probe: Probe) -> _Difference:
    old, new = before.astype(np.float64), after.astype(np.float64)
    saturated = np.zeros(old.shape, bool)
    if probe.dtype in _TYPES:
        largest = float(ml_dtypes.finfo(_TYPES[probe.dtype]).max)
        clipped = (new == -largest) | ((new == -np.inf) & probe.masked)
        saturated = ((new == largest) & (old > largest)) | (clipped & (old < -largest))
    broken = np.isfinite(old) & ~np.isfinite(new) & ~saturated
    kept = np.isfinite(old) & np.isfinite(new) & ~saturated
    size = relative_size(new[kept] - old[kept], root_mean_square(old[kept]))
    return _Difference(None if broken.any() else size, int(broken.sum()), int(saturated.sum()))


def _rounded(array: Array, dtype: str) -> Array:
    """The values as the type has them, in FP32; what is beyond it becomes its largest number.

    An overflow belongs to the node that makes it: its readers are asked about numbers.
    """
    if dtype not in _TYPES:
        return array
    largest = float(ml_dtypes.finfo(_TYPES[dtype]).max)
    return np.clip(array, -largest, largest).astype(_TYPES[dtype]).astype(np.float32)


def _run(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return _run_session(open_session(path), inputs)


def _run_session(session: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    ends = {end.name: end.type for end in session.get_inputs()}
    half = {name for name, kind in ends.items() if kind == "tensor(float16)"}
    feeds = {name: inputs[name].astype(np.float16) if name in half else inputs[name] for name in ends}
    names = [end.name for end in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
