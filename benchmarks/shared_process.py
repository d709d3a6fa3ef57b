"""The time of builds that share a process, as `autotune`'s do, against builds with a process each.

    python benchmarks/shared_process.py [--rounds 3] [--builds 3] [--backend tensorrt]

A build is that of one product with 2:4 weights, TinyLlama's gate in FP16, sparse weights enabled, each at
another M. A round makes the same builds both ways, each round beginning with the other one. Writes
results/shared_process.json after each round.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import summary, write_result

from sparseflow_trt.engines.backends.child import run_build, shared_child
from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.single_products import plan_product, write_product
from sparseflow_trt.engines.protocol import BuildRequest
from sparseflow_trt.model.pattern import prune_2to4

CURVE = Curve("tensorrt", "FP16", 5632, 2048, "gate_up")
FIRST_M, STEP = 256, 8
WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "a process each": contextlib.nullcontext,
    "one process": shared_child,
}


def main() -> None:
    """Times the builds and writes results/shared_process.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--backend", default="tensorrt", help="tensorrt-rtx, to try this script")
    asked = parser.parse_args()
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    first: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        requests = requests_in(Path(place), asked.builds)
        for number in range(asked.rounds):
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                seconds = times_of(requests, way, asked.backend)
                whole[way].append(sum(seconds))
                first[way].append(seconds[0])
            ratios = [each / one for each, one in zip(*whole.values(), strict=True)]
            figures = {
                "product": {"n": CURVE.n, "k": CURVE.k, "dtype": CURVE.dtype, "m": [FIRST_M, STEP]},
                "builds": asked.builds,
                "seconds of all builds": {way: summary(values) for way, values in whole.items()},
                "seconds of the first": {way: summary(values) for way, values in first.items()},
                "a process each over one": summary(ratios),
            }
            command = f"python benchmarks/shared_process.py --rounds {asked.rounds} --builds {asked.builds}"
            write_result("shared_process", figures, command, show=number + 1 == asked.rounds)


def requests_in(folder: Path, count: int) -> list[BuildRequest]:
    """What to build: the product at `count` M, each in a folder of its own."""
    drawn = np.random.default_rng(0).standard_normal((CURVE.k, CURVE.n), dtype=np.float32)
    weight = prune_2to4((drawn * CURVE.k**-0.5).astype(np.float16), 0)
    requests = []
    for m in range(FIRST_M, FIRST_M + count * STEP, STEP):
        place = folder / str(m)
        place.mkdir()
        request = Request(CURVE, m)
        write_product(place / "model.onnx", request, weight)
        requests.append(BuildRequest(place / "model.onnx", plan_product(request, "sparse"), place, True))
    return requests


def times_of(requests: list[BuildRequest], way: str, backend: str) -> list[float]:
    """Seconds of wall time of each build."""
    seconds = []
    with WAYS[way]():
        for request in requests:
            started = time.perf_counter()
            run_build(backend, request, request.folder / "model.engine", lambda progress: None)
            seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
