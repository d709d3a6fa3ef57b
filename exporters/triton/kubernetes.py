"""How a repository is served on Kubernetes: plain manifests, which kustomize's overlays can change."""

from __future__ import annotations

import shlex
from typing import Any

from sparseflow_trt.exporters.triton.manifests import (
    PORTS,
    USER,
    ServerPlan,
    alive_command,
    ready_command,
    server_command,
    write_yaml,
)

_QUEUE = "triton_queue_us_per_request"
# Whoever reaches these runs code (a load request may bring a model's Python) or changes how all are served.
_SEALED = "model-repository,shared-memory,trace,logging"
_APPLIED = ("deployment.yaml", "service.yaml", "hpa.yaml", "pdb.yaml")


def kubernetes_files(plan: ServerPlan, name: str) -> dict[str, str]:
    """Plain manifests by file name, and the kustomization of those that every cluster takes.

    The repository is a persistent volume claim named NAME-models. The autoscaler asks for a metric that the
    Prometheus adapter makes of Triton's own: its rule is the last file.

    Args:
        plan: The server.
        name: Of all objects.
    """
    return {
        "kustomization.yaml": write_yaml(_kustomization()),
        "deployment.yaml": write_yaml(_deployment(plan, name)),
        "service.yaml": write_yaml(_service(name)),
        "hpa.yaml": write_yaml(_autoscaler(plan, name)),
        "pdb.yaml": write_yaml(_disruption_budget(name)),
        "podmonitor.yaml": write_yaml(_pod_monitor(name)),
        "prometheus-adapter-values.yaml": write_yaml(_adapter_rule()),
    }


def sealed_command(plan: ServerPlan) -> list[str]:
    """The server's command, with a key that nobody knows to what changes the server from outside.

    Not --model-control-mode=none: a server with it loads every folder of a volume, and ends at lost+found.
    """
    words = server_command(plan)
    words += [
        f"--http-restricted-api={_SEALED}:sealed-by=",
        f"--grpc-restricted-protocol={_SEALED}:sealed-by=",
    ]
    quoted = [shlex.quote(word) + ('"$key"' if word.endswith("sealed-by=") else "") for word in words]
    # read, since Kubernetes would have a say in $(…); where that fails nothing is served
    script = "read -r key < /proc/sys/kernel/random/uuid && exec " + " \\\n  ".join(quoted) + "\n"
    return ["sh", "-c", script]


def _kustomization() -> dict[str, Any]:
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return {**kind, "resources": list(_APPLIED)}


def _deployment(plan: ServerPlan, name: str) -> dict[str, Any]:
    volumes = [_claim("models", name), *([_claim("plugins", name)] if plan.plugins else [])]
    mounts: list[dict[str, Any]] = [
        {"name": volume["name"], "mountPath": f"/{volume['name']}", "readOnly": True} for volume in volumes
    ]
    # all that is written: the Python backend's tensors, and CUDA's cache in HOME, which the user has none of
    mounts += [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]
    volumes += [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    pod = {
        "containers": [_container(plan, mounts)],
        "volumes": volumes,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 40,  # Triton takes up to 30 to answer what it has
        "automountServiceAccountToken": False,
    }
    if plan.resources.gpus:  # nodes with GPUs are often kept for those who ask for one
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
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


def _claim(what: str, name: str) -> dict[str, Any]:
    return {"name": what, "persistentVolumeClaim": {"claimName": f"{name}-{what}", "readOnly": True}}


def _container(plan: ServerPlan, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    ready, live = (
        {"exec": {"command": ["sh", "-c", command]}, "timeoutSeconds": 5}
        for command in (ready_command(plan), alive_command(plan))
    )
    memory = f"{plan.resources.memory_gib}Gi"
    # no limit of the CPU: it would slow the answers down while cores idle
    limits: dict[str, Any] = {"memory": memory}
    if plan.resources.gpus:
        limits["nvidia.com/gpu"] = plan.resources.gpus
    return {
        "name": "triton",
        "image": plan.image,
        "args": sealed_command(plan),
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": port, "containerPort": number} for port, number in PORTS.items()],
        "resources": {"requests": {"cpu": str(plan.resources.cpus), "memory": memory}, "limits": limits},
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**ready, "periodSeconds": 5},
        "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 3},
        # it ends while requests still come to it, until every node knows that it does
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _disruption_budget(name: str) -> dict[str, Any]:
    """One at a time; a single replica can be moved, too, which minAvailable: 1 would forbid for good."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(name),
        "spec": {
            "selector": {"matchLabels": _labels(name)},
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _service(name: str) -> dict[str, Any]:
    ports = [{"name": port, "port": number, "targetPort": port} for port, number in PORTS.items()]
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
