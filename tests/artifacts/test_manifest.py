"""manifest.json: written, read back, and refused where anything is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import NAME, Manifest, check_files, read_manifest, write_manifest
from sparseflow_trt.errors import ArtifactError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A manifest of three files that are there."""
    for name in ("model.onnx", "plan.yaml", "model.engine"):
        (tmp_path / name).write_text(name)
    files = {f.name: sha256_of(f) for f in tmp_path.iterdir()}
    return Manifest.model_validate(
        {
            "schema_version": 1, "status": "pass", "tool": "sparseflow-trt 1", "created": "now",
            "command": "", "build_key": "k", "policy": None, "plan_sha256": files["plan.yaml"], "layers": [],
            "model": {"file": "m.onnx", "sha256": "s", "data": {}, "opset": 21, "bytes": 1},
            "graph": {"nodes_retyped": 0, "casts": 0, "islands": [], "clamped": [["w", 1, 7e4]]},
            "engine": {
                "file": "model.engine", "backend": "b", "chosen_because": "", "versions": {}, "device": "",
                "build_seconds": 0.5, "runs_here": "", "sparse_tactics": "", "notes": [], "layers": [],
            },
            "validation": {
                "verdict": "pass", "reason": "", "reference": "", "reference_runtime": "", "compared_by": "",
                "input_sets": [], "candidates": [],
            },
            "seconds": {"read": 0.1}, "files": files,
        }
    )  # fmt: skip


def test_comes_back_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    check_files(manifest, tmp_path)


def test_one_of_before_duels_is_read(manifest: Manifest, tmp_path: Path) -> None:
    old = manifest.model_dump(mode="json")
    assert (old.pop("duel"), old.pop("notes")) == (None, [])
    (tmp_path / NAME).write_text(json.dumps(old))
    assert read_manifest(tmp_path) == manifest


def _with(data: dict[str, Any], path: str, value: Any) -> str:
    *way, last = path.split(".")
    inner = data
    for key in way:
        inner = inner[key]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema_version", 2, "has schema version 2; this tool reads 1."),
        ("schema_version", None, "has schema version None"),
        ("status", "passed", "status: Input should be"),
        ("extra", 1, "extra: Extra inputs are not permitted"),
        ("engine.file", None, "engine.file: Input should be a valid string"),
        ("engine.build_seconds", float("nan"), "engine.build_seconds: Input should be a finite number"),
        ("seconds.read", float("inf"), "seconds.read: Input should be a finite number"),
        ("validation.verdict", "maybe", "validation.verdict: Input should be"),
    ],
)
def test_wrong_fields(path: str, value: Any, says: str, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(_with(manifest.model_dump(mode="json"), path, value))
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert says in caught.value.message
    assert str(tmp_path / NAME) in caught.value.message
    assert "Build it again" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[]", '"pass"', "\xff", "NaN"])
def test_no_json_and_json_of_another_kind(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact"):
        read_manifest(tmp_path)


def test_files_are_there_unchanged_and_all_hashed(manifest: Manifest, tmp_path: Path) -> None:
    for files, says in (
        ({}, "has no hash for 'model.onnx'"),
        ({k: v for k, v in manifest.files.items() if k != "model.engine"}, "has no hash for 'model.engine'"),
        ({**manifest.files, "../secret": "0"}, "names '../secret', which is not a file of the artifact"),
        ({**manifest.files, "more": "0"}, "more is missing from the artifact"),
    ):
        with pytest.raises(ArtifactError, match=says):
            check_files(manifest.model_copy(update={"files": files}), tmp_path)
    (tmp_path / "plan.yaml").write_text("another plan")
    with pytest.raises(ArtifactError, match=r"plan\.yaml is not the file that was built"):
        check_files(manifest, tmp_path)
