"""One version of a model in Triton's repository: what it was made from, and whether it is still that."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sparseflow_trt._files import sha256_of
from sparseflow_trt._schema import Record, load_json, parse, read_text
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.config import parse_config

RECORD = "sparseflow.json"
CONFIG = "config.pbtxt"


class DeployedTensor(Record):
    """An input or output, as clients see it."""

    name: str
    type: str
    dims: tuple[int, ...]


class VersionRecord(Record):
    """What one version was made from. It lies beside the engine, as sparseflow.json.

    Attributes:
        build_key: The artifact's: equal keys are equal builds.
        backend: What built the engine.
        versions: Of the libraries that built it, and of those whose kernels its plugin runs.
        needs: Flags of the server that the configuration depends on.
        plugin: The plugin's library that the engine needs, one of its files; "" where it needs none.
        router: The model that it was written for as one of its two; "" where it was deployed for itself.
        parts: Of a router, the versions of its two models that it sends batches to, by their names.
        before: The version that was served until then; 0 where none was.
        files: SHA-256 of the version's files.
        generated: The configuration that was generated, before it was merged with an edited one.
        served: The one that was written.
    """

    schema_version: Literal[1] = 1
    build_key: str
    backend: str
    route: str
    versions: dict[str, str]
    needs: tuple[str, ...] = ()
    plugin: str = ""
    router: str = ""
    parts: dict[str, int] = Field(default_factory=dict)
    before: int = 0
    files: dict[str, str]
    inputs: tuple[DeployedTensor, ...]
    outputs: tuple[DeployedTensor, ...]
    generated: str
    served: str


def versions_in(folder: Path) -> list[int]:
    """The numbers of a model's versions, in ascending order."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if name.isdecimal() and not name.startswith("0"))


def served_versions(folder: Path) -> list[int]:
    """The versions of a model that its configuration has a server serve, in ascending order.

    Others that lie there were served before, or a run that was killed left them: nothing names them yet.
    Where a person wrote another policy, or there is no configuration, it is the newest.

    Raises:
        DeployError: The configuration cannot be read.
    """
    present, path = versions_in(folder), folder / CONFIG
    if not path.is_file():
        return present[-1:]
    policy = parse_config(read_text(path, DeployError, "configuration"), str(path)).version_policy
    if not policy.HasField("specific"):
        return present[-1:]
    return [number for number in present if number in policy.specific.versions]


def served_record(folder: Path) -> VersionRecord | None:
    """The record of the newest version that is served of a model; None where there is none.

    Raises:
        DeployError: It or the configuration cannot be read.
    """
    served = served_versions(folder)
    return read_record(folder, served[-1]) if served else None


def read_models(repository: Path) -> dict[str, VersionRecord]:
    """The record of what is served of each model that this tool deployed to a repository, by name."""
    found = {}
    for folder in sorted(repository.iterdir()):
        if (record := served_record(folder)) is not None:
            found[folder.name] = record
    return found


def stubs_of(record: VersionRecord) -> int:
    """How many processes the Python backend makes for a version of a model: one for each instance; else 0."""
    if record.route != "python":
        return 0
    groups = parse_config(record.served, RECORD).instance_group
    return sum(group.count * max(len(group.gpus), 1) for group in groups)


def read_record(folder: Path, version: int) -> VersionRecord | None:
    """What a version was made from, or None where it does not say.

    Raises:
        DeployError: Its record cannot be read.
    """
    path = folder / str(version) / RECORD
    if not path.is_file():
        return None
    text = read_text(path, DeployError, "record")
    hint = "Move that version's folder out of the repository, and deploy the artifact again."
    return parse(VersionRecord, load_json(text, str(path), DeployError, hint), str(path), DeployError, hint)


def check_version(folder: Path, version: int) -> VersionRecord:
    """Checks that a version's files are those that were deployed.

    Raises:
        DeployError: One is missing or has changed, or there is no record of them.
    """
    record = read_record(folder, version)
    if record is None:
        raise DeployError(
            f"{folder / str(version)} has no {RECORD}: something else wrote it.",
            "Move that folder out of the repository, and deploy the artifact again.",
        )
    if damage := damage_of(folder, version):
        raise DeployError(damage, "Deploy the artifact again.")
    return record


def damage_of(folder: Path, version: int) -> str:
    """Which of a version's files is not the one that was deployed, as a sentence; "" where all are.

    Of what this tool did not write nothing is known: "", too.

    Raises:
        DeployError: The record is damaged.
    """
    record = read_record(folder, version)
    if record is None:
        return ""
    for name, digest in record.files.items():
        path = folder / str(version) / name
        if Path(name).name != name or not path.is_file():
            return f"{path} is missing."
        if sha256_of(path) != digest:
            return f"{path} is not the file that was deployed: its SHA-256 differs."
    return ""


def deployed_tensors(listed: object) -> tuple[DeployedTensor, ...]:
    """A configuration's inputs or outputs."""
    from tritonclient.grpc.model_config_pb2 import DataType

    return tuple(
        DeployedTensor(name=t.name, type=DataType.Name(t.data_type).removeprefix("TYPE_"), dims=tuple(t.dims))
        for t in listed  # type: ignore[attr-defined]
    )
