"""A model's folder in Triton's repository: versions, and the configuration that names what is served."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._files import put_in_place, sha256_of, temporary_folder, write_atomically
from sparseflow_trt._schema import read_text
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.config import Route, cpu_twin, parse_config, text_from_config
from sparseflow_trt.exporters.triton.merge import Difference, merge_configs
from sparseflow_trt.exporters.triton.version import (
    CONFIG,
    RECORD,
    VersionRecord,
    damage_of,
    deployed_tensors,
    read_record,
    served_versions,
    versions_in,
)
from sparseflow_trt.exporters.triton.version_policy import sent_to, serve

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

PLUGIN = "plugin.so"  # one name for all versions, so that the server's command holds for each
CPU_CONFIG = "configs/cpu.pbtxt"
_ARTIFACT = "manifest.json"  # what an artifact's folder holds, and a model's does not
_REMOVED = ".removed-"
WITHDRAWN = ".withdrawn-"  # Triton takes folders with numbers for versions, and leaves others alone
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Written:
    """A version that was put in place.

    Attributes:
        folder: The model's.
        differences: Where an edited configuration and the fresh one differ.
        unchanged: Whether the newest version was the same already.
        replaces: Which file of the newest version was changed, so that the same was written anew, as a
            sentence; "" where none was.
        removed: Older versions that were removed.
    """

    folder: Path
    version: int
    config: ModelConfig
    differences: tuple[Difference, ...] = ()
    unchanged: bool = False
    replaces: str = ""
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class NewVersion:
    """What a version is to hold.

    Attributes:
        files: What is copied, by the name it gets.
        texts: What is written, by its name: model.py.
        configure: Makes the configuration, given the version's number and its folder.
        check: Refuses a configuration; it is given it and the file's name.
        plugin: Which of `files` is the library of the engine's plugin nodes, "" where it has none.
        batch_given: Whether a person said the largest batch, which goes before an edited configuration then.
        router: The model that it is one of the two of, "" where it is none.
        parts: Of a router, the versions of its two models that it sends batches to, by their names.
    """

    name: str
    build_key: str
    backend: str
    route: Route
    versions: Mapping[str, str]
    files: Mapping[str, Path]
    texts: Mapping[str, str]
    configure: Callable[[int, Path], ModelConfig]
    check: Callable[[ModelConfig, str], None]
    cpu_twin: bool
    needs: tuple[str, ...] = ()
    plugin: str = ""
    batch_given: bool = False
    router: str = ""
    parts: Mapping[str, int] = field(default_factory=dict)


def check_name(name: str) -> str:
    """A name for a model: letters, digits, and _.-, as in URLs.

    Raises:
        DeployError: It is none.
    """
    if not _NAME.fullmatch(name):
        hint = "Use letters, digits, _, . and -: --name."
        raise DeployError(f"'{name}' is not a valid model name.", hint, usage=True)
    return name


def write_version(repository: Path, new: NewVersion, keep: int) -> Written:
    """Writes a version beside the older ones; it is served once the configuration names it, by one rename.

    Of a router's part the version that the router sends batches to now is served on beside it. A version that
    is the same, but of which a file was changed, gets a new number.

    Args:
        repository: Triton's; made where it is missing.
        new: What the version holds.
        keep: How many versions stay, with this one; at least 2: a server may still serve the one before. More
            stay where a router's versions name them.

    Raises:
        DeployError: The configuration would not be served, clients would break, or the repository holds
            something else under that name.
        ArtifactError: The disk is full or not writable.
    """
    folder = repository / check_name(new.name)
    if (folder / _ARTIFACT).is_file():
        raise DeployError(
            f"{folder} is an artifact, and a model of that name would be written into it.",
            "Name another repository, in which no artifacts lie, or another name with --name.",
        )
    present = versions_in(folder)
    served = served_versions(folder)
    record = read_record(folder, served[-1]) if served else None
    if served and record is None:
        raise DeployError(
            f"{folder} serves version {served[-1]}, which has no {RECORD}: something else wrote it.",
            "Deploy under another name with --name, or move that folder away.",
        )
    sent, named = sent_to(repository, new.router, new.name)
    # a server that is started would not load a damaged version, and with it none
    sent = {number for number in sent if not damage_of(folder, number)}
    replaces = ""
    number = max([*present, *_withdrawn(folder)], default=0) + 1
    with _folder_of_model(folder), temporary_folder(folder / str(number)) as place:
        for name, source in new.files.items():
            shutil.copyfile(source, place / name)
        for name, text in new.texts.items():
            (place / name).write_text(text, encoding="utf-8")
        generated = new.configure(number, place)
        serve(generated, number, folder, sent)
        config, differences = merged_config(folder, record, generated, new.batch_given, bool(new.router))
        new.check(config, str(folder / CONFIG))
        made = VersionRecord(
            build_key=new.build_key,
            backend=new.backend,
            route=new.route,
            versions=dict(new.versions),
            needs=new.needs,
            plugin=new.plugin,
            router=new.router,
            parts=dict(new.parts),
            before=served[-1] if served else 0,
            files={file.name: sha256_of(file) for file in sorted(place.iterdir())},
            inputs=deployed_tensors(config.input),
            outputs=deployed_tensors(config.output),
            generated=text_from_config(generated),
            served=text_from_config(config),
        )
        if record is not None:
            if _same((record, served[-1]), (made, number), folder):
                replaces = damage_of(folder, served[-1])
                if not replaces:
                    return Written(folder, served[-1], config, differences, unchanged=True)
                made = made.model_copy(update={"before": record.before})  # a rollback is not to serve that
            _check_clients(folder, record, made)
        (place / RECORD).write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8")
        put_in_place(place, folder / str(number))
    put_plugin(folder, number, made)
    write_configs(folder, config, new.cpu_twin)
    spare = present[: max(0, len(present) + 1 - max(keep, 2))]
    removed = tuple(old for old in spare if old not in named.union(served))
    for old in removed:
        (folder / str(old)).rename(folder / f"{_REMOVED}{old}")  # a half removed one is no version
    # a withdrawn one was kept for its number, which this one's is above
    for gone in (*folder.glob(f"{_REMOVED}*"), *folder.glob(f"{WITHDRAWN}*")):
        # on NFS what a server holds open cannot be removed yet: the next deployment does it
        shutil.rmtree(gone, ignore_errors=True)
    return Written(folder, number, config, differences, replaces=replaces, removed=removed)


@contextlib.contextmanager
def _folder_of_model(folder: Path) -> Iterator[None]:
    """Makes a model's folder; it goes again where nothing came into it, since no server starts with such."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def is_router(folder: Path) -> bool:
    """Whether some version of a model is a router, which a rollback could bring back."""
    records = (read_record(folder, version) for version in versions_in(folder))
    return any(record is not None and record.backend == "router" for record in records)


