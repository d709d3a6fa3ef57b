"""Where a build's artifact goes, what it holds, what stays as it was, and what is built again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import check_files, read_manifest
from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
from sparseflow_trt.engines.backends.choose import BackendName
from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
from sparseflow_trt.errors import (
    ArtifactError,
    InputError,
)
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.plan import read_plan
from sparseflow_trt.validation.tolerances import parse_tolerances
from tests.builds import BATCH, IMPOSSIBLE, Run, builder_in, dense_weight, make_mlp

if TYPE_CHECKING:
    from tests.conftest import Models


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return builder_in(tmp_path)


def test_the_artifact_holds_all_that_the_manifest_says(models: Models, run: Run) -> None:
    path = models.save(make_mlp(models))
    result = run(path, backend="tensorrt-rtx", command="sparseflow-trt build model.onnx")
    folder = result.artifact
    names = {f.name for f in folder.iterdir()}
    assert names == {
        "manifest.json", "model.engine", "model.onnx", "model.onnx.data", "plan.yaml", "report.html"
    }  # fmt: skip
    manifest = read_manifest(folder)
    assert manifest == result.manifest
    check_files(manifest, folder)
    assert set(manifest.files) == names - {"manifest.json"}
    assert manifest.model.sha256 == sha256_of(path)
    assert manifest.model.bytes == path.stat().st_size
    assert manifest.plan_sha256 == sha256_of(folder / "plan.yaml")
    assert manifest.policy is None
    assert manifest.command == "sparseflow-trt build model.onnx"
    assert set(manifest.engine.versions) == {"tensorrt-rtx"}
    assert {"read", "plan", "rewrite", "backend", "validate"} <= set(manifest.seconds)
    assert manifest.layers[0].mask_hash
    assert read_plan(folder / "plan.yaml").layers[0].name == "up_proj"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(f.name for f in models.folder.iterdir()) == ["model.onnx", "out"]


def test_nothing_changed_does_nothing(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))
    npz = tmp_path / "x.npz"
    np.savez(npz, x=dense_weight(4, 64))
    real = ValidationOptions(inputs=str(npz))
    first = run(path, validation=real)
    stamp = (first.artifact / "manifest.json").stat().st_mtime_ns
    again = run(path, validation=real)
    assert again.unchanged
    assert again.manifest == first.manifest
    assert (again.artifact / "manifest.json").stat().st_mtime_ns == stamp
    assert not run(path, validation=real, force=True).unchanged

    np.savez(npz, x=dense_weight(4, 64, seed=1))
    assert not run(path, validation=real).unchanged, "the inputs have changed"
    loose = replace(real, tolerances=parse_tolerances(["rtol=0.5"]))
    assert not run(path, validation=loose).unchanged, "the tolerance has"
    assert not run(path, replace(BATCH, precision="fp32"), validation=loose).unchanged, "the plan has"
    assert not run(path).unchanged, "the inputs are random ones again"
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged
    assert run(path, validation=ValidationOptions(seed=1)).unchanged
    (tmp_path / "out" / "report.html").unlink()
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged, "a file is gone"
    (tmp_path / "out" / "manifest.json").write_text("{}")
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged, "a damaged one is replaced"
    models.save(make_mlp(models, np.float16))
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged, "the model has"


def test_an_engine_for_another_device_is_built_again(
    models: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.save(make_mlp(models))
    run(path)
    assert run(path).unchanged
    monkeypatch.setattr(OnnxRuntimeBackend, "device", lambda _: "another CPU")
    assert not run(path).unchanged
    assert run(path).unchanged


def test_a_loader_that_yields_other_values_builds_again(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))
    (tmp_path / "scale.txt").write_text("1")
    loader = tmp_path / "loader.py"
    loader.write_text(
        "import numpy as np, pathlib\n"
        "def sets():\n"
        "    scale = float(pathlib.Path(__file__).with_name('scale.txt').read_text())\n"
        "    yield {'x': np.full((4, 64), scale, np.float32)}\n"
    )
    options = ValidationOptions(inputs=f"{loader}:sets")
    run(path, validation=options)
    assert run(path, validation=options).unchanged
    (tmp_path / "scale.txt").write_text("2")
    assert not run(path, validation=options).unchanged


def test_real_inputs_are_what_is_compared_on(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))
    np.savez(tmp_path / "x.npz", **{"x@first": dense_weight(4, 64), "x@second": dense_weight(1, 64)})  # type: ignore[arg-type]
    result = run(path, validation=ValidationOptions(inputs=str(tmp_path / "x.npz")))
    assert [s.shapes["x"] for s in result.manifest.validation.input_sets] == [(4, 64), (1, 64)]
    np.savez(tmp_path / "x.npz", x=dense_weight(4, 63))
    with pytest.raises(InputError, match="'x'"):
        run(path, validation=ValidationOptions(inputs=str(tmp_path / "x.npz")))


def test_a_failed_build_is_kept_and_marked(models: Models, run: Run) -> None:
    path = models.save(make_mlp(models))
    result = run(path, validation=IMPOSSIBLE)
    assert result.manifest.status == read_manifest(result.artifact).status == "fail"
    check_files(result.manifest, result.artifact)
    again = run(path, validation=IMPOSSIBLE)
    assert again.unchanged
    assert again.manifest.status == "fail"
    assert run(path).manifest.status == "pass", "one that passes takes the place of one that failed"


def test_a_failed_build_leaves_the_one_that_passed(models: Models, run: Run) -> None:
    path = models.save(make_mlp(models))
    good = run(path)
    before = {f.name: sha256_of(f) for f in good.artifact.iterdir()}
    bad = run(path, validation=IMPOSSIBLE)
    assert bad.artifact == good.artifact.with_name("out.failed")
    assert read_manifest(bad.artifact).status == "fail"
    assert {f.name: sha256_of(f) for f in good.artifact.iterdir()} == before
    assert run(path).unchanged
    assert run(path, validation=IMPOSSIBLE).artifact == bad.artifact
    assert sorted(f.name for f in models.folder.iterdir()) == ["model.onnx", "out", "out.failed"]


def test_nothing_foreign_is_replaced(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))
    good = run(path)
    mine = tmp_path / "out.failed"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"out\.failed exists and is not an artifact"):
        run(path, validation=IMPOSSIBLE)
    with pytest.raises(ArtifactError, match=r"out\.failed exists and is not an artifact"):
        run(path, output=mine)
    with pytest.raises(ArtifactError, match=r"model\.onnx exists and is not an artifact"):
        run(path, output=path)
    with pytest.raises(ArtifactError, match="does not exist"):
        run(path, output=tmp_path / "no" / "where")
    assert (mine / "thesis.txt").read_text() == "years of work"
    check_files(good.manifest, good.artifact)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "out", "out.failed"]


def test_what_somebody_puts_there_during_a_build_is_not_replaced(models: Models, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))

    def meanwhile(_: object) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.txt").write_text("years of work")

    with pytest.raises(ArtifactError, match="out exists and is not an artifact"):
        build(path, BuildOptions(tmp_path / "out", BATCH, "onnxruntime"), meanwhile)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "out"]


def test_a_linked_output_stays_a_link(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    run(path, output=link)
    bad = run(path, output=link, validation=IMPOSSIBLE)
    assert link.is_symlink()
    assert read_manifest(link).status == "pass"
    assert bad.artifact == tmp_path / "disk" / "real.failed"


def test_the_current_folder_may_be_the_output(
    models: Models, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.save(make_mlp(models))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(path, output=Path())
    assert read_manifest(tmp_path / "here").status == "pass"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_external_data_is_read_and_hashed(
    backend: BackendName, models: Models, run: Run, tmp_path: Path
) -> None:
    model = make_mlp(models)
    models.externalize(model, {"up": "weights/up.bin", "down": "down.bin"}, padding=64)
    path = models.save(model)
    result = run(path, backend=backend)
    assert result.manifest.status == "pass"
    assert result.manifest.model.data == {
        name: sha256_of(tmp_path / name) for name in ("weights/up.bin", "down.bin")
    }
    assert run(path, backend=backend).unchanged
    (tmp_path / "down.bin").write_bytes(b"\0" * (tmp_path / "down.bin").stat().st_size)
    assert not run(path, backend=backend).unchanged
    for name in ("weights/up.bin", "down.bin", "model.onnx"):
        (tmp_path / name).unlink()
    engine = [f for f in result.artifact.iterdir() if f.name.startswith(("model.engine", "model.ort"))]
    assert sum(f.stat().st_size for f in engine) > 2 * (64 * 128 + 128 * 32), "it needs no other file"


def test_an_artifact_is_validated_again(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(make_mlp(models))
    result = run(path, backend="tensorrt-rtx")
    found = validate_artifact(result.artifact, path, ValidationOptions(seed=3))
    assert found.verdict == "pass"
    engine = found.candidates[1]
    assert engine.verdict == "not run"
    assert engine.reason
    assert "was not run" in found.reason
    assert validate_artifact(result.artifact, path, IMPOSSIBLE).verdict == "fail"
    renamed = path.rename(tmp_path / "renamed.onnx")
    assert validate_artifact(result.artifact, renamed, ValidationOptions()).verdict == "pass"
    other = models.save(make_mlp(models, np.float16), "other.onnx")
    with pytest.raises(ArtifactError, match="was built from another model"):
        validate_artifact(result.artifact, other, ValidationOptions())
    with (result.artifact / "model.engine").open("r+b") as stream:
        stream.write(b"\0\0\0\0")
    with pytest.raises(ArtifactError, match=r"model\.engine is not the file that was built"):
        validate_artifact(result.artifact, renamed, ValidationOptions())
