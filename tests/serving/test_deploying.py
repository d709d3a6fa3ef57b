"""Artifacts into a repository: versions, configurations, what is refused."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import ArtifactError, DeployError
from sparseflow_trt.exporters.triton.config import ServedModel, make_config, parse_config
from sparseflow_trt.exporters.triton.repository import largest_batch
from sparseflow_trt.exporters.triton.rollback import roll_back
from sparseflow_trt.exporters.triton.version import (
    check_version,
    served_versions,
    versions_in,
)
from sparseflow_trt.serving import engine_deployment
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import kubernetes_name
from sparseflow_trt.serving.served_artifact import DENSE_ALL_THE_SAME

AsTensorrt = Callable[..., Path]


def config_of(folder: Path) -> object:
    return parse_config((folder / "config.pbtxt").read_text(encoding="utf-8"), "config.pbtxt")


def test_an_ort_engine_is_served_by_the_python_backend(ort_artifact: Path, tmp_path: Path) -> None:
    (model,) = deploy(ort_artifact, DeployOptions(tmp_path / "repository"))
    folder = tmp_path / "repository" / "mlp"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.pbtxt"]
    files = {p.name for p in (folder / "1").iterdir()}
    assert files == {"model.ort.onnx", "model.ort.data", "model.py", "sparseflow.json"}
    assert (model.route, model.written.version, model.batching.max_batch_size) == ("python", 1, 16)
    compile((folder / "1" / "model.py").read_text(encoding="utf-8"), "model.py", "exec")
    # gate_proj is sparse from M=256 on, which are 8 items of 32 rows and 4 of 64; down_proj is planned dense
    assert [(row.profile, row.batch, row.m) for row in model.sparse_from] == [
        ("short", 8, 256),
        ("long", 4, 256),
    ]
    assert model.batching.preferred == (8, 16)
    assert model.notes[-1] == DENSE_ALL_THE_SAME


def test_an_engine_that_never_ran_is_said_to_be_so(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    artifact = as_tensorrt(ort_artifact, tmp_path / "artifacts")
    said = "was not compared with the reference when it was built: it needs a GPU."
    (model,) = deploy(artifact, DeployOptions(tmp_path / "repository"))
    assert not any("was not compared" in note for note in model.notes)
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    manifest["validation"]["candidates"][-1].update(verdict="not run", reason="it needs a GPU.", outputs=[])
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (model,) = deploy(artifact, DeployOptions(tmp_path / "repository"))
    assert any(said in note and "`deploy verify`" in note for note in model.notes), model.notes


def test_a_plan_is_served_by_tensorrts_backend(plan_artifact: Path, tmp_path: Path) -> None:
    (model,) = deploy(plan_artifact, DeployOptions(tmp_path / "repository"))
    folder = tmp_path / "repository" / "mlp"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.pbtxt", "configs"]
    assert {p.name for p in (folder / "1").iterdir()} == {"model.plan", "sparseflow.json"}
    assert model.route == "tensorrt_plan" and DENSE_ALL_THE_SAME not in model.notes
    config = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert 'profile: "0"\n  profile: "1"' in config and "MD5:1/model.plan" in config
    assert "KIND_CPU" in (folder / "configs" / "cpu.pbtxt").read_text(encoding="utf-8")


@given(st.text())
def test_names_for_kubernetes_are_labels_of_rfc_1035(folder: str) -> None:
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name := kubernetes_name(folder)), name
    assert len(f"{name}-plugins") <= 63


def test_a_name_for_kubernetes_is_the_folders() -> None:
    assert [kubernetes_name(folder) for folder in ("My_models", "2026-models", "…")] == [
        "my-models",
        "triton-2026-models",
        "triton",
    ]


def test_no_local_path_and_no_name_reaches_the_repository(
    plan_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "a-persons-name")
    deploy(plan_artifact, DeployOptions(tmp_path / "repository"))
    for file in (tmp_path / "repository").rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            for told in (
                str(tmp_path),
                str(Path.home()) + "/",
                getpass.getuser(),
                socket.gethostname(),
                str(Path.cwd()),
            ):
                assert told not in text, (file, told)


def test_the_same_again_is_no_new_version(ort_artifact: Path, plan_artifact: Path, tmp_path: Path) -> None:
    for artifact in (ort_artifact, plan_artifact):
        options = DeployOptions(tmp_path / "repositories" / artifact.parent.name)
        assert not deploy(artifact, options)[0].written.unchanged
        again = deploy(artifact, options)[0].written
        assert (again.unchanged, again.version) == (True, 1)
        assert versions_in(again.folder) == [1]


def test_a_version_that_was_changed_on_disk_is_written_anew(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    """It was said to stand already, and `deploy verify` went on saying that it is to be deployed again."""
    options = DeployOptions(tmp_path / "repository", "m")
    folder = deploy(ort_artifact, options)[0].written.folder
    deploy(other_artifact, options)
    with (folder / "2" / "model.py").open("a", encoding="utf-8") as stream:
        stream.write("# tried something\n")
    again = deploy(other_artifact, options)[0].written
    assert (again.unchanged, again.version) == (False, 3)
    assert re.search(r"2.model\.py is not the file that was deployed", again.replaces)
    check_version(folder, 3)
    assert deploy(other_artifact, options)[0].written.unchanged
    assert roll_back(folder) == (3, 1), "what was changed is not what was served before"


def test_a_damaged_engine_of_a_router_is_written_anew_and_not_served_on(
    ort_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    options = DeployOptions(tmp_path / "repository", "m", dense=dense_artifact)
    deploy(ort_artifact, options)
    (tmp_path / "repository" / "m-dense" / "1" / "model.ort.data").unlink()
    written = [model.written for model in deploy(ort_artifact, options)]
    assert [(one.folder.name, one.version) for one in written] == [("m-sparse", 1), ("m-dense", 2), ("m", 2)]
    assert served_versions(tmp_path / "repository" / "m-dense") == [2]
    with pytest.raises(DeployError, match=r"model\.ort\.data is missing"):
        roll_back(tmp_path / "repository" / "m")
    assert served_versions(tmp_path / "repository" / "m") == [2]


def test_a_damaged_version_is_not_rolled_back_to(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    """It was, and the server then refused it by its hash."""
    options = DeployOptions(tmp_path / "repository", "m")
    folder = deploy(ort_artifact, options)[0].written.folder
    deploy(other_artifact, options)
    config = (folder / "config.pbtxt").read_bytes()
    (folder / "1" / "model.ort.onnx").write_bytes(b"?")
    with pytest.raises(DeployError, match=r"model\.ort\.onnx is not the file that was deployed") as refused:
        roll_back(folder)
    assert "nothing was rolled back" in refused.value.hint
    assert (folder / "config.pbtxt").read_bytes() == config
    assert versions_in(folder) == [1, 2]


@pytest.mark.parametrize("record", ["", "{"])
def test_a_version_without_a_record_is_deployed_again_as_it_is_said(
    record: str, ort_artifact: Path, tmp_path: Path
) -> None:
    """The hint was to deploy again, which was refused with the same hint."""
    options = DeployOptions(tmp_path / "repository", "m")
    folder = deploy(ort_artifact, options)[0].written.folder
    path = folder / "1" / "sparseflow.json"
    path.write_text(record, encoding="utf-8")
    if not record:
        path.unlink()
    with pytest.raises(DeployError, match=r"sparseflow\.json") as refused:
        check_version(folder, 1)
    assert "out of the repository" in refused.value.hint
    (folder / "1").rename(tmp_path / "moved")
    written = deploy(ort_artifact, options)[0].written
    check_version(folder, written.version)


def test_versions_are_kept_and_withdrawn(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    options = DeployOptions(tmp_path / "repository", "m", keep=2)
    builds = [ort_artifact, other_artifact, dense_artifact]
    folder = tmp_path / "repository" / "m"
    for number, artifact in enumerate(builds):
        assert deploy(artifact, options)[0].written.version == number + 1
    assert versions_in(folder) == [2, 3]
    assert roll_back(folder) == (3, 2)
    assert versions_in(folder) == [2]
    assert (
        check_version(folder, 2).build_key
        == json.loads((builds[1] / "manifest.json").read_text())["build_key"]
    )
    with pytest.raises(DeployError, match="serves version 2, and has none before it"):
        roll_back(folder)
    assert (folder / ".withdrawn-3").is_dir()
    assert deploy(builds[0], options)[0].written.version == 4  # a number is never used for two builds
    assert not list(folder.glob(".*")), "engines that were withdrawn fill no disk"
    assert roll_back(folder) == (4, 2)
    assert deploy(builds[0], options)[0].written.version == 5


def test_a_model_that_something_else_wrote_is_left_alone(ort_artifact: Path, tmp_path: Path) -> None:
    """Its configuration had become ours, with other inputs, and no rollback brought it back."""
    folder = tmp_path / "repository" / "m"
    (folder / "1").mkdir(parents=True)
    text = 'name: "m"\nbackend: "onnxruntime"\nmax_batch_size: 16\n'
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    with pytest.raises(DeployError, match=r"serves version 1, which has no sparseflow\.json"):
        deploy(ort_artifact, DeployOptions(folder.parent, "m"))
    assert (folder / "config.pbtxt").read_text(encoding="utf-8") == text
    assert sorted(file.name for file in folder.iterdir()) == ["1", "config.pbtxt"]


def test_deployments_at_the_same_time_get_a_version_each(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both took number 1, and the one that ended later removed what the other had deployed."""

    def slowly(model: ServedModel) -> object:
        time.sleep(0.5)  # the number is chosen, and nothing has it yet
        return make_config(model)

    monkeypatch.setattr(engine_deployment, "make_config", slowly)
    options = DeployOptions(tmp_path / "repository", "m")
    builds = (ort_artifact, other_artifact)
    with ThreadPoolExecutor(2) as threads:
        versions = [model[0].written.version for model in threads.map(lambda b: deploy(b, options), builds)]
    assert sorted(versions) == [1, 2]
    folder = tmp_path / "repository" / "m"
    for artifact, version in zip(builds, versions, strict=True):
        key = json.loads((artifact / "manifest.json").read_text())["build_key"]
        assert check_version(folder, version).build_key == key


