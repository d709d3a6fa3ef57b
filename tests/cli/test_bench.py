"""bench, as far as a machine without a GPU goes: what it refuses, in words."""

from __future__ import annotations

from typing import Any


def test_only_tensorrt_engines_are_timed(sparseflow: Any, mlp: Any) -> None:
    made = sparseflow("build", mlp(), "-o", "made", "--dim", "batch=1,2,4", "--backend", "onnxruntime")
    assert made.code == 0, made.err
    assert sparseflow("bench", "made").error == (
        "made holds an engine of onnxruntime; only TensorRT's are timed."
    )


def test_a_folder_that_is_no_artifact_is_refused(sparseflow: Any) -> None:
    assert sparseflow("bench", "nowhere").error.startswith("nowhere is no artifact")
