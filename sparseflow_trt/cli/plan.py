"""sparseflow-trt plan: precision and sparsity per layer, with reasons, as YAML to be edited."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.built import NOTHING_PLANNED
from sparseflow_trt.cli.option_values import read_plan_options, read_validation_options
from sparseflow_trt.cli.options import (
    OutputFile,
    backend_option,
    common_options,
    dense_model_option,
    input_options,
    model_argument,
    plan_options,
)
from sparseflow_trt.cli.precision import print_search
from sparseflow_trt.cli.sections import SectionedCommand
from sparseflow_trt.errors import EXIT_OK, PlanError
from sparseflow_trt.model.layer_names import shown_names

if TYPE_CHECKING:
    from sparseflow_trt.engines.backends.choose import BackendName


@click.command("plan", cls=SectionedCommand)
@model_argument
@click.option("-o", "--output", type=OutputFile(), help="Write the plan to this file; default: print it.")
@plan_options
@backend_option
@input_options
@dense_model_option
@common_options
def command(
    model: Path,
    output: Path | None,
    backend: BackendName,
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    dense_model: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Decide for each layer of MODEL its precision and whether it runs sparse, with the reason.

    Inputs, tolerances, --dense-model and --backend are for --precision auto, which runs the model as `build`
    would with the same options.
    """
    from sparseflow_trt._files import sha256_of, write_atomically
    from sparseflow_trt.building.artifact_validation import check_tolerances, input_sets, read_unpruned
    from sparseflow_trt.building.plan_options import plan_for, read, settle
    from sparseflow_trt.engines.backends.choose import backend_for
    from sparseflow_trt.model.graph import left_as_they_are
    from sparseflow_trt.plans.plan import yaml_from_plan

    searched = options["precision"] == "auto"
    if (inputs or seed or tolerances or dense_model or backend != "auto") and not searched:
        raise click.UsageError(
            "--inputs, --seed, --tolerance, --dense-model and --backend need --precision auto: nothing else "
            "runs the model. `build` takes them, too."
        )
    if output and output.exists() and model.exists() and output.samefile(model):
        raise PlanError(f"{output} is the model itself.", "Name another file with --output.")
    asked = read_plan_options(**options)
    validation = read_validation_options(inputs, seed, tolerances, dense_model)
    with console.progress_bar() as show:
        found, layers = read(model, lambda p: show(p.step, p.done, p.total))
        plan = plan_for(found, layers, asked, sha256_of(model))
        if searched:
            check_tolerances(validation.tolerances, found)
            sets = input_sets(found, plan, validation)
            bf16 = backend_for(backend)[0].graph_needs().takes_bf16
            unpruned = read_unpruned(dense_model, found)
            step = lambda p: show(p.step, p.done, p.total)  # noqa: E731
            plan = settle(found, layers, plan, asked, sets, validation, bf16, step, unpruned)
    if output:
        write_atomically(output, yaml_from_plan(plan))
    if as_json:
        console.print_json(plan.model_dump(mode="json"))
    elif output:
        print_plan(plan)
        for said in left_as_they_are(layers):
            console.out().print(console.styled(said, "yellow"))
        with_what: list[tuple[str, Any]] = [("plugin", options["plugin"] if plan.plugin_products else None)]
        with_what += [("dense-model", dense_model), ("backend", backend if backend != "auto" else None)]
        with_what += [("inputs", inputs), ("seed", seed), *(("tolerance", text) for text in tolerances)]
        more = [str(word) for name, value in with_what if value for word in (f"--{name}", value)]
        build = shlex.join(["sparseflow-trt", "build", str(model), "--plan", str(output), *more])
        console.say(f"\nWritten: {output}. Build it with: ", build)
    else:
        click.echo(yaml_from_plan(plan), nl=False)
        for said in left_as_they_are(layers):
            click.echo(said, err=True)
    return EXIT_OK


def print_plan(plan: Any) -> None:
    """Prints each layer's decision and the reason for it."""
    columns = ("Layer", "Kind", ">N", ">K", "Precision", "Sparsity", "Reason")
    cells = [
        (
            layer.module or layer.name, layer.kind, str(layer.n), str(layer.k), layer.precision,
            layer.sparsity, layer.reason,
        )
        for layer in plan.layers
    ]  # fmt: skip
    rows, reasons = console.fold_last(columns, cells)
    table = console.table(*columns)
    console.add_alike(table, rows, {"sparse": "green", "plugin": "green", "dense": "dim"})
    console.out().print(table if cells else NOTHING_PLANNED)
    for reason in reasons:
        console.say(reason)
    if plan.search:
        print_search(plan.search, shown_names(plan.layers))
    if plan.split:
        console.say(f"\nProfiles: {plan.split}")
        for profile in plan.profiles:
            ranges = ((name, r.min, r.opt, r.max) for name, r in profile.inputs.items())
            said = ", ".join(f"{name} {'…'.join(map(_shape, shapes))}" for name, *shapes in ranges)
            console.say(f"  {profile.name}: {said}")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
