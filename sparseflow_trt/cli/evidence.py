"""Renders what the engine really runs: for each kind of layer, sparse or dense, and the times behind it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sparseflow_trt.cli import console

if TYPE_CHECKING:
    from sparseflow_trt.manifest import LayerRecord, Manifest, OutcomeRecord


def print_evidence(manifest: Manifest) -> None:
    """Prints a row for each kind, shape and profile whose layers fared alike, where the builder tells."""
    outcomes = manifest.engine.outcomes
    if not any(o.tried_dense or o.tried_sparse or o.plugin for o in outcomes):
        return
    layers = {layer.name: layer for layer in manifest.layers}
    groups: dict[tuple[str, ...], list[OutcomeRecord]] = {}
    for outcome in outcomes:
        groups.setdefault(_key(layers[outcome.layer], outcome), []).append(outcome)
    table = console.table(
        ">Layers",
        "Kind",
        ">N",
        ">K",
        "Profile",
        "Planned",
        "Runs",
        ">Best sparse ms",
        ">Best dense ms",
        "Why",
    )
    for (kind, n, k, profile, planned, runs, _), alike in groups.items():
        others = f" (the first of {len(alike)})" if len({o.why for o in alike}) > 1 else ""
        table.add_row(
            str(len(alike)), kind, n, k, profile, planned,
            console.styled(runs, "green" if runs in ("sparse", "plugin") else "dim"),
            _range([o.best_sparse_ms for o in alike]), _range([o.best_dense_ms for o in alike]),
            alike[0].why + others,
        )  # fmt: skip
    out = console.out()
    out.print("\nWhat the engine runs, by the builder's own measurements:")
    out.print(table)
    sparse, plugin = sum(o.sparse for o in outcomes), sum(o.plugin for o in outcomes)
    inside = f", {plugin} of them in the plugin" if plugin else ""
    out.print(f"{sparse} of {len(outcomes)} layers and profiles run a sparse kernel{inside}.")


def _key(layer: LayerRecord, outcome: OutcomeRecord) -> tuple[str, ...]:
    names = list(layer.m)
    profile = names[outcome.profile] if outcome.profile < len(names) else str(outcome.profile)
    told = outcome.sparse or (outcome.tactic and not outcome.tactic.startswith("__myelin"))
    runs = "plugin" if outcome.plugin else "sparse" if outcome.sparse else "dense" if told else "not told"
    # alike are those whose reasons differ in their figures alone
    return (
        layer.kind,
        str(layer.n),
        str(layer.k),
        profile,
        layer.sparsity,
        runs,
        re.sub(r"[\d.]+", "#", outcome.why),
    )


def _range(times: list[float | None]) -> str:
    known = sorted(time for time in times if time is not None)
    if not known:
        return "-"
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return low if low == high else f"{low}–{high}"
