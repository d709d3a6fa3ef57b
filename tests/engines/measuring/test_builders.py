"""Several builders on one machine: real builds at once, in child processes, and one thread that times."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sparseflow_trt.engines.backends import child
from sparseflow_trt.engines.measuring.builders import Builders
from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request
from sparseflow_trt.engines.measuring.measurers import identify
from sparseflow_trt.engines.measuring.search import search
from sparseflow_trt.engines.measuring.single_products import plan_product, write_product
from sparseflow_trt.engines.measuring.turn import Turn
from sparseflow_trt.engines.protocol import BuildRequest
from sparseflow_trt.engines.tensorrt.api import version_of
from sparseflow_trt.errors import BuildError
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.policies.policy import Dtype, Library, Pair, Point

pytestmark = pytest.mark.skipif(version_of("tensorrt-rtx") is None, reason="TensorRT-RTX is not installed")

CURVE = Curve("tensorrt", "FP16", 128, 64, "gate_up")


class RtxMeasurer:
    """Builds as the TensorRT measurer does, with TensorRT-RTX, and has no GPU to time on."""

    library: Library = "tensorrt"

    def __init__(self) -> None:
        self.turn = Turn()
        self.at_once = 0  # the most builders that were seen at work while one thread timed
        self.timing = threading.Lock()
        self.wrong_m = 0

    def versions(self) -> dict[str, str]:
        return {"tensorrt-rtx": "1"}

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        return ""

    def measure(self, request: Request) -> Measured:
        curve = request.curve
        with self.turn.taken(), tempfile.TemporaryDirectory() as name:
            model = Path(name) / "model.onnx"
            drawn = np.random.default_rng(0).standard_normal((curve.k, curve.n))
            write_product(model, request, prune_2to4(drawn.astype(np.float16), 0))
            if request.m == self.wrong_m:
                model.write_bytes(b"")
            asked = BuildRequest(model, plan_product(request, "sparse"), Path(name), sparse=True)
            with self.turn.given_up():
                child.run_build("tensorrt-rtx", asked, Path(name) / "engine", lambda progress: None)
            with child.builders_stopped():
                assert self.timing.acquire(blocking=False)  # nobody else times
                self.at_once = max(self.at_once, len(child._building))
                time.sleep(0.05)
                self.timing.release()
        point = Point(
            kind=curve.kind, n=curve.n, k=curve.k, m=request.m, dtype=curve.dtype, library=curve.library,
            kernel="dense", us=10.0,
        )  # fmt: skip
        return Measured(request, Pair(point, point.model_copy(update={"kernel": "sparse"})), 0.0)


def measure_all(measurer: RtxMeasurer, sizes: tuple[int, ...], builders: int = 3) -> list[int]:
    """Measures these M and nothing more; the M in the order in which the answers came."""
    answered: list[int] = []
    with child.shared_child(), Builders(lambda: [measurer], identify, builders) as crew:
        search([CURVE], sizes, {}, crew, 0.02, 1, lambda answer: answered.append(answer.request.m))
    return answered


def test_engines_are_built_at_once_and_timed_one_at_a_time() -> None:
    measurer = RtxMeasurer()
    sizes = (8, 16, 24, 32, 40, 48)
    assert sorted(measure_all(measurer, sizes)) == list(sizes)
    assert measurer.at_once >= 1
    assert not child._building


def test_an_error_of_one_keeps_what_the_others_measure() -> None:
    measurer = RtxMeasurer()
    measurer.wrong_m = 16
    answered: list[int] = []
    with pytest.raises(BuildError), Builders(lambda: [measurer], identify, 3) as crew:
        search([CURVE], (8, 16, 24), {}, crew, 0.02, 1, lambda answer: answered.append(answer.request.m))
    assert sorted(answered) == [8, 24]


def test_leaving_it_ends_what_is_being_built() -> None:
    begun = time.monotonic()
    with Builders(lambda: [RtxMeasurer()], identify, 2) as crew:
        for m in (8, 16):
            crew.submit(Request(CURVE, m))
        while len(child._building) < 2:
            assert time.monotonic() < begun + 60
            time.sleep(0.01)
    assert not child._building
