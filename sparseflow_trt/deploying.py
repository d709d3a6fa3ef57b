"""From artifacts to a model repository that Triton serves as it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._files import alone_in
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton_batching import Batching, overlapping
from sparseflow_trt.exporters.triton_check import check_config
from sparseflow_trt.exporters.triton_config import PLAN_FILE, Device, Route, ServedModel, make_config
from sparseflow_trt.exporters.triton_models import MODEL_FILE, write_model_py, write_router_py
from sparseflow_trt.exporters.triton_releases import check_tensorrt, release_of, tensorrt_of
from sparseflow_trt.exporters.triton_repository import (
    CONFIG,
    NewVersion,
    Written,
    is_router,
    largest_batch,
    plugins_in,
    write_version,
)
from sparseflow_trt.exporters.triton_tensors import Ends, ServedTensor
from sparseflow_trt.exporters.triton_version import read_record, versions_in
from sparseflow_trt.manifest import EngineRecord, Manifest
from sparseflow_trt.plan import Plan
from sparseflow_trt.served_artifact import (
    RUNTIMES,
    Artifact,
    RouteName,
    choose_route,
    model_name,
    plugin_notes,
    read_artifact,
)
from sparseflow_trt.small_m import SparseFrom

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


_PARTS = {"sparse": "-sparse", "dense": "-dense"}  # how a router's two models are named after it


@dataclass(frozen=True)
class DeployOptions:
    """How artifacts are deployed, where not by default. Each is an option of `deploy triton`.

    Attributes:
        repository: Triton's; made where it is missing.
        name: The model's; the artifact's folder's by default.
        route: "auto" takes `tensorrt_plan` for TensorRT's engines, the Python backend for others.
        container: The release of Triton's container that is to serve it, such as "26.05".
        tensorrt: The TensorRT of the server, where a person knows it.
        gpus: The GPUs that instances are made on.
        count: Instances a GPU.
        delay_us: How long a request may wait for others, in microseconds.
        max_batch_size: The largest batch that requests share, as a person says it: 0 where the model's first
            dimension is no batch.
        sparse_from: The M from which sparse wins; the artifact's policy says it by default.
        dense: An artifact with dense weights that takes the batches below that.
        keep: How many versions stay.
    """

    repository: Path
    name: str | None = None
    route: RouteName = "auto"
    container: str | None = None
    tensorrt: str | None = None
    gpus: tuple[int, ...] = (0,)
    count: int = 1
    threads: int = 1
    cuda_graphs: bool = True
    cache: bool = False
    delay_us: int | None = None
    max_batch_size: int | None = None
    sparse_from: int | None = None
    dense: Path | None = None
    keep: int = 3


@dataclass(frozen=True)
class Deployed:
    """One model in the repository.

    Attributes:
        backend: What built the engine, or "router".
        needs: Of the server that is to serve it: the flags that its configuration depends on.
        notes: Sentences for the person who deploys.
    """

    name: str
    route: Route
    backend: str
    written: Written
    batching: Batching
    sparse_from: tuple[SparseFrom, ...] = ()
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def deploy(artifact: Path, options: DeployOptions) -> tuple[Deployed, ...]:
    """Writes an artifact into a repository: one model, or three where batches are routed between two engines.

    Of several at a time each waits for the one before, so that each gets a version of its own.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or the disk is full or not writable.
        DeployError: The target would not load the engine, Triton could not serve it, a configuration that
            was edited does not fit it, or its clients would break.
        NotInstalledError: tritonclient is missing.
    """
    name = model_name(artifact, options.name)
    given = (options.sparse_from, options.delay_us, options.max_batch_size)
    read = read_artifact(artifact, *given)
    dense = read_artifact(options.dense, *given) if options.dense else None
    with alone_in(options.repository):
        if dense is None:
            _refuse_part(name, options.repository)
            return (_deploy_engine(name, read, options),)
        return _deploy_router(name, read, dense, options)


def _deploy_engine(name: str, artifact: Artifact, options: DeployOptions) -> Deployed:
    manifest, engine = artifact.manifest, artifact.manifest.engine
    route = choose_route(artifact, options.route)
    runtime = RUNTIMES[engine.backend]
    notes = [*_target_notes(manifest, options), *_unseen(manifest), *artifact.batching.why]
    if options.cache:
        notes.append(
            "The response cache works only with the server's --cache-config; without it it is silently off."
        )
    if route == "tensorrt_plan" and (pairs := overlapping(artifact.plan.profiles)):
        notes.append(
            f"Profiles '{pairs[0][0]}' and '{pairs[0][1]}' both take some shapes: Triton's backend then "
            "tends to the one with the smaller opt. `plan --split` makes profiles that do not overlap."
        )
    plugin = engine.plugin
    if plugin:
        notes += plugin_notes(name, plugin, route, plugins_in(options.repository))
    engines = {file: artifact.folder / file for file in manifest.files if _is_engine(file, engine)}
    device: Device = "cpu" if runtime == "onnxruntime" else "gpu"
    if route == "tensorrt_plan":
        files = {PLAN_FILE if file == engine.file else file: path for file, path in engines.items()}
        texts, parameters = {}, {}
    else:
        digests = {file: manifest.files[file] for file in engines}
        compatible = bool(engine.options.get("version_compatible"))
        text = write_model_py(runtime, engine.file, digests, compatible, plugin.file if plugin else "")
        files, texts = engines, {MODEL_FILE: text}
        parameters = (
            {"threads": str(options.threads)} if device == "cpu" else {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
        )

    notes += _batch_notes(options.repository / name, artifact.batching)
    needs = _needs(options, route == "tensorrt_plan" and bool(engine.options.get("version_compatible")))

    def configure(number: int, place: Path) -> ModelConfig:
        plan = place / PLAN_FILE
        md5 = {f"{number}/{PLAN_FILE}": _md5(plan)} if route == "tensorrt_plan" else {}
        return make_config(
            ServedModel(
                name,
                route,
                device,
                artifact.ends,
                artifact.plan.profiles,
                artifact.batching,
                options.gpus,
                options.count,
                options.cuda_graphs,
                options.cache,
                md5,
                parameters,
            )
        )

    written = write_version(
        options.repository,
        NewVersion(
            name,
            manifest.build_key,
            engine.backend,
            route,
            engine.versions,
            files,
            texts,
            configure,
            partial(_check, artifact.ends, artifact.plan, artifact.batching),
            cpu_twin=route == "tensorrt_plan",
            needs=needs,
            batch_given=options.max_batch_size is not None,
            plugin=plugin.file if plugin else "",
        ),
        options.keep,
    )
    return Deployed(
        name,
        route,
        engine.backend,
        written,
        artifact.batching,
        artifact.sparse_from,
        needs,
        tuple(notes),
    )


def _deploy_router(
    name: str, sparse: Artifact, dense: Artifact, options: DeployOptions
) -> tuple[Deployed, ...]:
    if sparse.ends != dense.ends:
        raise DeployError(
            f"{sparse.folder} and {dense.folder} have other inputs or outputs: one name cannot serve both.",
            "Build both from one model, with the same profiles.",
        )
    both = {"sparse": sparse, "dense": dense}
    if not is_router(options.repository / name):
        for word, part in both.items():
            _refuse_other(f"{name}{_PARTS[word]}", part, name, options.repository)
    reached = [row.batch for row in sparse.sparse_from if row.batch is not None]
    most = min(sparse.batching.max_batch_size, dense.batching.max_batch_size)
    if most < 2:
        part = min(sparse, dense, key=lambda one: one.batching.max_batch_size)
        raise DeployError(
            f"a router chooses by the batch, and {part.folder} has none: {' '.join(part.batching.why)}",
            "Deploy one of the two alone, without --dense.",
        )
    if not reached or not 1 < max(reached) <= most:
        raise DeployError(
            f"no batch from 2 to {most} is where the sparse layers of {sparse.folder} begin to win.",
            "Name the M with --sparse-from, or deploy one of the two alone.",
        )
    least = max(reached)
    # The router makes the batches: what comes to an engine is one already.
    below = {"delay_us": 0, "preferred": ()}
    parts = [
        _deploy_engine(
            f"{name}{_PARTS[word]}",
            replace(part, batching=replace(part.batching, **below)),  # type: ignore[arg-type]
            replace(options, cache=False),
        )
        for word, part in both.items()
    ]
    batching = replace(sparse.batching, max_batch_size=most)
    needs = _needs(options, version_compatible=False)
    text = write_router_py(parts[0].name, parts[1].name, least)

    def configure(number: int, place: Path) -> ModelConfig:
        return make_config(
            ServedModel(
                name,
                "python",
                "cpu",
                _of_router(sparse.ends, batching),
                (),
                batching,
                count=options.count,
                cache=options.cache,
            )
        )

    written = write_version(
        options.repository,
        NewVersion(
            name,
            hashlib.sha256(text.encode()).hexdigest(),
            "router",
            "python",
            {},
            {},
            {MODEL_FILE: text},
            configure,
            partial(_check, sparse.ends, sparse.plan, batching),
            cpu_twin=False,
            needs=needs,
            batch_given=options.max_batch_size is not None,
        ),
        options.keep,
    )
    notes = [f"Batches of {least} and more go to '{parts[0].name}', smaller ones to '{parts[1].name}'."]
    if note := _weights_note(sparse.manifest, dense.manifest):
        notes.append(note)
    return (
        *parts,
        Deployed(name, "python", "router", written, batching, sparse.sparse_from, needs, tuple(notes)),
    )


def _batch_notes(folder: Path, batching: Batching) -> list[str]:
    """Whether requests that shared no batch before do now, as a sentence."""
    served = versions_in(folder) and (folder / CONFIG).is_file()
    if not batching.max_batch_size or not served or largest_batch(folder):
        return []
    return ["Before, requests to this model shared no batch; --max-batch-size 0 keeps it so."]


def _refuse_part(name: str, repository: Path) -> None:
    """Refuses to put another model in the place of one that a router sends batches to."""
    for ending in _PARTS.values():
        router = name.removesuffix(ending)
        if router != name and is_router(repository / router):
            raise DeployError(
                f"'{name}' is one of the two models that the router '{router}' sends batches to.",
                "Deploy it under another name with --name, or both with --dense as the router's new version.",
            )


def _refuse_other(name: str, part: Artifact, router: str, repository: Path) -> None:
    """Refuses to put a router's part in the place of another model, which was deployed for itself."""
    present = versions_in(repository / name)
    record = read_record(repository / name, present[-1]) if present else None
    if present and (record is None or record.build_key != part.manifest.build_key):
        raise DeployError(
            f"{repository} has another model '{name}' already, and as a part of the router '{router}' "
            f"{part.folder} would be named so.",
            "Deploy the router under another name with --name.",
        )


