"""sparseflow-trt autotune: measures from which M on sparse wins on this GPU, and writes a policy."""

from __future__ import annotations

import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt._listing import counted
from sparseflow_trt.cli import console
from sparseflow_trt.cli.numbers import positive
from sparseflow_trt.cli.options import ModelFile, OutputFile, PluginLibrary, common_options
from sparseflow_trt.errors import EXIT_OK, PolicyError
from sparseflow_trt.plans.traffic import LARGEST_M
from sparseflow_trt.policies.presets import PRESETS

if TYPE_CHECKING:
    from sparseflow_trt.engines.measuring.measurers import Crew
    from sparseflow_trt.tuning import Progress, Tuned

_DIGITS = 20  # of a number that is looked at
_SAID_EVERY = 30.0  # seconds, where there is no terminal to show a bar in


@click.command("autotune")
@click.argument("models", nargs=-1, type=ModelFile())
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(PRESETS),
    help="Measure the products of a well-known model as if its file were given; repeatable.",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many GPUs share each layer of the presets.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(("fp16", "bf16")),
    help="Type of weights and activations; repeatable. Default: bf16 for models that compute in it, else "
    "fp16.",
)
@click.option(
    "--library",
    "libraries",
    multiple=True,
    type=click.Choice(("torch", "tensorrt")),
    help="Whose kernels: torch (cuSPARSELt against cuBLAS) or TensorRT's. Default: all available.",
)
@click.option(
    "--m",
    "grid",
    metavar="M,M,…",
    help="The values of M to measure each product at. Default: 1, 8, 16 and so on, doubling up to 16384.",
)
@click.option(
    "--time-limit", type=positive(zero=True), metavar="SECONDS", help="Start no new measurement after this."
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    help="The policy file. Points are saved to its .points.jsonl as they are measured; the same command "
    "resumes from there. Default: named after the GPU.",
)
@click.option("--name", default="", help="The policy's name. Default: the file's.")
@click.option(
    "--add",
    "others",
    multiple=True,
    metavar="NAME|FILE",
    help="A policy for this GPU whose points are added to those measured here; it may be the -o file.",
)
@click.option(
    "--plugin",
    type=PluginLibrary(),
    metavar="LIB",
    help="The 2:4 plugin's library: measure the plugin, too, against TensorRT's dense kernels.",
)
@click.option(
    "--builders",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Build TensorRT engines for N products at once. Each is timed alone, with the builders stopped.",
)
@click.option("--ray", "use_ray", is_flag=True, help="Measure on all free GPUs of a Ray cluster at once.")
@common_options
def command(
    models: tuple[Path, ...],
    presets: tuple[str, ...],
    tensor_parallel: int,
    dtypes: tuple[Any, ...],
    libraries: tuple[Any, ...],
    grid: str | None,
    time_limit: float | None,
    output: Path | None,
    name: str,
    others: tuple[str, ...],
    plugin: Path | None,
    builders: int,
    use_ray: bool,
    as_json: bool,
) -> int:
    """Measure from which M on 2:4 sparse weights win on this GPU, for the layers of MODELS.

    Each product is timed dense and sparse, in turn and on the same weights, at a grid of M and then at the
    M between where one wins and where the other does, until they are 5 % apart.
    """
    from sparseflow_trt.engines.measuring.journal import journal_beside
    from sparseflow_trt.model.model_file import read_model
    from sparseflow_trt.policies.policy import find_policy
    from sparseflow_trt.tuning import GRID, Space, autotune, default_output, dtypes_of, products_of

    if not models and not presets:
        raise click.UsageError("give ONNX models, or --preset NAME.")
    if tensor_parallel > 1 and not presets:
        raise click.UsageError("--tensor-parallel divides the layers of presets: give --preset NAME, too.")
    if plugin and libraries and "tensorrt" not in libraries:
        raise click.UsageError("--plugin is measured in TensorRT: give --library tensorrt, too.")
    if builders > 1 and libraries and "tensorrt" not in libraries:
        raise click.UsageError("--builders build TensorRT engines: give --library tensorrt, too.")
    if builders > 1 and use_ray:
        raise click.UsageError("--ray gives each GPU one builder: leave out --builders or --ray.")
    added = [find_policy(other) for other in others]
    read = [read_model(path) for path in models]
    space = Space(
        products=products_of(read, presets, tensor_parallel),
        dtypes=tuple(dict.fromkeys(dtype.upper() for dtype in dtypes)) or dtypes_of(read, presets),
        grid=read_grid(grid) if grid else GRID,
        plugin=plugin is not None,
    )
    with make_crew(libraries, use_ray, plugin, builders) as crew, shown() as show:
        file = output or default_output(crew.identify(space.dtypes).device)
        try:
            tuned = autotune(
                space, crew, file, name, _command_line(), time_limit=time_limit, added=added, on_progress=show
            )
        except KeyboardInterrupt:
            click.echo(
                f"Measured points are kept in {journal_beside(file)}: the same command resumes.", err=True
            )
            raise
    if as_json:
        console.print_json(_json(tuned, file))
    else:
        _print(tuned, file)
    return EXIT_OK


