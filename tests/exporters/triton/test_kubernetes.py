"""The files for Kubernetes against its published schemas, its strictest standard for pods, and kustomize."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sparseflow_trt.exporters.triton.kubernetes import kubernetes_files, sealed_command
from sparseflow_trt.exporters.triton.manifests import Resources, ServerPlan, server_command

IMAGE = "nvcr.io/nvidia/tritonserver:26.05-py3"
PLANS = [
    ServerPlan(IMAGE, IMAGE, ["m"]),
    ServerPlan("r.example.com/t:1", IMAGE, ["a", "b"], ["--cache-config=local,size=1"], ["p.so", "q.so"],
               "FROM t", {"a": 1, "b": 2}, resources=Resources(gpus=2, cpus=5, memory_gib=12)),
    ServerPlan("models-triton:1", IMAGE, ["m"], dockerfile="FROM t", stubs={"m": 1}, resources=Resources(0)),
]  # fmt: skip
APPLIED = {"deployment.yaml", "service.yaml", "hpa.yaml", "pdb.yaml"}


def read(plan: ServerPlan, name: str = "my-models") -> dict[str, Any]:
    return {file: yaml.safe_load(text) for file, text in kubernetes_files(plan, name).items()}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("version", ["1.32", "1.34", "1.37"])
def test_the_manifests_are_what_kubernetes_takes(plan: ServerPlan, version: str) -> None:
    files = read(plan)
    assert set(files["kustomization.yaml"]["resources"]) == APPLIED
    for file in APPLIED:
        kubernetes_validate.validate(files[file], version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**files[file], "specs": {}}, version, strict=True)


@pytest.mark.parametrize("plan", PLANS)
def test_the_pod_keeps_to_the_restricted_standard(plan: ServerPlan) -> None:
    """Of the Pod Security Standards, "restricted": all that it asks of a pod on Linux."""
    spec = read(plan)["deployment.yaml"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    user, rights = spec["securityContext"], container["securityContext"]
    assert user["runAsNonRoot"] is True and user["runAsUser"] != 0
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec) and "privileged" not in rights
    assert all("hostPort" not in port for port in container["ports"])
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"}
    # and what reviews ask for beyond it
    assert rights["readOnlyRootFilesystem"] is True and spec["automountServiceAccountToken"] is False
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("plan", PLANS)
def test_resources_are_asked_for(plan: ServerPlan) -> None:
    spec = read(plan)["deployment.yaml"]["spec"]["template"]["spec"]
    resources = spec["containers"][0]["resources"]
    assert resources["requests"] == {
        "cpu": str(plan.resources.cpus),
        "memory": f"{plan.resources.memory_gib}Gi",
    }
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert resources["limits"].get("nvidia.com/gpu", 0) == plan.resources.gpus
    assert ("tolerations" in spec) == bool(plan.resources.gpus)


def test_a_lone_replica_can_be_moved() -> None:
    files = read(PLANS[0])
    assert files["hpa.yaml"]["spec"]["minReplicas"] == 1
    assert (
        files["pdb.yaml"]["spec"]["maxUnavailable"] == 1 and "minAvailable" not in files["pdb.yaml"]["spec"]
    )


def test_all_files_mean_the_same_pods() -> None:
    files = read(PLANS[0], "m")
    (rule,) = files["prometheus-adapter-values.yaml"]["rules"]["custom"]
    (metric,) = files["hpa.yaml"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    pods = files["deployment.yaml"]["spec"]["template"]
    labels = pods["metadata"]["labels"]
    assert files["podmonitor.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert files["pdb.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert files["service.yaml"]["spec"]["selector"] == labels
    ports = {port["name"] for port in pods["spec"]["containers"][0]["ports"]}
    assert files["podmonitor.yaml"]["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_the_servers_command_gets_a_key_that_is_another_at_each_start(tmp_path: Path) -> None:
    """What the key does is seen in tests/serving/test_kubernetes.py."""
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n", encoding="utf-8")
    program.chmod(0o755)
    keys = set()
    for _ in range(2):
        done = subprocess.run(
            sealed_command(PLANS[1]),
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        *command, http, grpc = done.stdout.splitlines()
        assert command == server_command(PLANS[1])[1:]
        assert http.startswith("--http-restricted-api=model-repository,")
        assert grpc.startswith("--grpc-restricted-protocol=model-repository,")
        assert (
            http.partition(":")[2] == grpc.partition(":")[2] and len(http.partition(":sealed-by=")[2]) == 36
        )
        keys.add(http)
    assert len(keys) == 2


def test_an_overlay_changes_what_clusters_differ_in(tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl, whose kustomize makes an overlay")
    (tmp_path / "base").mkdir()
    for file, text in kubernetes_files(PLANS[2], "models").items():
        (tmp_path / "base" / file).write_text(text, encoding="utf-8")
    (tmp_path / "overlay").mkdir()
    page = Path(__file__).parents[3] / "docs" / "TRITON.md"
    (overlay,) = (
        text.split("```")[0]
        for text in page.read_text(encoding="utf-8").split("```yaml\n")[1:]
        if "kustomize" in text
    )
    overlay = overlay.replace("../models.deploy/k8s", "../base")
    (tmp_path / "overlay" / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "overlay")], capture_output=True, text=True, check=True
    )
    found = {data["kind"]: data for data in yaml.safe_load_all(done.stdout)}
    assert {data["metadata"]["namespace"] for data in found.values()} == {"inference"}
    spec = found["Deployment"]["spec"]["template"]["spec"]
    wanted = yaml.safe_load(overlay)
    (image,) = wanted["images"]
    (container,) = spec["containers"]
    assert container["image"] == f"{image['newName']}:{image['newTag']}"
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] == "6Gi"
    assert "nodeSelector" in spec and found["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 2
    for data in found.values():
        kubernetes_validate.validate(json.loads(json.dumps(data)), "1.34", strict=True)
