"""Prunes an ONNX model 2:4 by magnitude along K. Nothing but the pruned weights' bytes changes.

The model's protobuf is written back as it was read; external data is streamed from the old file to the
new one, every tensor at its old offset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._files import check_file, written_atomically
from sparseflow_trt._paths import AnyPath
from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.pruning.pruned_bytes import Target, prune_file, prune_tensor
from sparseflow_trt.model.model_file import OnnxModel, data_files, read_model
from sparseflow_trt.model.other_patterns import seems_pruned
from sparseflow_trt.model.parts import part_of
from sparseflow_trt.model.pattern import Zeros
from sparseflow_trt.model.prunable import PrunableWeight, choose_weights, is_external, proto_of
from sparseflow_trt.model.scan import WeightReader
from sparseflow_trt.model.tensor_data import is_external as lies_outside
from sparseflow_trt.model.tensor_data import tensor_protos

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class PrunedWeight:
    """One weight after pruning. `zeroed` is 0 where it was 2:4 already.

    `pruned_before` is whether it had been pruned another way: it was not 2:4, and had many zeros.
    """

    weight: str
    layers: tuple[str, ...]
    elements: int
    zeroed: int
    pruned_before: bool


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did: the weights it pruned, and the layers it left alone with the reason for each."""

    output: Path
    pruned: tuple[PrunedWeight, ...]
    conflicts: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def pruned_before(self) -> tuple[str, ...]:
        """The layers that it pruned, and that had been pruned another way."""
        return tuple(layer for weight in self.pruned if weight.pruned_before for layer in weight.layers)


def prune_model(
    model: OnnxModel,
    output: AnyPath,
    exclude: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
    include: tuple[str, ...] = (),
) -> PruneReport:
    """Writes a copy of `model` whose eligible weights, but for classifiers' and adapters', are 2:4 along K.

    Args:
        model: A model as read; neither the file nor its protobuf is changed.
        output: Where the copy goes; its external data goes beside it.
        exclude: Layer, module or weight names (shell patterns) that stay as they are.
        progress: Called with (bytes written, bytes to write).
        include: Such names of what to prune, and nothing else; a classifier or an adapter only where named.

    Raises:
        ModelError: `output` is the model itself or one of its data files, or a node says something
            impossible; or a pattern of `include` or `exclude` matches nothing.
        ArtifactError: The output cannot be written; nothing is left of it then.
    """
    output = Path(output)
    if output.exists() and output.samefile(model.path):
        raise ModelError(f"{output} is the input itself.", "Name another file with --output.")
    check_file(output)
    renamed = _output_names(model, output)
    choice = choose_weights(model, include, exclude)
    jobs = choice.taken
    in_file = model.maps_itself
    if in_file and (renamed or not all(is_external(job.weight) for job in jobs)):
        # some weights are ranges of files and some are parts of the protobuf: take them all from that
        return prune_model(read_model(model.path, inline=True), output, exclude, progress, include)
    total = sum(file.stat().st_size for file in (*renamed, *([model.path] if in_file else []))) + sum(
        job.weight.tensor.nbytes for job in jobs if not is_external(job.weight)
    )
    counter = _Counter(total, progress)
    pruned: list[PrunedWeight] = []
    with WeightReader() as reader, contextlib.ExitStack() as files:
        written = files.enter_context(written_atomically(output))  # renamed last, after its data
        if in_file:
            pruned = _copy_pruned(reader, model.path, written, jobs, counter)
            return PruneReport(output, tuple(pruned), choice.conflicts, choice.skipped)
        proto = _copy_of(model.proto)
        pairs = zip(tensor_protos(model.proto), tensor_protos(proto), strict=True)
        inline = {id(old): new for old, new in pairs}
        for job in jobs:
            if not is_external(job.weight):
                pruned.append(_prune_inline(reader, job, inline[id(proto_of(job.weight))], counter))
        for source, target in renamed.items():
            stream = files.enter_context(written_atomically(output.parent / target))
            mine = [job for job in jobs if job.region.place == source]
            pruned += _copy_pruned(reader, source, stream, mine, counter)
        _relocate(proto, model.path.parent, renamed)
        written.write_bytes(proto.SerializeToString())
    return PruneReport(output, tuple(pruned), choice.conflicts, choice.skipped)


def _copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _prune_inline(
    reader: WeightReader, job: PrunableWeight, proto: onnx.TensorProto, counter: _Counter
) -> PrunedWeight:
    import onnx_ir as ir

    data, zeros = prune_tensor(reader, Target(job.weight, job.site.k_axis), counter.add)
    if zeros.added:
        if part_of(job.weight.tensor) is not None:
            whole = ir.serde.TensorProtoTensor(proto).tobytes()
            data = whole[: job.region.begin] + data + whole[job.region.end :]
        for typed in ("float_data", "int32_data"):
            proto.ClearField(typed)
        proto.raw_data = data
    return _pruned(job, zeros)


def _copy_pruned(
    reader: WeightReader, source: Path, target: Path, jobs: Sequence[PrunableWeight], counter: _Counter
) -> list[PrunedWeight]:
    jobs = sorted(jobs, key=lambda job: job.region.begin)
    targets = [Target(job.weight, job.site.k_axis, job.region.begin) for job in jobs]
    found = prune_file(reader, source, target, targets, counter.add)
    return [_pruned(job, zeros) for job, zeros in zip(jobs, found, strict=True)]


def _pruned(job: PrunableWeight, zeros: Zeros) -> PrunedWeight:
    size = job.weight.tensor.size
    before = zeros.added > 0 and seems_pruned(zeros.before, size)
    return PrunedWeight(job.weight.name, job.layers, size, zeros.added, before)


def _output_names(model: OnnxModel, output: Path) -> dict[Path, str]:
    """For each data file its new name, relative to the output: never one that the input uses."""
    sources = [file.resolve() for file in data_files(model)]
    names = [f"{output.name}.data.{i}" for i in range(len(sources))]
    renamed = dict(zip(sources, names if len(names) > 1 else [f"{output.name}.data"], strict=False))
    for new in (output.name, *renamed.values()):
        if (output.parent / new).resolve() in (*sources, model.path.resolve()):
            raise ModelError(
                f"{output.parent / new} is a file of the input itself.", "Name another file with --output."
            )
    return renamed


def _relocate(proto: onnx.ModelProto, folder: Path, renamed: dict[Path, str]) -> None:
    for tensor in tensor_protos(proto):
        if lies_outside(tensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = renamed[(folder / entry.value).resolve()]


class _Counter:
    """Adds up bytes and passes them on to a progress callback."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total)