def _of_router(ends: Ends, batching: Batching) -> Ends:
    """What a router takes and gives: [batch] as [batch, 1], as its two models have it for clients."""
    if not batching.max_batch_size:
        return ends

    def as_column(tensor: ServedTensor) -> ServedTensor:
        return replace(tensor, dims=(*tensor.dims, 1)) if len(tensor.dims) == 1 else tensor

    return ends.each(as_column)


def _weights_note(sparse: Manifest, dense: Manifest) -> str:
    """Whether two artifacts were built from other weights, as a sentence; "" where they were not."""
    one, other = sparse.model, dense.model
    if (one.sha256, one.data) == (other.sha256, other.data):
        return ""
    if sparse.dense_model and sparse.dense_model.sha256 == other.sha256:
        return (
            f"The dense artifact has the weights of '{other.file}', the unpruned model of the sparse one: "
            "outputs depend on which of the two answers."
        )
    return (
        f"The two were built from other files, '{one.file}' (SHA-256 {one.sha256[:12]}…) and '{other.file}' "
        f"({other.sha256[:12]}…): outputs depend on which of the two answers, and `deploy verify` compares "
        "both with one reference."
    )


def _check(ends: Ends, plan: Plan, batching: Batching, config: ModelConfig, source: str) -> None:
    check_config(config, ends, plan.profiles, batching, source)


