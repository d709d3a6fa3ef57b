"""Renders verdicts: a validation's, with its outputs' figures, and a duel's, with both engines' times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.text import Text

from sparseflow_trt.cli import console
from sparseflow_trt.cli.attributions import print_attribution
from sparseflow_trt.errors import EXIT_FAILED, EXIT_OK, EXIT_OUTPUTS_DIFFER

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import DuelRecord, TimingRecord
    from sparseflow_trt.artifacts.verdict import Validation

_COLOURS = {"pass": "green", "fail": "red", "not run": "yellow"}


def print_validation(validation: Validation, against: str = "the FP32 reference") -> None:
    """Prints each candidate's verdict, its worst figures per output, and what failed or was not run."""
    out = console.out()
    console.say(Text(f"\nValidation against {against}: ") + _coloured(validation.verdict))
    if validation.verdict == "pass" and any(c.verdict == "not run" for c in validation.candidates):
        console.say(f"  {validation.reason}")
    counted = any(o.equal is not None for candidate in validation.candidates for o in candidate.outputs)
    table = console.table(
        "Candidate", "Verdict", "Output", ">Max abs", ">Mean abs", ">Cosine", ">PSNR dB", ">Equal", ">Sets",
        spared=(*(() if counted else ("Equal",)), "PSNR dB", "Mean abs"),
    )  # fmt: skip
    for candidate in validation.candidates:
        # one that failed with no output to blame, since it did not run on a set, has not passed in any
        told = candidate.verdict == "pass" or not all(o.passed for o in candidate.outputs)
        for name in dict.fromkeys(o.output for o in candidate.outputs):
            rows = [o for o in candidate.outputs if o.output == name]
            shown = candidate.shown(name) if told else candidate.verdict
            table.add_row(
                candidate.name, _coloured(shown), name,
                _worst([o.max_abs for o in rows], max), _worst([o.mean_abs for o in rows], max),
                _worst([o.cosine for o in rows], min, 6), _worst([o.psnr for o in rows], min, 1),
                _worst([o.equal for o in rows], min, 4), str(len(rows)),
            )  # fmt: skip
        if not candidate.outputs:
            table.add_row(candidate.name, _coloured(candidate.verdict))
    out.print(table)
    for candidate in validation.candidates:
        if candidate.reason and (candidate.verdict != "pass" or candidate.tells_nothing):
            console.say(f"  {candidate.name}: {candidate.reason}")
    if validation.attribution:
        print_attribution(validation.attribution)


def print_duel(duel: DuelRecord) -> None:
    """Prints which of a sparse and a dense engine ships and why, and both engines' times at each profile."""
    out, colour = console.out(), "green" if duel.ships == "sparse" else "yellow"
    console.say(Text("\nSparse against dense: ") + console.styled(duel.why, colour))
    if not duel.profiles:
        return
    console.say(f"  GPU times in ms, {duel.rounds} rounds of {duel.launches} CUDA graphs, engines in turn:")
    table = console.table(
        "Profile", "Shapes", "Engine", ">p50", ">p90", ">p99", ">Rounds", ">Dense over sparse", ">Of rounds"
    )
    for row in duel.profiles:
        shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in row.shapes.items())
        table.add_row(
            row.profile, shapes, "sparse", *_times(row.sparse), f"{row.speedup:.3f}×",
            f"{row.low:.3f}–{row.high:.3f}",
        )  # fmt: skip
        table.add_row("", "", "dense", *_times(row.dense))
    out.print(table)
    if duel.sparse_outcomes:
        ran, of = sum(o.sparse for o in duel.sparse_outcomes), len(duel.sparse_outcomes)
        told = f"  In the sparse engine {ran} of {of} layers and profiles ran a sparse kernel; "
        console.say(f"{told}duel.sparse_outcomes in manifest.json has each one's times.")


def _times(timing: TimingRecord) -> list[str]:
    figures = [f"{value:.4f}" for value in (timing.p50, timing.p90, timing.p99)]
    return [*figures, f"{timing.low:.4f}–{timing.high:.4f}"]


def exit_code_of(validation: Validation) -> int:
    """What a command says of a validation to a script: one that ran nothing has not passed."""
    return {"pass": EXIT_OK, "fail": EXIT_OUTPUTS_DIFFER, "not run": EXIT_FAILED}[validation.verdict]


def _coloured(verdict: str) -> Text:
    return console.styled(verdict, _COLOURS[verdict])


def _worst(
    values: list[float | None], pick: Callable[[list[float]], float], decimals: int | None = None
) -> str:
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return "-"
    worst = pick(known)
    return f"{worst:.2e}" if decimals is None else f"{worst:.{decimals}f}"
