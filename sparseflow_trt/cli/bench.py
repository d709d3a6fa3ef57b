"""sparseflow-trt bench: GPU times of an artifact, alone or against another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_OK

if TYPE_CHECKING:
    from rich.table import Table

    from sparseflow_trt.building.timing import TimedShapes
    from sparseflow_trt.engines.running.benchmark import Timing
    from sparseflow_trt.engines.running.layer_times import LayerTime

_MOST_LAYERS = 15


@click.command("bench")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Another artifact to time in turn with it.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Measured rounds.")
@click.option("--launches", type=click.IntRange(1), default=20, show_default=True, help="Launches per round.")
@click.option("--layers", is_flag=True, help="Time each layer too, with TensorRT's profiler.")
@common_options
def command(
    artifact: Path, against: Path | None, rounds: int, launches: int, layers: bool, as_json: bool
) -> int:
    """Time ARTIFACT's engine on this machine's GPU, as a CUDA graph, at each profile's min, opt and max.

    Where min is empty (a KV cache that holds nothing yet) it is timed with one element in its place.
    """
    from sparseflow_trt.building.timing import time_artifacts

    with console.progress_bar() as show:
        timed = time_artifacts(artifact, against, rounds, launches, show, layers)
    if as_json:
        console.print_json([row.model_dump(mode="json") for row in timed])
        return EXIT_OK
    out = console.out()
    out.print(times_table(timed))
    for folder, timing in zip((artifact, against), (timed[0].timing, timed[0].against), strict=True):
        if timing and timing.memory:
            out.print(
                f"{folder}: its context takes {console.size(timing.memory.context)} of GPU memory; "
                f"loading it took {console.size(timing.memory.loaded)} in all."
            )
    for row in timed if layers else ():
        out.print()
        out.print(layers_table(row))
    return EXIT_OK


def times_table(timed: Sequence[TimedShapes]) -> Table:
    """A row for each input set."""
    table = console.table(
        "Shapes", ">p50 ms", ">p90 ms", ">p99 ms", ">Runs/s", ">Against p50 ms", ">Speedup", ">Rounds' range"
    )
    for row in timed:
        cells = [f"{value:.4f}" for value in (row.timing.p50, row.timing.p90, row.timing.p99)]
        cells.append(f"{row.timing.per_second:.0f}" if row.timing.per_second else "")
        if row.against and row.speedup:
            spread = f"{row.speedup.low:.3f}–{row.speedup.high:.3f}"
            cells += [f"{row.against.p50:.4f}", f"{row.speedup.median:.3f}×", spread]
        table.add_row(row.shapes, *cells)
    return table


def layers_table(row: TimedShapes) -> Table:
    """The slowest layers of one input set, those of both engines that have one name side by side."""
    own, other = _by_name(row.timing), _by_name(row.against)
    names = sorted(
        {**own, **other},
        key=lambda name: max(found[name].ms for found in (own, other) if name in found),
        reverse=True,
    )
    columns = ("Layer", ">ms", ">Share", *((">Against ms",) if row.against else ()))
    table = console.table(*columns, title=f"{row.shapes}: the slowest of {len(names)} layers")
    for name in names[:_MOST_LAYERS]:
        cells = [f"{own[name].ms:.4f}", f"{own[name].share:.1%}"] if name in own else ["–", ""]
        if row.against:
            cells.append(f"{other[name].ms:.4f}" if name in other else "–")
        table.add_row(name, *cells)
    sums = [f"{sum(layer.ms for layer in found.values()):.4f}" for found in (own, other)]
    table.add_row("all layers, one by one", sums[0], "", *(sums[1:] if row.against else ()))
    return table


def _by_name(timing: Timing | None) -> dict[str, LayerTime]:
    return {layer.name: layer for layer in timing.layers} if timing else {}
