"""What Kubernetes is asked for, of models as they are deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparseflow_trt.exporters.triton.manifests import Resources
from sparseflow_trt.exporters.triton.version import read_models
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server
from sparseflow_trt.serving.server_resources import reckon_resources

AsTensorrt = Callable[..., Path]


def reckon(repository: Path) -> Resources:
    return reckon_resources(repository, read_models(repository))


def test_each_thread_that_computes_gets_a_core(ort_artifact: Path, tmp_path: Path) -> None:
    deploy(ort_artifact, DeployOptions(tmp_path, "a"))
    assert reckon(tmp_path) == Resources(gpus=0, cpus=2, memory_gib=2)
    deploy(ort_artifact, DeployOptions(tmp_path, "b", count=3, threads=4))
    more = reckon(tmp_path)
    assert (more.gpus, more.cpus) == (0, 1 + 1 + 3 * 4) and more.memory_gib > 2


def test_as_many_gpus_as_the_configurations_name(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    """A container's GPUs are numbered from 0 on: an instance on GPU 2 needs three."""
    plan = as_tensorrt(ort_artifact, tmp_path / "artifacts")
    repository = tmp_path / "repository"
    deploy(plan, DeployOptions(repository, "a"))
    one = reckon(repository)
    deploy(plan, DeployOptions(repository, "b", gpus=(0, 2)))
    deploy(plan, DeployOptions(repository, "c", route="python"))
    more = reckon(repository)
    assert (one.gpus, more.gpus) == (1, 3)
    assert more.cpus == one.cpus + 1 and more.memory_gib > one.memory_gib
    assert plan_server(repository, (), "26.05").resources.gpus == 3


def test_memory_follows_the_engines_and_both_versions_that_a_router_keeps(
    ort_artifact: Path, dense_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    deploy(ort_artifact, DeployOptions(tmp_path, "m", dense=dense_artifact))
    before = reckon(tmp_path)
    deploy(other_artifact, DeployOptions(tmp_path, "m", dense=dense_artifact))
    assert (after := reckon(tmp_path)).memory_gib > before.memory_gib
    with (tmp_path / "m-sparse" / "1" / "large").open("wb") as stream:
        stream.truncate(2 << 30)  # a hole: it takes no disk
    assert reckon(tmp_path).memory_gib == after.memory_gib + 3 * 2
