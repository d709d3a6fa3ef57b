"""sparseflow-trt refit: an engine's weights exchanged for another model's."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.option_values import read_validation_options
from sparseflow_trt.cli.options import ModelFile, common_options, validation_options
from sparseflow_trt.cli.verdicts import exit_code_of, print_validation


@click.command("refit")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("model", type=ModelFile())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The new artifact's folder. Default: ./MODEL.artifact.",
)
@validation_options
@common_options
def command(
    artifact: Path,
    model: Path,
    output: Path | None,
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    dense_model: Path | None,
    per_layer: bool,
    as_json: bool,
) -> int:
    """Give ARTIFACT's engine the weights of MODEL, validate it and write an artifact. Nothing is rebuilt.

    ARTIFACT was built with --refit, and MODEL differs only in its weights. If the engine's kernels
    are sparse, or the plan says so, MODEL has to be 2:4.

    Exits with 4 if the outputs differ more than allowed or the reference itself holds NaN, with 1 if nothing
    was run.
    """
    from sparseflow_trt.refitting import RefitOptions, refit

    options = RefitOptions(
        output=output or Path(f"{model.stem}.artifact"),
        validation=read_validation_options(inputs, seed, tolerances, dense_model, per_layer),
        command=shlex.join(["sparseflow-trt", *sys.argv[1:]]),
    )
    with console.progress_bar() as show:
        result = refit(artifact, model, options, lambda p: show(p.step, p.done, p.total))
    manifest = result.manifest
    if as_json:
        data = manifest.model_dump(mode="json")
        console.print_json({"artifact": str(result.artifact), "manifest": data})
        return exit_code_of(manifest.validation)
    out, engine = console.out(), manifest.engine
    versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    console.say(
        f"Engine: {engine.file} by {engine.backend} ({versions}), refitted in {engine.build_seconds:.1f} s"
    )
    for note in engine.notes:
        console.say(console.styled(f"  {note}", "yellow"))
    print_validation(manifest.validation)
    out.print(f"\nArtifact: {result.artifact}\nReport:   {result.artifact / 'report.html'}")
    return exit_code_of(manifest.validation)
