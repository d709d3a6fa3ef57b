"""A server with the rights that the Deployment leaves it: no capability, and few places to write to."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparseflow_trt.exporters.triton_manifests import ServerPlan, kubernetes_files
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from tests.pages import ROOT

_NEW_MOUNTS = ("unshare", "--mount")
_NO_RIGHTS = ("setpriv", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


def writable() -> list[str]:
    """Where the Deployment's container may write."""
    files = kubernetes_files(ServerPlan("triton", ["mlp"], gpu=False), "models")
    pod = yaml.safe_load(files["deployment.yaml"])["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    return [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]


def test_it_serves(tmp_path: Path, ort_artifact: Path, tritonserver: None) -> None:
    """As the user that runs the tests: Python may lie where no other user reads it."""
    if os.getuid() or subprocess.run([*_NEW_MOUNTS, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot make mounts of its own")
    deploy(ort_artifact, DeployOptions(tmp_path / "models"))
    shutil.copytree(ort_artifact, tmp_path / "mlp")
    kept = {"/mnt/given": str(tmp_path), "/mnt/checkout": str(ROOT)}
    steps = ["mount -t tmpfs tmpfs /mnt", f"mkdir {shlex.join(kept)}"]
    for place, folder in kept.items():
        steps += [shlex.join(["mount", "--bind", folder, place]), f"mount -o remount,bind,ro {place}"]
    steps += [f"mount -t tmpfs -o mode=1777 tmpfs {place}" for place in writable()]
    if any(ROOT.is_relative_to(place) for place in writable()):
        steps += [
            shlex.join(["mkdir", "-p", str(ROOT)]),
            f"mount --bind /mnt/checkout {shlex.quote(str(ROOT))}",
        ]
    steps += ["mount -o remount,bind,ro /", "mount -o remount,ro /mnt", "! touch /root/written 2>/dev/null"]
    steps += ["cd /mnt/given"]
    verify = [sys.executable, "-m", "sparseflow_trt.cli.main", "deploy", "verify", "mlp"]
    verify += ["--repository", "models", "--concurrency", "0"]
    run = shlex.join([*_NO_RIGHTS, *verify])
    done = subprocess.run(
        [*_NEW_MOUNTS, "sh", "-c", " && ".join([*steps, f"exec {run}"])],
        env={**os.environ, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass" in done.stdout