@contextmanager
def make_crew(
    libraries: tuple[Any, ...], use_ray: bool, plugin: Path | None = None, builders: int = 1
) -> Iterator[Crew]:
    """Those that measure: this process, with so many builders of engines, or the workers of a Ray cluster.

    Raises:
        NotInstalledError: A library, Ray or a GPU is missing.
        PolicyError: There is no Ray cluster at RAY_ADDRESS, or it has no GPU.
    """
    from sparseflow_trt.engines.measuring.measurers import identify, make_measurers
    from sparseflow_trt.engines.measuring.medians import Effort

    make = functools.partial(make_measurers, libraries, Effort(), plugin)
    if not use_ray:
        from sparseflow_trt.engines.backends.child import shared_child
        from sparseflow_trt.engines.measuring.builders import Builders

        with shared_child(), Builders(make, identify, builders) as crew:
            yield crew
        return
    from sparseflow_trt.engines.measuring.ray_workers import RayWorkers

    with RayWorkers(make, tell=functools.partial(click.echo, err=True)) as workers:
        yield workers


def read_grid(text: str) -> tuple[int, ...]:
    """The M that a person wrote, ascending, each once.

    Raises:
        PolicyError: One is no integer from 1 to LARGEST_M.
    """
    parts = [part.strip() for part in text.split(",")]
    sizes = [int(part) if part.isdecimal() and len(part) <= _DIGITS else 0 for part in parts]
    if wrong := [part for part, m in zip(parts, sizes, strict=True) if not 1 <= m <= LARGEST_M]:
        shown = wrong[0] if len(wrong[0]) <= _DIGITS else f"{wrong[0][:_DIGITS]}…"
        raise PolicyError(
            f"--m holds '{shown}', which is not a valid M.",
            f"Give integers from 1 to {LARGEST_M}: --m 1,64,1024.",
            usage=True,
        )
    return tuple(sorted(set(sizes)))


def progress_in_words(progress: Progress) -> str:
    """How far a run is, in one line."""
    pair = progress.last.counted
    said = (
        f"{progress.measured} measured, about {progress.left.points} to go, {progress.left.crossovers} "
        f"crossovers open; last {progress.last.request}: {pair.speedup:.2f}×"
    )
    return said if progress.seconds_left is None else f"{said}; about {_duration(progress.seconds_left)} left"


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """Shows progress: a bar in a terminal, else a line on standard error now and then."""
    spoken = [time.monotonic()]
    with console.progress_bar() as show:

        def tell(progress: Progress) -> None:
            words = progress_in_words(progress)
            show(words, progress.measured, progress.measured + progress.left.points)
            if not sys.stderr.isatty() and time.monotonic() - spoken[0] >= _SAID_EVERY:
                spoken[0] = time.monotonic()
                click.echo(words, err=True)

        yield tell


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _command_line() -> str:
    return shlex.join(
        ["sparseflow-trt", *(part for part in sys.argv[1:] if part not in ("--json", "--debug"))]
    )


def _json(tuned: Tuned, file: Path) -> dict[str, Any]:
    return {
        "policy": str(file),
        "name": tuned.policy.name,
        "device": tuned.policy.device,
        "finished": tuned.left.points == 0,
        "measured_now": tuned.measured_now,
        "points": len(tuned.policy.points),
        "points_left": tuned.left.points,
        "seconds": round(tuned.seconds, 1),
        "left_out": list(tuned.left_out),
        "clocks": tuned.policy.clocks,
        "thresholds": [threshold.model_dump(mode="json") for threshold in tuned.policy.thresholds],
        "crossovers": [
            {
                "library": c.curve.library,
                "kernel": c.curve.kernel,
                "dtype": c.curve.dtype,
                "kind": c.curve.kind,
                "n": c.curve.n,
                "k": c.curve.k,
                "low": c.low,
                "high": c.high,
                "sparse_wins": "above" if c.wins_above else "below",
            }
            for c in tuned.crossovers
        ],
    }


def _print(tuned: Tuned, file: Path) -> None:
    out = console.out()
    table = console.table("Kind", "Library", "Type", ">Sparse from M", ">to M", "Shapes")
    for limit in tuned.policy.thresholds:
        shapes = ", ".join(f"{k}→{n}" for n, k in limit.shapes)
        first, last = (str(limit.min_m), str(limit.max_m or "any")) if limit.min_m else ("never", "")
        whose = "plugin in tensorrt" if limit.kernel == "plugin" else limit.library
        table.add_row(limit.kind, whose, limit.dtype, first, last, shapes)
    out.print(table)
    for reason in tuned.left_out:
        out.print(f"Left out: {reason}.")
    out.print(f"Clocks: {tuned.policy.clocks}")
    products = counted(tuned.measured_now, "product")
    out.print(f"{products} measured in {_duration(tuned.seconds)}; policy: {file}")
    if tuned.left.points:
        out.print(
            f"The time limit was reached: about {tuned.left.points} points are left and "
            f"{tuned.left.crossovers} crossovers are open. Run the same command again to continue."
        )
