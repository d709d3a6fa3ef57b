"""Renders what the engine really runs: for each kind of layer, sparse or dense, and the times behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparseflow_trt._listing import listed
from sparseflow_trt.cli import console
from sparseflow_trt.model.layer_names import shown_names

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest, OutcomeRecord

_MOST_MERGED = 3  # other layers, in a sentence
_AS_ANOTHER = "*"  # behind a time


def print_evidence(manifest: Manifest) -> None:
    """Prints a row for each kind, shape and profile whose layers fared alike, where the builder tells.

    Below the table there is a line of each row: why, the tactic that runs, the fastest of either kind, how
    many were tried, and what the layer was merged with.
    """
    outcomes = manifest.engine.outcomes
    if not any(o.tried_dense or o.tried_sparse or o.plugin for o in outcomes):
        return
    layers, shown = {layer.name: layer for layer in manifest.layers}, shown_names(manifest.layers)
    groups: dict[tuple[str, ...], list[OutcomeRecord]] = {}
    for outcome in outcomes:
        groups.setdefault(_key(layers[outcome.layer], outcome), []).append(outcome)
    table = console.table(
        "#", ">Layers", "Kind", ">N", ">K", "Profile", "Plan", "Runs", ">Sparse ms", ">Dense ms"
    )
    lines = []
    for number, ((kind, n, k, profile, planned, runs, _), alike) in enumerate(groups.items(), 1):
        table.add_row(
            f"[{number}]", str(len(alike)), kind, n, k, profile, planned,
            console.styled(runs, "green" if runs in ("sparse", "plugin") else "dim"),
            _range([o.best_sparse_ms for o in alike], alike[0].timed_as),
            _range([o.best_dense_ms for o in alike], alike[0].timed_as),
        )  # fmt: skip
        told = [_told(o, shown) for o in alike]
        others = f" (the first of {len(alike)})" if len(set(told)) > 1 else ""
        lines.append(f"[{number}] {told[0]}{others}")
    out = console.out()
    console.say(
        "\nWhat the engine runs, by the builder's own measurements (the best tactic's time of each kind):"
    )
    out.print(table)
    if any(o.timed_as for o in outcomes):
        console.say(f"{_AS_ANOTHER} The times of another layer, which is like it and is named below.")
    for line in lines:
        console.say(line)
    sparse, plugin = sum(o.sparse for o in outcomes), sum(o.plugin for o in outcomes)
    inside = f", {plugin} of them in the plugin" if plugin else ""
    console.say(f"{sparse} of {len(outcomes)} layers and profiles run a sparse kernel{inside}.")
    if half := sum(o.accumulator == "Half" for o in outcomes):
        console.say(
            f"{half} of {len(outcomes)} accumulate in FP16, by their tactics' names: the larger K, the more "
            "accuracy that costs (docs/ACCURACY.md)."
        )


def _key(layer: LayerRecord, outcome: OutcomeRecord) -> tuple[str, ...]:
    names = list(layer.m)
    profile = names[outcome.profile] if outcome.profile < len(names) else str(outcome.profile)
    kernel = "plugin" if outcome.plugin else "sparse" if outcome.sparse else "dense"
    runs = kernel if outcome.plugin or outcome.is_told else "not told"
    # alike are those whose reasons, which name a layer that was timed for them, differ in figures alone
    return (
        layer.kind,
        str(layer.n),
        str(layer.k),
        profile,
        layer.sparsity,
        runs,
        re.sub(r"[\d.]+", "#", outcome.why),
    )


def _told(outcome: OutcomeRecord, shown: Mapping[str, str]) -> str:
    """All that is known of a layer but its times, as one line."""
    parts = [outcome.why]
    if outcome.tactic and not outcome.plugin:
        parts.append(f"tactic {outcome.tactic}")
    for kind, best in (("sparse", outcome.best_sparse_tactic), ("dense", outcome.best_dense_tactic)):
        if best and best != outcome.tactic:
            parts.append(f"best {kind} {best}")
    if "tactics tried" not in outcome.why and (outcome.tried_sparse or outcome.tried_dense):
        parts.append(f"{outcome.tried_sparse} sparse and {outcome.tried_dense} dense tactics tried")
    if outcome.merged_with and not outcome.plugin:  # whose reason names them
        others = [f"'{shown.get(name, name)}'" for name in outcome.merged_with]
        parts.append(f"merged with {listed(others, _MOST_MERGED)}")
    return "; ".join(parts)


def _range(times: list[float | None], timed_as: str) -> str:
    known = sorted(time for time in times if time is not None)
    if not known:
        return "-"
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return (low if low == high else f"{low}–{high}") + (_AS_ANOTHER if timed_as else "")