def largest_batch(folder: Path) -> int:
    """The largest batch of a deployed model, 0 where requests share none, as its configuration says.

    Raises:
        DeployError: It has no configuration, or one that cannot be read.
    """
    path = folder / CONFIG
    text = read_text(path, DeployError, "configuration")
    return int(parse_config(text, str(path)).max_batch_size)


def plugins_in(repository: Path) -> dict[str, str]:
    """SHA-256 of the plugin libraries that models of Triton's TensorRT backend bring, by the model's name."""
    return {path.parent.name: sha256_of(path) for path in sorted(repository.glob(f"*/{PLUGIN}"))}


def put_plugin(folder: Path, version: int, record: VersionRecord) -> None:
    """Puts a version's library where the server's command names it.

    It stays when a version needs none: one that is rolled back to may. By rename: a server has it mapped.
    """
    if record.plugin and record.route == "tensorrt_plan":
        write_atomically(folder / PLUGIN, (folder / str(version) / record.plugin).read_bytes())


def merged_config(
    folder: Path,
    record: VersionRecord | None,
    generated: ModelConfig,
    batch_given: bool = False,
    part: bool = False,
) -> tuple[ModelConfig, tuple[Difference, ...]]:
    """A fresh configuration with what a person changed in the file, and where the two differ.

    Args:
        folder: The model's.
        record: Of the version that the file is of.
        generated: The fresh one.
        batch_given: Whether a person said the largest batch.
        part: Whether it is a router's part: which versions are served is not a person's to say then.

    Raises:
        DeployError: The file cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        return generated, ()
    theirs = parse_config(read_text(path, DeployError, "configuration"), str(path))
    base = parse_config(record.generated, RECORD) if record else None
    if part or theirs.version_policy.HasField("specific"):
        theirs.version_policy.CopyFrom(generated.version_policy)  # how a version is put in place is no edit
    return merge_configs(base, theirs, generated, _decided(theirs, generated) if batch_given else set())


def _decided(theirs: ModelConfig, generated: ModelConfig) -> set[str]:
    """What the largest batch decides that a person said: itself, and sizes above it, which Triton refuses."""
    preferred = theirs.dynamic_batching.preferred_batch_size
    above = any(size > generated.max_batch_size for size in preferred)
    return {"max_batch_size", *(("dynamic_batching.preferred_batch_size",) if above else ())}


def write_configs(folder: Path, config: ModelConfig, twin: bool) -> None:
    """Writes a model's configuration, and for a plan the one for CPUs."""
    write_atomically(folder / CONFIG, text_from_config(config))
    if twin:
        (folder / CPU_CONFIG).parent.mkdir(exist_ok=True)
        write_atomically(folder / CPU_CONFIG, text_from_config(cpu_twin(config)))


