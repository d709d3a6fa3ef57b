"""Which weights of an ONNX model pruning takes, which it leaves and which it cannot take, with the reasons.

The one rule: `inspect` tells it, `estimate` counts by it, `prune` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseflow_trt._listing import did_you_mean
from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, kind_of
from sparseflow_trt.model.layer_names import NOT_NAMED, is_named, is_pattern, kind_left, shown_name, why_left
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.parts import part_of
from sparseflow_trt.model.runtimes_own import operator_of
from sparseflow_trt.model.scan import WeightReader, grouping
from sparseflow_trt.model.sites import OPS, LayerSite, find_sites, why_not_eligible
from sparseflow_trt.model.storage import Region, Storage, Users, users_by_region
from sparseflow_trt.model.weights import TracedWeight, Untraceable

if TYPE_CHECKING:
    import onnx

Reasons = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PrunableWeight:
    """A stored tensor to prune and one of its users; all of them see the same groups.

    Attributes:
        layers: The names of all its users, in the graph's order.
    """

    site: LayerSite
    weight: TracedWeight
    region: Region
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What pruning does with each layer that has a constant weight.

    Attributes:
        taken: The weights to prune; some may be 2:4 already.
        conflicts: (layer, why) of weights that another use of their bytes keeps from being pruned.
        skipped: (layer, why) of those that cannot be 2:4, or that are not asked for.
    """

    taken: tuple[PrunableWeight, ...]
    conflicts: Reasons
    skipped: Reasons


