"""sparseflow-trt prune: 2:4 by magnitude along K."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options, model_argument
from sparseflow_trt.errors import EXIT_NOT_SPARSE, EXIT_OK


@click.command("prune")
@model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with .2to4.onnx, beside it."
)
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Layer, module or weight names to leave alone."
)
@common_options
def command(model: Path, output: Path | None, exclude: tuple[str, ...], as_json: bool) -> int:
    """Prune MODEL's eligible weights 2:4 by magnitude along K. MODEL itself is not changed.

    Exits with 3 where a weight could not be pruned because its users disagree on the axis.
    """
    from sparseflow_trt.exporters.prune import prune_model
    from sparseflow_trt.model_file import read_model

    found = read_model(model)
    output = output or model.with_name(f"{model.stem}.2to4.onnx")
    with console.progress_bar() as show:
        report = prune_model(found, output, exclude, lambda done, total: show("Pruning", done, total))
    if as_json:
        data = dataclasses.asdict(report)
        data["output"] = str(report.output)
        console.print_json(data)
    else:
        out = console.out()
        zeroed = sum(w.zeroed for w in report.pruned)
        elements = sum(w.elements for w in report.pruned)
        already = sum(w.zeroed == 0 for w in report.pruned)
        for layer, why in report.conflicts:
            out.print(console.styled("not pruned", "red"), f"'{layer}': {why}")
        for layer, why in report.skipped:
            out.print(console.styled("left alone", "dim"), f"'{layer}': {why}")
        out.print(
            f"{len(report.pruned) - already} weights pruned ({zeroed} of {elements} elements set to zero), "
            f"{already} were 2:4 already.\nWritten: {report.output}"
        )
    return EXIT_NOT_SPARSE if report.conflicts else EXIT_OK