def _same(old: tuple[VersionRecord, int], new: tuple[VersionRecord, int], folder: Path) -> bool:
    """Whether a version and the configuration are what they would be made anew, but for the number."""

    def settled(record: VersionRecord, number: int) -> VersionRecord:
        texts = {"generated": _unnumbered(record.generated, number), "served": ""}
        return record.model_copy(update={**texts, "router": "", "before": 0})

    current = read_text(folder / CONFIG, DeployError, "configuration") if (folder / CONFIG).is_file() else ""
    served = [_unnumbered(text, number) for text, number in ((current, old[1]), (new[0].served, new[1]))]
    return settled(*old) == settled(*new) and served[0] == served[1]


def _unnumbered(text: str, number: int) -> str:
    """A version's configuration without its number, and without what is told of others beside it."""
    config = parse_config(text, CONFIG)
    config.ClearField("version_policy")
    for agent in config.model_repository_agents.agents:
        files = dict(agent.parameters)
        agent.parameters.clear()
        for path, digest in files.items():
            if path.startswith(own := f"MD5:{number}/"):
                agent.parameters[path.removeprefix(own)] = digest
    return text_from_config(config)


def _check_clients(folder: Path, old: VersionRecord, new: VersionRecord) -> None:
    before, after = _seen_by_clients(old), _seen_by_clients(new)
    if before == after:
        return
    lost = [text for text in before if text not in after] or [text for text in after if text not in before]
    raise DeployError(
        f"the new version of {folder.name} has different inputs or outputs from the one that is served "
        f"({lost[0]}): its clients would break.",
        "Deploy it under another name with --name.",
    )


def _seen_by_clients(record: VersionRecord) -> list[str]:
    """Inputs and outputs with their whole shapes: each request has the batch, shared or not."""
    batch = [-1] if parse_config(record.served, RECORD).max_batch_size > 0 else []
    return [f"{t.name} {t.type} {[*batch, *t.dims]}" for t in (*record.inputs, *record.outputs)]


def _withdrawn(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    numbers = (entry.name.removeprefix(WITHDRAWN) for entry in folder.glob(f"{WITHDRAWN}*"))
    return [int(number) for number in numbers if number.isdecimal()]