def choose_weights(model: OnnxModel, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Choice:
    """Decides which weights of a model pruning takes.

    Args:
        model: A model as read.
        include: Layer, module or weight names (shell patterns) of what to prune, and nothing else; none means
            all but classifiers and adapters, see `layer_names`.
        exclude: Such names of what stays as it is.

    Raises:
        ModelError: A node says something impossible, or a pattern matches nothing.
    """
    sites = find_sites(model)
    _check_named(sites, (*include, *exclude))
    storage = Storage(model)
    taken: list[PrunableWeight] = []
    conflicts: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    for site in sites:
        if isinstance(site.weight, Untraceable):
            has_constant = site.weight.computed or operator_of(site.node) not in OPS
            if has_constant or site.name in include:
                skipped.append((site.name, site.weight.reason))
    for region, shared in users_by_region(sites).items():
        able = [(site, weight) for site, weight in shared if not why_not_eligible(site)]
        skipped += [(s.name, why_not_eligible(s)) for s, _ in shared if why_not_eligible(s)]
        if not able:
            continue
        names = tuple(site.name for site, _ in able)
        site, weight = able[0]
        why = _why_not_asked(able, include, exclude) or _why_not_written(weight)
        if why in NOT_NAMED.values():  # naming it would not help where it cannot be pruned
            why = _why_never(able, region, storage) or why
        if why:
            skipped += [(name, why) for name in names]
        elif conflict := _conflict(able, region, storage):
            conflicts += [(name, conflict) for name in names]
        else:
            taken.append(PrunableWeight(site, weight, region, names))
    return Choice(tuple(taken), tuple(conflicts), tuple(skipped))


def unprunable(model: OnnxModel) -> dict[str, str]:
    """The layers that could be 2:4 and that pruning never takes, whatever is asked for, each with the reason.

    Args:
        model: A model as read.

    Raises:
        ModelError: A node says something impossible.
    """
    storage = Storage(model)
    never = {}
    for region, shared in users_by_region(find_sites(model)).items():
        able = [(site, weight) for site, weight in shared if not why_not_eligible(site)]
        if able and (why := _why_never(able, region, storage)):
            never.update({site.name: why for site, _ in able})
    return never


def prunable(layers: Sequence[WeightedLayer], choice: Choice) -> tuple[WeightedLayer, ...]:
    """Those of a model's layers that are not 2:4 and that pruning makes so.

    Args:
        layers: Of the model, as `graph.read_layers` gives them.
        choice: Of the same model.
    """
    taken = {name for weight in choice.taken for name in weight.layers}
    return tuple(layer for layer in layers if layer.state is SparsityState.NOT_SPARSE and layer.name in taken)


def pruned_before(layers: Iterable[WeightedLayer]) -> str:
    """What to do before layers that are not 2:4 are pruned: "" where none of them was pruned another way."""
    return pruned_twice(sum(bool(layer.otherwise) for layer in layers))


def pruned_twice(layers: int) -> str:
    """What to do where pruning takes so many layers that were pruned another way; "" for none."""
    if not layers:
        return ""
    return (
        f"{layers} layer(s) seem to have been pruned before: prune the model from before that, or "
        "accuracy is lost twice."
    )


def is_external(weight: TracedWeight) -> bool:
    """Whether a weight's values are a range of a file."""
    import onnx_ir as ir

    return isinstance(weight.tensor, ir.ExternalTensor)


def _why_not_asked(users: Users, include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    """Why nobody asks for the weight of these layers, or "" where somebody does."""
    names = [name for site, _ in users for name in _names_of(site)]
    return why_left(names, kind_left(kind_of(site) for site, _ in users), include, exclude)


def _why_not_written(weight: TracedWeight) -> str:
    if not is_external(weight) and proto_of(weight) is None:
        return f"weight '{weight.name}' is a list of numbers, not a tensor"
    return ""


def _why_never(users: Users, region: Region, storage: Storage) -> str:
    """Why a weight cannot be pruned, whoever asks for it, or "" where it can."""
    return _why_not_written(users[0][1]) or _conflict(users, region, storage)


def _conflict(users: Users, region: Region, storage: Storage) -> str:
    """Which use of a weight's bytes keeps it from being pruned, or "" where none does."""
    why = _disagreement(users) or storage.other_use(region, [site for site, _ in users])
    return f"weight '{users[0][1].name}' {why}" if why else ""


def _disagreement(able: Users) -> str:
    """Why layers that share a weight see different groups of four in it, or "" where they see the same."""
    if len(able) == 1:
        return ""
    by_axis: dict[object, list[str]] = {}
    by_zero: dict[object, list[str]] = {}
    with WeightReader() as reader:
        for site, weight in able:
            groups = grouping(reader.stored_array(weight.tensor), weight, site.k_axis)
            by_axis.setdefault(groups, []).append(f"'{shown_name(site)}'")
            by_zero.setdefault((weight.tensor.dtype, weight.zero_key), []).append(f"'{shown_name(site)}'")
    if len(by_axis) > 1:
        return "is shared by layers whose K lies on different axes: " + _against(by_axis)
    if len(by_zero) > 1:
        return "is shared by layers that take other values for zero: " + _against(by_zero)
    return ""


def _against(groups: dict[object, list[str]]) -> str:
    return " against ".join(", ".join(names) for names in groups.values())


def _check_named(sites: list[LayerSite], globs: tuple[str, ...]) -> None:
    """Refuses a pattern that matches nothing: a slip of the pen would prune what it was to protect."""
    for glob in globs:
        if not any(is_named(_names_of(site), (glob,)) for site in sites):
            names = () if is_pattern(glob) else (name for site in sites for name in _names_of(site))
            hint = did_you_mean(glob, names, "`sparseflow-trt inspect` lists their names.")
            raise ModelError(f"'{glob}' matches no layer, module or weight.", hint)


def _names_of(site: LayerSite) -> tuple[str, ...]:
    """The names that patterns are held against; a layer of no module has none for that."""
    weight = site.weight.name if isinstance(site.weight, TracedWeight) else ""
    return tuple(filter(None, (site.name, site.module, weight)))


def proto_of(weight: TracedWeight) -> onnx.TensorProto | None:
    """The TensorProto that holds a weight's values; those of a Constant's `value_floats` stand in none."""
    import onnx

    part = part_of(weight.tensor)
    proto = getattr(part.whole if part is not None else weight.tensor, "raw", None)
    return proto if isinstance(proto, onnx.TensorProto) else None
