"""sparseflow-trt check: a new build against a baseline, for people and for CI."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from sparseflow_trt.cli import console
from sparseflow_trt.cli.numbers import FiniteRange
from sparseflow_trt.cli.options import OutputFile, common_options, metric_options
from sparseflow_trt.errors import EXIT_OK, EXIT_OUTPUTS_DIFFER

if TYPE_CHECKING:
    from sparseflow_trt.gates.regressions import Check, Gate

_MOST_REASONS = 10


@click.command("check")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    required=True,
    type=click.Path(path_type=Path),
    help="The file that `baseline create` wrote.",
)
@metric_options
@click.option(
    "--max-drop", type=FiniteRange(0),
    help="How far a metric may drop below its score on the reference outputs. Default: the baseline's.",
)  # fmt: skip
@click.option(
    "--update", is_flag=True,
    help="If all checks pass, tighten the baseline to this build, never loosen it. Else leave it unchanged.",
)  # fmt: skip
@click.option("--junit", type=OutputFile(), metavar="FILE", help="Write the checks as JUnit XML, too.")
@click.option(
    "--annotations", type=click.Choice(["auto", "github", "off"]), default="auto", show_default=True,
    help="Annotate failed checks on GitHub and write the job summary. auto: if GITHUB_ACTIONS is set.",
)  # fmt: skip
@common_options
def command(
    artifact: Path,
    baseline: Path,
    metrics: tuple[str, ...],
    max_drop: float | None,
    update: bool,
    junit: Path | None,
    annotations: str,
    as_json: bool,
) -> int:
    """Check ARTIFACT against a baseline: its outputs, their errors, metrics, verdicts, and what was sparse.

    Exits with 4 if anything is worse than allowed, else with 0.
    """
    from sparseflow_trt._files import check_file, write_atomically
    from sparseflow_trt.gates.baseline import MAX_BYTES, json_from_baseline
    from sparseflow_trt.gates.gate import check_artifact
    from sparseflow_trt.gates.github import (
        annotation_from_error,
        annotations_from_gate,
        summary_from_error,
        summary_from_gate,
    )
    from sparseflow_trt.gates.junit import junit_from_error, junit_from_gate

    on_github = annotations == "github" or (
        annotations == "auto" and os.environ.get("GITHUB_ACTIONS") == "true"
    )
    if junit and junit.exists() and baseline.exists() and junit.samefile(baseline):
        raise click.UsageError(f"--junit {junit} is the baseline itself.")
    try:
        if update:
            check_file(baseline)
        with console.progress_bar() as show:
            gate, tightened = check_artifact(
                artifact, baseline, metrics, max_drop, lambda p: show(p.step, p.done, p.total)
            )
    except (Exception, KeyboardInterrupt) as error:
        message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
        message = message or "it was stopped."  # by Ctrl-C or a signal, as of a job that takes too long
        if on_github:
            told = annotation_from_error(message, hint, str(baseline))
            _tell_github(told, summary_from_error(artifact.name, message, hint), as_json)
        if junit:  # CI would publish what an earlier run left there
            write_atomically(junit, junit_from_error(artifact.name, message, hint))
        raise
    if junit:
        write_atomically(junit, junit_from_gate(gate))
    updated = False
    if update and tightened:
        most = max(MAX_BYTES, 2 * baseline.stat().st_size)  # it is there, so it was not too large
        text = json_from_baseline(tightened, most)
        updated = text != baseline.read_text(encoding="utf-8")
        if updated:
            write_atomically(baseline, text)
    if as_json:
        console.print_json({**gate.model_dump(mode="json"), "updated": updated})
    else:
        print_gate(gate)
        if update:
            why_not = "this build is no better" if tightened else "checks failed"
            done = "tightened to this build" if updated else f"not changed: {why_not}"
            console.say(f"{baseline}: {done}.")
    if on_github:
        _tell_github(annotations_from_gate(gate, str(baseline)), summary_from_gate(gate), as_json)
    return EXIT_OK if gate.verdict == "pass" else EXIT_OUTPUTS_DIFFER


def print_gate(gate: Gate) -> None:
    """Prints the checks, those that are alike in one row, the verdict, and what failed checks say."""
    table = console.table(
        "Check", "Passed", "Of what", "Candidate", ">Was", ">Now", "Limit", spared=("Limit", "Check")
    )
    rows = ((c.kind, "yes" if c.passed else "no", c.name, c.of, c.was, c.now, c.limit) for c in gate.checks)
    console.add_alike(table, rows, {"yes": "green", "no": "red"}, name_at=2)
    console.out().print(table)
    colour = "green" if gate.verdict == "pass" else "red"
    console.say(Text(f"\n{gate.artifact} against {gate.baseline}: ") + console.styled(gate.verdict, colour))
    failed = _reasons([check for check in gate.checks if not check.passed])
    for reason in failed[:_MOST_REASONS]:
        console.say(f"  {reason}")
    if len(failed) > _MOST_REASONS:
        console.say(f"  And {len(failed) - _MOST_REASONS} more: --json has all.")
    for note in gate.notes:
        console.say(console.styled(f"  {note}", "yellow"))
    if gate.hint:
        console.say(f"  {gate.hint}")


def _reasons(failed: Sequence[Check]) -> list[str]:
    """What failed checks say, those that say the same of layers that are alike as one."""
    lost = []
    for check in failed:
        if check.layer:
            aspect, _, name = check.name.partition(": ")
            lost.append((name, f"{aspect} in the baseline, now {check.now}."))
    of_layers = [
        f"layer {alike}: {why}" for why, names in console.quoted_by_reason(lost).items() for alike in names
    ]
    return [check.reason for check in failed if not check.layer] + of_layers


def _tell_github(annotations: str, summary: str, as_json: bool) -> None:
    """Annotations on the step's output (its standard error where the other is JSON), and the summary."""
    click.echo(annotations, err=as_json, nl=False)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(summary)
