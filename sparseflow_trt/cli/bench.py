"""sparseflow-trt bench: GPU times of an artifact, alone or against another."""

from __future__ import annotations

from pathlib import Path

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_OK


@click.command("bench")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Another artifact, timed in turn with it.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Rounds that count.")
@click.option("--launches", type=click.IntRange(1), default=20, show_default=True, help="Launches a round.")
@common_options
def command(artifact: Path, against: Path | None, rounds: int, launches: int, as_json: bool) -> int:
    """Time ARTIFACT's engine on this machine's GPU, as a CUDA graph, at each profile's min, opt and max."""
    from sparseflow_trt.timing import time_artifacts

    with console.progress_bar() as show:
        timed = time_artifacts(artifact, against, rounds, launches, show)
    if as_json:
        console.print_json([row.model_dump(mode="json") for row in timed])
        return EXIT_OK
    table = console.table(
        "Shapes", ">p50 ms", ">p90 ms", ">p99 ms", ">Against p50 ms", ">Speedup", ">Rounds' range"
    )
    for row in timed:
        cells = [f"{value:.4f}" for value in (row.timing.p50, row.timing.p90, row.timing.p99)]
        if row.against and row.speedup:
            spread = f"{row.speedup.low:.3f}–{row.speedup.high:.3f}"
            cells += [f"{row.against.p50:.4f}", f"{row.speedup.median:.3f}×", spread]
        table.add_row(row.shapes, *cells)
    console.out().print(table)
    return EXIT_OK
