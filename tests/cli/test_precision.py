"""--precision auto, of `plan` and `build`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from tests.troubled import save_transformer

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

DIMS = ("--dim", "batch=1,2,2", "--dim", "seq=4,8,16")


def test_a_plan_shows_what_was_found_and_builds(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    path = save_transformer(models, "score")
    ended = sparseflow("plan", path, "--precision", "auto", *DIMS, "-o", "plan.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert "3 input set(s) drawn with seed 0" in ended.out
    assert "'b1.scores' reaches 1.0" in ended.out
    assert "everything in FP16" in ended.out
    assert "real ones may reach other ranges" in ended.out
    search = yaml.safe_load((own_folder / "plan.yaml").read_text())["search"]
    build = ("build", path, "--backend", "onnxruntime", "-o", "a")
    assert sparseflow(*build, "--plan", "plan.yaml").code == 0
    manifest = json.loads((own_folder / "a" / "manifest.json").read_text())
    assert manifest["precision_search"] == search


def test_a_build_searches_once(sparseflow: Sparseflow, models: Models, own_folder: Path) -> None:
    path = save_transformer(models, "score", layers=2)
    rng = np.random.default_rng(1)
    np.savez(own_folder / "real.npz", x=rng.standard_normal((2, 8, 32)).astype(np.float32))
    build = ("build", path, "--backend", "onnxruntime", "-o", "a", *DIMS, "--inputs", "real.npz")
    failed = sparseflow(*build, "--precision", "fp16")
    assert failed.code == 4
    assert "The first to overflow in FP16 is 'b1.scores' (MatMul)" in failed.out
    ended = sparseflow(*build, "--precision", "auto", "--json")
    assert (ended.code, ended.json["unchanged"]) == (0, False)
    search = ended.json["manifest"]["precision_search"]
    assert search["inputs"].startswith("1 input set(s) read from real.npz")
    assert ended.json["manifest"]["seconds"]["precision"] > 0
    again = sparseflow(*build, "--precision", "auto", "--json")
    assert (again.code, again.json["unchanged"]) == (0, True)


def test_a_plan_searches_as_the_build_does_that_it_is_for(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    """A layer's unpruned weights reach what FP16 does not hold, and one backend has BF16 for that."""
    unpruned = save_transformer(models, "norm", layers=2).rename(own_folder / "unpruned.onnx")
    model = onnx.load(unpruned)
    weight = next(w for w in model.graph.initializer if w.name == "b1.down.w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / np.float32(6e4), weight.name))
    onnx.save(model, own_folder / "pruned.onnx")
    plan = ("plan", "pruned.onnx", "--precision", "auto", *DIMS, "--json")

    def wide(*options: str) -> dict[str, str]:
        layers = sparseflow(*plan, *options).json["layers"]
        return {layer["name"]: layer["precision"] for layer in layers if layer["precision"] != "fp16"}

    assert wide("--backend", "tensorrt-rtx") == {}
    assert wide("--backend", "tensorrt-rtx", "--dense-model", "unpruned.onnx") == {"b1.down": "bf16"}
    both = ("--backend", "onnxruntime", "--dense-model", "unpruned.onnx")
    assert wide(*both) == {"b1.down": "fp32"}
    written = sparseflow(*plan[:-1], *both, "-o", "plan.yaml")
    told = "--plan plan.yaml --dense-model unpruned.onnx --backend onnxruntime"
    assert told in " ".join(written.out.split())
    built = sparseflow("build", "pruned.onnx", "--precision", "auto", *DIMS, *both, "-o", "a", "--json")
    search = yaml.safe_load((own_folder / "plan.yaml").read_text())["search"]
    assert built.json["manifest"]["precision_search"] == search


def test_the_command_that_a_plan_prints_compares_as_the_search_did(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    path = save_transformer(models, "score").rename(own_folder / "my model.onnx")
    given = ("--seed", "3", "--tolerance", "atol=1,rtol=1")
    ended = sparseflow("plan", path.name, "--precision", "auto", *DIMS, *given, "-o", "my plan.yaml")
    command = " ".join(ended.out.split()).partition("Build it with: ")[2]
    built = sparseflow(*shlex.split(command)[1:], "--backend", "onnxruntime", "-o", "a", "--json")
    assert built.code == 0
    command = built.json["manifest"]["command"]
    assert shlex.split(command)[2:9] == ["my model.onnx", "--plan", "my plan.yaml", *given]


@pytest.mark.parametrize(
    "option",
    [
        ("--inputs", "x.npz"),
        ("--seed", "1"),
        ("--tolerance", "atol=1"),
        ("--dense-model", "model.onnx"),
        ("--backend", "onnxruntime"),
    ],
)
def test_a_plan_that_runs_nothing_takes_no_inputs(
    sparseflow: Sparseflow, models: Models, option: tuple[str, str]
) -> None:
    path = models.matmul(np.eye(64, dtype=np.float32))
    ended = sparseflow("plan", path, "--dim", "batch=1", *option)
    assert ended.code == 2
    assert "--precision auto" in ended.err
