"""sparseflow-trt plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.commands import Sparseflow


def test_headers_that_are_missing_are_named(sparseflow: Sparseflow, tmp_path: Path) -> None:
    ended = sparseflow("plugin", "build", "--tensorrt-include", str(tmp_path), "--json")
    assert ended.code == 6
    assert "is not installed" in ended.error or "no NvInferRuntime.h" in ended.error


def test_a_folder_that_is_none_is_a_mistake_in_usage(sparseflow: Sparseflow) -> None:
    assert sparseflow("plugin", "build", "--tensorrt-include", "/nowhere").code == 2


def test_help_says_where_the_headers_are(sparseflow: Sparseflow) -> None:
    ended = sparseflow("plugin", "build", "--help")
    assert ended.code == 0
    assert "github.com/NVIDIA/TensorRT" in " ".join(ended.out.split())
