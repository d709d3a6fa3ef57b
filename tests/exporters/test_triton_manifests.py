"""Compose and Kubernetes files against their published schemas."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sparseflow_trt.exporters.triton_manifests import (
    ServerPlan,
    alive_command,
    compose_file,
    dockerfile,
    image_name,
    kubernetes_files,
    server_command,
    start_script,
)

IMAGE = "nvcr.io/nvidia/tritonserver:26.05-py3"
PLANS = [
    ServerPlan(IMAGE, ["m"]),
    ServerPlan(
        IMAGE, ["a", "b"], ["--cache-config=local,size=1"], ["p.so", "q.so"], ["torch"], {"a": 1, "b": 2}
    ),
    ServerPlan(IMAGE, ["m"], packages=["onnxruntime==1.31.1"], stubs={"m": 1}, gpu=False),
]


@pytest.mark.parametrize("plan", PLANS)
def test_the_compose_file_is_one(plan: ServerPlan) -> None:
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None and found.origin is not None
    file = Path(found.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    data = yaml.safe_load(compose_file(plan, "../repository"))
    jsonschema.validate(data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "servicez": {}}, schema)
    service = data["services"]["triton"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert ("deploy" in service) == plan.gpu
    assert ("build" in service) == bool(plan.packages) != ("image" in service)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("file", ["deployment.yaml", "service.yaml", "hpa.yaml"])
def test_the_manifests_are_what_kubernetes_takes(plan: ServerPlan, file: str) -> None:
    data = yaml.safe_load(kubernetes_files(plan, "my-models")[file])
    kubernetes_validate.validate(data, "1.34", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**data, "specs": {}}, "1.34", strict=True)


def test_the_autoscaler_asks_for_what_the_adapter_makes() -> None:
    files = {name: yaml.safe_load(text) for name, text in kubernetes_files(PLANS[0], "m").items()}
    (rule,) = files["prometheus-adapter-values.yaml"]["rules"]["custom"]
    (metric,) = files["hpa.yaml"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    labels = files["deployment.yaml"]["spec"]["template"]["metadata"]["labels"]
    assert files["podmonitor.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert files["service.yaml"]["spec"]["selector"] == labels
    ports = {
        port["name"]
        for port in files["deployment.yaml"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert files["podmonitor.yaml"]["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_plugins_are_one_flag_and_quoted_for_the_shell() -> None:
    assert server_command(PLANS[1])[-1] == "--backend-config=tensorrt,plugins=/plugins/p.so;/plugins/q.so"
    script = start_script(PLANS[1]).replace("exec tritonserver", "exec printf '%s\\n'")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == server_command(PLANS[1])[1:]


def test_packages_are_installed_into_the_image() -> None:
    assert dockerfile(PLANS[2]) == f"FROM {IMAGE}\nRUN pip install --no-cache-dir onnxruntime==1.31.1\n"


def test_an_image_that_is_built_has_a_tag_of_its_own() -> None:
    assert image_name(PLANS[0], "m") == IMAGE
    named = image_name(PLANS[2], "m")
    assert re.fullmatch(r"m:26\.05-py3-[0-9a-f]{8}", named)
    later = replace(PLANS[2], packages=["onnxruntime==1.32.0"])
    assert named == image_name(replace(PLANS[2], models=["n"]), "m") != image_name(later, "m")
    deployment = yaml.safe_load(kubernetes_files(PLANS[2], "m")["deployment.yaml"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == named


@pytest.mark.parametrize("plan", PLANS)
def test_a_pod_passes_the_restricted_standard(plan: ServerPlan) -> None:
    """Kubernetes' Pod Security Standards, "restricted", by the fields that they name."""
    pod = yaml.safe_load(kubernetes_files(plan, "m")["deployment.yaml"])["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert all({*volume} <= {"name", "emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & {*pod}


def test_the_probe_does_not_find_itself() -> None:
    """Whether it finds a server's stubs is seen in tests/serving."""
    counts = alive_command(PLANS[2]).rpartition(" && ")[2].replace("[t]riton_python", "[n]o_such_python")
    for wanted, code in (("1", 1), ("0", 0)):
        command = re.sub(r"\$\(\(.*\)\)", wanted, counts)
        assert command != counts
        assert subprocess.run(["sh", "-c", command], check=False).returncode == code
