"""Which engines and inputs an artifact's timing is made of; the times themselves need a GPU (tests/gpu)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.building.loading import EngineFile
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.building.timing import time_artifacts
from sparseflow_trt.engines.running.benchmark import Ratio, Timing
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.validation.feeds import InputSet

if TYPE_CHECKING:
    from tests.conftest import Models


@pytest.fixture
def artifact(models: Models, tmp_path: Path) -> Callable[..., Path]:
    """Builds an artifact of batches of 1 to 8, whose manifest then says that its engine is TensorRT's."""

    def make(name: str, **options: Any) -> Path:
        path = models.matmul(np.ones((64, 32), np.float32))
        plan = PlanOptions(axes={"batch": (1, 4, 8)})
        folder = build(path, BuildOptions(tmp_path / name, plan, "onnxruntime")).artifact
        data = json.loads((folder / "manifest.json").read_text())
        data["engine"] |= {"backend": "tensorrt", "options": options}
        (folder / "manifest.json").write_text(json.dumps(data))
        return folder

    return make


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[EngineFile]:
    """The engines that were given to be timed: the first takes 1 ms, the second 2, and so on."""
    seen: list[EngineFile] = []

    def time(
        files: Sequence[EngineFile], inputs: Sequence[InputSet], rounds: int, launches: int, *_: object
    ) -> list[tuple[Timing, ...]]:
        seen.extend(files)
        each = tuple(Timing((ms,) * rounds, ms, ms, ms, rounds * launches) for ms in map(float, (1, 2)))
        return [each[: len(files)] for _ in inputs]

    monkeypatch.setattr("sparseflow_trt.building.timing.time_engines", time)
    return seen


def test_one_artifact_is_timed_at_min_opt_and_max(
    artifact: Callable[..., Path], files: list[EngineFile]
) -> None:
    folder = artifact("one")
    rows = time_artifacts(folder, None, 3, 5)
    assert [row.shapes for row in rows] == [
        "default:min: x 1×64", "default:opt: x 4×64", "default:max: x 8×64"
    ]  # fmt: skip
    assert [(row.timing.p50, row.timing.launches, row.against, row.speedup) for row in rows] == [
        (1, 15, None, None)
    ] * 3
    assert files == [EngineFile(folder / "model.ort.onnx", host_code=False)]


def test_an_empty_cache_is_timed_with_one_entry_and_the_row_says_so(
    models: Models, tmp_path: Path, files: list[EngineFile]
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["new"], name="k_proj"),
        helper.make_node("Concat", ["past_key", "new"], ["all"], name="cache", axis=1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="widen"),
        helper.make_node("Mul", ["all", "wide"], ["y"], name="masked"),
    ]
    inputs = {
        "x": ("batch", "seq", 32), "past_key": ("batch", "past", 32), "mask": ("batch", "past + seq")
    }  # fmt: skip
    weights = {"w": np.ones((32, 32), np.float32), "last": np.array([-1])}
    path = models.save(models.model(nodes, weights, inputs), "cache.onnx")
    axes = {"batch": (1, 2, 4), "seq": (1, 1, 8), "past": (0, 8, 16)}
    folder = build(path, BuildOptions(tmp_path / "cache", PlanOptions(axes=axes), "onnxruntime")).artifact
    data = json.loads((folder / "manifest.json").read_text())
    data["engine"] |= {"backend": "tensorrt"}
    (folder / "manifest.json").write_text(json.dumps(data))
    rows = time_artifacts(folder, None, 1, 1)
    assert [row.shapes for row in rows] == [
        "default:min, not empty: x 1×1×32, past_key 1×1×32, mask 1×2",
        "default:opt: x 2×1×32, past_key 2×8×32, mask 2×9",
        "default:max: x 4×8×32, past_key 4×16×32, mask 4×24",
    ]


def test_the_others_time_over_the_firsts_is_the_speedup(
    artifact: Callable[..., Path], files: list[EngineFile]
) -> None:
    one, other = artifact("one"), artifact("other", version_compatible=True)
    for row in time_artifacts(one, other, 3, 5):
        assert row.against is not None
        assert (row.timing.p50, row.against.p50, row.speedup) == (1, 2, Ratio(2, 2, 2))
    assert files == [
        EngineFile(one / "model.ort.onnx", host_code=False),
        EngineFile(other / "model.ort.onnx", host_code=True),
    ]


def test_a_stripped_engine_gets_the_artifacts_weights(
    artifact: Callable[..., Path], files: list[EngineFile]
) -> None:
    folder = artifact("one", strip_plan=True)
    time_artifacts(folder, None, 3, 5)
    assert files == [EngineFile(folder / "model.ort.onnx", False, folder / "model.onnx")]


def test_a_changed_engine_is_not_timed(artifact: Callable[..., Path], files: list[EngineFile]) -> None:
    one, other = artifact("one"), artifact("other")
    (other / "model.ort.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is not the file that was built"):
        time_artifacts(one, other, 3, 5)
    assert files == []
