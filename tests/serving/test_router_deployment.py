"""Routers into a repository: three models together, and none in another's place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sparseflow_trt._files import sha256_of
from sparseflow_trt.errors import DeployError
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions

AsTensorrt = Callable[..., Path]
LIBRARY = "libsparseflow_linear24.trt10.so"


def test_a_router_needs_batches(ort_artifact: Path, dense_artifact: Path, tmp_path: Path) -> None:
    options = DeployOptions(tmp_path / "repository", "m", dense=dense_artifact, max_batch_size=0)
    with pytest.raises(DeployError, match=r"a router chooses by the batch, and .* has none: Requests share"):
        deploy(ort_artifact, options)


def test_a_router_and_a_model_of_its_own_do_not_take_each_others_place(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    router = DeployOptions(repository, "m", dense=dense_artifact)
    deploy(other_artifact, DeployOptions(repository, "m-sparse"))
    with pytest.raises(DeployError, match="has another model 'm-sparse' already"):
        deploy(ort_artifact, router)
    assert sorted(p.name for p in repository.iterdir()) == ["m-sparse"]
    shutil.rmtree(repository / "m-sparse")
    deploy(ort_artifact, DeployOptions(repository, "m-sparse"))  # as a router that was not finished leaves it
    assert len(deploy(ort_artifact, router)) == 3
    for name in ("m-sparse", "m-dense"):
        with pytest.raises(DeployError, match=f"'{name}' is one of the two models that the router 'm' sends"):
            deploy(other_artifact, DeployOptions(repository, name))
    assert len(deploy(other_artifact, router)) == 3  # the router's own next version


def test_a_router_that_was_not_finished_can_be_deployed_again(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    router = DeployOptions(repository, "m", dense=dense_artifact)
    shutil.copytree(dense_artifact, repository / "m-dense")  # an artifact in the way of the second of three
    with pytest.raises(DeployError, match="m-dense is an artifact"):
        deploy(ort_artifact, router)
    assert sorted(p.name for p in repository.iterdir()) == ["m-dense", "m-sparse"]
    shutil.rmtree(repository / "m-dense")
    built_anew = deploy(other_artifact, router)
    versions = {model.name: model.written.version for model in built_anew}
    assert versions == {"m-sparse": 2, "m-dense": 1, "m": 1}
    assert all(model.written.unchanged for model in deploy(other_artifact, router))


def test_of_a_router_nothing_is_written_where_a_part_is_refused(
    ort_artifact: Path, dense_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    dense = as_tensorrt(dense_artifact, tmp_path / "dense", options={"strip_plan": True})
    with pytest.raises(DeployError, match="its engine has no weights"):
        deploy(ort_artifact, DeployOptions(tmp_path / "repository", "m", dense=dense))
    assert not (tmp_path / "repository").exists()


def test_the_two_engines_of_a_router_need_one_plugin_library(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    def with_library(name: str) -> Path:
        shutil.copytree(ort_artifact, tmp_path / name)
        (tmp_path / name / LIBRARY).write_bytes(name.encode())
        plugin = {"file": LIBRARY, "sha256": sha256_of(tmp_path / name / LIBRARY), "versions": {}}
        return as_tensorrt(tmp_path / name, tmp_path / "artifacts", name, plugin=plugin)

    sparse, other = with_library("one"), with_library("two")
    with pytest.raises(
        DeployError, match="'m-dense' needs another build of the plugin's library than 'm-sparse'"
    ):
        deploy(sparse, DeployOptions(tmp_path / "repository", "m", dense=other))
    assert not (tmp_path / "repository").exists()
