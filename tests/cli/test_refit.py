"""sparseflow-trt refit, and the options of `build` that it belongs to, as far as they go without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.commands import Sparseflow

pytestmark = pytest.mark.usefixtures("one_builder")

MakeModel = Callable[..., Path]

RTX = ("--backend", "tensorrt-rtx")
BATCH = ("--dim", "batch=1,4,8")


def test_an_artifact_that_cannot_be_refitted(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    sparseflow("build", mlp(), *BATCH, *RTX)
    ended = sparseflow("refit", "model.artifact", mlp("other.onnx", seed=1))
    assert (ended.code, "holds an engine of tensorrt-rtx" in ended.error) == (1, True)
    assert not (own_folder / "other.artifact").exists()
    assert "not an artifact" in sparseflow("refit", ".", mlp(), "--json").error


@pytest.mark.parametrize("option", ["--refit", "--strip-plan"])
def test_rtx_without_a_gpu_says_that_it_needs_one(
    sparseflow: Sparseflow, mlp: MakeModel, option: str, left: Callable[[Path], list[str]], own_folder: Path
) -> None:
    ended = sparseflow("build", mlp(), *BATCH, *RTX, option)
    assert (ended.code, "only where it finds a GPU of its own" in ended.error) == (1, True)
    assert left(own_folder) == ["model.onnx"]


def test_the_tactics_of_an_artifact_are_compared(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    sparseflow("build", mlp(), *BATCH, *RTX)
    again = ("build", mlp(), *BATCH, *RTX, "--like", "model.artifact", "-o", "again")
    ended = sparseflow(*again)
    assert ended.code == 0
    assert "model.artifact reports no tactics" in ended.out, "a stub is none"
    assert sparseflow(*again, "--json").json["unchanged"] is True
    other = sparseflow("build", mlp(), *BATCH, *RTX, "--like", "model.artifact", "--precision", "fp32").out
    assert "reports no tactics" in other
    assert sparseflow(*again, "--json").json["unchanged"] is False, "it is another build that it is like now"


def test_an_artifact_of_another_backend_cannot_be_asked(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    sparseflow("build", mlp(), *BATCH, "--backend", "onnxruntime")
    ended = sparseflow("build", mlp(), *BATCH, *RTX, "--like", "model.artifact")
    assert "its backend is onnxruntime, and this is tensorrt-rtx" in ended.error
    assert "is no artifact" in sparseflow("build", mlp(), *BATCH, *RTX, "--like", "nowhere").error


def test_like_and_a_timing_cache_exclude_each_other(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("build", mlp(), *BATCH, "--like", "a", "--timing-cache", "b")
    assert (ended.code, "leave out --timing-cache" in ended.error) == (2, True)


def test_onnx_runtime_ignores_them(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("build", mlp(), *BATCH, "--backend", "onnxruntime", "--refit", "--strip-plan")
    assert (ended.code, "ignores them: --refit, --strip-plan." in ended.out) == (0, True)
