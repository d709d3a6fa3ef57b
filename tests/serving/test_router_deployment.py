"""Routers into a repository: three models together, and none in another's place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sparseflow_trt._files import sha256_of
from sparseflow_trt.errors import ArtifactError, DeployError
from sparseflow_trt.exporters.triton.rollback import roll_back
from sparseflow_trt.exporters.triton.version import read_record, served_versions, versions_in
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.verify import VerifyOptions, verify

AsTensorrt = Callable[..., Path]
LIBRARY = "libsparseflow_linear24.trt10.so"


def test_a_router_needs_batches(ort_artifact: Path, dense_artifact: Path, tmp_path: Path) -> None:
    options = DeployOptions(tmp_path / "repository", "m", dense=dense_artifact, max_batch_size=0)
    with pytest.raises(DeployError, match=r"a router chooses by the batch, but .* has none: Requests share"):
        deploy(ort_artifact, options)


def test_a_router_needs_a_threshold(ort_artifact: Path, dense_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="no batch from 2 to 16 is where the sparse layers"):
        deploy(
            ort_artifact, DeployOptions(tmp_path / "repository", "m", dense=dense_artifact, sparse_from=9**9)
        )
    for least in (None, 256):  # which cannot help
        options = DeployOptions(tmp_path / "repository", "m", dense=ort_artifact, sparse_from=least)
        with pytest.raises(DeployError, match=r"no layer of .* is planned sparse"):
            deploy(dense_artifact, options)


def test_a_router_of_two_models_says_that_outputs_depend_on_which_answers(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    for dense, noted in ((dense_artifact, False), (other_artifact, True)):
        router = deploy(ort_artifact, DeployOptions(tmp_path / dense.name, "m", dense=dense))[-1]
        told = " ".join(router.notes)
        assert ("outputs depend on which of the two answers" in told) == noted
        assert ("'other.onnx'" in told) == noted


def test_a_router_and_a_model_of_its_own_do_not_take_each_others_place(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    router = DeployOptions(repository, "m", dense=dense_artifact)
    deploy(other_artifact, DeployOptions(repository, "m-sparse"))
    with pytest.raises(DeployError, match="already has another model 'm-sparse'"):
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
        DeployError, match="'m-dense' needs a different build of the plugin's library from 'm-sparse'"
    ):
        deploy(sparse, DeployOptions(tmp_path / "repository", "m", dense=other))
    assert not (tmp_path / "repository").exists()


def test_a_router_names_the_versions_of_its_engines_and_none_of_these_is_removed(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    router = DeployOptions(repository, "m", dense=dense_artifact, keep=2)
    first = deploy(ort_artifact, router)[-1].written
    record = read_record(first.folder, first.version)
    assert record is not None and record.parts == {"m-sparse": 1, "m-dense": 1}
    blocked = repository / "m" / "config.pbtxt"
    text = blocked.read_text(encoding="utf-8")
    blocked.write_text(text.replace("max_batch_size: 16", "max_batch_size: 64"), encoding="utf-8")
    for artifact in (other_artifact, ort_artifact, other_artifact):  # the router itself is refused each time
        with pytest.raises(DeployError, match="max_batch_size is 64"):
            deploy(artifact, router)
        assert 1 in served_versions(repository / "m-sparse")
    assert versions_in(repository / "m-sparse") == [1, 3, 4] and versions_in(repository / "m") == [1]
    blocked.write_text(text, encoding="utf-8")
    sparse, dense, second = (model.written for model in deploy(other_artifact, router))
    assert (sparse.version, sparse.unchanged, dense.unchanged, second.version) == (4, True, True, 2)
    assert served_versions(repository / "m-sparse") == [1, 4]
    deploy(ort_artifact, router)
    assert versions_in(repository / "m-sparse") == [1, 4, 5] and versions_in(repository / "m") == [2, 3]
    assert served_versions(repository / "m-sparse") == [4, 5]
    assert deploy(other_artifact, router)[0].written.removed == (1,)  # no router names it any more


def test_a_router_is_rolled_back_with_its_engines(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    router = DeployOptions(repository, "m", dense=dense_artifact)
    for artifact in (ort_artifact, other_artifact, ort_artifact):
        deploy(artifact, router)
    with pytest.raises(DeployError, match="one of the two models that the router 'm' sends batches to") as no:
        roll_back(repository / "m-sparse")
    assert no.value.hint == "Roll back the router, which rolls back both: --name m."
    assert served_versions(repository / "m-sparse") == [2, 3]
    assert [roll_back(repository / "m"), roll_back(repository / "m")] == [(3, 2), (2, 1)]
    assert served_versions(repository / "m-sparse") == [1, 2, 3]
    record = read_record(repository / "m", 1)
    assert record is not None and record.parts == {"m-sparse": 1, "m-dense": 1}
    again = deploy(other_artifact, router)
    assert [model.written.version for model in again] == [4, 1, 4]
    assert again[0].written.differences == () and served_versions(repository / "m-sparse") == [1, 4]


def test_a_rollback_to_an_engine_that_is_gone_is_refused_before_anything_changes(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    for artifact in (ort_artifact, other_artifact, ort_artifact):
        deploy(artifact, DeployOptions(repository, "m", dense=dense_artifact))
    roll_back(repository / "m")
    shutil.rmtree(repository / "m-sparse" / "1")
    with pytest.raises(DeployError, match="m-sparse has no version 1 any more"):
        roll_back(repository / "m")
    assert served_versions(repository / "m") == versions_in(repository / "m")[-1:] == [2]


def test_both_engines_of_a_plan_keep_their_checksums(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    """Triton reads one configuration for the versions that it serves beside each other."""
    dense = as_tensorrt(dense_artifact, tmp_path / "plans", "dense")
    for name, artifact in (("one", ort_artifact), ("two", other_artifact)):
        plan = as_tensorrt(artifact, tmp_path / "plans", name)
        (written, *_) = deploy(plan, DeployOptions(tmp_path / "repository", "m", dense=dense))
    config = written.written.config
    assert list(config.version_policy.specific.versions) == [1, 2]
    (agent,) = config.model_repository_agents.agents
    assert sorted(agent.parameters) == ["MD5:1/model.plan", "MD5:2/model.plan"]
    assert all(model.written.unchanged for model in deploy(plan, DeployOptions(
        tmp_path / "repository", "m", dense=dense)))  # fmt: skip


def test_a_router_is_verified_with_what_its_engines_were_made_from(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    """Before a server starts: a router's own files are the same whatever its engines are."""
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m", dense=dense_artifact))
    with pytest.raises(ArtifactError, match="m serves another build than"):
        verify(other_artifact, VerifyOptions(repository, "m"))
    engine = repository / "m-dense" / "1" / "model.ort.data"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    with pytest.raises(DeployError, match=r"m-dense/1/model\.ort\.data is not the file that was deployed"):
        verify(ort_artifact, VerifyOptions(repository, "m"))
