"""sparseflow-trt prune: an ONNX model by magnitude, a PyTorch module with calibration, too."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt._listing import counted
from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import ModelFile, common_options, module_options
from sparseflow_trt.errors import EXIT_NOT_SPARSE, EXIT_OK

if TYPE_CHECKING:
    from sparseflow_trt.exporters.pruning.prune_torch import PruneRecord
    from sparseflow_trt.module_pruning import WhereItPays

_OF_TORCH = ("calibration", "where_it_pays", "policy", "batch", "seq", "dtype", "device")


@click.command("prune")
@click.argument("model", type=ModelFile(str))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Default: MODEL with .2to4 in its name, beside it; for a function, "
    "./FILE.FUNCTION.2to4.safetensors.",
)
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Layer, module or weight names to leave alone."
)
@click.option(
    "--method",
    type=click.Choice(["magnitude", "wanda", "sparsegpt"]),
    default="magnitude",
    show_default=True,
    help="The last two are for PyTorch modules, and need --calibration.",
)
@click.option(
    "--calibration",
    metavar="FILE",
    help="Inputs to calibrate on: an .npz, a Polygraphy JSON or loader.py:function; for a folder with a "
    "tokenizer also a .txt, one text a line.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Names of the layers to prune, and no others. Default: all but classifiers and adapters; '*': all.",
)
@click.option(
    "--where-it-pays",
    is_flag=True,
    help="Prune only the layers that --policy runs sparse at the M of the inputs.",
)
@click.option("--policy", metavar="NAME|FILE", help="With --where-it-pays. Default: this machine's GPU's.")
@module_options("as in its checkpoint")
@click.option("--device", metavar="NAME", help="Where to calibrate: cpu (the default), cuda, cuda:1.")
@common_options
def command(
    model: str,
    output: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    method: Any,
    as_json: bool,
    **of_torch: Any,
) -> int:
    """Prune MODEL's eligible weights 2:4 along K, except a classifier's and an adapter's. MODEL stays.

    MODEL is an ONNX file, or a PyTorch module: a Hugging Face folder with weights, or FILE.py:FUNCTION or
    MODULE:FUNCTION that returns (module, inputs). A folder becomes a folder like it, a function's module a
    .safetensors file for `load_checkpoint`. A classifier (lm_head, classifier, score, a last fc or head)
    or an adapter (lora_A, lora_B) is pruned only where --include names it.

    Exits with 3 if a weight of an ONNX model could not be pruned because of what else reads it.
    """
    if Path(model).is_file() and not model.endswith(".py"):
        given = [f"--method {method}"] if method != "magnitude" else []
        given += [f"--{name.replace('_', '-')}" for name in _OF_TORCH if of_torch[name]]
        if given:
            raise click.UsageError(
                f"an ONNX model is pruned by magnitude only: {given[0]} is for PyTorch modules."
            )
        return _prune_onnx(Path(model), output, include, exclude, as_json)
    if ":" not in model and not Path(model, "config.json").is_file():
        return _prune_onnx(Path(model), output, include, exclude, as_json)  # which says what is wrong with it
    return _prune_module(model, output, include, exclude, method, as_json, **of_torch)


def _prune_onnx(
    model: Path, output: Path | None, include: tuple[str, ...], exclude: tuple[str, ...], as_json: bool
) -> int:
    from sparseflow_trt.exporters.pruning.prune import prune_model
    from sparseflow_trt.model.graph import masks_apart
    from sparseflow_trt.model.layer_names import NOT_NAMED, shown_names, shown_reasons
    from sparseflow_trt.model.model_file import read_model
    from sparseflow_trt.model.prunable import pruned_twice
    from sparseflow_trt.model.sites import find_sites

    found = read_model(model)
    output = output or model.with_name(f"{model.stem}.2to4.onnx")
    with console.progress_bar() as show:
        report = prune_model(
            found, output, exclude, lambda done, total: show("Pruning", done, total), include
        )
    if as_json:
        data = dataclasses.asdict(report)
        data["output"] = str(report.output)
        data["pruned_before"] = report.pruned_before
        console.print_json(data)
    else:
        out = console.out()
        zeroed = sum(w.zeroed for w in report.pruned)
        elements = sum(w.elements for w in report.pruned)
        already = sum(w.zeroed == 0 for w in report.pruned)
        left = report.conflicts or report.skipped
        shown = shown_names(find_sites(found)) if left else {}
        for said, colour, layers in (
            ("not pruned", "red", report.conflicts),
            ("left alone", "dim", report.skipped),
        ):
            for why, alike in console.quoted_by_reason(shown_reasons(layers, shown)).items():
                for name in alike:
                    console.say(console.styled(said, colour) + f" {name}: {why}")
        if masks := masks_apart(why for _, why in report.skipped):
            console.say(console.styled(masks, "yellow"))
        pruned = counted(len(report.pruned) - already, "weight")
        out.print(
            f"{pruned} pruned ({zeroed} of {elements} elements set to zero), "
            f"{already} {'was' if already == 1 else 'were'} 2:4 already.\nWritten: {report.output}"
        )
        if twice := pruned_twice(len(report.pruned_before)):
            console.say(console.styled(twice, "yellow"))
        if not zeroed:
            skipped = shown_reasons(report.skipped, shown)
            unnamed = dict.fromkeys(layer for layer, why in skipped if why in NOT_NAMED.values())
            names = " ".join(shlex.join(["--include", name]) for name in unnamed)
            named = f"; {names} prunes what was left alone" if names else ""
            console.say(f"Nothing was pruned: the written model is the same as {model.name}{named}.")
    return EXIT_NOT_SPARSE if report.conflicts else EXIT_OK


def _prune_module(
    source: str,
    output: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    method: Any,
    as_json: bool,
    *,
    calibration: str | None,
    where_it_pays: bool,
    policy: str | None,
    batch: int | None,
    seq: int | None,
    dtype: Any,
    device: str | None,
) -> int:
    from sparseflow_trt.module_pruning import prune_source

    if method != "magnitude" and not calibration:
        raise click.UsageError(f"--method {method} learns from inputs: give --calibration.")
    if not where_it_pays and (policy or batch or seq):
        raise click.UsageError("--policy, --batch and --seq choose layers with --where-it-pays.")
    if not Path(source).is_dir() and (batch or seq or dtype):
        raise click.UsageError("--batch, --seq and --dtype are for a Hugging Face folder.")
    pays = _where_it_pays(policy, batch or 1, seq or 128) if where_it_pays else None
    output = output or _default_output(source)
    with console.progress_bar() as show:
        record = prune_source(
            source, output, method, calibration, include, exclude, pays, dtype, device or "cpu", on_step=show
        )
    if as_json:
        plain = record.model_dump(mode="json")
        console.print_json({**plain, "pruned_before": record.pruned_before, "output": str(output)})
    else:
        print_record(record)
        console.out().print(f"Written: {output}")
    return EXIT_OK


def _where_it_pays(policy: str | None, batch: int, seq: int) -> WhereItPays:
    from sparseflow_trt.cli.option_values import find_policy_for
    from sparseflow_trt.module_pruning import WhereItPays

    found = find_policy_for(policy)
    if found is None:
        raise click.UsageError(
            "--where-it-pays needs --policy: this machine has no GPU with a shipped policy."
        )
    return WhereItPays(found, batch, seq)


def _default_output(source: str) -> Path:
    from sparseflow_trt._user_code import function_stem

    if Path(source).is_dir():
        return Path(source).resolve().with_name(f"{Path(source).resolve().name}.2to4")
    return Path(f"{function_stem(source)}.2to4.safetensors")


def print_record(record: PruneRecord) -> None:
    """Prints what pruning did to each layer, what it left alone, and what a policy took and why."""
    from sparseflow_trt.model.prunable import pruned_twice

    out = console.out()
    asked = any(choice.basis for choice in record.choices)
    if asked:
        chosen = console.table("Layer", "Kind", ">N", ">K", ">M", "Taken", "Basis", "Why")
        cells = [
            (
                c.name, c.kind, str(c.n), str(c.k), str(c.m or "-"), "yes" if c.taken else "no",
                c.basis or "-", c.why,
            )
            for c in record.choices
        ]  # fmt: skip
        console.add_alike(chosen, cells, {"yes": "green", "no": "dim"})
        out.print(chosen)
        out.print()
    table = console.table("Layer", "Kind", ">N", ">K", "Method", ">Rows", ">Weight error", ">Output error")
    rows = [
        (
            layer.name, layer.kind, str(layer.n), str(layer.k), layer.method, str(layer.rows),
            f"{layer.weight_error:.3f}", "-" if layer.output_error is None else f"{layer.output_error:.3f}",
        )
        for layer in record.layers
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    out.print(table)
    shown = {choice.name for choice in record.choices} if asked else set()
    others = [(name, why) for name, why in record.left.items() if name not in shown]
    if others:
        left = console.table("Layer", "Why", title="\nLeft alone")
        console.add_alike(left, others, {})
        out.print(left)
    if record.method != "magnitude":
        unseen = [layer.name for layer in record.layers if layer.method != record.method]
        if unseen:
            out.print(
                f"No calibration row reached {len(unseen)} of them, pruned by magnitude: {', '.join(unseen)}"
            )
    batches = "1 batch" if record.batches == 1 else f"{record.batches} batches"
    layers = counted(len(record.layers), "layer")
    learned = f", on {batches}" if record.batches else ""
    out.print(f"\n{layers} pruned 2:4 by {record.method}{learned}.")
    if twice := pruned_twice(len(record.pruned_before)):
        console.say(console.styled(twice, "yellow"))
