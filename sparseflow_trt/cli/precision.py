"""Renders a search for precisions: what was chosen, what each layer would have borne, and every run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparseflow_trt._listing import counted
from sparseflow_trt.cli import console

if TYPE_CHECKING:
    from sparseflow_trt.plans.precision_record import PrecisionSearch

_MOST = 12  # rows that are alike but for their figures; all of them are in the manifest and with --json
_COLOURS = {
    "fp32": "yellow",
    "bf16": "cyan",
    "fp16": "green",
    "int8": "green",
    "pass": "green",
    "fail": "red",
}


def print_search(search: PrecisionSearch, names: Mapping[str, str]) -> None:
    """Prints what was found on which inputs, the sensitivity table, the runs and what they cannot show.

    Args:
        search: A plan's or a manifest's.
        names: Of its layers, as `layer_names.shown_names` gives them; other nodes keep their own.
    """
    from sparseflow_trt.plans.precision_record import by_need

    shares = ", ".join(f"{100 * share:.3g} % {name.upper()}" for name, share in search.work.items())
    console.say(f"\nPrecisions found on {search.inputs}")
    runs = counted(len(search.runs), "run")
    layers, groups = counted(search.layers, "weighted layer"), counted(search.groups, "group")
    console.say(
        f"  {runs} (and {search.measuring_runs} that measured) for {layers}, {groups}; "
        f"outputs held to {search.held_to.upper()}'s tolerance."
    )
    console.say(
        f"  Of the products' M·N·K: {shares}. Cost {search.cost:.3g} of all in FP16 (FP32 counts 16)."
    )
    if not search.irreducible:
        console.say(
            console.styled("  The run limit was reached: some of what is in FP32 may not need it.", "yellow")
        )
    table = console.table(
        "Layer", "Precision", ">Largest", ">Subnormal", ">FP16 error", ">BF16 error", ">M·N·K", "Why"
    )
    rows = by_need(search)
    for row in rows[:_MOST]:
        table.add_row(
            names.get(row.node, row.node), console.styled(row.precision, _COLOURS.get(row.precision, "")),
            _shown(row.largest), "-" if row.subnormal is None else f"{100 * row.subnormal:.2g} %",
            _shown(row.fp16_error), _shown(row.bf16_error), f"{row.work:.2e}", row.why,
        )  # fmt: skip
    console.out().print(table)
    if len(rows) > _MOST:
        console.say(f"  … and {len(rows) - _MOST} more (--json, or `search` in the plan, has all).")
    table = console.table(">Run", "Assignment", "Verdict", ">Error / bound", ">Cosine")
    for i, run in enumerate(search.runs, 1):
        word = "pass" if run.passed else "fail"
        error = "-" if run.max_abs is None else f"{run.max_abs:.3g}"
        cosine = "-" if run.cosine is None else f"{run.cosine:.6f}"
        table.add_row(str(i), run.what, console.styled(word, _COLOURS[word]), error, cosine)
    console.out().print(table)
    for note in search.notes:
        console.say(f"  {note}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
