"""A deployed artifact against its reference, through a running Triton server, and under load."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparseflow_trt._paths import NO_PATH, AnyPath, GivenPath, MaybePath, with_paths
from sparseflow_trt.artifacts.load_record import LoadStep
from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.building.artifact_validation import (
    ValidationOptions,
    candidates_of,
    check_same_inputs,
    check_shipped,
    input_sets,
    limits_for,
)
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.engines.triton.server import Addresses, ServerOptions, find_server, is_ready, start_server
from sparseflow_trt.engines.triton.staging import link_file, stage_model
from sparseflow_trt.errors import ArtifactError, DeployError
from sparseflow_trt.exporters.fp32_reference import reference_for
from sparseflow_trt.exporters.plugin.reference import expand_plugin_nodes
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.exporters.triton.integer_ends import narrow_integers
from sparseflow_trt.exporters.triton.models import write_stand_in
from sparseflow_trt.exporters.triton.repository import largest_batch
from sparseflow_trt.exporters.triton.version import VersionRecord, check_version, served_versions, versions_in
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.serving.engine_ends import narrows_integers
from sparseflow_trt.serving.served_artifact import DENSE_ALL_THE_SAME, Artifact, model_name, read_artifact
from sparseflow_trt.validation.compare import compare
from sparseflow_trt.validation.feeds import Array, InputSet
from sparseflow_trt.validation.trial import Candidate
from sparseflow_trt.validation.triton_load import find_perf_analyzer, sweep
from sparseflow_trt.validation.triton_runner import Protocol, ServedAt

_PROTOCOLS: tuple[tuple[str, Protocol], ...] = (("HTTP", "http"), ("gRPC", "grpc"))
_ALONE = "Triton over gRPC, item by item"
_STANDS_IN = "a stand-in for Triton's TensorRT backend, which answers from the typed ONNX"


@with_paths
class VerifyOptions:
    """How a deployment is verified.

    Attributes:
        repository: The one that the artifact was deployed to.
        name: The model's; the artifact's folder's by default.
        reference: The model as given; by default the artifact's typed one, in FP32.
        addresses: Of a running server; by default one is started, and ended.
        server: Which tritonserver is started.
        concurrencies: How many clients at once; none measures nothing.
        seconds: How long each is measured.
        perf_analyzer: Whether perf_analyzer measures where it is found.
        timeout: Seconds that a server has to become ready.
    """

    repository: GivenPath
    name: str | None = None
    reference: MaybePath = NO_PATH
    addresses: Addresses | None = None
    server: MaybePath = NO_PATH
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    concurrencies: Sequence[int] = (1, 2, 4, 8, 16)
    seconds: float = 2.0
    perf_analyzer: bool = True
    sparse_from: int | None = None
    timeout: float = 120.0


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        sparse_batch: The batch from which sparse layers win; None where that is not known.
    """

    model: str
    version: int
    validation: Validation
    load: tuple[LoadStep, ...]
    sparse_batch: int | None
    notes: tuple[str, ...]


