"""Builds small models with ONNX Runtime, for the tests of whole builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.backends.choose import BackendName
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, BuildResult, build
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.validation.tolerances import parse_tolerances

if TYPE_CHECKING:
    from tests.conftest import Array, Models


FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


BATCH = PlanOptions(axes={"batch": (1, 4, 8)})


IMPOSSIBLE = ValidationOptions(tolerances=parse_tolerances(["atol=0,rtol=0,cosine=1"]))


Run = Callable[..., BuildResult]


def dense_weight(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return np.asarray(values, np.float32)


def sparse_weight(*shape: int, seed: int = 0) -> Array:
    return prune_2to4(dense_weight(*shape, seed=seed), 0)


def make_mlp(models: Models, dtype: Any = np.float32) -> onnx.ModelProto:
    """x (batch, 64) through up, Relu and down; up is 2:4."""
    types = {"float32": FLOAT, "float16": HALF, "bfloat16": BRAIN}
    return models.model(
        [
            helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
            helper.make_node("Relu", ["a"], ["b"], name="act"),
            helper.make_node("MatMul", ["b", "down"], ["y"], name="down_proj"),
        ],
        {"up": sparse_weight(64, 128).astype(dtype), "down": dense_weight(128, 32).astype(dtype)},
        dtype=types[np.dtype(dtype).name],
    )


def builder_in(folder: Path) -> Run:
    """Builds a model with ONNX Runtime, which is the quicker backend, and batches of 1 to 8, into `out`."""

    def build_it(
        path: Path,
        plan: Plan | PlanOptions = BATCH,
        backend: BackendName = "onnxruntime",
        output: Path | None = None,
        **options: Any,
    ) -> BuildResult:
        return build(path, BuildOptions(output or folder / "out", plan, backend, **options))

    return build_it
