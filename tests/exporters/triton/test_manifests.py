"""The server's command, its probes, its image, and the compose file against its published schema."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from sparseflow_trt.exporters.triton.manifests import (
    Resources,
    ServerPlan,
    alive_command,
    compose_file,
    dockerfile,
    server_command,
    start_script,
)

IMAGE = "nvcr.io/nvidia/tritonserver:26.05-py3"
PLANS = [
    ServerPlan(IMAGE, IMAGE, ["m"]),
    ServerPlan(
        "registry.example.com:5000/triton:26.05-1",
        IMAGE,
        ["a", "b"],
        ["--cache-config=local,size=1"],
        ["p.so", "q.so"],
        dockerfile(IMAGE, ["torch==2.13.0"], ""),
        {"a": 1, "b": 2},
        resources=Resources(gpus=2),
    ),
    ServerPlan(
        "m:1",
        IMAGE,
        ["m"],
        dockerfile=dockerfile(IMAGE, ["a==1"], ""),
        stubs={"m": 1},
        resources=Resources(0),
    ),
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
    devices = service.get("deploy", {"resources": {"reservations": {"devices": []}}})["resources"][
        "reservations"
    ]
    assert sum(device["count"] for device in devices["devices"]) == plan.resources.gpus
    # with `build`, docker compose builds and pushes what it names
    assert (service["image"], "build" in service) == (plan.image, bool(plan.dockerfile))
    assert service["user"] == "1000:1000" and service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"][0].endswith(":ro") and service["tmpfs"] and service["shm_size"]


def test_plugins_are_one_flag_and_quoted_for_the_shell() -> None:
    assert server_command(PLANS[1])[-1] == "--backend-config=tensorrt,plugins=/plugins/p.so;/plugins/q.so"
    script = start_script(PLANS[1]).replace("exec tritonserver", "exec printf '%s\\n'")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == server_command(PLANS[1])[1:]


def test_packages_are_installed_into_the_image() -> None:
    assert dockerfile(IMAGE, ["onnxruntime==1.31.1"], "").splitlines() == [
        f"ARG BASE={IMAGE}",
        "FROM ${BASE}",
        "RUN pip install --no-cache-dir onnxruntime==1.31.1",
        "USER 1000:1000",
    ]
    assert dockerfile(IMAGE, [], "") == ""


def test_the_loader_finds_the_cusparselt_that_is_installed_into_the_image() -> None:
    """That the wheels lay the libraries there was tried by hand: they are of hundreds of megabytes."""
    _, _, *install, named, user = dockerfile(IMAGE, [], "0.9.1").splitlines()
    text, folder = "\n".join(install), named.removeprefix("ENV SPARSEFLOW_CUSPARSELT=")
    assert f"--target {folder} nvidia-cusparselt-cu13==0.9.1 nvidia-cuda-nvrtc==" in text
    assert f"/libcusparseLt.so.0 {folder}" in text and text.endswith(folder)
    assert user == "USER 1000:1000"


def test_the_probe_does_not_find_itself() -> None:
    """Whether it finds a server's stubs is seen in tests/serving."""
    counts = alive_command(PLANS[2]).rpartition(" && ")[2].replace("[t]riton_python", "[n]o_such_python")
    for wanted, code in (("1", 1), ("0", 0)):
        command = re.sub(r"\$\(\(.*\)\)", wanted, counts)
        assert command != counts
        assert subprocess.run(["sh", "-c", command], check=False).returncode == code
