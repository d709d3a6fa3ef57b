"""The folder of one build: what decides it, whether it is there already, and where it goes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._files import check_folder, sha256_of
from sparseflow_trt._utf8 import check_utf8
from sparseflow_trt.artifacts.manifest import (
    NAME,
    SCHEMA_VERSION,
    Manifest,
    ModelRecord,
    check_files,
    read_manifest,
)
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.model.model_file import OnnxModel, data_files

if TYPE_CHECKING:
    import numpy as np


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
    return hashlib.sha256(
        json.dumps({"schema": SCHEMA_VERSION, **facts}, sort_keys=True).encode()
    ).hexdigest()


def hash_arrays(sets: Iterable[Mapping[str, np.ndarray[Any, Any]]]) -> str:
    """The hash of named arrays: of their values, since a loader may give others from the same file."""
    digest = hashlib.sha256()
    for arrays in sets:
        for name, array in arrays.items():
            digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
            digest.update(array.tobytes())
        digest.update(b";")
    return digest.hexdigest()


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


def check_place(output: Path) -> Path:
    """Checks that an artifact can go to `output`, passed or failed: each place is free or an artifact's.

    Returns:
        The place itself, where `output` is a link to it, or is named "." or "..".

    Raises:
        ArtifactError: Something else is there, the folder to write in is missing or not writable, or the
            place's name is not UTF-8.
    """
    if output.is_symlink() or output.name in ("", ".."):
        output = output.resolve()
    check_utf8(output.absolute(), ArtifactError)  # its paths stand in the manifest, and runtimes read them
    for place in dict.fromkeys((output, place_for(output, "fail"))):
        check_not_foreign(place)
    check_folder(output)
    return output


def check_not_foreign(place: Path) -> None:
    """Checks that nothing of somebody else's goes where an artifact is put.

    Raises:
        ArtifactError: There is something that is no artifact.
    """
    if _is_foreign(place):
        raise ArtifactError(
            f"{place} exists and is not an artifact.",
            "Name another folder with --output, or remove it yourself.",
        )


def _is_foreign(place: Path) -> bool:
    if not place.is_dir():
        return os.path.lexists(place)
    return not (place / NAME).is_file() and any(place.iterdir())


def place_for(output: Path, status: str) -> Path:
    """Where an artifact goes: one that failed does not take the place of one that did not."""
    if status != "fail" or not (output / NAME).is_file():
        return output
    try:
        stands = read_manifest(output).status
    except ArtifactError:
        return output
    return output if stands == "fail" else output.with_name(output.name + ".failed")
