"""Inputs and outputs as TensorRT's releases have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseflow_trt.artifacts.manifest import EngineRecord
from sparseflow_trt.exporters.triton.tensors import read_ends
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.serving.engine_ends import ends_of_engine
from tests.serving.conftest import write_model_of_ids


def record(backend: str, version: str) -> EngineRecord:
    return EngineRecord(
        file="model.engine", backend=backend, chosen_because="",
        versions={backend: version} if version else {}, device="", build_seconds=0.0,
        runs_here="", sparse_tactics="", notes=(), layers=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "version", "kind"),
    [
        ("tensorrt", "8.6.1", "INT32"),
        ("tensorrt", "8.6.1.post1", "INT32"),
        ("tensorrt", "10.0.1", "INT64"),
        ("tensorrt", "11.4.0.106", "INT64"),
        ("tensorrt", "", "INT64"),
        ("tensorrt-rtx", "1.7.1.116", "INT64"),
        ("onnxruntime", "1.31.1", "INT64"),
    ],
)
def test_only_tensorrt_8_has_no_int64(tmp_path: Path, backend: str, version: str, kind: str) -> None:
    ends = ends_of_engine(
        read_ends(read_model(write_model_of_ids(tmp_path / "m.onnx"))), record(backend, version)
    )
    assert [(t.name, t.type) for t in (*ends.inputs, *ends.outputs)] == [
        ("ids", kind), ("y", "FP32"), ("best", kind),
    ]  # fmt: skip
    assert ends.inputs[0].dims == ("batch", "seq")
