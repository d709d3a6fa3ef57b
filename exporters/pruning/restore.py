"""Gives layers that will run dense their weights of the unpruned model back: there 2:4 gains nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.artifacts.graph_record import RestoreRecord
from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.layer_names import shown_name
from sparseflow_trt.model.model_file import OnnxModel, input_dims
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.scan import WeightReader
from sparseflow_trt.model.sites import LayerSite, dtype_name, find_sites
from sparseflow_trt.model.weights import TracedWeight, replace_weight

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOATS = ("FP32", "FP16", "BF16", "FP64")
# Between a pruned weight and its unpruned one where it is not 0. Training after pruning leaves it near 1
# (weights move by little), another model's is near 0.
_LEAST_COSINE = 0.5
_HINT = "Give the model that this one was pruned from, exported the same way."


def restore_dense(model: OnnxModel, unpruned: OnnxModel, layers: Iterable[str]) -> tuple[RestoreRecord, ...]:
    """Gives layers the weights that they have in the unpruned model, in the graph in memory.

    Weights are matched by their names and shapes, and where the names differ by their layers' names. A
    weight that a layer outside `layers` reads, too, stays.

    Args:
        model: The pruned model as read; its graph is changed.
        unpruned: The model that it was pruned from.
        layers: The names of the layers that are planned dense.

    Returns:
        A record for each of these layers whose weight differs from the unpruned one.

    Raises:
        ModelError: The unpruned model is another model: a layer is not in it, or has another shape or
            unrelated values there; or its inputs or outputs are others.
    """
    check_same_ends(model, unpruned)
    wanted = set(layers)
    sites = find_sites(model)
    theirs = _Weights(find_sites(unpruned))
    records: list[RestoreRecord] = []
    users: dict[ir.Value, list[LayerSite]] = {}
    for site in sites:
        if isinstance(site.weight, TracedWeight):
            users.setdefault(site.weight.value, []).append(site)
    done: dict[ir.Value, tuple[RestoreRecord, LayerSite]] = {}
    with WeightReader() as reader:
        for site in sites:
            weight = site.weight
            if site.name not in wanted or not isinstance(weight, TracedWeight):
                continue
            if weight.value in done:
                records.append(_for_layer(*done[weight.value], site.name))
                continue
            source = theirs.of(site, unpruned)
            others = [user for user in users[weight.value] if user.name not in wanted]
            found = _restore(reader, site, weight, source, others, unpruned)
            if found is not None:
                done[weight.value] = found, site
                records.append(found)
    return tuple(records)


def check_same_ends(model: OnnxModel, unpruned: OnnxModel) -> None:
    """Checks that two models take the same inputs and have the same outputs, by name.

    Raises:
        ModelError: They do not; the first that differs is named.
    """
    outputs = ([v.name for v in m.ir.graph.outputs] for m in (model, unpruned))
    ends = (("inputs", list(input_dims(model)), list(input_dims(unpruned))), ("outputs", *outputs))
    for what, ours, theirs in ends:
        if sorted(map(str, ours)) != sorted(map(str, theirs)):
            raise ModelError(
                f"{unpruned.path} is not an unpruned version of {model.path}: its {what} are "
                f"{_listed(theirs)}, not {_listed(ours)}.",
                _HINT,
            )


class _Weights:
    """The unpruned model's weights, by their own names and by their layers'."""

    def __init__(self, sites: list[LayerSite]) -> None:
        traced = [(site, site.weight) for site in sites if isinstance(site.weight, TracedWeight)]
        self._by_name: Mapping[str, TracedWeight] = {weight.name: weight for _, weight in traced}
        self._by_layer: Mapping[str, TracedWeight] = {site.name: weight for site, weight in traced}

    def of(self, site: LayerSite, unpruned: OnnxModel) -> TracedWeight:
        assert isinstance(site.weight, TracedWeight)
        shape = site.weight.shapes[0]
        named = (self._by_name.get(site.weight.name), self._by_layer.get(site.name))
        found = [weight for weight in named if weight is not None]
        for weight in found:
            if weight.shapes[0] == shape:
                return weight
        what = f"has shape {list(found[0].shapes[0])} there, not {list(shape)}" if found else "is not in it"
        raise ModelError(
            f"{unpruned.path} is another model: weight '{site.weight.name}' of layer '{shown_name(site)}' "
            f"{what}.",
            _HINT,
        )


def _restore(
    reader: WeightReader,
    site: LayerSite,
    weight: TracedWeight,
    source: TracedWeight,
    others: list[LayerSite],
    unpruned: OnnxModel,
) -> RestoreRecord | None:
    ours, theirs = reader.stored_array(weight.tensor), reader.stored_array(source.tensor)
    names = dtype_name(weight.tensor), dtype_name(source.tensor)
    if not set(names) <= set(_FLOATS):
        if names[0] == names[1] and np.array_equal(ours, theirs):
            return None
        reason = f"quantized weights ({names[0]}, {names[1]} in the unpruned model) go with their scales"
        return RestoreRecord(layer=site.name, weight=weight.name, route="kept", reason=reason)
    restored = theirs if theirs.dtype == ours.dtype else theirs.astype(ours.dtype)
    changed = int(np.count_nonzero(ours != restored))
    if not changed:
        return None
    if (cosine := _kept_cosine(ours, restored)) < _LEAST_COSINE:
        raise ModelError(
            f"{unpruned.path} is another model: where weight '{weight.name}' of layer '{shown_name(site)}' "
            f"is not 0, its values there have nothing to do with it (cosine {cosine:.2f}).",
            _HINT,
        )
    if others:
        reason = f"weight '{weight.name}' is shared with '{shown_name(others[0])}', which is planned sparse"
        return RestoreRecord(layer=site.name, weight=weight.name, route="kept", reason=reason)
    kind = weight.tensor.dtype.numpy()
    replace_weight(weight, lambda: source.tensor.numpy().astype(kind))
    return RestoreRecord(layer=site.name, weight=weight.name, route="restored", reason="", elements=changed)


def _kept_cosine(pruned: Array, unpruned: Array) -> float:
    """The cosine of two weights over the elements that pruning kept; 1 where it kept none."""
    kept = pruned != 0
    ours, theirs = pruned[kept].astype(np.float64), unpruned[kept].astype(np.float64)
    sizes = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / sizes if sizes else 1.0 if not ours.size else 0.0


def _for_layer(record: RestoreRecord, of: LayerSite, layer: str) -> RestoreRecord:
    reason = record.reason or f"with '{shown_name(of)}'"
    return record.model_copy(update={"layer": layer, "reason": reason, "elements": 0})


def _listed(names: Iterable[object]) -> str:
    return ", ".join(f"'{name}'" for name in names)
