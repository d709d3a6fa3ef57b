"""sparseflow-trt build: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.built import print_built
from sparseflow_trt.cli.export_model import plain_export, print_export, source_stem
from sparseflow_trt.cli.option_values import (
    read_plan_options,
    read_validation_options,
    take_engine_options,
    take_export_options,
)
from sparseflow_trt.cli.options import (
    backend_option,
    common_options,
    engine_options,
    export_options,
    model_argument,
    plan_options,
    validation_options,
)
from sparseflow_trt.cli.sections import SectionedCommand
from sparseflow_trt.cli.verdicts import exit_code_of
from sparseflow_trt.errors import EXIT_OUTPUTS_DIFFER

if TYPE_CHECKING:
    from sparseflow_trt.building.plan_options import PlanOptions
    from sparseflow_trt.engines.backends.choose import BackendName
    from sparseflow_trt.export import ExportOptions, ExportReport
    from sparseflow_trt.plans.plan import Plan
    from sparseflow_trt.plans.shapes import Dims


@click.command("build", cls=SectionedCommand)
@model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The artifact's folder. Default: ./MODEL.artifact, or ./FILE.FUNCTION.artifact for a function.",
)
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), help="A plan, as `plan` wrote it or edited."
)
@plan_options
@backend_option
@engine_options
@validation_options
@export_options
@click.option(
    "--verdict",
    is_flag=True,
    help="Build a dense engine, too, time both in turn on the GPU, and ship dense unless sparse wins.",
)
@click.option(
    "--margin",
    type=float,
    metavar="SHARE",
    help="With --verdict: by how much sparse has to win. Default: 0.02.",
)
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
@common_options
def command(
    model: Path,
    output: Path | None,
    plan_file: Path | None,
    backend: BackendName,
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    dense_model: Path | None,
    per_layer: bool,
    verdict: bool,
    margin: float | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Build an engine from MODEL, validate it against the FP32 reference and write an artifact.

    With dynamic axes: sparseflow-trt build model.onnx --dim batch=1,8,32

    MODEL is an ONNX file, or what `export` takes: that is exported first, to NAME.exported.onnx beside the
    artifact NAME.artifact.

    Exits with 4 if the outputs differ more than allowed or the reference itself holds NaN, with 1 if nothing
    was run; the artifact is kept then, marked 'fail' or 'not run'.
    """
    from sparseflow_trt.artifacts.artifact import check_place
    from sparseflow_trt.export import ExportOptions, is_torch_source
    from sparseflow_trt.pipeline import BuildOptions, build
    from sparseflow_trt.plans.plan import read_plan

    engine = take_engine_options(options)
    export = take_export_options(options)
    from_torch = is_torch_source(str(model))
    if not from_torch and export != ExportOptions():
        raise click.UsageError(f"{model} is not a Hugging Face folder or function: it has nothing to export.")
    stem = source_stem(str(model)) if from_torch else model.stem
    output = output or Path(f"{stem}.artifact")
    if plan_file:
        _refuse_both(options)
    plan = read_plan(plan_file) if plan_file else read_plan_options(**options)
    asked = BuildOptions(
        output=output,
        plan=plan,
        backend=backend,
        validation=read_validation_options(inputs, seed, tolerances, dense_model, per_layer),
        engine=engine,
        margin=_read_margin(verdict, margin),
        plugin=options["plugin"],
        force=force,
        command=shlex.join(["sparseflow-trt", *sys.argv[1:]]),
    )
    report = None
    if from_torch:
        check_place(output)
        # after the artifact: another one of the same source has its reference beside it
        named = output.resolve() if output.name in ("", "..") else output
        exported_to = named.with_name(f"{named.name.removesuffix('.artifact')}.exported.onnx")
        report = _export(str(model), exported_to, export, plan)
    exported = {"export": plain_export(report)} if report else {}
    if report and not as_json:
        print_export(report, advise=not report.written)
        console.out().print()
    if report and not report.written:
        if as_json:
            console.print_json(exported)
        return EXIT_OUTPUTS_DIFFER
    with console.progress_bar() as show:
        path = report.files[-1] if report else model
        result = build(path, asked, lambda p: show(p.step, p.done, p.total))
    if as_json:
        manifest = result.manifest.model_dump(mode="json")
        console.print_json(
            {
                "artifact": str(result.artifact),
                "unchanged": result.unchanged,
                "manifest": manifest,
                **exported,
            }
        )
    else:
        if result.unchanged:
            said = "Nothing has changed since this artifact was built; --force builds it again."
            console.out().print(said)
        print_built(result.manifest, result.artifact, path)
    return exit_code_of(result.manifest.validation)


def _export(source: str, onnx: Path, options: ExportOptions, plan: Plan | PlanOptions) -> ExportReport:
    from sparseflow_trt.export import export_model
    from sparseflow_trt.plans.plan import Plan
    from sparseflow_trt.plans.profile_specs import check_before_export

    def check(dims: dict[str, Dims]) -> None:
        if not isinstance(plan, Plan):  # whose profiles are checked when the file is there
            check_before_export(plan.profiles, dims, plan.axes, plan.shapes)

    with console.progress_bar() as show:
        return export_model(source, onnx, options, lambda p: show(p.step, p.done, p.total), check)


def _refuse_both(options: dict[str, Any]) -> None:
    names = ("dims", "shapes", "profiles", "shapes_file", "split", "traffic", "policy", "precision")
    if any(options[name] for name in names) or options["sparsity"] != "policy":
        raise click.UsageError(
            "the plan already sets shapes, policy, precision and sparsity: edit --plan's file."
        )


def _read_margin(verdict: bool, margin: float | None) -> float | None:
    from sparseflow_trt.building.duel import MARGIN

    if margin is None:
        return MARGIN if verdict else None
    if not verdict:
        raise click.UsageError("--margin is how much sparse has to win by with --verdict: give both.")
    if not 0 <= margin < 1:  # false for nan, too
        raise click.UsageError(
            f"--margin {margin:g} is not a share: give one from 0 to below 1, such as 0.02."
        )
    return margin
