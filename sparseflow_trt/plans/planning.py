"""Makes a plan: decides each layer's precision and kernel, joins layers, and splits the profiles."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

from sparseflow_trt.errors import NotSparseError, ShapeError
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, left_as_they_are, masks_apart
from sparseflow_trt.model.layer_names import NOT_NAMED, shown_name, takes_if_named
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.prunable import choose_weights, prunable, pruned_before
from sparseflow_trt.plans.apart import slower_apart
from sparseflow_trt.plans.crossovers import LayerShape
from sparseflow_trt.plans.decide import Decision, PluginUse, SparsityMode, Together, decide
from sparseflow_trt.plans.joins import find_joins
from sparseflow_trt.plans.merges import Merge, as_run, find_merges, find_mixed
from sparseflow_trt.plans.plan import DEFAULT_ISLANDS, Plan, PlannedLayer, mark_decided
from sparseflow_trt.plans.precision_record import ModelPrecision, Precision, Precisions, unchanged_precision
from sparseflow_trt.plans.shapes import Dims, Profile, opts_of
from sparseflow_trt.plans.split import Split, split_profile
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.policy import Policy

NO_PLUGIN = PluginUse()

Decided = dict[str, tuple[WeightedLayer, Precision, Decision]]  # by the layer's name


def make_plan(
    layers: tuple[WeightedLayer, ...],
    profiles: tuple[Profile, ...],
    input_dims: dict[str, Dims],
    policy: Policy | None,
    precision: ModelPrecision | Precisions,
    sparsity: SparsityMode = "policy",
    model: str = "",
    model_sha256: str = "",
    split: Split | None = None,
    plugin: PluginUse = NO_PLUGIN,
) -> Plan:
    """Decides precision and kernel for each layer with a constant weight.

    Args:
        layers: The model's weighted layers as read.
        profiles: The optimization profiles; none for a model whose shapes are all static.
        input_dims: Each input's dimensions, by name; with the profiles they give each layer's M.
        policy: Where sparse wins; None plans everything dense.
        precision: For all layers whose weights are floats; "keep" leaves each as its weight is typed. Or
            what a search chose, layer by layer.
        sparsity: As in `decide`.
        model: The model file's name, for the reader.
        model_sha256: Of the model file.
        split: Splits the one profile that there is at the crossovers of the layers.
        plugin: Whether the plugin may be used, and for which layers.

    Raises:
        ShapeError: There is not one profile to be split, or it cannot be split along that axis.
    """
    precisions = precision if isinstance(precision, Precisions) else Precisions(precision)

    weighted = {layer.name: layer for layer in layers if layer.weight}
    own = {name: _layer_precision(layer, precisions) for name, layer in weighted.items()}
    sparse = {name for name, layer in weighted.items() if layer.state is SparsityState.SPARSE}
    merges = (
        find_merges(list(weighted.values()), sparse, own, policy, plugin)
        if policy and sparsity == "policy"
        else ()
    )

    mixed = find_mixed(weighted.values(), own, plugin)

    def decide_all(profiles: tuple[Profile, ...]) -> Decided:
        def decide_one(
            name: str, use: PluginUse = plugin, whole: Gemm | None = None, why_one: str = ""
        ) -> tuple[WeightedLayer, Precision, Decision]:
            asked = weighted[name], own[name], profiles, input_dims, policy, sparsity, use
            together = Together(whole, why_one, mixed.get(name, ""))
            return weighted[name], own[name], decide(*asked, together)

        merged = {name for merge in merges for name in merge.layers}
        decided = {name: decide_one(name) for name in weighted if name not in merged}
        for merge in merges:
            of_plugin = replace(plugin, given=True)
            able = {name: decide_one(name, of_plugin, merge.gemm) for name in merge.layers}
            inside = {n: d.dense_below_m for n, (_, _, d) in able.items() if d.kernel == "plugin"}
            slower = ""
            if inside and policy:
                members = [weighted[name] for name in merge.layers]
                sizes = [m for m in opts_of(members[0].m, profiles, input_dims) if m]
                slower = slower_apart(policy, merge.gemm, members, inside, sizes)
            if plugin.given and inside and not slower:  # the others run by themselves
                decided |= {n: able[n] if n in inside else decide_one(n) for n in merge.layers}
            else:
                decided |= {n: decide_one(n, plugin, merge.gemm, slower) for n in merge.layers}
        return {name: decided[name] for name in weighted}  # in the order of the graph

    told = ""
    if split:
        if len(profiles) != 1:
            raise ShapeError(
                f"{len(profiles)} profiles cannot be split along '{split.axis}': --split takes one profile.",
                "Give the whole range with --dim or --shapes, and leave out the profiles.",
            )
        # one node of the plugin serves all profiles: nothing is to be split for it
        fixed = {name for name, (_, _, d) in decide_all(profiles).items() if d.kernel == "plugin"}
        as_one = (merge for merge in merges if fixed.isdisjoint(merge.layers))
        products = _count_products(weighted.values(), own, sparsity, fixed | set(mixed), tuple(as_one))
        profiles, told = split_profile(profiles[0], split, input_dims, products, policy)
    described = f"{policy.name} ({policy.device}, {policy.provenance})" if policy else "none"
    decided = decide_all(profiles)
    joins = find_joins(decided, profiles, input_dims, policy, plugin) if policy else {}
    wide = precisions.reasons if precisions.model in ("fp16", "bf16") else {}
    return Plan(
        model=model,
        model_sha256=model_sha256,
        precision=precisions.model,
        islands=(*DEFAULT_ISLANDS, *precisions.islands),
        policy=described,
        split=told,
        profiles=profiles,
        layers=tuple(
            _planned(*each, joins.get(name, ("", "")), wide.get(name, "")) for name, each in decided.items()
        ),
        search=precisions.search,
    )


def _planned(
    layer: WeightedLayer, own: Precision, decision: Decision, join: tuple[str, str], wide: str
) -> PlannedLayer:
    """A layer's row in a plan; `join` names the product that it is a part of, and says why.

    `wide` says why it is FP32, where it is.
    """
    joined, why = join
    reason = "; ".join(filter(None, (decision.reason, why, wide if own == "fp32" else "")))
    return PlannedLayer(
        name=layer.name,
        module=layer.module,
        kind=layer.kind,
        n=layer.n,
        k=layer.k,
        precision=own,
        sparsity=decision.kernel,
        reason=reason,
        dense_below_m=decision.dense_below_m,
        joined=joined,
        decided=mark_decided(decision.kernel, reason),
    )


def check_forced(layers: tuple[WeightedLayer, ...], sparsity: SparsityMode, model: OnnxModel) -> None:
    """Checks that a model whose layers are to run sparse whatever a policy says has one that could.

    Where some are 2:4 these are taken, and the others are planned dense with the reason.

    Raises:
        NotSparseError: Sparsity is forced, and no layer is 2:4.
    """
    weighted = [layer for layer in layers if layer.weight]
    if sparsity not in ("force", "plugin") or any(x.state is SparsityState.SPARSE for x in weighted):
        return
    asked = f"--sparsity {sparsity} takes 2:4 weights as they are"
    said = f"{model.path.name} has no weights that are 2:4, and {asked}"
    able = [layer for layer in weighted if layer.eligible]
    if able:
        first, more = able[0], f" (the first of {len(able)})" if len(able) > 1 else ""
        # what was pruned is there, and no pruning of the others is wanted
        masks = masks_apart(layer.reason for layer in layers)
        todo = f"{masks} Or leave it to a policy: --sparsity policy." if masks else _how_to_prune(able, model)
        raise NotSparseError(f"{said}: of layer '{shown_name(first)}'{more} {first.reason}.", todo)
    left = left_as_they_are(layers)
    why = "no layer multiplies by a stored weight" if left else "it has no weights"
    if weighted:
        why = f"layer '{shown_name(weighted[0])}' cannot be: {weighted[0].reason}"
    leave = "Or leave" if left else "Leave"
    hint = (*left, f"{leave} it to a policy, which plans it dense: --sparsity policy.")
    raise NotSparseError(f"{said}: {why}.", " ".join(hint))


def _how_to_prune(able: list[WeightedLayer], model: OnnxModel) -> str:
    """What makes layers that are not 2:4 so, of all that `prune` leaves alone, too."""
    policy = "leave it to a policy: --sparsity policy."
    choice = choose_weights(model)
    left = {**dict(choice.conflicts), **dict(choice.skipped)}
    written = f"{model.path.stem}.2to4{model.path.suffix}"
    command = ["sparseflow-trt", "prune", str(model.path), "-o", written]
    if taken := prunable(able, choice):
        prune = f"Prune it first: `{shlex.join(command)}`; or {policy}"
        return " ".join(filter(None, (prune, pruned_before(taken))))
    if named := [layer for layer in able if left.get(layer.name) in NOT_NAMED.values()]:
        command += [word for layer in named for word in ("--include", layer.name)]
        only = takes_if_named(layer.kind for layer in named)
        why = "as it costs much accuracy for little time"
        return f"`prune` {only}, {why}: `{shlex.join(command)}`; or {policy}"
    return f"`prune` cannot make it so: {left[able[0].name]}. So {policy}"


def _count_products(
    layers: Iterable[WeightedLayer],
    precisions: Mapping[str, Precision],
    sparsity: SparsityMode,
    fixed: Container[str],
    merges: tuple[Merge, ...],
) -> Counter[LayerShape]:
    counted: Counter[LayerShape] = Counter()
    for layer, n in as_run(layers, merges):
        if layer.n and layer.k and layer.batch:
            dtype = precisions[layer.name].upper()
            choosable = (
                sparsity == "policy" and layer.state is SparsityState.SPARSE and layer.name not in fixed
            )
            counted[LayerShape(layer.kind, n, layer.k, layer.m, dtype, choosable)] += layer.batch
    return counted


def _layer_precision(layer: WeightedLayer, precisions: Precisions) -> Precision:
    if given := unchanged_precision(layer.product or layer.dtype):
        return given
    if precisions.model == "keep":
        halves: dict[str, Precision] = {"FP16": "fp16", "BF16": "bf16"}
        return halves.get(layer.gives or layer.dtype, "fp32")
    return precisions.layers.get(layer.name, precisions.model)
