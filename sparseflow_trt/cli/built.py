"""Renders a build: each kind of layer's decision, the engine and what it runs, the comparison with FP32."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._listing import counted, listed
from sparseflow_trt.cli import console
from sparseflow_trt.cli.attributions import print_restored
from sparseflow_trt.cli.evidence import print_evidence
from sparseflow_trt.cli.precision import print_search
from sparseflow_trt.cli.verdicts import print_duel, print_validation
from sparseflow_trt.model.layer_names import shown_names

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import Manifest

NOTHING_PLANNED = "No layer multiplies by a stored weight in a way that has a 2:4 path: none is planned."
_MOST_NAMED = 6  # layers, in a sentence
_MOST_FOLDED = 3  # names of layers that are alike but for numbers, in a row


def print_built(manifest: Manifest, artifact: Path, model: Path | None = None) -> None:
    """Prints what was decided and built, what runs, and how far it is from FP32.

    Args:
        manifest: The artifact's.
        artifact: Its folder.
        model: The ONNX file that it was built of; None where that is not at hand.
    """
    out, names = console.out(), shown_names(manifest.layers)
    for note in manifest.notes:
        console.say(console.styled(note, "yellow"))
    _print_layers(manifest, names, model)
    if manifest.precision_search:
        print_search(manifest.precision_search, names)
    engine = manifest.engine
    versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    console.say(f"\nEngine: {engine.file} by {engine.backend} ({versions}) in {engine.build_seconds:.1f} s")
    console.say(f"  {engine.chosen_because}")
    for sentence in dict.fromkeys((engine.sparse_tactics, *engine.notes)):
        if sentence:
            console.say(console.styled(f"  {sentence}", "yellow"))
    print_evidence(manifest)
    if manifest.duel:
        print_duel(manifest.duel)
    print_validation(manifest.validation)
    out.print(f"\nArtifact: {artifact}\nReport:   {artifact / 'report.html'}")


def _print_layers(manifest: Manifest, names: Mapping[str, str], model: Path | None) -> None:
    """One row for each decision that layers of one kind and shape share, named where there is room."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer in manifest.layers:
        opt = ", ".join(str(m[1] if m[1] is not None else "?") for m in layer.m.values()) or "-"
        row = (
            layer.kind, opt, str(layer.n), str(layer.k), layer.state, layer.precision, layer.sparsity,
            layer.reason,
        )  # fmt: skip
        groups.setdefault(row, []).append(names[layer.name])
    columns = ("Layer", ">Count", "Kind", ">M (opt)", ">N", ">K", "Weights", "Precision", "Plan", "Reason")
    cells = [(console.folded(alike, _MOST_FOLDED), str(len(alike)), *row) for row, alike in groups.items()]
    rows, reasons = console.fold_last(columns, cells)
    table = console.table(*columns, spared=("Layer",))
    for shown in rows:
        table.add_row(*shown)
    out = console.out()
    out.print(table if groups else NOTHING_PLANNED)
    for reason in reasons:
        console.say(reason)
    states = Counter(layer.state for layer in manifest.layers)
    if states["not-sparse"] and not states["sparse"]:
        said = f"No weights are 2:4, though {states['not-sparse']} could be: nothing can run sparse."
        console.say(console.styled(f"\n{said} {_how_to_prune(manifest, model)}", "yellow"))
    elif dense := [names[layer.name] for layer in manifest.layers if layer.state == "not-sparse"]:
        said = f"{len(dense)} of {len(manifest.layers)} layers could be 2:4 but are not, and stay dense"
        named = listed([f"'{name}'" for name in dense], _MOST_NAMED)
        console.say(console.styled(f"\n{said}: {named}.", "yellow"))
    casts, islands = (
        counted(manifest.graph.casts, "cast"),
        counted(len(manifest.graph.islands), "node"),
    )
    console.say(f"\n{casts} added; {islands} kept in FP32.")
    print_restored(manifest.graph, names)
    if left_in := [record for record in manifest.graph.opted_out if record.route == "none"]:
        said = f"{len(left_in)} layer(s) planned dense could not be kept out of sparse kernels"
        node = left_in[0].layer
        first = f"the first of them '{names.get(node, node)}': {left_in[0].reason}"
        console.say(console.styled(f"{said}, {first}.", "yellow"))
    for name, elements, largest in manifest.graph.clamped:
        lost = (
            f"{elements} value(s) of constant '{name}', up to {largest:.3g}, do not fit their type and were "
            "clipped."
        )
        console.say(
            console.styled(
                f"{lost} Unless that is a mask's fill value, plan the node that reads it in fp32.", "yellow"
            )
        )


def _how_to_prune(manifest: Manifest, model: Path | None) -> str:
    if model is None:
        inspect = shlex.join(["sparseflow-trt", "inspect", manifest.model.file])
        return f"`{inspect}` says whether they can be pruned."
    from sparseflow_trt.model.graph import read_layers
    from sparseflow_trt.model.model_file import read_model
    from sparseflow_trt.model.prunable import choose_weights, prunable, pruned_before

    found = read_model(model)
    taken = prunable(read_layers(found), choose_weights(found))
    prune, inspect = (
        f"`{shlex.join(['sparseflow-trt', name, str(model)])}`" for name in ("prune", "inspect")
    )
    if not taken:
        return f"{inspect} says whether they can be pruned."
    said = f"{prune} prunes them."
    if len(taken) < sum(layer.state == "not-sparse" for layer in manifest.layers):
        said = f"{prune} prunes {len(taken)} of them, and {inspect} says why not the others."
    return " ".join(filter(None, (said, pruned_before(taken))))
