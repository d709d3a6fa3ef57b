"""How a repository is served: the server's command, a compose file, Kubernetes manifests."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
_CONFIGURED = "--backend-config=tensorrt,"
_QUEUE = "triton_queue_us_per_request"
_USER = 1000  # triton-server, which NVIDIA's images have beside root


@dataclass(frozen=True)
class ServerPlan:
    """What a server needs.

    Attributes:
        image: The container's.
        models: What it loads.
        flags: What the models' configurations depend on.
        plugins: Names of plugin libraries in /plugins.
        packages: What pip adds to the image, for the Python backend.
        stubs: How many processes the Python backend runs for each version of a model, by the model's name.
        gpu: Whether it takes one.
        queue_us: The average wait in the queue, in microseconds, from which on Kubernetes adds a replica.
        own_plugins: Plugin libraries that models bring, seen from the repository: NAME/plugin.so.
    """

    image: str
    models: Sequence[str]
    flags: Sequence[str] = ()
    plugins: Sequence[str] = ()
    packages: Sequence[str] = ()
    stubs: Mapping[str, int] = field(default_factory=dict)
    gpu: bool = True
    queue_us: int = 2000
    own_plugins: Sequence[str] = ()


def server_command(plan: ServerPlan) -> list[str]:
    """The command that serves a repository at /models; models can be loaded anew while it runs."""
    command = ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit"]
    command += [f"--load-model={name}" for name in plan.models]
    command += dict.fromkeys(plan.flags)
    libraries = [f"/models/{file}" for file in plan.own_plugins]
    libraries += [f"/plugins/{name}" for name in plan.plugins]
    if libraries:
        command.append(f"{_CONFIGURED}plugins={';'.join(libraries)}")
    return command


def start_script(plan: ServerPlan) -> str:
    """The command as a shell script, quoted."""
    return "#!/bin/sh\nexec " + " \\\n  ".join(shlex.quote(word) for word in server_command(plan)) + "\n"


def dockerfile(plan: ServerPlan) -> str:
    """The image with what the Python backend's models import."""
    packages = " ".join(shlex.quote(package) for package in plan.packages)
    return f"FROM {plan.image}\nRUN pip install --no-cache-dir {packages}\n"


def image_name(plan: ServerPlan, name: str) -> str:
    """The image that the manifests name: the container's, or what the Dockerfile is to be built as.

    Its tag follows from the Dockerfile: a node that has an earlier image pulls the one that is meant.
    """
    if not plan.packages:
        return plan.image
    digest = hashlib.sha256(dockerfile(plan).encode()).hexdigest()
    return f"{name}:{plan.image.rpartition(':')[2]}-{digest[:8]}"


def compose_file(plan: ServerPlan, repository: str) -> str:
    """A compose file for one server on this machine, reachable from it alone.

    Args:
        plan: The server.
        repository: Where the repository is, seen from the file: a relative path, which tells no local one.
    """
    service: dict[str, Any] = {"image": plan.image}
    if plan.packages:
        service = {"build": {"context": ".", "dockerfile": "Dockerfile"}}
    service |= {
        "command": server_command(plan),
        "ports": [f"127.0.0.1:{port}:{port}" for port in _PORTS.values()],
        "volumes": [f"{repository}:/models:ro", *(["./plugins:/plugins:ro"] if plan.plugins else [])],
        "shm_size": "1gb",
        "restart": "unless-stopped",
        "stop_grace_period": "40s",
        "healthcheck": {
            "test": ["CMD-SHELL", f"{ready_command(plan)} && {alive_command(plan)}".replace("$", "$$")],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "60s",
        },
    }
    if plan.gpu:
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return _yaml({"services": {"triton": service}})


def kubernetes_files(plan: ServerPlan, name: str) -> dict[str, str]:
    """Plain manifests by file name.

    The repository is a persistent volume claim named NAME-models. The autoscaler asks for a metric that the
    Prometheus adapter makes of Triton's own: its rule is the last file.

    Args:
        plan: The server.
        name: Of all objects.
    """
    return {
        "deployment.yaml": _yaml(_deployment(plan, name)),
        "service.yaml": _yaml(_service(name)),
        "hpa.yaml": _yaml(_autoscaler(plan, name)),
        "podmonitor.yaml": _yaml(_pod_monitor(name)),
        "prometheus-adapter-values.yaml": _yaml(_adapter_rule()),
    }


