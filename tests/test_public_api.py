"""What programs import from `sparseflow_trt`: type checkers know all of it, and unasked it costs nothing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import sparseflow_trt
from sparseflow_trt.gates.baseline import json_from_baseline
from sparseflow_trt.model.pattern import is_2to4
from tests.test_docs import ROOT, write_model

DOCUMENTED = sorted(sparseflow_trt._HOME)


def test_type_checkers_know_the_names_that_are_there() -> None:
    tree = ast.parse(Path(sparseflow_trt.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: f"{line.module}.{alias.name}"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert typed == {name: f"sparseflow_trt.{home}.{name}" for name, home in sparseflow_trt._HOME.items()}
    for name, home in sparseflow_trt._HOME.items():
        assert getattr(sparseflow_trt, name) is getattr(sys.modules[f"sparseflow_trt.{home}"], name)
        assert name in dir(sparseflow_trt)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'forge'"):
        sparseflow_trt.forge  # noqa: B018


def test_no_name_hides_a_module() -> None:
    """`sparseflow_trt.NAME` would be one or the other, by what was imported before."""
    there = {path.stem for path in Path(sparseflow_trt.__file__).parent.iterdir()} | {"exporters", "engines"}
    assert not there & sparseflow_trt._HOME.keys()


def test_the_import_needs_and_loads_nothing() -> None:
    code = "import sys, sparseflow_trt; print(sparseflow_trt.__version__, *sys.modules)"
    given, *loaded = subprocess.check_output((sys.executable, "-c", code), text=True).split()
    assert given == version("sparseflow-trt")
    assert not {"numpy", "onnx", "click", "pydantic", "torch"} & set(loaded)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.DOTALL)


def test_the_readme_s_program_runs(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    (block,) = python_blocks("README.md")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, _, built, *planned = done.stdout.splitlines()
    assert before.startswith("up_proj gate_up 256 64 FP32 not-sparse 100% of 4096 groups")
    assert built == "model.artifact pass"
    assert [line.split(" profile")[0] for line in planned] == ["up_proj sparse", "down_proj sparse"]


def test_functions_and_options_take_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DOCUMENTED:
        for one in inspect.signature(getattr(sparseflow_trt, name)).parameters.values():
            plain = "Path" in re.findall(r"\w+", str(one.annotation))
            result = dataclasses.is_dataclass(getattr(sparseflow_trt, name)) and not name.endswith("Options")
            assert not plain or result, (name, one)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.onnx")
    layers = sparseflow_trt.read_layers(sparseflow_trt.read_model("model.onnx"))
    assert [layer.name for layer in layers] == ["up_proj", "down_proj"]
    engine = sparseflow_trt.EngineOptions(timing_cache="cache", like="other")
    assert (engine.timing_cache, engine.like) == (Path("cache"), Path("other"))
    assert sparseflow_trt.EngineOptions().like is None
    plan = sparseflow_trt.PlanOptions(axes={"batch": (1, 2, 4), "seq": (8, 8, 8)})
    options = sparseflow_trt.BuildOptions("artifact", plan, "onnxruntime")
    assert sparseflow_trt.build("model.onnx", options).artifact.resolve() == tmp_path / "artifact"
    assert sparseflow_trt.read_manifest("artifact").status == "pass"
    compared = sparseflow_trt.BaselineOptions("model.onnx")
    made, _ = sparseflow_trt.create_baseline("artifact", compared)
    assert made
    Path("baseline.json").write_text(json_from_baseline(made))
    assert sparseflow_trt.check_artifact("artifact", "baseline.json")[0].verdict == "pass"
    where = sparseflow_trt.DeployOptions("repository")
    (deployed,) = sparseflow_trt.deploy("artifact", where)
    assert (tmp_path / "repository" / deployed.name).is_dir()


def test_the_readme_lists_names_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (listed,) = re.findall(
        r"^Programs may import these from `sparseflow_trt`, as well as (.*?) and their options\.",
        readme,
        re.M | re.DOTALL,
    )
    (block,) = python_blocks("README.md")
    named = set(re.findall(r"`(\w+)`", listed)) | set(re.findall(r"\b\w+\b", block))
    functions = {name for name in DOCUMENTED if not name[0].isupper()}
    assert functions <= named | {"choose_by_name", "read_manifest", "restore_module"}
    assert set(re.findall(r"`(\w+)`", listed)) <= set(DOCUMENTED)


def test_the_page_on_pytorch_prunes() -> None:
    block = next(block for block in python_blocks("docs/PYTORCH.md") if "prune_module" in block)

    mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    module = torch.nn.Sequential(OrderedDict(mlp=mlp))
    names = {"module": module, "batches": [{"input": torch.randn(32, 64)}]}
    exec(compile(block.replace("*.mlp.*", "mlp.*"), "docs/PYTORCH.md", "exec"), names)
    assert is_2to4(np.asarray(mlp[0].weight.detach()), axis=1)
