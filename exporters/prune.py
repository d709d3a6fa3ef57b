"""Prunes an ONNX model 2:4 by magnitude along K. Nothing but the pruned weights' bytes changes.

The model's protobuf is written back as it was read; external data is streamed from the old file to the
new one, every tensor at its old offset.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._files import written_atomically
from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.pruned_bytes import Target, prune_file, prune_tensor
from sparseflow_trt.model_file import OnnxModel, data_files, read_model
from sparseflow_trt.scan import WeightReader, lay_out
from sparseflow_trt.sites import LayerSite, find_sites, why_not_eligible
from sparseflow_trt.tensor_data import is_external, tensor_protos
from sparseflow_trt.weights import TracedWeight, passes_through

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


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
    region: _Region
    layers: tuple[str, ...]


@dataclass(frozen=True)
class _Region:
    """Where a tensor's bytes lie: a range of a data file, or all of an inline tensor."""

    place: object
    begin: int
    end: int


def prune_model(
    model: OnnxModel,
    output: Path,
    exclude: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> PruneReport:
    """Writes a copy of `model` whose eligible weights are 2:4 along K.

    Args:
        model: A model as read; neither the file nor its protobuf is changed.
        output: Where the copy goes; its external data goes beside it.
        exclude: Layer, module or weight names (shell patterns) that stay as they are.
        progress: Called with (bytes written, bytes to write).

    Raises:
        ModelError: `output` is the model itself or one of its data files, or a node says something
            impossible; or a pattern of `exclude` matches nothing.
        ArtifactError: The output cannot be written; nothing is left of it then.
    """
    if output.exists() and output.samefile(model.path):
        raise ModelError(f"{output} is the input itself.", "Name another file with --output.")
    renamed = _output_names(model, output)
    sites = find_sites(model)
    _check_excluded(sites, exclude)
    jobs, conflicts, skipped = _jobs(sites, _Storage(model), exclude)
    in_file = model.maps_itself
    if in_file and (renamed or not all(_is_external(job.weight) for job in jobs)):
        # some weights are ranges of files and some are parts of the protobuf: take them all from that
        return prune_model(read_model(model.path, inline=True), output, exclude, progress)
    total = sum(file.stat().st_size for file in (*renamed, *([model.path] if in_file else []))) + sum(
        job.weight.tensor.nbytes for job in jobs if not _is_external(job.weight)
    )
    counter = _Counter(total, progress)
    pruned: list[PrunedWeight] = []
    with WeightReader() as reader, contextlib.ExitStack() as files:
        written = files.enter_context(written_atomically(output))  # renamed last, after its data
        if in_file:
            pruned = _copy_pruned(reader, model.path, written, jobs, counter)
            return PruneReport(output, tuple(pruned), tuple(conflicts), tuple(skipped))
        proto = _copy_of(model.proto)
        pairs = zip(tensor_protos(model.proto), tensor_protos(proto), strict=True)
        inline = {id(old): new for old, new in pairs}
        for job in jobs:
            if not _is_external(job.weight):
                pruned.append(_prune_inline(reader, job, inline[id(job.weight.tensor.raw)], counter))
        for source, target in renamed.items():
            stream = files.enter_context(written_atomically(output.parent / target))
            mine = [job for job in jobs if job.region.place == source]
            pruned += _copy_pruned(reader, source, stream, mine, counter)
        _relocate(proto, model.path.parent, renamed)
        written.write_bytes(proto.SerializeToString())
    return PruneReport(output, tuple(pruned), tuple(conflicts), tuple(skipped))


def _jobs(
    sites: list[LayerSite], storage: _Storage, exclude: tuple[str, ...]
) -> tuple[list[_Job], list[tuple[str, str]], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    users: dict[_Region, list[tuple[LayerSite, TracedWeight]]] = {}
    for site in sites:
        if isinstance(site.weight, TracedWeight):
            users.setdefault(_region_of(site.weight.tensor), []).append((site, site.weight))
    jobs: list[_Job] = []
    conflicts: list[tuple[str, str]] = []
    for region, shared in users.items():
        able = [(site, weight) for site, weight in shared if not why_not_eligible(site)]
        skipped += [(s.name, why_not_eligible(s)) for s, _ in shared if why_not_eligible(s)]
        if not able:
            continue
        names = tuple(site.name for site, _ in able)
        site, weight = able[0]
        if any(_excluded(s, w, exclude) for s, w in able):
            skipped += [(name, "excluded") for name in names]
        elif not _is_external(weight) and not _has_proto(weight):
            reason = f"weight '{weight.name}' is a list of numbers, not a tensor"
            skipped += [(name, reason) for name in names]
        elif conflict := _disagreement(able) or storage.other_use(region, [s for s, _ in able]):
            conflicts += [(name, f"weight '{weight.name}' {conflict}") for name in names]
        else:
            jobs.append(_Job(site, weight, region, names))
    return jobs, conflicts, skipped


def _disagreement(able: list[tuple[LayerSite, TracedWeight]]) -> str:
    """Why layers that share a weight see different groups of four in it, or "" where they see the same."""
    by_axis: dict[object, list[str]] = {}
    by_zero: dict[object, list[str]] = {}
    with WeightReader() as reader:
        for site, weight in able:
            layout = lay_out(reader.stored_array(weight.tensor), weight, site.k_axis)
            # K's stride in the stored array says which elements form a group
            stride = layout.array.shape[2] if layout.in_place else (weight.steps, site.k_axis)
            by_axis.setdefault(stride, []).append(f"'{site.name}'")
            by_zero.setdefault((weight.tensor.dtype, weight.zero_key), []).append(f"'{site.name}'")
    if len(by_axis) > 1:
        return "is shared by layers whose K lies on different axes: " + _against(by_axis)
    if len(by_zero) > 1:
        return "is shared by layers that take other values for zero: " + _against(by_zero)
    return ""


def _against(groups: dict[object, list[str]]) -> str:
    return " against ".join(", ".join(names) for names in groups.values())


class _Storage:
    """Every stored tensor of a model, to find who else reads the bytes that pruning would change."""

    def __init__(self, model: OnnxModel) -> None:
        self._values: dict[object, list[tuple[_Region, ir.Value]]] = {}
        for graph in model.ir.graphs():
            for value in graph.initializers.values():
                self._add(value, value.const_value)
        for node in model.ir.graph.all_nodes():
            tensor = node.attributes.get("value")
            if node.op_type == "Constant" and tensor is not None and node.outputs:
                self._add(node.outputs[0], tensor.value)

    def _add(self, value: ir.Value, tensor: Any) -> None:
        if tensor is not None and hasattr(tensor, "nbytes"):
            region = _region_of(tensor)
            self._values.setdefault(region.place, []).append((region, value))

    def other_use(self, region: _Region, sites: list[LayerSite]) -> str:
        """What else than these layers' weights the bytes of a region are, or "" where nothing."""
        weights = {(site.node, 0 if site.side == "left" else 1) for site in sites}
        uses = set()
        for other, value in self._values.get(region.place, []):
            if other.end <= region.begin or region.end <= other.begin:
                continue
            if other != region:
                return f"shares some of its bytes with '{value.name}', which pruning would change"
            for user, index in _uses(value):
                if user is None:
                    uses.add("the graph's outputs")
                elif (user, index) not in weights:
                    uses.add(f"{user.op_type} '{user.name or user.outputs[0].name}'")
        return f"is also read by {', '.join(sorted(uses))}, which pruning would change" if uses else ""


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
    """The (node, input) pairs that read a value, through the nodes that a weight is traced through.

    A graph that gives the value out is (None, 0).
    """
    if value.is_graph_output():
        yield None, 0
    for node, index in value.uses():
        if passes_through(node) and index == 0:
            yield from _uses(node.outputs[0])
        else:
            yield node, index


def _check_excluded(sites: list[LayerSite], exclude: tuple[str, ...]) -> None:
    """Refuses a pattern that matches nothing: a slip of the pen would prune what it was to protect."""
    weights = [(site, site.weight) for site in sites if isinstance(site.weight, TracedWeight)]
    for glob in exclude:
        if not any(_excluded(site, weight, (glob,)) for site, weight in weights):
            raise ModelError(
                f"'{glob}' matches no layer, module or weight.", "`sparseflow-trt inspect` lists their names."
            )


def _excluded(site: LayerSite, weight: TracedWeight, exclude: tuple[str, ...]) -> bool:
    return any(
        name == glob or fnmatch.fnmatchcase(name, glob)
        for glob in exclude
        for name in (site.name, site.module, weight.name)
    )


def _is_external(weight: TracedWeight) -> bool:
    import onnx_ir as ir

    return isinstance(weight.tensor, ir.ExternalTensor)


def _region_of(tensor: ir.TensorProtocol) -> _Region:
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor):  # two names for one range of a file are one weight
        begin = tensor.offset or 0
        return _Region(Path(tensor.path).resolve(), begin, begin + tensor.nbytes)
    return _Region(id(tensor), 0, tensor.nbytes)


def _has_proto(weight: TracedWeight) -> bool:
    """Whether the values stand in a TensorProto; those of a Constant's `value_floats` do not."""
    import onnx

    return isinstance(getattr(weight.tensor, "raw", None), onnx.TensorProto)


def _copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _prune_inline(
    reader: WeightReader, job: _Job, proto: onnx.TensorProto, counter: _Counter
) -> PrunedWeight:
    data, zeroed = prune_tensor(reader, Target(job.weight, job.site.k_axis), counter.add)
    if zeroed:
        for typed in ("float_data", "int32_data"):
            proto.ClearField(typed)
        proto.raw_data = data
    return PrunedWeight(job.weight.name, job.layers, job.weight.tensor.size, zeroed)


def _copy_pruned(
    reader: WeightReader, source: Path, target: Path, jobs: list[_Job], counter: _Counter
) -> list[PrunedWeight]:
    jobs = sorted(jobs, key=lambda job: job.region.begin)
    targets = [Target(job.weight, job.site.k_axis, job.region.begin) for job in jobs]
    counts = prune_file(reader, source, target, targets, counter.add)
    return [
        PrunedWeight(job.weight.name, job.layers, job.weight.tensor.size, zeroed)
        for job, zeroed in zip(jobs, counts, strict=True)
    ]


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
        if is_external(tensor):
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
