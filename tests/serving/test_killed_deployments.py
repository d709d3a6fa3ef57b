"""Deployments that are killed between two writes: what is served, and what the next one makes of it."""

from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path

import pytest

from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.exporters.triton import repository as triton_repository
from sparseflow_trt.exporters.triton.rollback import roll_back
from sparseflow_trt.exporters.triton.version import served_versions, versions_in
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions

pytestmark = pytest.mark.usefixtures("hears_ctrl_c")


def test_what_a_killed_run_left_is_neither_served_nor_taken_for_an_edit(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a version and its configuration: the older one's values were kept as if edited."""
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m", delay_us=500))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(triton_repository, "write_configs", lambda *_: signal.raise_signal(signal.SIGINT))
        deploy(other_artifact, DeployOptions(repository, "m", delay_us=900))
    assert versions_in(repository / "m") == [1, 2] and served_versions(repository / "m") == [1]
    written = deploy(other_artifact, DeployOptions(repository, "m", delay_us=900))[0].written
    assert (written.version, written.differences) == (3, ())
    assert written.config.dynamic_batching.max_queue_delay_microseconds == 900
    assert served_versions(repository / "m") == [3]
    assert roll_back(repository / "m") == (3, 1)  # to what was served before


def test_a_version_whose_removal_was_killed_is_none(
    ort_artifact: Path, other_artifact: Path, dense_artifact: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    removes = shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.name == ".removed-1":
            (path / "model.ort.data").unlink()
            signal.raise_signal(signal.SIGINT)
        removes(path, ignore_errors)

    folder = tmp_path / "repository" / "m"
    options = DeployOptions(tmp_path / "repository", "m", keep=2)
    deploy(ort_artifact, options)
    deploy(other_artifact, options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sparseflow_trt.exporters.triton.repository.shutil.rmtree", killed)
        deploy(dense_artifact, options)
    assert versions_in(folder) == [2, 3] and (folder / ".removed-1" / "model.py").is_file()
    deploy(ort_artifact, options)
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "config.pbtxt"]


def test_a_first_version_that_the_disk_has_no_room_for_leaves_no_folder(
    ort_artifact: Path, tmp_path: Path
) -> None:
    """An empty one keeps a tritonserver that serves all models from starting."""
    repository = tmp_path / "repository"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        with pytest.raises(ArtifactError, match="File too large"):
            deploy(ort_artifact, DeployOptions(repository, "m"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not repository.exists()
    deploy(ort_artifact, DeployOptions(repository, "m"))
    assert sorted(p.name for p in (repository / "m").iterdir()) == ["1", "config.pbtxt"]
