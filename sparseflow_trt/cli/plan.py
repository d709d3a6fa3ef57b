"""sparseflow-trt plan: precision and sparsity per layer, with reasons, as YAML to be edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options, model_argument, plan_options, read_plan_options
from sparseflow_trt.errors import EXIT_OK, PlanError


@click.command("plan")
@model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the plan there; else it is printed."
)
@plan_options
@common_options
def command(model: Path, output: Path | None, as_json: bool, **options: Any) -> int:
    """Decide for each layer of MODEL its precision and whether it runs sparse, with the reason."""
    from sparseflow_trt._files import sha256_of, write_atomically
    from sparseflow_trt.pipeline import plan_for, read
    from sparseflow_trt.plan import yaml_from_plan

    if output and output.exists() and model.exists() and output.samefile(model):
        raise PlanError(f"{output} is the model itself.", "Name another file with --output.")
    with console.progress_bar() as show:
        found, layers = read(model, lambda p: show(p.step, p.done, p.total))
    plan = plan_for(found, layers, read_plan_options(**options), sha256_of(model))
    if output:
        write_atomically(output, yaml_from_plan(plan))
    if as_json:
        console.print_json(plan.model_dump(mode="json"))
    elif output:
        print_plan(plan)
        console.out().print(
            f"\nWritten: {output}. Build it with: sparseflow-trt build {model} --plan {output}"
        )
    else:
        click.echo(yaml_from_plan(plan), nl=False)
    return EXIT_OK


def print_plan(plan: Any) -> None:
    """Prints each layer's decision and the reason for it."""
    table = console.table("Layer", "Kind", ">N", ">K", "Precision", "Sparsity", "Reason")
    rows = (
        (
            layer.module or layer.name, layer.kind, str(layer.n), str(layer.k), layer.precision,
            layer.sparsity, layer.reason,
        )
        for layer in plan.layers
    )  # fmt: skip
    console.add_alike(table, rows, {"sparse": "green", "plugin": "green", "dense": "dim"})
    out = console.out()
    out.print(table)
    if plan.split:
        out.print(f"\nProfiles: {plan.split}")
        for profile in plan.profiles:
            ranges = ((name, r.min, r.opt, r.max) for name, r in profile.inputs.items())
            said = ", ".join(f"{name} {'…'.join(map(_shape, shapes))}" for name, *shapes in ranges)
            out.print(f"  {profile.name}: {said}")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