def _target_notes(manifest: Manifest, options: DeployOptions) -> list[str]:
    """Refuses an engine that the target would not load, and a release that is not known of.

    Returns:
        What could not be checked.
    """
    engine = manifest.engine
    if engine.backend != "tensorrt":
        if options.container and not options.tensorrt:
            release_of(options.container)  # its image is named in the files for Docker and Kubernetes
        return []
    compatible = bool(engine.options.get("version_compatible"))
    built = engine.versions.get("tensorrt", "")
    if options.tensorrt:
        said = check_tensorrt(built, options.tensorrt, "the server", compatible)
    elif options.container:
        release = tensorrt_of(options.container)
        said = check_tensorrt(built, release.tensorrt or "", f"container {release.container}", compatible)
        said = " ".join(filter(None, (said, f"Source of the table's row: {release.source}.")))
    else:
        said = f"No server's TensorRT was compared with the engine's {built}: give --container or --tensorrt."
    return [said] if said else []


def _unseen(manifest: Manifest) -> list[str]:
    """Which parts of an artifact's validation were not run, in sentences: an engine with no GPU there."""
    return [
        f"{candidate.name} was not compared with the reference when it was built: {candidate.reason} "
        "`deploy verify` compares it where it is served."
        for candidate in manifest.validation.candidates
        if candidate.verdict == "not run"
    ]


def _needs(options: DeployOptions, version_compatible: bool) -> tuple[str, ...]:
    """The flags of the server that a configuration depends on."""
    compatible = ("--backend-config=tensorrt,version-compatible=true",) if version_compatible else ()
    return (*compatible, *(("--cache-config=local,size=67108864",) if options.cache else ()))


def _is_engine(file: str, engine: EngineRecord) -> bool:
    """Whether a file of the artifact is the engine, its weights or its plugin's library."""
    if engine.plugin and file == engine.plugin.file:
        return True
    return file == engine.file or (engine.file == "model.ort.onnx" and file == "model.ort.data")


def _md5(path: Path) -> str:
    """What Triton's checksum agent compares: it knows MD5 alone. SHA-256 stands in the version's record."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(8 << 20):
            digest.update(piece)
    return digest.hexdigest()
