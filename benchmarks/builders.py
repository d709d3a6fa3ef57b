"""autotune with several builders of TensorRT engines against one: how much faster, and whether results agree.

    python benchmarks/builders.py [--preset tinyllama] [--m 64 1024] [--builders 4 1 8 1]

Needs a GPU, TensorRT and cuda-bindings. Each run measures the same products and M from the beginning, in
FP16, with builders of its own, whose start counts. Two runs with the same number of builders tell what
differs from run to run anyway. Writes results/builders.json.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import resource
import shlex
import statistics
import sys
import time
from typing import Any

from measure import write_result

from sparseflow_trt.engines.backends.child import shared_child
from sparseflow_trt.engines.measuring.builders import Builders
from sparseflow_trt.engines.measuring.curves import Measured, Request, curves_of
from sparseflow_trt.engines.measuring.measurers import identify, make_measurers
from sparseflow_trt.engines.measuring.medians import Effort
from sparseflow_trt.engines.measuring.search import search
from sparseflow_trt.policies.presets import PRESETS
from sparseflow_trt.tuning import products_of

NO_CROSSOVERS = 1e9  # as a margin: nothing wins, so that the grid alone is measured

Answers = dict[Request, Measured]


def main() -> None:
    """Measures with each number of builders and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="tinyllama")
    parser.add_argument("--m", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--builders", nargs="+", type=int, default=[4, 1, 8, 1])
    asked = parser.parse_args()
    done: list[tuple[dict[str, Any], Answers]] = []
    for count in asked.builders:
        done.append(run(asked.preset, asked.m, count))
        print(done[-1][0], flush=True)
    figures = {
        "preset": asked.preset,
        "m": asked.m,
        "runs": [figures for figures, _ in done],
        "compared": [
            {"builders": [one[0]["builders"], other[0]["builders"]], **compare(one[1], other[1])}
            for one, other in itertools.combinations(done, 2)
        ],
        "products": [
            {
                "n": request.curve.n,
                "k": request.curve.k,
                "m": request.m,
                "dense_us": [answers[request].counted.dense.us for _, answers in done],
                "sparse_us": [answers[request].counted.sparse.us for _, answers in done],
                "took": [answers[request].pair.sparse.tactic for _, answers in done],
                "seconds": [answers[request].seconds for _, answers in done],
            }
            for request in done[0][1]
        ],
    }
    write_result("builders", figures, shlex.join(["python", "benchmarks/builders.py", *sys.argv[1:]]))


def run(preset: str, sizes: list[int], count: int) -> tuple[dict[str, Any], Answers]:
    """One run in figures, and its answers."""
    curves = curves_of(products_of((), [preset]), ("FP16",), ("tensorrt",))
    answers: Answers = {}

    def remember(answer: Measured) -> None:
        answers[answer.request] = answer

    make = functools.partial(make_measurers, ("tensorrt",), Effort())
    begun, spent = time.monotonic(), processor_seconds()
    with shared_child(), Builders(make, identify, count) as crew:
        search(curves, sorted(sizes), {}, crew, NO_CROSSOVERS, 1, remember)
        seconds = time.monotonic() - begun
    figures = {
        "builders": count,
        "products": len(answers),
        "seconds": round(seconds, 1),
        "products a minute": round(len(answers) / seconds * 60, 2),
        "processors in use, in builders": round((processor_seconds() - spent) / seconds, 2),
    }
    return figures, answers


def processor_seconds() -> float:
    """Of the child processes that have ended: the builders' once their run is over."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(one: Answers, other: Answers) -> dict[str, Any]:
    """How far two runs are apart: each product's dense time and speedup, as shares, and its tactic."""
    common = [(one[request], other[request]) for request in one]
    times = [abs(b.counted.dense.us / a.counted.dense.us - 1) for a, b in common]
    speedups = [abs(b.counted.speedup / a.counted.speedup - 1) for a, b in common]
    return {
        "same tactic": sum(name(a) == name(b) for a, b in common),
        "products": len(common),
        "dense time, median difference": round(statistics.median(times), 4),
        "dense time, largest difference": round(max(times), 4),
        "speedup, median difference": round(statistics.median(speedups), 4),
        "speedup, largest difference": round(max(speedups), 4),
        "sparse engines, geometric mean of the second's time over the first's": round(
            statistics.geometric_mean(b.counted.sparse.us / a.counted.sparse.us for a, b in common), 4
        ),
    }


def name(answer: Measured) -> str:
    """The tactic that the engine with sparse weights allowed took, without the builder's times."""
    return answer.pair.sparse.tactic.partition(" (")[0]


if __name__ == "__main__":
    main()