def ready_command(plan: ServerPlan) -> str:
    """A shell command that succeeds where every model is served.

    Not /v2/health/ready: after a version that was refused it says no until the server is started again,
    though the version before is served on.
    """
    return " && ".join(
        f"curl -sf http://127.0.0.1:{_PORTS['http']}/v2/models/{name}/ready" for name in plan.models
    )


def alive_command(plan: ServerPlan) -> str:
    """A shell command that succeeds where the server answers and the Python backend has all its processes.

    One that was killed is not started again, and its model's ready endpoint goes on saying yes.
    """
    server = f"http://127.0.0.1:{_PORTS['http']}/v2"
    live = f"curl -sf {server}/health/live"
    if not plan.stubs:
        return live
    # as many as the server says that there are versions: of a router's engines there are two after an update
    told = f"told=$(curl -sf -X POST {server}/repository/index | tr '{{' '\\n')"
    wanted = " + ".join(
        f'{count} * $(echo "$told" | grep -c \'"name":"{name}",.*READY\')'
        for name, count in plan.stubs.items()
    )
    # in brackets, so that the pattern does not find this very command
    found = "grep -sl '[t]riton_python_backend_stub' /proc/[0-9]*/cmdline | wc -l"
    return f'{live} && {told} && [ "$({found})" -ge $(({wanted})) ]'


def _deployment(plan: ServerPlan, name: str) -> dict[str, Any]:
    ready, live = (
        {"exec": {"command": ["sh", "-c", command]}, "timeoutSeconds": 5}
        for command in (ready_command(plan), alive_command(plan))
    )
    mounts = [
        {"name": "models", "mountPath": "/models", "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models", "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if plan.plugins:
        mounts.append({"name": "plugins", "mountPath": "/plugins", "readOnly": True})
        volumes.append(
            {"name": "plugins", "persistentVolumeClaim": {"claimName": f"{name}-plugins", "readOnly": True}}
        )
    container: dict[str, Any] = {
        "name": "triton",
        "image": image_name(plan, name),
        "args": server_command(plan),
        "env": [{"name": "HOME", "value": "/tmp"}],  # where libraries keep what they compile
        "ports": [{"name": port, "containerPort": number} for port, number in _PORTS.items()],
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**ready, "periodSeconds": 5},
        "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 3},
        # it ends while requests still come to it, until every node knows that it does
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    if plan.gpu:
        container["resources"] = {"limits": {"nvidia.com/gpu": 1}}
    pod = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": 40,  # Triton takes up to 30 to answer what it has
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name),
        "spec": {
            "selector": {"matchLabels": _labels(name)},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
        },
    }


def _service(name: str) -> dict[str, Any]:
    ports = [{"name": port, "port": number, "targetPort": port} for port, number in _PORTS.items()]
    spec = {"selector": _labels(name), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name), "spec": spec}


def _autoscaler(plan: ServerPlan, name: str) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": str(plan.queue_us)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": 4,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": _QUEUE}, "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def _pod_monitor(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(name),
        "spec": {
            "selector": {"matchLabels": _labels(name)},
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": "15s"}],
        },
    }


def _adapter_rule() -> dict[str, Any]:
    """Microseconds that a request waited in the queue, on average over a minute."""
    waited = "sum(rate(nv_inference_queue_duration_us{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)"
    answered = "sum(rate(nv_inference_request_success{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)"
    rule = {
        "seriesQuery": "nv_inference_queue_duration_us",
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"as": _QUEUE},
        "metricsQuery": f"{waited} / {answered}",
    }
    return {"rules": {"custom": [rule]}}


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "labels": _labels(name)}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "triton", "app.kubernetes.io/instance": name}


def _yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes each mapping out, also one that stands twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
