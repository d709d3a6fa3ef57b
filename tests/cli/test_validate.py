"""sparseflow-trt validate."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.commands import Sparseflow

MakeModel = Callable[..., Path]


@pytest.fixture
def built(build_once: Callable[..., Path], mlp: MakeModel) -> Path:
    """A model and, in `out`, its artifact by the ONNX Runtime."""
    path = mlp()
    build_once(path, "out", "--dim", "batch=1,4,8", "--backend", "onnxruntime")
    return path


def test_passes_and_changes_nothing(sparseflow: Sparseflow, built: Path, own_folder: Path) -> None:
    before = {f.name: f.stat().st_mtime_ns for f in (own_folder / "out").iterdir()}
    ended = sparseflow("validate", "out", "--reference", built, "--seed", 7)
    assert (ended.code, ended.err) == (0, "")
    assert "Validation against the FP32 reference: pass" in ended.out
    assert {f.name: f.stat().st_mtime_ns for f in (own_folder / "out").iterdir()} == before


def test_exits_with_4_where_outputs_differ(sparseflow: Sparseflow, built: Path) -> None:
    options = ("validate", "out", "--reference", built, "--tolerance", "atol=0,rtol=0,cosine=1")
    ended = sparseflow(*options)
    assert ended.code == 4
    assert "engine (onnxruntime): " in ended.out
    as_json = sparseflow(*options, "--json")
    assert (as_json.code, as_json.err) == (4, "")
    assert as_json.json["verdict"] == "fail"


def test_exits_with_4_where_the_reference_holds_nan(sparseflow: Sparseflow, built: Path) -> None:
    np.savez("nan.npz", x=np.full((4, 64), np.nan, np.float32))
    ended = sparseflow("validate", "out", "--reference", built, "--inputs", "nan.npz")
    assert (ended.code, "No step is to blame: the reference itself has NaN" in ended.out) == (4, True)


def test_outputs_that_are_0_everywhere_are_not_run_and_exit_with_1(
    sparseflow: Sparseflow, built: Path
) -> None:
    np.savez("zeros.npz", x=np.zeros((4, 64), np.float32))
    options = ("validate", "out", "--reference", built, "--inputs", "zeros.npz")
    ended = sparseflow(*options)
    assert (ended.code, "Validation against the FP32 reference: not run" in ended.out) == (1, True)
    assert "All outputs are 0 everywhere in the reference on all 1 input set(s)" in ended.out
    found = sparseflow(*options, "--json").json
    assert found["candidates"][0]["tells_nothing"] == {"y": "0 everywhere in the reference"}
    assert found["candidates"][0]["outputs"][0]["reference_value"] == 0


def test_real_inputs(sparseflow: Sparseflow, built: Path, own_folder: Path) -> None:
    np.savez(own_folder / "x.npz", x=np.ones((3, 64), np.float32))
    found = sparseflow("validate", "out", "--reference", built, "--inputs", "x.npz", "--json").json
    assert [s["shapes"] for s in found["input_sets"]] == [{"x": [3, 64]}]
    np.savez(own_folder / "x.npz", x=np.ones((3, 64)))
    ended = sparseflow("validate", "out", "--reference", built, "--inputs", "x.npz")
    assert "input 'x' is float64; the model takes float32." in ended.error


def test_an_rtx_engine_is_not_run_and_not_counted_as_passed(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    path = mlp()
    options = ("--dim", "batch=4", "--backend", "tensorrt-rtx", "-o", "rtx")
    assert sparseflow("build", path, *options).code == 0
    ended = sparseflow("validate", "rtx", "--reference", path)
    assert ended.code == 0
    row = next(line for line in ended.out.splitlines() if line.startswith("engine (tensorrt-rtx)  "))
    assert "not run" in row
    assert "pass" not in row
    found = sparseflow("validate", "rtx", "--reference", path, "--json").json
    assert [c["verdict"] for c in found["candidates"]] == ["pass", "not run"]
    assert found["candidates"][1]["reason"]


def test_nothing_compared_is_no_success(
    sparseflow: Sparseflow, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparseflow_trt.building import artifact_validation

    validate = artifact_validation.validate_artifact

    def skip(*given: Any) -> Any:
        return validate(*given).model_copy(update={"verdict": "not run"})

    monkeypatch.setattr(artifact_validation, "validate_artifact", skip)
    assert sparseflow("validate", "out", "--reference", built).code == 1


def test_another_model_is_refused(sparseflow: Sparseflow, built: Path, mlp: MakeModel) -> None:
    other = mlp("other.onnx", seed=1)
    ended = sparseflow("validate", "out", "--reference", other)
    assert "out was built from another model than" in ended.error
    assert "'model.onnx'" in ended.err
    assert "no.onnx does not exist." in sparseflow("validate", "out", "--reference", "no.onnx").error


def test_the_error_is_told_by_step_and_by_layer(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    dense = mlp("dense.onnx")
    assert sparseflow("prune", dense, "-o", "pruned.onnx").code == 0
    options = ("--dim", "batch=1,4,8", "--backend", "onnxruntime", "-o", "out", "--dense-model", dense)
    ended = sparseflow("build", "pruned.onnx", *options)
    assert ended.code == 0
    assert "1 layer(s) planned dense got back the unpruned model's weights." in ended.out
    again = ("validate", "out", "--reference", "pruned.onnx", "--dense-model", dense, "--per-layer")
    ended = sparseflow(*again)
    assert ended.code == 0
    assert "\nWhere the error comes from: The planned precision is the largest step: " in ended.out
    assert " One step cancels what another added: the error after all of them is " in ended.out
    assert "Layers by the error that each adds, step 'precision', input set 'default:" in ended.out
    rows = [line.split()[:2] for line in ended.out.splitlines()]
    assert ["up_proj", "MatMul"] in rows
    found = sparseflow(*again, "--json").json["attribution"]
    assert found["blamed"] == "precision"
    assert [step["name"] for step in found["steps"]] == ["pruning", "precision", "engine"]
    assert {layer["layer"] for layer in found["layers"]} == {"up_proj", "down_proj"}
    missing = sparseflow("validate", "out", "--reference", "pruned.onnx")
    assert "have weights of the unpruned model 'dense.onnx'" in missing.error
    assert "Give it with --dense-model" in missing.err


def _edit(own_folder: Path, **fields: Any) -> None:
    path = own_folder / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (
            lambda f: (f / "out/model.ort.onnx").write_bytes(b"x"),
            "model.ort.onnx is not the file that was built",
        ),
        (lambda f: (f / "out/plan.yaml").unlink(), "plan.yaml is missing from the artifact."),
        (lambda f: (f / "out/manifest.json").unlink(), "out is not an artifact: it has no manifest.json."),
        (lambda f: (f / "out/manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda f: _edit(f, schema_version=2), "has schema version 2; this tool reads 1."),
        (lambda f: _edit(f, status="fine"), "status: Input should be"),
        (lambda f: _edit(f, files={}), "has no hash for 'model.onnx'."),
    ],
)
def test_a_changed_artifact_is_refused(
    tamper: Callable[[Path], None], says: str, sparseflow: Sparseflow, built: Path, own_folder: Path
) -> None:
    tamper(own_folder)
    assert says in sparseflow("validate", "out", "--reference", built).error


def test_no_artifact(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    assert sparseflow("validate", "nowhere", "--reference", mlp()).error == ("there is no artifact nowhere.")


def test_pytorch_is_not_imported(process: Sparseflow, built: Path, own_folder: Path) -> None:
    """It takes seconds, and Ctrl-C in the middle of that crashes Python."""
    (own_folder / "torch").mkdir()
    (own_folder / "torch" / "__init__.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    environment = {**os.environ, "PYTHONPATH": str(own_folder)}
    ended = process("validate", "out", "--reference", built, env=environment)
    assert (ended.code, ended.err) == (0, "")
    assert not (own_folder / "imported").exists()
