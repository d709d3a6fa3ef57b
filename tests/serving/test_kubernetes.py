"""What is written for Kubernetes, run: by a user with no rights, on a read-only root and repository."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparseflow_trt.engines.triton.server import find_server
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server, write_deployment_files
from tests.serving.pod import Pod, start_pod, why_no_pod

# What changes a server from outside, each told to be refused by the key's header, which nobody has.
REFUSED = """
import tritonclient.grpc as grpc, tritonclient.http as http
for client in (http.InferenceServerClient("127.0.0.1:8000"), grpc.InferenceServerClient("127.0.0.1:8001")):
    for change in (
        lambda: client.load_model("mlp"),
        lambda: client.unload_model("mlp"),
        lambda: client.get_model_repository_index(),
        lambda: client.register_system_shared_memory("region", "/region", 64),
        lambda: client.update_trace_settings(settings={"trace_level": "TIMESTAMPS"}),
        lambda: client.update_log_settings({"log_verbose_level": 9}),
    ):
        try:
            change()
        except Exception as error:
            assert "sealed-by" in str(error), error
        else:
            raise SystemExit("it was not refused")
"""


@pytest.fixture
def deployment(ort_artifact: Path, tmp_path: Path, tritonserver: None) -> dict[str, Any]:
    """The Deployment of a repository in `tmp_path`, a volume's root with the folder that ext4 has there."""
    if reason := why_no_pod():
        pytest.skip(f"no pod can be made here: {reason}")
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository))
    (repository / "lost+found").mkdir(mode=0o700)
    write_deployment_files(repository, plan_server(repository, (), "26.05"), (), ["k8s"])
    text = (tmp_path / "repository.deploy" / "k8s" / "deployment.yaml").read_text(encoding="utf-8")
    manifest: dict[str, Any] = yaml.safe_load(text)
    return manifest


def start(deployment: dict[str, Any], folder: Path) -> Any:
    scratch = folder / "pod"
    scratch.mkdir()
    return start_pod(deployment, {"repository-models": folder / "repository"}, find_server(), scratch)


def writable(pod: Pod, folders: tuple[str, ...]) -> list[str]:
    return [folder for folder in folders if not pod.run("touch", f"{folder}/written").returncode]


def test_it_serves_with_no_rights_and_writes_where_it_may(
    deployment: dict[str, Any], ort_artifact: Path, tmp_path: Path
) -> None:
    asked = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    with start(deployment, tmp_path) as pod:
        folders = ("/", "/models", "/models/mlp", "/opt/tritonserver", "/usr", "/dev/shm", "/tmp")
        assert writable(pod, folders) == ["/dev/shm", "/tmp"]
        for pid in pod.processes():
            told = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            status = {
                key: rest.split() for key, _, rest in (line.partition(":") for line in told.splitlines())
            }
            assert status["Uid"] == status["Gid"] == ["1000"] * 4 and status["NoNewPrivs"] == ["1"]
            assert all(int(status[kind][0], 16) == 0 for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh"))
        assert pod.probe("readinessProbe") and pod.probe("livenessProbe")
        verified = pod.reach(
            *(sys.executable, "-m", "sparseflow_trt.cli.main", "deploy", "verify", str(ort_artifact)),
            *("--repository", str(tmp_path / "repository"), "--http", "127.0.0.1:8000"),
            *("--grpc", "127.0.0.1:8001", "--concurrency", "32", "--seconds", "0.5"),
        )
        assert verified.returncode == 0, verified.stdout + verified.stderr
        refused = pod.reach(sys.executable, "-c", REFUSED)
        assert refused.returncode == 0, refused.stdout + refused.stderr
        assert pod.memory() < int(asked["requests"]["memory"].removesuffix("Gi")) << 30
        assert "nv_inference_request_success" in pod.run("curl", "-s", "http://127.0.0.1:8002/metrics").stdout
        for stub in pod.processes()[1:]:
            os.kill(stub, signal.SIGKILL)
        time.sleep(0.3)
        assert pod.probe("readinessProbe") and not pod.probe("livenessProbe")


def test_a_repository_that_its_user_may_not_read_is_told_of(
    deployment: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "repository" / "mlp" / "1" / "model.ort.onnx").chmod(0o600)
    said = r"model\.ort\.onnx cannot be read: Permission denied"
    with pytest.raises(AssertionError, match=said), start(deployment, tmp_path):
        pass
