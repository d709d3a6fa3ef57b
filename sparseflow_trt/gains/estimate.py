"""What 2:4 weights would gain: the times of a model's products on a device, read from a policy. No GPU."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from sparseflow_trt.errors import ShapeError
from sparseflow_trt.exporters.fp32_reference import computes_in_half
from sparseflow_trt.exporters.plugin.nodes import plugin_layers
from sparseflow_trt.gains.estimate_advice import advise, advise_padding
from sparseflow_trt.gains.estimate_notes import notes_on, notes_on_merges, whose_plugin_times
from sparseflow_trt.gains.estimate_record import Estimate, EstimatedLayers, end_to_end
from sparseflow_trt.gains.estimate_rows import (
    Group,
    ask,
    count_groups,
    estimate_layers,
    sum_known,
    usual_rates,
    with_share,
)
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, left_as_they_are
from sparseflow_trt.model.model_file import OnnxModel, input_dims
from sparseflow_trt.model.prunable import unprunable as find_unprunable
from sparseflow_trt.model.runtimes_own import BEFORE_OPTIMISER
from sparseflow_trt.model.sites import find_sites
from sparseflow_trt.model.symbolic import SymbolicM, to_know_m
from sparseflow_trt.plans.decide import PluginUse
from sparseflow_trt.plans.merges import Merge, find_merges
from sparseflow_trt.plans.plan import ModelPrecision
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.plans.shapes import DEFAULT_PROFILE, ShapeRange, dims_at, make_profile
from sparseflow_trt.plans.traffic import Traffic
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import is_timed, known_of, library_of
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Library, Policy, SparseKernel

# Of a GPU's time; 87 % is what the products of one TinyLlama prefill had on an A100.
USUAL_SHARES = (0.5, 0.7, 0.87, 1.0)


def estimate_model(
    model: OnnxModel,
    layers: tuple[WeightedLayer, ...],
    policy: Policy,
    axes: dict[str, tuple[int, int, int]],
    shapes: dict[str, ShapeRange],
    precision: ModelPrecision | None = None,
    library: Library | None = None,
    traffic: Traffic | None = None,
    gemm_share: float | None = None,
    plugin: bool = False,
) -> Estimate:
    """Estimates a model at the opt of its shapes, or over its traffic.

    Where neither a library nor the plugin is asked for, the plugin stands in for TensorRT's own sparse
    kernels if there are times of it, and these gain no more or have no times.

    Args:
        model: A model as read.
        layers: Its weighted layers.
        policy: The times.
        axes: The range (min, opt, max) of each dynamic axis; with traffic none is needed.
        shapes: The shapes of whole inputs, by name; they go before `axes`.
        precision: As for a plan: None keeps a half-precision model, and takes FP16 for one in FP32.
        library: See `estimate`; None for TensorRT's.
        traffic: See `estimate`.
        gemm_share: See `estimate`.
        plugin: Whether sparse is the plugin, and not the library's own kernels.

    Raises:
        ModelError: A node says something impossible, or of an input the file does not even say how many
            dimensions it has.
        ShapeError: The shapes do not fit the model, a dynamic axis has no size, or as for `estimate`.
    """
    inputs = input_dims(model)
    profile = None
    if axes or shapes or not traffic:
        profile = make_profile(DEFAULT_PROFILE, inputs, axes, shapes)
    typed = precision or ("keep" if computes_in_half(model, layers) else "fp16")
    plan = make_plan(layers, (), inputs, None, typed, "off")

    unprunable = find_unprunable(model)
    precisions = {layer.name: layer.precision for layer in plan.layers}
    sparse = {layer.name for layer in layers if layer.state is SparsityState.SPARSE}
    able = sparse | {layer.name for layer in layers if layer.eligible and layer.name not in unprunable}

    @functools.cache
    def graph() -> PluginUse:
        return PluginUse(layers=plugin_layers(model))

    @functools.cache
    def merges() -> tuple[Merge, ...]:
        return find_merges([x for x in layers if x.weight], able, precisions, policy, graph())

    def by(kernel: SparseKernel, whose: Library) -> Estimate:
        return estimate(
            model.path.name,
            layers,
            precisions,
            dims_at(inputs, profile, "opt") if profile else {},
            policy,
            whose,
            traffic,
            gemm_share,
            {name: x.why_not for name, x in graph().layers.items()} if kernel == "plugin" else None,
            unprunable,
            merges() if whose == "tensorrt" else (),
        )

    found = by("plugin" if plugin else "sparse", library or "tensorrt")
    if not plugin and library is None and found.library == "tensorrt":
        other = by("plugin", "tensorrt")
        if other.gemm_speedup and other.gemm_speedup >= (found.gemm_speedup or 0.0):
            return other.model_copy(update={"stands_in": True})
    if found.gemm_speedup is not None:
        return found
    sites = (site for site in find_sites(model) if site.batch != 1 or site.pattern_k != site.k)
    more = advise(found, policy, by, model.path, {(site.n, site.k) for site in sites})
    return found.model_copy(update={"notes": (*found.notes, *more)})


def estimate(
    model: str,
    layers: tuple[WeightedLayer, ...],
    precisions: Mapping[str, str],
    dims: Mapping[str, int],
    policy: Policy,
    library: Library = "tensorrt",
    traffic: Traffic | None = None,
    gemm_share: float | None = None,
    plugin: Mapping[str, str] | None = None,
    unprunable: Mapping[str, str] = MappingProxyType({}),
    merges: tuple[Merge, ...] = (),
) -> Estimate:
    """Estimates the times of a model's products, whether or not its weights are 2:4 already.

    Args:
        model: The model's name.
        layers: Its weighted layers. Those that cannot be 2:4 count as dense.
        precisions: The type of each layer's product, such as "fp16", by the layer's name.
        dims: The size of each named dimension, such as a profile's opt.
        policy: The times.
        library: Whose kernels will run, see `lookup.judge`.
        traffic: How often which M comes: M of the layers that most of the arithmetic is in. The others
            have the M that `dims` gives them.
        gemm_share: The share of the GPU's time that these products have in the dense model.
        plugin: By each layer's name why it cannot run in the plugin, "" where it can; sparse is the plugin
            then (`plugin_lookup.plugin_known`). None for the library's own sparse kernels.
        unprunable: Why layers cannot be pruned, by their names; those that are not 2:4 yet count as dense.
        merges: Layers that run as one product, which is then a row of its own where its times are known.

    Raises:
        ShapeError: There is no layer, none's M is known, or the traffic is of none.
    """
    apart = (layers, precisions, plugin, unprunable)
    main = _main_m(count_groups(*apart), model) if traffic else None

    def sizes_of(m: SymbolicM) -> tuple[tuple[int, float], ...]:
        return _sizes(m, dims, traffic if m == main else None)

    rows_of = {layer.name: layer.m for layer in layers}
    timed = [
        merge
        for merge in merges
        if all(is_timed(policy, merge.gemm, size) for size, _ in sizes_of(rows_of[merge.layers[0]]))
    ]
    groups = count_groups(*apart, timed)
    used = library_of(policy, library) if plugin is None else "tensorrt"
    sizes = {group: sizes_of(group.m) for group in groups}
    if not groups:
        raise ShapeError(
            f"{model}: no layer multiplies by a stored weight.",
            " ".join(left_as_they_are(layers)) or "`sparseflow-trt inspect --all` says why for each.",
        )
    if not any(sizes.values()):
        there = ", ".join(sorted({str(group.m) for group in groups}))
        lacking = any(isinstance(axis, str) and axis not in dims for g in groups for axis in g.m.factors)
        fixed = to_know_m()
        if any(layer.reason.endswith(BEFORE_OPTIMISER) for layer in layers):
            fixed = BEFORE_OPTIMISER
        raise ShapeError(
            f"{model}: no layer's M is known ({there}).",
            "Give each axis a size: --dim batch=8." if lacking else f"{fixed[:1].upper()}{fixed[1:]}.",
        )
    known = {group: _known_of(group, policy, used if plugin is None else None) for group in groups}
    answers = {group: ask(sizes[group], known[group]) for group in groups}
    rates = usual_rates(groups, answers)
    rows = [estimate_layers(group, groups[group], answers[group], rates) for group in groups]
    notes = (
        "Times are of the kernels alone, one product after the other.",
        *(whose_plugin_times(known, answers) if plugin is not None else ()),
        *notes_on(layers, rows, library, used, main, plugin is not None),
        *notes_on_merges(timed),
        *advise_padding(zip(rows, known.values(), strict=True)),
    )
    whole = _add_up(rows)
    speedup = whole.speedup
    if whole.total:
        rows = [with_share(row, whole.total) for row in rows]
    return Estimate(
        model=model,
        policy=policy.name,
        device=policy.device,
        library=used,
        kernel="sparse" if plugin is None else "plugin",
        dense_us=whole.dense_us,
        policy_us=whole.policy_us,
        guessed_us=whole.guessed_us,
        guessed_share=(whole.guessed_us or 0.0) / whole.total if whole.total else None,
        gemm_speedup=speedup,
        gemm_share=gemm_share,
        ceiling=end_to_end(speedup, gemm_share) if speedup and gemm_share else None,
        ceilings=tuple((share, end_to_end(speedup, share)) for share in USUAL_SHARES) if speedup else (),
        layers=tuple(sorted(rows, key=lambda row: -(row.share or 0.0))),
        notes=notes,
    )


def _known_of(group: Group, policy: Policy, library: Library | None) -> Known:
    """What the policy knows of a group by a library's own kernels; of the plugin's with None."""
    if library is None:
        return plugin_known(policy, group.gemm)
    return known_of(policy, group.gemm, library)


class _Whole(NamedTuple):
    """All products of one run: times as of `Estimate`.

    Attributes:
        total: Dense, known and guessed.
        speedup: Of all, None where it is not known.
    """

    dense_us: float | None
    policy_us: float | None
    guessed_us: float | None
    total: float
    speedup: float | None


def _add_up(rows: list[EstimatedLayers]) -> _Whole:
    dense = sum_known((row.count, row.dense_us) for row in rows)
    chosen = sum_known((row.count, row.policy_us) for row in rows)
    guessed = sum_known((row.count, row.guessed_us) for row in rows)
    unknown = guessed or 0.0
    total = (dense or 0.0) + unknown
    told = any(row.sparse_us is not None for row in rows) or all(row.worth is False for row in rows)
    speedup = total / (chosen + unknown) if dense and chosen and told else None
    return _Whole(dense, chosen, guessed, total, speedup)


def _main_m(groups: Mapping[Group, int], model: str) -> SymbolicM:
    """The M that most of the arithmetic has, of those with a named dimension."""
    work: Counter[SymbolicM] = Counter()
    for group, count in groups.items():
        if any(isinstance(factor, str) for factor in group.m.factors):
            work[group.m] += count * group.n * group.k
    if not work:
        raise ShapeError(
            f"{model}: no layer's M has a named axis, so traffic says nothing about it.",
            "Leave out --traffic.",
        )
    return max(work, key=lambda m: (work[m], str(m)))


def _sizes(m: SymbolicM, dims: Mapping[str, int], traffic: Traffic | None) -> tuple[tuple[int, float], ...]:
    if traffic:
        return tuple((size, weight / traffic.total) for size, weight in traffic.sizes)
    size = m.evaluate(dict(dims))
    return ((max(size, 1), 1.0),) if size is not None else ()
