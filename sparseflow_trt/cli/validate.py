"""sparseflow-trt validate: compares an artifact with its FP32 reference again."""

from __future__ import annotations

from pathlib import Path

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.option_values import read_validation_options
from sparseflow_trt.cli.options import ModelFile, common_options, validation_options
from sparseflow_trt.cli.verdicts import exit_code_of, print_validation


@click.command("validate")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=ModelFile(), help="The ONNX model it was built from.")
@validation_options
@common_options
def command(
    artifact: Path,
    reference: Path,
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    dense_model: Path | None,
    per_layer: bool,
    as_json: bool,
) -> int:
    """Compare ARTIFACT with the model it was built from, in FP32. The artifact is not changed.

    Exits with 4 where the outputs differ more than they may or the reference itself holds NaN, with 1 where
    nothing was run.
    """
    from sparseflow_trt.building.artifact_validation import validate_artifact

    options = read_validation_options(inputs, seed, tolerances, dense_model, per_layer)
    with console.progress_bar() as show:
        validation = validate_artifact(artifact, reference, options, lambda p: show(p.step, p.done, p.total))
    if as_json:
        console.print_json(validation.model_dump(mode="json"))
    else:
        print_validation(validation)
    return exit_code_of(validation)
