"""sparseflow-trt inspect: which layers are 2:4, which are not, and why."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.built import print_built
from sparseflow_trt.cli.options import ModelFile, common_options, model_argument
from sparseflow_trt.errors import EXIT_NOT_SPARSE, EXIT_OK

if TYPE_CHECKING:
    from sparseflow_trt.model.graph import WeightedLayer
    from sparseflow_trt.model.mask_history import Break, Missing
    from sparseflow_trt.model.model_file import OnnxModel


@click.command("inspect")
@model_argument
@click.option("--all", "show_all", is_flag=True, help="List products with no constant weight, too.")
@click.option(
    "--since", multiple=True, type=ModelFile(), metavar="EARLIER",
    help="A model that MODEL was made from; repeat for each step, earliest model first. Names the layers "
    "that a step dropped or left no longer 2:4.",
)  # fmt: skip
@common_options
def command(model: Path, show_all: bool, since: tuple[Path, ...], as_json: bool) -> int:
    """Show each weighted layer of MODEL: M, N, K, dtype, K's axis and its 2:4 state.

    If MODEL is an artifact, show what `build` printed: what was planned for each layer and why, what the
    engine runs, and how far it is from FP32.

    Exits with 0 if every eligible weight is 2:4 or there is none; with 3 if one is not or has a separate
    mask, except an adapter's (lora_A, lora_B), or, with --since, if a step broke or dropped one.
    """
    from sparseflow_trt.model.graph import all_eligible_sparse, read_layers
    from sparseflow_trt.model.mask_history import find_breaks, find_missing
    from sparseflow_trt.model.model_file import read_model

    if model.is_dir() and _is_artifact(model):
        if show_all or since:
            raise click.UsageError(
                "--all and --since are for ONNX files: name the one that it was built from."
            )
        return _inspect_artifact(model, as_json)
    history = []
    with console.progress_bar() as show:
        for path in (*since, model):
            found = read_model(path)
            layers = read_layers(found, lambda done, total: show("Reading the weights", done, total))
            history.append((str(path), layers))
    breaks, missing = find_breaks(history), find_missing(history)
    sparse = all_eligible_sparse(layers)
    if as_json:
        changed = {"broken_since": list(map(asdict, breaks)), "missing_since": list(map(asdict, missing))}
        console.print_json({**_json(model, found, layers, sparse), **(changed if since else {})})
    else:
        _print(layers, show_all)
        _print_what_pruning_does(model, layers, _what_pruning_does(found, layers))
        for given in _inputs(found):
            dims = "of unknown shape" if given["dims"] is None else f"[{', '.join(map(str, given['dims']))}]"
            console.say(f"Input '{given['name']}': {given['dtype']} {dims}")
        if since:
            _print_changes(breaks, missing, history)
    return EXIT_OK if not (breaks or missing) and (sparse or since) else EXIT_NOT_SPARSE


def _is_artifact(folder: Path) -> bool:
    from sparseflow_trt.building.artifact_export import is_artifact  # a fifth of the time that a model takes

    return is_artifact(str(folder))


def _inspect_artifact(folder: Path, as_json: bool) -> int:
    from sparseflow_trt.artifacts.manifest import read_manifest
    from sparseflow_trt.model.layer_names import may_stay_dense

    manifest = read_manifest(folder)
    if as_json:
        console.print_json({"artifact": str(folder), "manifest": manifest.model_dump(mode="json")})
    else:
        by = f": {manifest.command}" if manifest.command else ""
        console.out().print(
            f"Built from {manifest.model.file} at {manifest.created} by {manifest.tool}{by}\n"
        )
        print_built(manifest, folder)
    violating = (layer.kind for layer in manifest.layers if layer.state == "not-sparse")
    left = manifest.masks_apart or not all(map(may_stay_dense, violating))
    return EXIT_NOT_SPARSE if left else EXIT_OK


def _print_changes(
    breaks: Sequence[Break],
    missing: Sequence[Missing],
    history: Sequence[tuple[str, Sequence[WeightedLayer]]],
) -> None:
    from sparseflow_trt.model.layer_names import shown_names

    shown, earlier = shown_names(layer for _, layers in history for layer in layers), history[:-1]
    if not any(layer.state.value == "sparse" for _, layers in earlier for layer in layers):
        files = ", ".join(path for path, _ in earlier)
        console.say(console.styled(f"No layer was 2:4 in {files}: there was nothing to break.", "yellow"))
    elif not breaks and not missing:
        console.say("Every layer that was 2:4 still is.")
    for entry in breaks:
        why = entry.reason + (f", the first at {list(entry.first)}" if entry.first is not None else "")
        told = f"'{shown[entry.layer]}' was 2:4 in {entry.before} and is not in {entry.after}: {why}."
        console.say(console.styled(told, "red"))
    for step in missing:
        number, names = len(step.layers), ", ".join(f"'{shown[name]}'" for name in step.layers)
        is_was = "layer that was 2:4 in {} is" if number == 1 else "layers that were 2:4 in {} are"
        told = f"{number} {is_was.format(step.before)} not in {step.after}: {names}."
        console.say(console.styled(told, "red"))


def _inputs(found: OnnxModel) -> list[dict[str, Any]]:
    """What the model takes: names, types and dimensions, whose symbols --dim sizes; null for no shape."""
    from sparseflow_trt.model.model_file import given_inputs

    values = given_inputs(found)
    numpy_names = {"FLOAT": "float32", "DOUBLE": "float64"}
    types = ["?" if value.dtype is None else value.dtype.name for value in values]
    shapes = [value.shape for value in values]
    return [
        {
            "name": value.name,
            "dtype": numpy_names.get(dtype, dtype.lower()),
            "dims": None if shape is None else [d if isinstance(d, int) else d.value for d in shape],
        }
        for value, dtype, shape in zip(values, types, shapes, strict=True)
    ]


def _json(model: Path, found: OnnxModel, layers: Any, sparse: bool) -> dict[str, Any]:
    return {
        "model": model.name,
        "opset": found.opset,
        "inputs": _inputs(found),
        "all_eligible_sparse": sparse,
        "summary": _counts(layers),
        "prune": asdict(_what_pruning_does(found, layers)),
        "layers": [
            {
                "name": layer.name,
                "module": layer.module,
                "op_type": layer.op_type,
                "kind": layer.kind,
                "side": layer.side,
                "weight": layer.weight,
                "weight_shape": layer.weight_shape,
                "shared_with": layer.shared_with,
                "dtype": layer.dtype,
                "m": str(layer.m),
                "n": layer.n,
                "k": layer.k,
                "batch": layer.batch,
                "k_axes": layer.k_axes,
                "state": layer.state.value,
                "reason": layer.reason,
                "groups": layer.groups,
                "violating_groups": layer.violating,
                "first_violation": layer.first,
                "mask_sha256": layer.mask_hash,
            }
            for layer in layers
        ],
    }


def _counts(layers: Any) -> dict[str, int]:
    from sparseflow_trt.model.graph import SparsityState

    return {state.value: sum(layer.state is state for layer in layers) for state in SparsityState}


def _print(layers: Any, show_all: bool) -> None:
    from sparseflow_trt.model.graph import SparsityState, all_eligible_sparse, masks_apart, weights_computed
    from sparseflow_trt.model.layer_names import shown_names
    from sparseflow_trt.model.other_patterns import percent

    columns = ("Layer", "Kind", "Op", ">M", ">N", ">K", "Type", "K axis", "2:4", "Why")
    table = console.table(*columns, spared=("K axis", "Op"))
    names = shown_names(layers)
    shown = [layer for layer in layers if layer.has_constant or show_all]
    rows: list[tuple[str, ...]] = []
    for layer in shown:
        why = layer.reason
        if layer.violating and layer.state is SparsityState.NOT_SPARSE:
            share = f"{percent(layer.violating / layer.groups)} of the groups"
            told = f"; {layer.found}" if layer.found else f", first at {list(layer.first or ())}"
            why = f"{share}{told}"
        if layer.shared_with:
            others = ", ".join(names[other] for other in layer.shared_with)
            why = "; ".join(filter(None, [why, f"weight shared with {others}"]))
        n = f"{layer.batch}×{layer.n}" if layer.batch > 1 else str(layer.n or "?")
        rows.append((
            names[layer.name], layer.kind, layer.op_type, str(layer.m), n, str(layer.k or "?"),
            layer.dtype or "?", ",".join(map(str, layer.k_axes)) or "-", layer.state.value, why,
        ))  # fmt: skip
    rows, reasons = console.fold_last(columns, rows)
    console.add_alike(table, rows, {"sparse": "green", "not-sparse": "red", "not-eligible": "dim"})
    out = console.out()
    if shown:
        out.print(table)
    for reason in reasons:
        console.say(reason)
    counts = _counts(layers)
    hidden = len(layers) - len(shown)
    console.say(
        f"\n{counts['sparse']} sparse, {counts['not-sparse']} not sparse, "
        f"{counts['not-eligible']} not eligible"
        + (f" ({hidden} of them products with no constant weight: --all lists them)" if hidden else "")
    )
    for said in filter(None, (masks_apart(layer.reason for layer in layers), weights_computed(layers))):
        console.say(console.styled(said, "yellow"))
    if all_eligible_sparse(layers) and not counts["sparse"] and not counts["not-sparse"]:
        why = "could be 2:4: each row says why" if shown else "is multiplied by"
        console.say(f"Nothing was judged. The model has no stored weight that {why}.")


@dataclass(frozen=True)
class _Pruning:
    """What `prune` does with the layers that are not 2:4, under the names of what it prints as JSON."""

    takes: tuple[str, ...]
    conflicts: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]


def _what_pruning_does(found: OnnxModel, layers: Sequence[WeightedLayer]) -> _Pruning:
    from sparseflow_trt.model.graph import SparsityState
    from sparseflow_trt.model.prunable import choose_weights, prunable
    from sparseflow_trt.model.storage import WOULD_CHANGE

    dense = {
        layer.name
        for layer in layers
        if layer.state is SparsityState.NOT_SPARSE or layer.reason.endswith(WOULD_CHANGE)
    }
    if not dense:
        return _Pruning((), (), ())
    choice = choose_weights(found)
    conflicts, skipped = (
        tuple((name, why) for name, why in reasons if name in dense)
        for reasons in (choice.conflicts, choice.skipped)
    )
    return _Pruning(tuple(layer.name for layer in prunable(layers, choice)), conflicts, skipped)


def _print_what_pruning_does(model: Path, layers: Sequence[WeightedLayer], does: _Pruning) -> None:
    """Says how to prune what is not 2:4, and of what pruning does not make so, why."""
    from sparseflow_trt.model.layer_names import shown_names, shown_reasons
    from sparseflow_trt.model.prunable import pruned_before

    shown = shown_names(layers)
    if does.takes:
        console.say("Prune them with: ", shlex.join(["sparseflow-trt", "prune", str(model)]))
        if said := pruned_before(layer for layer in layers if layer.name in does.takes):
            console.say(said)
    for told, reasons in (
        ("{} cannot be pruned: {}.", does.conflicts),
        ("`prune` leaves {} alone: {}.", does.skipped),
    ):
        for why, names in console.quoted_by_reason(shown_reasons(reasons, shown)).items():
            console.say(told.format(", ".join(names), why))
