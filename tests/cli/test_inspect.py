"""sparseflow-trt inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

if TYPE_CHECKING:
    from tests.cli.conftest import Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]


def test_a_table_with_the_reasons(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("inspect", mlp())
    assert (ended.code, ended.err) == (3, "")
    up, down = (line.split() for line in ended.out.splitlines()[1:3])
    assert up == ["up_proj", "gate_up", "MatMul", "batch", "128", "64", "FP32", "0", "sparse"]
    assert down[:9] == ["down_proj", "down", "MatMul", "batch", "32", "128", "FP32", "0", "not-sparse"]
    assert "100% of the groups, first at [0, 0]" in ended.out
    assert "1 sparse, 1 not sparse, 0 not eligible" in ended.out
    assert "sparseflow-trt prune" in ended.out
    assert ended.out.endswith("\nInput 'x': float32 [batch, 64]\n")


def test_a_narrow_terminal_breaks_no_word_of_a_fixed_list(
    sparseflow: Sparseflow, mlp: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = sparseflow("inspect", mlp())
    assert " not-sparse " in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_json_also_with_exit_code_3(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("inspect", mlp(), "--json")
    assert (ended.code, ended.err) == (3, "")
    found = ended.json
    assert found["summary"] == {"sparse": 1, "not-sparse": 1, "not-eligible": 0}
    assert found["all_eligible_sparse"] is False
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "dims": ["batch", 64]}]
    up, down = found["layers"]
    assert (up["name"], up["m"], up["n"], up["k"], up["k_axes"], up["state"]) == (
        "up_proj", "batch", 128, 64, [0], "sparse"
    )  # fmt: skip
    assert (down["groups"], down["violating_groups"], down["first_violation"]) == (1024, 1024, [0, 0])
    assert up["mask_sha256"]


def test_exit_code_0_where_all_is_sparse(sparseflow: Sparseflow, models: Models) -> None:
    ended = sparseflow("inspect", models.matmul(np.eye(64, 32, dtype=np.float32)))
    assert ended.code == 0
    assert "prune" not in ended.out


def test_products_of_activations_are_shown_when_asked_for(sparseflow: Sparseflow, models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="[bold]square[/bold]")
    path = models.save(models.model([node], inputs={"x": (64, 64)}))
    hidden = sparseflow("inspect", path)
    assert hidden.code == 0
    assert "square" not in hidden.out
    assert "1 of them products with no constant weight: --all lists them" in hidden.out
    assert "[bold]square[/bold]" in sparseflow("inspect", path, "--all").out, "names are no markup"
