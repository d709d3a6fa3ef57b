"""An artifact is opened for running only where it holds an engine, and the files that were written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sparseflow_trt.building.loading import open_artifact
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.backends.choose import BackendName
from sparseflow_trt.engines.machine.hardware import NO_GPU, Gpu, find_gpus
from sparseflow_trt.errors import ArtifactError, BuildError, SparseflowError
from sparseflow_trt.pipeline import BuildOptions, build

if TYPE_CHECKING:
    from tests.conftest import Models

L4 = Gpu("L4", "8.9", 1, 1, True, "13.0")


def built(models: Models, folder: Path, backend: BackendName) -> Path:
    path = models.matmul(np.ones((64, 32), np.float32))
    plan = PlanOptions(axes={"batch": (1, 4, 8)})
    return build(path, BuildOptions(folder / "made", plan, backend)).artifact


def test_a_model_of_onnx_runtime_says_how_it_is_opened(models: Models, tmp_path: Path) -> None:
    folder = built(models, tmp_path, "onnxruntime")
    with pytest.raises(ArtifactError, match="holds an ONNX Runtime model, not an engine") as caught:
        open_artifact(folder)
    assert f"InferenceSession('{folder / 'model.ort.onnx'}')" in caught.value.hint


def test_an_engine_that_was_changed_is_not_opened(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    folder = built(models, tmp_path, "tensorrt-rtx")
    engine = folder / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0\0")
    if not find_gpus():
        with pytest.raises(BuildError, match=NO_GPU):  # what takes no time is asked before files are read
            open_artifact(folder)
    monkeypatch.setattr("sparseflow_trt.building.loading.find_gpus", lambda: (L4,))
    with pytest.raises(ArtifactError, match=r"model\.engine"):
        open_artifact(folder)


@pytest.mark.skipif(bool(find_gpus()), reason="tests/gpu opens engines where there is a GPU")
def test_what_an_engine_of_rtx_needs_to_run_is_said(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    folder = built(models, tmp_path, "tensorrt-rtx")
    with pytest.raises(BuildError, match=f"A TensorRT-RTX engine needs a GPU to run, and {NO_GPU}") as caught:
        open_artifact(folder)
    assert caught.value.hint.startswith("It is for NVIDIA GPUs of compute capability 8.0, ")
    monkeypatch.setattr("sparseflow_trt.building.loading.find_gpus", lambda: (L4,))
    with pytest.raises(SparseflowError) as lacking:  # as far as one gets with no CUDA
        open_artifact(folder)
    assert lacking.value.hint in ("pip install 'cuda-bindings>=12.6'", "Look at `sparseflow-trt doctor`.")
