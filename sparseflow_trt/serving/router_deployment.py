"""A router as a model of Triton's: it gives batches to a sparse and to a dense engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.batching import Batching
from sparseflow_trt.exporters.triton.check import check_config
from sparseflow_trt.exporters.triton.config import ServedModel, make_config
from sparseflow_trt.exporters.triton.models import MODEL_FILE, write_router_py
from sparseflow_trt.exporters.triton.repository import NewVersion, is_router, plugins_in
from sparseflow_trt.exporters.triton.tensors import Ends, ServedTensor
from sparseflow_trt.exporters.triton.version import served_record, versions_in
from sparseflow_trt.serving.deployment import Deployed, DeployOptions, Planned, needs_of, write_planned
from sparseflow_trt.serving.engine_deployment import plan_engine
from sparseflow_trt.serving.served_artifact import Artifact

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


_PARTS = ("-sparse", "-dense")  # how a router's two models are named after it


def deploy_router(
    name: str, sparse: Artifact, dense: Artifact, options: DeployOptions
) -> tuple[Deployed, ...]:
    """Writes two artifacts' engines into the repository, and the router that gives them batches.

    The router names the versions of its two models, which serve the versions of the router before on until it
    is written: the three change together, by one rename. Both engines are planned before one is written.
    Where one then cannot be written, what was is served on, and the same command goes on from there, with
    artifacts that were built anew, too.

    Raises:
        ArtifactError: The disk is full or not writable.
        DeployError: One name cannot serve both, no batch is where sparse begins to win, or as for an engine.
        NotInstalledError: tritonclient is missing.
    """
    if sparse.ends != dense.ends:
        raise DeployError(
            f"{sparse.folder} and {dense.folder} have different inputs or outputs: one name cannot serve "
            "both.",
            "Build both from one model, with the same profiles.",
        )
    both = dict(zip(_names_of_parts(name), (sparse, dense), strict=True))
    if not is_router(options.repository / name):
        for part_name, part in both.items():
            _refuse_other(part_name, part, name, options.repository)
    least = _least_batch(sparse, dense)
    plugins = plugins_in(options.repository)
    parts = []
    for part_name, part in both.items():
        planned = plan_engine(part_name, _unbatched(part), replace(options, cache=False), plugins, name)
        library = part.manifest.engine.plugin
        if library and planned.version.route == "tensorrt_plan":
            plugins[part_name] = library.sha256
        parts.append(planned)
    written = [write_planned(planned, options) for planned in parts]
    versions = {part.name: part.written.version for part in written}
    router = _plan_router(name, sparse, dense, least, versions, options)
    return (*written, write_planned(router, options))


def _plan_router(
    name: str,
    sparse: Artifact,
    dense: Artifact,
    least: int,
    versions: Mapping[str, int],
    options: DeployOptions,
) -> Planned:
    """The model that gives batches of so many items or more to the sparse engine, others to the dense."""
    batching = replace(sparse.batching, max_batch_size=_largest_batch(sparse, dense))
    to_sparse, to_dense = _names_of_parts(name)
    text = write_router_py((to_sparse, versions[to_sparse]), (to_dense, versions[to_dense]), least)

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

    version = NewVersion(
        name,
        hashlib.sha256(text.encode()).hexdigest(),
        "router",
        "python",
        {},
        {},
        {MODEL_FILE: text},
        configure,
        lambda config, source: check_config(config, sparse.ends, sparse.plan.profiles, batching, source),
        cpu_twin=False,
        needs=needs_of(options, version_compatible=False),
        batch_given=options.max_batch_size is not None,
        parts=versions,
    )
    notes = [f"Batches of {least} and more go to '{to_sparse}', smaller ones to '{to_dense}'."]
    if note := _weights_note(sparse.manifest, dense.manifest):
        notes.append(note)
    return Planned(version, batching, sparse.sparse_from, tuple(notes))


def _names_of_parts(router: str) -> tuple[str, str]:
    """How the sparse and the dense model of a router are named."""
    return f"{router}{_PARTS[0]}", f"{router}{_PARTS[1]}"


def _largest_batch(sparse: Artifact, dense: Artifact) -> int:
    return min(sparse.batching.max_batch_size, dense.batching.max_batch_size)


def _least_batch(sparse: Artifact, dense: Artifact) -> int:
    """The smallest batch that goes to the sparse engine; refuses two of which none would, or has any."""
    most = _largest_batch(sparse, dense)
    if most < 2:
        part = min(sparse, dense, key=lambda one: one.batching.max_batch_size)
        raise DeployError(
            f"a router chooses by the batch, but {part.folder} has none: {' '.join(part.batching.why)}",
            "Deploy one of the two alone, without --dense.",
        )
    if all(layer.sparsity == "dense" for layer in sparse.manifest.layers):
        raise DeployError(
            f"no layer of {sparse.folder} is planned sparse: a router would have nothing to choose.",
            "Name the artifact first that was built sparse, and the dense one with --dense.",
        )
    reached = [row.batch for row in sparse.sparse_from if row.batch is not None]
    if not reached or not 1 < max(reached) <= most:
        raise DeployError(
            f"no batch from 2 to {most} is where the sparse layers of {sparse.folder} begin to win.",
            "Name the M with --sparse-from, or deploy one of the two alone.",
        )
    return max(reached)


def _unbatched(part: Artifact) -> Artifact:
    """A router's part: the router makes the batches, and what comes to an engine is one already."""
    return replace(part, batching=replace(part.batching, delay_us=0, preferred=()))


def refuse_part(name: str, repository: Path) -> None:
    """Refuses to put another model in the place of one that a router sends batches to."""
    for ending in _PARTS:
        router = name.removesuffix(ending)
        if router != name and is_router(repository / router):
            raise DeployError(
                f"'{name}' is one of the two models that the router '{router}' sends batches to.",
                "Deploy it under another name with --name, or both with --dense as the router's new version.",
            )


def _refuse_other(name: str, part: Artifact, router: str, repository: Path) -> None:
    """Refuses to put a router's part in the place of another model, which was deployed for itself.

    One that was written as that router's part is none: the router itself was not written then, or is gone.
    """
    present = versions_in(repository / name)
    record = served_record(repository / name)
    if record and (record.router == router or record.build_key == part.manifest.build_key):
        return
    if present:
        raise DeployError(
            f"{repository} already has another model '{name}', which is the name that {part.folder} "
            f"would get as part of the router '{router}'.",
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
        f"The two were built from different files, '{one.file}' (SHA-256 {one.sha256[:12]}…) and "
        f"'{other.file}' ({other.sha256[:12]}…): outputs depend on which of the two answers, and `deploy "
        "verify` compares both with one reference."
    )
