"""The files beside a repository: the image that its models need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparseflow_trt.exporters.triton.manifests import ServerPlan
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server
from tests.pages import ROOT
from tests.serving.conftest import WithPlugin


def test_the_image_has_what_the_models_were_built_and_tested_with(
    with_plugin: WithPlugin, as_tensorrt: Callable[..., Path], ort_artifact: Path, tmp_path: Path
) -> None:
    def plan(repository: Path) -> ServerPlan:
        return plan_server(repository, (), "26.05")

    deploy(with_plugin("a", b"one"), DeployOptions(tmp_path / "plugin"))
    with_library = plan(tmp_path / "plugin")
    assert "nvidia-cusparselt-cu13==0.8.1" in with_library.dockerfile
    assert "torch" not in with_library.dockerfile  # Triton's own backend imports nothing

    plain = as_tensorrt(ort_artifact, tmp_path / "artifacts", "m")
    deploy(plain, DeployOptions(tmp_path / "plain"))
    assert plan(tmp_path / "plain").dockerfile == ""
    assert plan(tmp_path / "plain").image == "nvcr.io/nvidia/tritonserver:26.05-py3"

    deploy(plain, DeployOptions(tmp_path / "plugin", route="python"))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = (line for line in pinned if line.startswith("torch=="))
    both = plan(tmp_path / "plugin")
    assert torch in both.dockerfile.split() and "nvidia-cusparselt-cu13==0.8.1" in both.dockerfile
    assert "tensorrt==10.16.1.11" in both.dockerfile.split()  # Triton's image has no bindings
    assert both.notes == []
    assert both.image != with_library.image  # a tag that a node has is not of another Dockerfile


def test_models_that_one_image_does_not_suit_are_named(with_plugin: WithPlugin, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    deploy(with_plugin("a", b"one"), DeployOptions(repository, "m", route="python"))
    other = with_plugin("b", b"two", "0.9.1", versions={"tensorrt": "10.13.3.9"})
    deploy(other, DeployOptions(repository, "n", route="python"))
    planned = plan_server(repository, (), "26.05")
    assert {"nvidia-cusparselt-cu13==0.8.1", "tensorrt==10.16.1.11"} <= set(planned.dockerfile.split())
    tensorrt, cusparselt = planned.notes
    assert tensorrt.startswith(
        "Models here need several versions of tensorrt: 10.16.1.11 ('m'), 10.13.3.9 ('n'). The Dockerfile "
        "installs 10.16.1.11. With a version other than its own, an engine may not load"
    )
    assert "cuSPARSELt: 0.8.1 ('m'), 0.9.1 ('n')" in cusparselt
    assert "a plugin measures its algorithms anew" in cusparselt
