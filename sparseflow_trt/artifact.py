"""The folder of one build: what decides it, whether it is there already, and where it goes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sparseflow_trt._files import sha256_of
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.manifest import NAME, SCHEMA_VERSION, Manifest, ModelRecord, check_files, read_manifest
from sparseflow_trt.model_file import OnnxModel, data_files


def record_model(model: OnnxModel) -> ModelRecord:
    """Hashes a model file and its external data."""
    files = data_files(model)
    return ModelRecord(
        file=model.path.name,
        sha256=sha256_of(model.path),
        data={str(f.relative_to(model.path.parent)): sha256_of(f) for f in files},
        opset=model.opset,
        bytes=sum(f.stat().st_size for f in (model.path, *files)),
    )


def build_key(**facts: Any) -> str:
    """The hash of everything that decides what comes out: equal keys mean that nothing has to be built.

    Args:
        facts: Plain data, as JSON takes it.
    """
    return hashlib.sha256(json.dumps({"schema": SCHEMA_VERSION, **facts}, sort_keys=True).encode()).hexdigest()


def describe_source(source: str | None) -> list[str]:
    """What a build's key says of a file that a user named, FILE or FILE:FUNCTION: its name and its hash."""
    if source is None:
        return []
    file = Path(source if Path(source).is_file() else source.rpartition(":")[0])
    return [source, sha256_of(file) if file.is_file() else ""]


def built_before(output: Path, key: str) -> Manifest | None:
    """The manifest that stands at `output`, where it was built from the same and its files are intact."""
    if not (output / NAME).is_file():
        return None
    try:
        manifest = read_manifest(output)
        if manifest.build_key != key:
            return None
        check_files(manifest, output)
    except ArtifactError:
        return None  # damaged, or of another version: built again
    return manifest


def refuse_foreign_folder(output: Path) -> None:
    """Checks that `output` is free, or holds an artifact that may be replaced.

    Raises:
        ArtifactError: Something else is there.
    """
    if output.exists() and not (output / NAME).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ArtifactError(
            f"{output} exists and is no artifact.", "Name another folder with --output, or remove it yourself."
        )


def place_for(output: Path, status: str) -> Path:
    """Where an artifact goes: one that failed does not take the place of one that did not."""
    if status != "fail" or not (output / NAME).is_file():
        return output
    try:
        stands = read_manifest(output).status
    except ArtifactError:
        return output
    return output if stands == "fail" else output.with_name(output.name + ".failed")
