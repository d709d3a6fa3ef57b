"""The example workflow is one that GitHub reads, with real commands; the module to time is pruned 2:4."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sparseflow_trt.pytorch.torch_layers import find_layers
from sparseflow_trt.pytorch.torch_source import load_torch_model
from tests.commands import Ended, run_here
from tests.test_docs import write_model

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load((EXAMPLES / "regression_gate.yml").read_text(encoding="utf-8"))
    assert workflow[True] == {  # YAML 1.1 takes "on" for a truth value; GitHub does not
        "pull_request": {"paths": ["model.2to4.onnx", "model.baseline.json", "metrics.py"]}
    }
    (job,) = workflow["jobs"].values()
    assert job["runs-on"]
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_the_gate_holds_a_build_to_its_baseline(
    steps: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(command: str) -> Ended:
        program, *arguments = shlex.split(command)
        assert program == "sparseflow-trt"
        return run_here(monkeypatch, capfd, *arguments)

    monkeypatch.chdir(tmp_path)
    build, check = (step["run"] for step in steps if step.get("run", "").startswith("sparseflow-trt"))
    write_model(tmp_path / "model.onnx")
    shutil.copy(EXAMPLES / "metrics.py", tmp_path)
    rng = np.random.default_rng(0)
    sets: dict[str, Any] = {
        f"x@{i}": rng.standard_normal((rows, 8, 64)).astype(np.float32) for i, rows in enumerate((2, 4))
    }
    np.savez(tmp_path / "x.npz", **sets)
    create = (
        "baseline create new.artifact --inputs x.npz --metric metrics.py:separation --max-drop 0.01 "
        "-o model.baseline.json"
    )
    for command in (
        "sparseflow-trt prune model.onnx -o model.2to4.onnx",
        build,
        f"sparseflow-trt {create}",
        check,
    ):
        ended = run(command)
        assert ended.code == 0, f"{command}\n{ended.err}"
    assert "metrics.py:separation" in ended.out
    uploaded = steps[-1]["with"]["path"].split()
    assert all((tmp_path / name).is_file() for name in uploaded), "the workflow keeps what there is"
    build = build.replace("model.2to4.onnx", "model.onnx")  # a pull request that forgot to prune
    assert run(build).code == 0
    ended = run(check)
    assert ended.code == 4, ended.err
    assert "weights 2:4 in the baseline, now not 2:4." in ended.out


def test_the_llama_to_time_has_2to4_mlps_and_dense_attention() -> None:
    torch = pytest.importorskip("torch")
    model = load_torch_model(f"{EXAMPLES / 'pruned_llama.py'}:make_one_layer", device="cpu")
    assert model.shapes == "input_ids 1×1024"
    layers = {layer.name: layer.weight for layer in find_layers(model.module) if "layers." in layer.name}
    assert len(layers) == 7
    for name, weight in layers.items():
        kept = (weight.unflatten(1, (-1, 4)) != 0).sum(-1)
        assert weight.dtype == torch.float16
        assert bool((kept <= 2).all()) == (".mlp." in name)
