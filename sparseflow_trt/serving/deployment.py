"""How artifacts are deployed, and what is a model in Triton's repository then."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow_trt._paths import NO_PATH, GivenPath, MaybePath, with_paths
from sparseflow_trt.artifacts.small_m import SparseFrom
from sparseflow_trt.exporters.triton.batching import Batching
from sparseflow_trt.exporters.triton.config import Route
from sparseflow_trt.exporters.triton.repository import NewVersion, Written, write_version
from sparseflow_trt.serving.served_artifact import RouteName


@with_paths
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

    repository: GivenPath
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
    dense: MaybePath = NO_PATH
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


@dataclass(frozen=True)
class Planned:
    """One model as it is to be written, and what is said of it."""

    version: NewVersion
    batching: Batching
    sparse_from: tuple[SparseFrom, ...]
    notes: tuple[str, ...]


def write_planned(planned: Planned, options: DeployOptions) -> Deployed:
    """Writes a model into the repository.

    Raises:
        DeployError: As `write_version`.
        ArtifactError: The disk is full or not writable.
    """
    new = planned.version
    written = write_version(options.repository, new, options.keep)
    return Deployed(
        new.name,
        new.route,
        new.backend,
        written,
        planned.batching,
        planned.sparse_from,
        new.needs,
        planned.notes,
    )


def needs_of(options: DeployOptions, version_compatible: bool) -> tuple[str, ...]:
    """The flags of the server that a configuration depends on."""
    compatible = ("--backend-config=tensorrt,version-compatible=true",) if version_compatible else ()
    return (*compatible, *(("--cache-config=local,size=67108864",) if options.cache else ()))