def test_a_rollback_brings_the_older_configuration(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m", delay_us=100))
    edited = repository / "m" / "config.pbtxt"
    deploy(other_artifact, DeployOptions(repository, "m", delay_us=900))
    edited.write_text(edited.read_text() + 'metric_tags { key: "team" value: "search" }\n', encoding="utf-8")
    roll_back(repository / "m")
    config = parse_config(edited.read_text(encoding="utf-8"), "config.pbtxt")
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert config.metric_tags["team"] == "search"  # what a person added stays


def deploy_edited(artifact: Path, repository: Path, old: str, new: str) -> Path:
    """Deploys as 'm' and edits its configuration, whose file is given."""
    path = deploy(artifact, DeployOptions(repository, "m"))[0].written.folder / "config.pbtxt"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return path


def test_an_edited_configuration_is_merged(ort_artifact: Path, other_artifact: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    deploy_edited(ort_artifact, repository, "count: 1", "count: 3")
    (model,) = deploy(other_artifact, DeployOptions(repository, "m"))
    assert model.written.config.instance_group[0].count == 3
    assert [d.field for d in model.written.differences] == ["instance_group"]


def test_an_edit_that_does_not_fit_is_refused_and_nothing_changes(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    path = deploy_edited(ort_artifact, repository, "max_batch_size: 16", "max_batch_size: 64")
    text = path.read_text(encoding="utf-8")
    with pytest.raises(DeployError, match="max_batch_size is 64, and the engine's profiles allow 16"):
        deploy(other_artifact, DeployOptions(repository, "m"))
    assert path.read_text(encoding="utf-8") == text
    assert sorted(p.name for p in (repository / "m").iterdir()) == ["1", "config.pbtxt"]


def test_the_largest_batch_that_is_asked_for_goes_before_an_edited_one(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    deploy_edited(ort_artifact, repository, "max_batch_size: 16", "max_batch_size: 0")
    with pytest.raises(DeployError, match="max_batch_size is 0, which --max-batch-size 0 writes"):
        deploy(other_artifact, DeployOptions(repository, "m"))
    for asked, dims in ((0, [-1, -1, 64]), (4, [-1, 64])):
        (model,) = deploy(other_artifact, DeployOptions(repository, "m", max_batch_size=asked))
        assert model.written.config.max_batch_size == largest_batch(repository / "m") == asked
        assert list(model.written.config.input[0].dims) == dims
    with pytest.raises(DeployError, match="a batch of 17 is asked for, and the engine takes 16"):
        deploy(other_artifact, DeployOptions(repository, "m", max_batch_size=17))
    assert versions_in(repository / "m") == [1, 2, 3]
    assert roll_back(repository / "m") == (3, 2)
    config = parse_config((repository / "m" / "config.pbtxt").read_text(encoding="utf-8"), "config.pbtxt")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, -1, 64])


def test_no_model_is_written_into_an_artifact(ort_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(ort_artifact, tmp_path / "mlp")
    before = sorted(p.name for p in (tmp_path / "mlp").iterdir())
    with pytest.raises(DeployError, match="mlp is an artifact, and a model of that name would be"):
        deploy(tmp_path / "mlp", DeployOptions(tmp_path))
    assert sorted(p.name for p in (tmp_path / "mlp").iterdir()) == before
    deploy(tmp_path / "mlp", DeployOptions(tmp_path, "m"))


def test_a_failed_write_leaves_what_was_served(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m"))
    before = {p: p.read_bytes() for p in repository.rglob("*") if p.is_file()}

    def no_space(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparseflow_trt.exporters.triton.repository.shutil.copyfile", no_space)
    with pytest.raises(ArtifactError, match="No space left"):
        deploy(other_artifact, DeployOptions(repository, "m"))
    assert {p: p.read_bytes() for p in repository.rglob("*") if p.is_file()} == before


def test_versions_that_a_person_has_served_stay_served(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m"))
    path = repository / "m" / "config.pbtxt"
    ours = re.compile(r"version_policy \{\n  specific \{\n    versions: 1\n  \}\n\}\n")
    text, found = ours.subn("version_policy { all { } }\n", path.read_text(encoding="utf-8"))
    assert found == 1
    path.write_text(text, encoding="utf-8")
    (model,) = deploy(other_artifact, DeployOptions(repository, "m"))
    assert model.written.config.version_policy.HasField("all")
    assert [difference.field for difference in model.written.differences] == ["version_policy"]
    assert served_versions(repository / "m") == [2]  # the newest of them answers
    assert roll_back(repository / "m") == (2, 1)


def test_clients_are_not_broken(ort_artifact: Path, other_artifact: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m"))
    record = repository / "m" / "1" / "sparseflow.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"name":"x"', '"name":"old"').replace(
        '"name": "x"', '"name": "old"'), encoding="utf-8")  # fmt: skip
    with pytest.raises(
        DeployError, match=r"different inputs or outputs from the one that is served \(old FP32"
    ):
        deploy(other_artifact, DeployOptions(repository, "m"))
    assert versions_in(repository / "m") == [1]


def test_a_changed_file_is_seen(ort_artifact: Path, tmp_path: Path) -> None:
    (model,) = deploy(ort_artifact, DeployOptions(tmp_path / "repository"))
    check_version(model.written.folder, 1)
    path = model.written.folder / "1" / "model.ort.data"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DeployError, match=r"model\.ort\.data is not the file that was deployed"):
        check_version(model.written.folder, 1)
    path.unlink()
    with pytest.raises(DeployError, match=r"model\.ort\.data is missing"):
        check_version(model.written.folder, 1)
