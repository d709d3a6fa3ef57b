"""Prunes an ONNX model 2:4 by magnitude along K. Nothing but the pruned weights' bytes changes.

The model's protobuf is written back as it was read; external data is streamed from the old file to the
new one, every tensor at its old offset.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from sparseflow_trt._files import written_atomically
from sparseflow_trt.errors import ModelError
from sparseflow_trt.graph import LayerSite, find_sites, why_not_eligible
from sparseflow_trt.model_file import OnnxModel, data_files, external_fields, tensor_protos
from sparseflow_trt.scan import WeightReader, lay_out, prune_pieces
from sparseflow_trt.weights import PASSED_THROUGH, TracedWeight

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_COPY = 8 << 20


@dataclass(frozen=True)
class PrunedWeight:
    """One weight after pruning. `zeroed` is 0 where it was 2:4 already."""

    weight: str
    layers: tuple[str, ...]
    elements: int
    zeroed: int


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did: the weights it pruned, and the layers it left alone with the reason for each."""

    output: Path
    pruned: tuple[PrunedWeight, ...]
    conflicts: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Job:
    """A tensor to prune and one of its users; all of them see the same groups."""

    site: LayerSite
    weight: TracedWeight
    layers: tuple[str, ...]


def prune_model(
    model: OnnxModel,
    output: Path,
    exclude: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> PruneReport:
    """Writes a copy of `model` whose eligible weights are 2:4 along K.

    Args:
        model: A model as read; the file is not changed.
        output: Where the copy goes; its external data goes beside it.
        exclude: Layer, module or weight names (shell patterns) that stay as they are.
        progress: Called with (bytes written, bytes to write).

    Raises:
        ModelError: `output` is the model itself.
        ArtifactError: The output cannot be written; nothing is left of it then.
    """
    if output.exists() and output.samefile(model.path):
        raise ModelError(f"{output} is the input itself.", "Name another file with --output.")
    sites = find_sites(model)
    jobs, conflicts, skipped = _jobs(model, sites, exclude)
    total = sum(f.stat().st_size for f in data_files(model)) + sum(
        job.weight.tensor.nbytes for job in jobs if not _is_external(job.weight)
    )
    counter = _Counter(total, progress)
    pruned: list[PrunedWeight] = []
    with WeightReader() as reader, contextlib.ExitStack() as files:
        for job in jobs:
            if not _is_external(job.weight):
                pruned.append(_prune_inline(reader, job, counter))
        renamed = _output_names(model, output)
        written = files.enter_context(written_atomically(output))  # renamed last, after its data
        for source, target in renamed.items():
            stream = files.enter_context(written_atomically(output.parent / target))
            mine = [j for j in jobs if _is_external(j.weight) and _location_of(j.weight) == source]
            pruned += _copy_pruned(reader, model.path.parent / source, stream, mine, counter)
        _relocate(model.proto, renamed)
        written.write_bytes(model.proto.SerializeToString())
    return PruneReport(output, tuple(pruned), tuple(conflicts), tuple(skipped))


def _jobs(
    model: OnnxModel, sites: list[LayerSite], exclude: tuple[str, ...]
) -> tuple[list[_Job], list[tuple[str, str]], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    users: dict[object, list[tuple[LayerSite, TracedWeight]]] = {}
    for site in sites:
        if isinstance(site.weight, TracedWeight):
            users.setdefault(_storage_key(site.weight), []).append((site, site.weight))
    weighted = {site.node for site in sites}
    jobs: list[_Job] = []
    conflicts: list[tuple[str, str]] = []
    for shared in users.values():
        able = [(site, weight) for site, weight in shared if not why_not_eligible(site)]
        skipped += [(s.name, why_not_eligible(s)) for s, _ in shared if why_not_eligible(s)]
        if not able:
            continue
        names = tuple(site.name for site, _ in able)
        conflict = _conflict(able, [w for _, w in shared], weighted)
        if any(_excluded(site, weight, exclude) for site, weight in able):
            skipped += [(name, "excluded") for name in names]
        elif conflict:
            conflicts += [(name, f"weight '{able[0][1].name}' {conflict}") for name in names]
        else:
            jobs.append(_Job(able[0][0], able[0][1], names))
    return jobs, conflicts, skipped


def _conflict(
    able: list[tuple[LayerSite, TracedWeight]], weights: list[TracedWeight], weighted: set[ir.Node]
) -> str:
    """Why a shared weight has no one axis to be pruned along, or "" where it has."""
    by_stride: dict[object, list[str]] = {}
    with WeightReader() as reader:
        for site, weight in able:
            stored = reader.stored_array(weight.tensor)
            layout = lay_out(stored, weight, site.k_axis)
            # K's stride in the stored array says which elements form a group
            stride = layout.array.shape[2] if layout.in_place else (weight.steps, site.k_axis)
            by_stride.setdefault(stride, []).append(f"'{site.name}'")
    if len(by_stride) > 1:
        return "is shared by layers whose K lies on different axes: " + " against ".join(
            ", ".join(names) for names in by_stride.values()
        )
    others = {
        f"{node.op_type} '{node.name}'"
        for weight in weights
        for node in _readers(weight.value)
        if node not in weighted
    }
    return f"is also read by {', '.join(sorted(others))}, which pruning would change" if others else ""


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read a value, through the nodes that a weight is traced through."""
    for node in value.consumers():
        if node.op_type in PASSED_THROUGH and node.inputs[0] is value:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _excluded(site: LayerSite, weight: TracedWeight, exclude: tuple[str, ...]) -> bool:
    names = (site.name, site.module, weight.name)
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in exclude)


def _is_external(weight: TracedWeight) -> bool:
    import onnx_ir as ir

    return isinstance(weight.tensor, ir.ExternalTensor)


def _location_of(weight: TracedWeight) -> str:
    import onnx_ir as ir

    assert isinstance(weight.tensor, ir.ExternalTensor)
    return os.fspath(weight.tensor.location)


def _storage_key(weight: TracedWeight) -> object:
    import onnx_ir as ir

    tensor = weight.tensor
    if isinstance(tensor, ir.ExternalTensor):  # two names for one range of a file are one weight
        return os.fspath(tensor.location), tensor.offset or 0
    return id(tensor)


def _prune_inline(reader: WeightReader, job: _Job, counter: _Counter) -> PrunedWeight:
    data = bytearray()
    zeroed = 0
    for piece, dropped in prune_pieces(reader, job.weight, job.site.k_axis):
        data += piece
        zeroed += dropped
        counter.add(len(piece))
    if zeroed:
        proto = _proto_of(job.weight)
        for typed in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            proto.ClearField(typed)
        proto.raw_data = bytes(data)
    return PrunedWeight(job.weight.name, job.layers, job.weight.tensor.size, zeroed)


def _proto_of(weight: TracedWeight) -> onnx.TensorProto:
    """The protobuf that an inline tensor was read from: a part of the model's own, changed in place."""
    proto = weight.tensor.raw
    assert proto.DESCRIPTOR.name == "TensorProto"
    return proto


def _copy_pruned(
    reader: WeightReader, source: Path, target: Path, jobs: list[_Job], counter: _Counter
) -> list[PrunedWeight]:
    pruned = []
    with source.open("rb") as old, target.open("wb") as new:
        for job in sorted(jobs, key=lambda j: _storage_key(j.weight)[1]):  # type: ignore[index]
            begin = _storage_key(job.weight)[1]  # type: ignore[index]
            _copy(old, new, begin - new.tell(), counter)
            zeroed = 0
            for piece, dropped in prune_pieces(reader, job.weight, job.site.k_axis):
                new.write(piece)
                zeroed += dropped
                counter.add(len(piece))
            old.seek(new.tell())
            pruned.append(PrunedWeight(job.weight.name, job.layers, job.weight.tensor.size, zeroed))
        _copy(old, new, source.stat().st_size - new.tell(), counter)
    return pruned


def _copy(old: BinaryIO, new: BinaryIO, size: int, counter: _Counter) -> None:
    while size > 0:
        piece = old.read(min(size, _COPY))
        new.write(piece)
        size -= len(piece)
        counter.add(len(piece))


def _output_names(model: OnnxModel, output: Path) -> dict[str, str]:
    """The new name of each data file, relative to the output: never one that the input uses."""
    names = [os.fspath(f.relative_to(model.path.parent)) for f in data_files(model)]
    many = len(names) > 1
    renamed = {name: f"{output.name}.data.{i}" if many else f"{output.name}.data" for i, name in enumerate(names)}
    taken = {(model.path.parent / name).resolve() for name in names}
    for new in renamed.values():
        if (output.parent / new).resolve() in taken:
            raise ModelError(
                f"{output.parent / new} holds the input's own data.", "Name another file with --output."
            )
    return renamed


def _relocate(proto: onnx.ModelProto, renamed: dict[str, str]) -> None:
    for tensor in tensor_protos(proto):
        location = external_fields(tensor).get("location")
        for entry in tensor.external_data:
            if entry.key == "location" and location is not None:
                entry.value = renamed[os.path.normpath(location)]


class _Counter:
    """Adds up bytes and passes them on to a progress callback."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total)