def verify(artifact: AnyPath, options: VerifyOptions, on_step: OnProgress = lambda _: None) -> Verified:
    """Sends an artifact's validation inputs to the server, compares the answers, and measures it under load.

    Raises:
        ArtifactError: The folder is no artifact, or its files have changed, or it has weights of an unpruned
            model and the reference is the pruned one.
        DeployError: The repository holds another build or changed files, or the server does not serve it.
        InputError: The inputs cannot be read, or do not fit the model, or the reference takes others.
        ModelError: The reference cannot be read, or ONNX Runtime does not take it.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: tritonclient, a tritonserver to start, or ONNX Runtime.
    """
    artifact = Path(artifact)
    read = read_artifact(artifact, options.sparse_from)
    name = model_name(artifact, options.name)
    version, record = _deployed(options.repository / name, read)
    batching = replace(read.batching, max_batch_size=largest_batch(options.repository / name))
    read = replace(read, batching=batching)  # as it was deployed, which an option or a person may have said
    model = typed = read_model(artifact / "model.onnx")
    if options.reference:
        model = read_model(options.reference)
        check_shipped(artifact, read.manifest, model)
        check_same_inputs(model, typed)
    inputs = input_sets(model, read.plan, options.validation)
    reached = [row.batch for row in read.sparse_from if row.batch is not None]
    least = max(reached) if reached and batching.max_batch_size else None
    on_step(Progress("Starting Triton"))
    with _served(read, name, version, record, options) as (at, standing_in):
        with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
            validation = compare(
                _reference(artifact, options.reference, Path(scratch)),
                _candidates(read, name, at, standing_in),
                inputs,
                limits_for(typed, read.plan, read.manifest.engine, options.validation.tolerances),
                lambda done, total: on_step(Progress("Comparing with the FP32 reference", done, total)),
            )
        # each candidate is the whole way from the reference to the answer: no chain of steps
        validation = validation.model_copy(update={"attribution": None})
        load: tuple[LoadStep, ...] = ()
        if options.concurrencies:
            load = sweep(
                _served_at(read, name, at, "grpc"),
                _items(inputs, read),
                options.concurrencies,
                options.seconds,
                least,
                find_perf_analyzer() if options.perf_analyzer else None,
                lambda done, total: on_step(Progress("Measuring under load", done, total)),
            )
    notes = []
    if not options.reference:
        notes.append("The reference was the artifact's own typed model, in FP32: --reference names another.")
    if any(not found.passed or found.max_abs for c in validation.candidates for found in c.outputs):
        notes.append("This does not separate the precision's part of "
                     "the difference from the engine's: `sparseflow-trt validate` does.")  # fmt: skip
    if record.parts:
        if validation.verdict == "fail":
            notes.append(_router_note(name, record))
    elif _depends_on_batch(validation):
        notes.append("A batch gives different answers from its items alone: the first dimension is "
                     "not a batch that requests can share, yet Triton batches requests along it. Deploy it "
                     "with `deploy triton --max-batch-size 0`, which turns batching off, or export the model "
                     "with the batch as its first dimension.")  # fmt: skip
    if load and least and read.manifest.engine.backend != "tensorrt":
        notes.append(DENSE_ALL_THE_SAME)
    if standing_in:
        notes.append(f"The plan was not run: {_STANDS_IN} answered. Triton's core, the batching and the "
                     "configuration are the real ones, on CPUs.")  # fmt: skip
    return Verified(name, version, validation, load, least, tuple(notes))


def _reference(artifact: Path, given: Path | None, scratch: Path) -> Path:
    """The model that answers are compared with, as the ONNX Runtime runs it in FP32."""
    model = read_model(given or artifact / "model.onnx")
    if given is None and expand_plugin_nodes(model.ir):
        save_model(model.ir, scratch / "expanded.onnx")
        model = read_model(scratch / "expanded.onnx")
    return reference_for(model, scratch / "reference.onnx")


def _deployed(folder: Path, artifact: Artifact) -> tuple[int, VersionRecord]:
    served = served_versions(folder)
    if not served:
        raise DeployError(f"{folder} holds no version of a model.", "Deploy the artifact there first.")
    record = check_version(folder, served[-1])
    engines = [check_version(folder.parent / part, number) for part, number in record.parts.items()]
    if artifact.manifest.build_key not in [engine.build_key for engine in engines or [record]]:
        raise ArtifactError(
            f"{folder} serves another build than {artifact.folder} as version {served[-1]}.",
            "Deploy the artifact, or name the one that is served.",
        )
    return served[-1], record


@contextlib.contextmanager
def _served(
    artifact: Artifact, name: str, version: int, record: VersionRecord, options: VerifyOptions
) -> Iterator[tuple[Addresses, bool]]:
    """Where the model is served, and whether a stand-in answers."""
    if options.addresses is not None:
        # Not whether the server is ready: after a refused version it says no, and serves the one before on.
        at = options.addresses.http
        for model, number in (*record.parts.items(), (name, version)):
            if not is_ready(at, f"models/{model}/versions/{number}"):
                raise DeployError(
                    f"the server at {at} is not ready with version {number} of '{model}'.",
                    "Start it, or have it load the model: curl -X POST "
                    f"http://{at}/v2/repository/models/{model}/load; without --http and --grpc, a server is "
                    "started here.",
                )
        yield options.addresses, False
        return
    names = [*record.parts, name]
    gpu = bool(find_gpus())
    needs_gpu = record.route == "python" and record.backend in ("tensorrt", "tensorrt-rtx")
    if needs_gpu and not gpu:
        raise DeployError(
            f"'{name}' runs a {record.backend} engine in the Python backend, which needs an NVIDIA GPU.",
            "Verify it on the machine that is to serve it, or name a running server with --http and --grpc.",
        )
    backends = find_server(options.server).backends
    standing_in = record.route == "tensorrt_plan" and not (gpu and (backends / "tensorrt").is_dir())
    start = ServerOptions(load=names, as_they_are=True, timeout=options.timeout, server=options.server)
    if not standing_in:
        with start_server(options.repository, start) as server:
            yield server.at, False
        return
    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        staged = stage_stand_in(options.repository / name, artifact, Path(scratch))
        start = ServerOptions(
            load=names,
            config_name="cpu",
            backends={"tensorrt": write_stand_in(artifact.plan.profiles)},
            timeout=options.timeout,
            server=options.server,
        )
        with start_server(staged, start) as server:
            yield server.at, True


