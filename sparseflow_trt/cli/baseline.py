"""sparseflow-trt baseline: what an accepted build gave, kept for later builds to be held to."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.numbers import FiniteRange
from sparseflow_trt.cli.option_values import read_validation_options
from sparseflow_trt.cli.options import ModelFile, common_options, input_options, metric_options
from sparseflow_trt.cli.verdicts import exit_code_of, print_validation


@click.group("baseline")
def command() -> None:
    """Record an accepted build's results in one small file for version control; `check` compares with it."""


@command.command("create", short_help="Run an artifact on inputs; record the inputs and the results.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--reference", type=ModelFile(), metavar="MODEL",
    help="Take the reference outputs from this ONNX model, in FP32: the model that was built, or the one "
    "before pruning. Default: from ARTIFACT itself, so that later builds are compared with this one.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file. Default: ./ARTIFACT.baseline.json."
)
@input_options
@metric_options
@click.option(
    "--max-drop", type=FiniteRange(0), default=0.0, show_default=True,
    help="How far a metric may drop below its score on the reference outputs: rounding moves most a little.",
)  # fmt: skip
@click.option(
    "--max-growth", type=FiniteRange(1), default=3.0, show_default=True,
    help="By what factor an output's mean error may grow.",
)  # fmt: skip
@click.option(
    "--max-size", type=FiniteRange(0, min_open=True), default=2.0, show_default=True, metavar="MB",
    help="The largest file to write.",
)  # fmt: skip
@common_options
def create(
    artifact: Path,
    reference: Path | None,
    output: Path | None,
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    metrics: tuple[str, ...],
    max_drop: float,
    max_growth: float,
    max_size: float,
    as_json: bool,
) -> int:
    """Run ARTIFACT on inputs and keep the inputs, the reference outputs, the figures and what is sparse.

    Random inputs are kept as seeds, others compressed. Nothing is written if the outputs differ more than
    allowed (exit code 4), or if nothing could be run (1).
    """
    from sparseflow_trt._files import check_file, write_atomically
    from sparseflow_trt.gates.baseline import json_from_baseline
    from sparseflow_trt.gates.gate import BaselineOptions, create_baseline

    path = output or Path(f"{artifact.resolve().name.removesuffix('.artifact')}.baseline.json")
    check_file(path)
    if path.resolve().is_relative_to(artifact.resolve()):
        raise click.UsageError(f"{path} is inside the artifact, which stays as it was built.")
    most_bytes = round(max_size * 1e6)
    validation_options = read_validation_options(inputs, seed, tolerances)
    options = BaselineOptions(reference, validation_options, metrics, max_drop, max_growth, most_bytes)
    with console.progress_bar() as show:
        made, validation = create_baseline(artifact, options, lambda p: show(p.step, p.done, p.total))
    text = json_from_baseline(made, most_bytes) if made else ""
    if made:
        write_atomically(path, text)
    if as_json:
        kept = (
            {"baseline": str(path), "bytes": len(text.encode())} if made else {"baseline": None, "bytes": 0}
        )
        console.print_json({**kept, "validation": validation.model_dump(mode="json")})
        return exit_code_of(validation)
    if not made:
        print_validation(validation)
        console.out().print("\nNo baseline was written.")
        return exit_code_of(validation)
    out = console.out()
    drawn = sum(given.seed is not None for given in made.inputs)
    out.print(f"Baseline: {path}, {console.size(len(text.encode()))}")
    out.print(f"  Reference outputs: {made.reference}")
    out.print(f"  {len(made.inputs)} input set(s), {drawn} of them kept as seeds.")
    sparse = sum(layer.planned for layer in made.evidence.layers)
    pruned = sum(layer.pruned for layer in made.evidence.layers)
    ran = sum(bool(layer.ran) for layer in made.evidence.layers)
    out.print(f"  {pruned} layer(s) 2:4, {sparse} planned sparse, {ran} reported to run a sparse kernel.")
    for name, metric in made.metrics.items():
        out.print(f"  {name}: {metric.score:.6g} on the reference outputs; may drop by {metric.max_drop:g}.")
    check = shlex.join(["sparseflow-trt", "check", "NEW.artifact", "--baseline", str(path)])
    out.print(f"\nCommit it, and in CI: {check}")
    return exit_code_of(validation)
