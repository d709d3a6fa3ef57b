"""sparseflow-trt roi: what a speedup saves in GPUs and money, with each assumption said."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.numbers import positive
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_OK, PolicyError
from sparseflow_trt.gains.roi import BUSY, HOURS_A_MONTH, REALISED, realised_speedup, return_on_sparsity

if TYPE_CHECKING:
    from sparseflow_trt.gains.roi import Fleet, Roi

SECONDS_A_MONTH = HOURS_A_MONTH * 3600


@click.command("roi")
@click.option("--gpus", type=click.IntRange(1, 10**9), help="GPUs that the load takes today, dense.")
@click.option(
    "--requests-per-month", type=positive(), metavar="R", help="Instead of --gpus; needs --throughput."
)
@click.option("--requests-per-second", type=positive(), metavar="R", help="The same, per second.")
@click.option(
    "--throughput", type=positive(), metavar="R",
    help="Requests per second that one GPU serves, dense, when it is always busy.",
)  # fmt: skip
@click.option("--cost-per-gpu-hour", type=positive(), required=True, metavar="COST", help="In any currency.")
@click.option("--speedup", type=positive(1000), help="Measured speedup of the whole service, end to end.")
@click.option(
    "--estimate", type=click.Path(path_type=Path), metavar="FILE",
    help="Instead of --speedup: a file that `estimate --json` wrote; see --realised.",
)  # fmt: skip
@click.option(
    "--gemm-share", type=positive(1), metavar="SHARE",
    help="For --estimate: the share of GPU time that the products take, if not the file's.",
)  # fmt: skip
@click.option(
    "--realised", type=positive(1), default=REALISED, show_default=True, metavar="SHARE",
    help="For --estimate: how much of the time saved at the ceiling a build is assumed to save.",
)  # fmt: skip
@click.option(
    "--busy", type=positive(1), default=BUSY, show_default=True, metavar="SHARE",
    help="The largest share of its time that a GPU may be busy.",
)  # fmt: skip
@click.option(
    "--peak", type=positive(1000), default=1.0, show_default=True, metavar="FACTOR",
    help="Requests in the busiest hour over the mean: GPUs are counted for that hour.",
)  # fmt: skip
@click.option(
    "--one-off", type=positive(zero=True), default=0.0, metavar="COST", help="What pruning costs once."
)
@common_options
def command(
    gpus: int | None, requests_per_month: float | None, requests_per_second: float | None,
    throughput: float | None, cost_per_gpu_hour: float, speedup: float | None, estimate: Path | None,
    gemm_share: float | None, realised: float, busy: float, peak: float, one_off: float, as_json: bool,
) -> int:  # fmt: skip
    """Estimate GPUs and cost per month, dense and sparse, from a measured or an estimated speedup."""
    load, how_load = _load(gpus, requests_per_month, requests_per_second, throughput, busy, peak)
    requests = requests_per_month
    if requests_per_second is not None:
        requests = requests_per_second * SECONDS_A_MONTH
    factor, how_factor = _speedup(speedup, estimate, gemm_share, realised)
    result = return_on_sparsity(load, factor, cost_per_gpu_hour, busy, one_off, requests)
    assumptions = [
        how_factor,
        how_load,
        "A request that takes less GPU time leaves room for more requests.",
        f"Whole GPUs are counted, each busy at most {busy:.0%} of its time.",
        f"GPUs are paid for all of a month's {HOURS_A_MONTH:g} hours.",
        "The sparse model's answers are as good as the dense one's: measure that on your own data.",
    ]
    if as_json:
        console.print_json({**asdict(result), "assumptions": assumptions})
    else:
        _print(result, assumptions)
    return EXIT_OK


def _load(
    gpus: int | None, by_month: float | None, by_second: float | None, throughput: float | None,
    busy: float, peak: float,
) -> tuple[float, str]:  # fmt: skip
    """The GPUs that dense keeps busy all of the time, and how that is known."""
    given = [value is not None for value in (gpus, by_month, by_second)]
    if sum(given) != 1:
        raise click.UsageError("give one of --gpus, --requests-per-month and --requests-per-second.")
    if gpus is not None:
        if throughput is not None or peak != 1:
            raise click.UsageError("--throughput and --peak go with requests, not with --gpus.")
        many = f"{gpus:,} GPUs today, dense, which are busy {busy:.0%} of their time."
        one = f"1 GPU today, dense, which is busy {busy:.0%} of its time."
        return gpus * busy, f"The load takes {one if gpus == 1 else many}"
    if peak < 1:
        raise click.UsageError("--peak is below 1: the busiest hour has no fewer requests than the mean.")
    if throughput is None:
        raise click.UsageError("requests need --throughput: what one GPU serves, dense.")
    mean = by_second if by_second is not None else (by_month or 0) / SECONDS_A_MONTH
    many = f"with {_plain(peak, 6)} times as many in the busiest hour, which is counted"
    come = "1 request per second arrives" if mean == 1 else f"{_plain(mean, 3)} requests per second arrive"
    return mean * peak / throughput, (
        f"{come} {'evenly' if peak == 1 else many}; a GPU that is always busy serves "
        f"{_plain(throughput, 6)}, dense."
    )


def _plain(number: float, digits: int) -> str:
    """A number above 0 to so many digits, its whole part always to the last one: 1,000 and not 1e+03."""
    places = digits - 1 - math.floor(math.log10(number))
    return f"{number:,.{places}f}".rstrip("0").rstrip(".") if places > 0 else f"{number:,.0f}"


def _cost(cost: float) -> str:
    """To two places, or three digits where it is below 1: a million requests may cost little."""
    return f"{cost:,.2f}" if cost >= 1 else _plain(cost, 3)


def _speedup(
    measured: float | None, estimate: Path | None, gemm_share: float | None, realised: float
) -> tuple[float, str]:
    """The speedup to count with, and how it is known."""
    from sparseflow_trt.gains.estimate_record import end_to_end, read_estimate

    if measured is not None and estimate is None:
        if gemm_share is not None or realised != REALISED:
            raise click.UsageError("--gemm-share and --realised go with --estimate: --speedup is end to end.")
        return measured, (
            f"The speedup, {measured:.3f}×, is taken as given: as measured end to end, and not for products "
            "alone."
        )
    if measured is not None or estimate is None:
        raise click.UsageError("give one of --speedup and --estimate.")
    found = read_estimate(estimate)
    if found.gemm_speedup is None:
        raise PolicyError(
            f"{estimate} holds no speedup: its policy has no sparse time for the model's products.",
            "Estimate with a policy that was measured on such shapes, or give --speedup.",
        )
    share = gemm_share or found.gemm_share
    if share is None:
        raise click.UsageError("the estimate has no share of the GPU's time: give --gemm-share.")
    ceiling = end_to_end(found.gemm_speedup, share)
    factor = realised_speedup(ceiling, realised)
    in_plugin = " with the 2:4 plugin" if found.kernel == "plugin" else ""
    guessed = f" ({found.guessed_share:.0%} of their time is guessed)" if found.guessed_share else ""
    return factor, (
        f"The speedup, {factor:.3f}×, is not measured: {realised:.0%} of what the ceiling, {ceiling:.3f}×, "
        f"would save. By {estimate.name} ({found.model} on {found.device}) products become "
        f"{found.gemm_speedup:.3f}× as fast{in_plugin}{guessed} and take {share:.0%} of the dense model's "
        "GPU time."
    )


def _print(result: Roi, assumptions: list[str]) -> None:
    out = console.out()
    requests = result.requests_per_month
    more = (">Per million requests",) if requests else ()
    table = console.table("", ">GPUs", ">Busy", ">Cost per month", *more)
    rows: list[tuple[str, Fleet]] = [("dense", result.dense), ("sparse", result.sparse)]
    for name, fleet in rows:
        each = fleet.cost_per_million_requests
        cells = (name, str(fleet.gpus), f"{fleet.utilisation:.0%}", f"{fleet.cost_per_month:,.2f}")
        table.add_row(*cells, *([_cost(each)] if each else []))
    out.print(table)
    if requests:
        out.print(f"\nEither serves {_plain(requests, 6)} requests per month.")
    saved = result.saved_per_month
    share = abs(saved) / result.dense.cost_per_month
    if saved > 0:
        out.print(f"\nSaved per month: {saved:,.2f} ({share:.1%})")
    elif saved < 0:
        out.print(f"\nSparse costs {-saved:,.2f} more per month ({share:.1%}).")
    else:
        out.print("\nNothing is saved: both need the same number of whole GPUs.")
    if result.one_off:
        months = result.break_even_months
        within = "less than 0.1" if months is not None and months < 0.1 else f"{months or 0:.1f}"
        when = "never saved" if months is None else f"saved after {within} months"
        out.print(f"The {result.one_off:,.2f} that pruning costs once are {when}.")
    out.print("\nAssumed:")
    for line in assumptions:
        out.print(f"  {line}")