def stage_stand_in(model: Path, artifact: Artifact, repository: Path) -> Path:
    """A repository of links to a model's files, with the ONNX that a stand-in answers from by each plan.

    That is what `validate` runs on the CPU: the typed model, its plugin nodes and types written out where the
    ONNX Runtime has none of them, with the engine's integers at its ends.
    """
    target = repository / model.name
    stage_model(model, target)
    for version in versions_in(target):
        place = target / str(version)
        typed = candidates_of(artifact.folder, artifact.manifest.engine, place)[0].path
        if narrows_integers(artifact.manifest.engine):
            narrowed = read_model(typed)
            narrow_integers(narrowed)
            save_model(narrowed.ir, place / "model.onnx")
            continue
        link_file(typed, place / "model.onnx")
        if (weights := artifact.folder / "model.onnx.data").is_file() and typed.parent == artifact.folder:
            link_file(weights, place / weights.name)
    return repository


def _candidates(artifact: Artifact, name: str, at: Addresses, standing_in: bool) -> list[Candidate]:
    file = artifact.folder / artifact.manifest.engine.file
    what = "stand-in" if standing_in else "engine"
    found = [
        Candidate(
            f"Triton over {title} ({what})", file, "server", server=_served_at(artifact, name, at, protocol)
        )
        for title, protocol in _PROTOCOLS
    ]
    if artifact.batching.max_batch_size > 1:
        alone = replace(_served_at(artifact, name, at, "grpc"), item_by_item=True)
        found.append(Candidate(f"{_ALONE} ({what})", file, "server", server=alone))
    if standing_in:
        why = "Triton's TensorRT backend needs a GPU, and comes with NVIDIA's containers."
        found.append(Candidate("Triton's TensorRT backend", file, "server", not_run=why))
    return found


def _router_note(name: str, record: VersionRecord) -> str:
    """Why answers of a router may fail although both of its engines are right, as sentences."""
    sparse, dense = record.parts
    return (
        f"'{name}' is a router: '{sparse}' or '{dense}' answers, by the size of the batch. If the two were "
        "built from different weights, no reference fits both: verify each one with its own artifact, with "
        f"--name {sparse} and with --name {dense}."
    )


def _depends_on_batch(validation: Validation) -> bool:
    """Whether whole batches are answered right, and their items alone are not."""
    whole = [c.verdict for c in validation.candidates if not c.name.startswith(_ALONE)]
    alone = [c.verdict for c in validation.candidates if c.name.startswith(_ALONE)]
    return "fail" in alone and "fail" not in whole


def _served_at(artifact: Artifact, name: str, at: Addresses, protocol: Protocol) -> ServedAt:
    tensors = (*artifact.ends.inputs, *artifact.ends.outputs)
    columns = frozenset(tensor.name for tensor in tensors if len(tensor.dims) == 1)
    scalars = frozenset(tensor.name for tensor in tensors if not tensor.dims)
    address = at.http if protocol == "http" else at.grpc
    return ServedAt(protocol, address, name, columns=columns, scalars=scalars)


def _items(inputs: Sequence[InputSet], artifact: Artifact) -> list[dict[str, Array]]:
    """Requests of one item each, all of one shape: the items of the largest set at a profile's opt."""
    if not artifact.batching.max_batch_size:
        return [given.feeds for given in inputs[:1]]
    opts = [given for given in inputs if given.name.split("#")[0].endswith(":opt")] or list(inputs)
    widest = max(opts, key=lambda given: len(next(iter(given.feeds.values()))))
    size = len(next(iter(widest.feeds.values())))
    return [{name: array[i : i + 1] for name, array in widest.feeds.items()} for i in range(size)]
