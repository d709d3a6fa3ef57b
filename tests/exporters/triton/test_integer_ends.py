"""Models with the integers that TensorRT 8.6's engines have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.exporters.triton.integer_ends import narrow_integers
from sparseflow_trt.model.model_file import read_model
from tests.serving.conftest import write_model_of_ids


def test_a_narrowed_model_computes_the_same(tmp_path: Path) -> None:
    path = write_model_of_ids(tmp_path / "m.onnx")
    model = read_model(path)
    narrow_integers(model)
    save_model(model.ir, tmp_path / "narrow.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "narrow.onnx"), full_check=True)
    ids = np.arange(12).reshape(3, 4)
    wide, narrow = (
        ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"ids": ids.astype(kind)})
        for file, kind in ((path, np.int64), (tmp_path / "narrow.onnx", np.int32))
    )
    assert [array.dtype for array in narrow] == [np.float32, np.int32]
    for ours, theirs in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(ours, theirs)
