"""autotune on two GPUs of a Ray cluster against one without Ray: the same thresholds, and how much faster.

    python benchmarks/ray_two_gpus.py [--preset tinyllama] [--preset bert-base] [--dtype bf16]

Needs two GPUs, a PyTorch with cuSPARSELt, and Ray. Run it from a folder that holds no sparseflow_trt: Ray
puts the current one on its workers' path. Both runs measure the same products and M from the beginning. Not
timed are the start of Ray and of its workers, and a first product of each process, which loads CUDA's
libraries. Writes results/ray_two_gpus.json.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import write_result

from sparseflow_trt._deps import version_of
from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.measurers import Crew, InTurn, identify, make_measurers
from sparseflow_trt.engines.measuring.medians import Effort
from sparseflow_trt.engines.measuring.ray_workers import RayWorkers
from sparseflow_trt.engines.measuring.search import RESOLUTION
from sparseflow_trt.policies.policy import Dtype, Pair, Threshold
from sparseflow_trt.policies.presets import PRESETS
from sparseflow_trt.tuning import Space, Tuned, autotune, products_of

GRID = (1, 16, 64, 256, 1024, 4096)


def main() -> None:
    """Tunes twice and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", action="append", choices=PRESETS)
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="bf16")
    asked = parser.parse_args()
    presets = asked.preset or ["tinyllama", "bert-base"]
    dtype: Dtype = asked.dtype.upper()
    space = Space(products_of((), presets), (dtype,), GRID)
    make = functools.partial(make_measurers, ("torch",), Effort())
    with tempfile.TemporaryDirectory() as name:
        one = tune(space, InTurn(make(), identify), Path(name) / "one.json")
        begun = time.monotonic()
        with RayWorkers(make, count=2) as workers:
            started = time.monotonic() - begun
            if workers.count < 2:
                raise SystemExit("one of the two GPUs is in use by others")
            two = tune(space, workers, Path(name) / "two.json")
    limits = compare(one, two)
    speedup = rate(two) / rate(one)
    figures = {
        "device": one.policy.device,
        "libraries": {**one.policy.libraries, "ray": version_of("ray")},
        "presets": presets,
        "dtype": dtype,
        "grid": GRID,
        "one GPU": described(one),
        "two GPUs": described(two),
        "seconds to start Ray and its workers, not counted": round(started, 1),
        "points a minute, two over one": round(speedup, 3),
        "at least 1.8": speedup >= 1.8,
        "thresholds": limits,
        "thresholds agree": all(row["agree"] for row in limits),
        "speedups at common M": spread(one, two),
    }
    write_result("ray_two_gpus", figures)


def tune(space: Space, crew: Crew, output: Path) -> Tuned:
    """One run, after a product that does not count on each GPU."""
    first = Request(Curve("torch", space.dtypes[0], 1024, 1024, "other"), 64)
    for _ in range(crew.count):
        crew.submit(first)
    for _ in range(crew.count):
        crew.next_measured()
    return autotune(space, crew, output)


def rate(tuned: Tuned) -> float:
    """Points a minute: two for each product and M."""
    return 2 * tuned.measured_now / tuned.seconds * 60


def described(tuned: Tuned) -> dict[str, Any]:
    """A run in figures."""
    return {
        "points": 2 * tuned.measured_now,
        "seconds": round(tuned.seconds, 2),
        "points a minute": round(rate(tuned), 1),
        "crossovers": len(tuned.crossovers),
        "clocks": tuned.policy.clocks,
    }


def compare(one: Tuned, two: Tuned) -> list[dict[str, Any]]:
    """Each kind's threshold in both runs, and whether they agree within the intervals of the medians.

    They agree where their ends are no farther apart than crossovers are told (5 %, or a step of 8), or where
    at each M that only one of them takes some product was too close to tell, in each run that measured it:
    the interval of its speedup holds 1 + margin.
    """
    rows = []
    for mine, other in zip(one.policy.thresholds, two.policy.thresholds, strict=True):
        differ = sorted(m for m in measured_sizes(one, two, mine) if mine.holds(m) != other.holds(m))
        rows.append(
            {
                "kind": mine.kind,
                "one": [mine.min_m, mine.max_m],
                "two": [other.min_m, other.max_m],
                "differ at M": differ,
                "agree": (close(mine.min_m, other.min_m) and close(mine.max_m, other.max_m))
                or all(undecided(run, mine, m) for m in differ for run in (one, two)),
            }
        )
    return rows


def close(one: int | None, other: int | None) -> bool:
    """Whether two ends of thresholds are as close as crossovers are told."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= max(8, RESOLUTION * min(one, other))


def measured_sizes(one: Tuned, two: Tuned, limit: Threshold) -> set[int]:
    """The M of a threshold's kind that either run measured."""
    return {p.m for run in (one, two) for p in run.policy.points if p.kind == limit.kind}


def undecided(run: Tuned, limit: Threshold, m: int) -> bool:
    """Whether at M some product of the kind was too close to tell, or M was not measured in this run."""
    pairs = [pair for (kind, _, _, at), pair in pairs_of(run).items() if (kind, at) == (limit.kind, m)]
    needed = 1 + run.policy.margin
    return not pairs or any(low <= needed <= high for low, high in map(interval, pairs))


def pairs_of(run: Tuned) -> dict[tuple[str, int, int, int], Pair]:
    """A run's pairs by kind, N, K and M."""
    points = {(p.kind, p.n, p.k, p.m, p.kernel): p for p in run.policy.points}
    return {
        (kind, n, k, m): Pair(point, points[kind, n, k, m, "sparse"])
        for (kind, n, k, m, kernel), point in points.items()
        if kernel == "dense"
    }


def interval(pair: Pair) -> tuple[float, float]:
    """Where the speedup lies, by the ends of both medians' intervals."""
    dense, sparse = pair.dense, pair.sparse
    assert dense.low_us and dense.high_us and sparse.low_us and sparse.high_us
    return dense.low_us / sparse.high_us, dense.high_us / sparse.low_us


def spread(one: Tuned, two: Tuned) -> dict[str, float]:
    """How far the speedups of the two runs are apart, as shares, over the M that both measured."""
    mine, other = pairs_of(one), pairs_of(two)
    shares = sorted(abs(other[key].speedup / mine[key].speedup - 1) for key in mine.keys() & other.keys())
    return {
        "common": len(shares),
        "median difference": round(shares[len(shares) // 2], 4),
        "largest difference": round(shares[-1], 4),
    }


if __name__ == "__main__":
    main()
