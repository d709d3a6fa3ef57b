"""One model as the configuration's tests see it: two profiles, a float and an integer input."""

from __future__ import annotations

from typing import Any

from sparseflow_trt.exporters.triton.batching import choose_batching
from sparseflow_trt.exporters.triton.config import ServedModel
from sparseflow_trt.exporters.triton.tensors import Ends, ServedTensor
from sparseflow_trt.plans.shapes import Profile, ShapeRange

ENDS = Ends(
    (ServedTensor("x", "FP32", ("batch", "seq", 16)), ServedTensor("ids", "INT64", ("batch",))),
    (ServedTensor("y", "FP16", ("batch", 4)),),
)


def shapes(batch: int, seq: int) -> dict[str, tuple[int, ...]]:
    return {"x": (batch, seq, 16), "ids": (batch,)}


def profile(name: str, low: tuple[int, int], opt: tuple[int, int], high: tuple[int, int]) -> Profile:
    points = [shapes(*point) for point in (low, opt, high)]
    return Profile(
        name=name,
        inputs={n: ShapeRange(min=points[0][n], opt=points[1][n], max=points[2][n]) for n in ("x", "ids")},
    )


PROFILES = (profile("short", (1, 1), (4, 8), (8, 32)), profile("long", (1, 33), (2, 64), (8, 128)))
BATCHING = choose_batching(ENDS, PROFILES, sparse_from={"short": 4, "long": 2})


def served(**changes: Any) -> ServedModel:
    """The model, on TensorRT's backend unless it is said otherwise."""
    known: dict[str, Any] = {
        "name": "m", "route": "tensorrt_plan", "device": "gpu", "ends": ENDS, "profiles": PROFILES,
        "batching": BATCHING, "md5": {"3/model.plan": "0" * 32},
    }  # fmt: skip
    return ServedModel(**{**known, **changes})
