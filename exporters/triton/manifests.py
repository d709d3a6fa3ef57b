"""How a repository is served: the server's command, its probes, an image, a compose file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
USER = 1000  # triton-server of Triton's images, whose own default is root
_CONFIGURED = "--backend-config=tensorrt,"
_NVRTC = "nvidia-cuda-nvrtc==13.0.88"  # what cuSPARSELt compiles its kernels with


@dataclass(frozen=True)
class Resources:
    """What a server is given.

    Attributes:
        gpus: So many that the highest number which a configuration names is there.
        cpus: Cores, of Kubernetes: one for each thread that computes, and for the server itself.
        memory_gib: What it may take of the host's memory, shared memory too.
    """

    gpus: int = 1
    cpus: int = 2
    memory_gib: int = 4


@dataclass(frozen=True)
class ServerPlan:
    """What a server needs.

    Attributes:
        image: What the container runs: Triton's, a mirror of it, or one that the Dockerfile makes.
        base: Triton's image.
        models: What it loads.
        flags: What the models' configurations depend on.
        plugins: Names of plugin libraries in /plugins.
        dockerfile: What makes the image of Triton's; "" where that is enough.
        stubs: How many processes the Python backend runs for each version of a model, by the model's name.
        resources: What it is given.
        queue_us: The average wait in the queue, in microseconds, from which on Kubernetes adds a replica.
        own_plugins: Plugin libraries that models bring, seen from the repository: NAME/plugin.so.
        notes: Sentences on models that one image does not suit.
    """

    image: str
    base: str
    models: Sequence[str]
    flags: Sequence[str] = ()
    plugins: Sequence[str] = ()
    dockerfile: str = ""
    stubs: Mapping[str, int] = field(default_factory=dict)
    resources: Resources = Resources()
    queue_us: int = 2000
    own_plugins: Sequence[str] = ()
    notes: Sequence[str] = ()


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


def dockerfile(base: str, packages: Sequence[str], cusparselt: str) -> str:
    """The image with what models need beside Triton's, "" where that is enough; BASE may be a mirror of it.

    Args:
        base: Triton's image.
        packages: What the Python backend's models import, for pip.
        cusparselt: The version that the 2:4 plugin needs, "" where no model has it.
    """
    install, steps = "RUN pip install --no-cache-dir", []
    if packages:
        steps.append(f"{install} {shlex.join(packages)}")
    if cusparselt:
        # apart from the packages, whose other CUDA libraries the server is not to find; where in nvidia/ the
        # wheels lay theirs depends on the version
        folder = "/opt/cusparselt"
        wheels = shlex.join((f"nvidia-cusparselt-cu13=={cusparselt}", _NVRTC))
        steps += [
            f"{install} --no-deps --target {folder} {wheels} \\",
            f"  && ls -d {folder}/nvidia/*/lib > /etc/ld.so.conf.d/cusparselt.conf && ldconfig \\",
            f"  && ln -s {folder}/nvidia/*/lib/libcusparseLt.so.0 {folder}",
            f"ENV SPARSEFLOW_CUSPARSELT={folder}",
        ]
    lines = [f"ARG BASE={base}", "FROM ${BASE}", *steps, f"USER {USER}:{USER}"]
    return "\n".join(lines) + "\n" if steps else ""


def compose_file(plan: ServerPlan, repository: str) -> str:
    """A compose file for one server on this machine, reachable from it alone.

    Args:
        plan: The server.
        repository: Where the repository is, seen from the file: a relative path, which tells no local one.
    """
    service: dict[str, Any] = {"image": plan.image}
    if plan.dockerfile:
        service["build"] = {"context": ".", "dockerfile": "Dockerfile"}
    service |= {
        "command": server_command(plan),
        "ports": [f"127.0.0.1:{port}:{port}" for port in PORTS.values()],
        "volumes": [f"{repository}:/models:ro", *(["./plugins:/plugins:ro"] if plan.plugins else [])],
        "shm_size": "1gb",
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": ["/tmp:size=1g,mode=1777"],
        "environment": {"HOME": "/tmp"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
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
    if gpus := plan.resources.gpus:
        device = {"driver": "nvidia", "count": gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return write_yaml({"services": {"triton": service}})


def ready_command(plan: ServerPlan) -> str:
    """A shell command that succeeds where every model is served.

    Not /v2/health/ready: after a version that was refused it says no until the server is started again,
    though the version before is served on.
    """
    return " && ".join(
        f"curl -sf http://127.0.0.1:{PORTS['http']}/v2/models/{name}/ready" for name in plan.models
    )


def alive_command(plan: ServerPlan) -> str:
    """A shell command that succeeds where the server answers and the Python backend has all its processes.

    One that was killed is not started again, and its model's ready endpoint goes on saying yes.
    """
    server = f"http://127.0.0.1:{PORTS['http']}/v2"
    live = f"curl -sf {server}/health/live"
    if not plan.stubs:
        return live
    # as many as the server says that there are versions: of a router's engines there are two after an update.
    # Not by its repository's index, which on Kubernetes nobody may ask for.
    versions = "grep -o '\"versions\":\\[[^]]*' | grep -o '\"[0-9][0-9]*\"' | wc -l"
    ready = f"ready() {{ curl -sf {server}/models/$1 | {versions}; }}"
    wanted = " + ".join(f"{count} * $(ready {name})" for name, count in plan.stubs.items())
    # in brackets, so that the pattern does not find this very command
    found = "grep -sl '[t]riton_python_backend_stub' /proc/[0-9]*/cmdline | wc -l"
    return f'{live} && {ready} && [ "$({found})" -ge $(({wanted})) ]'


def write_yaml(data: Any) -> str:
    """YAML whose texts of several lines stay so."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes each mapping out, also one that stands twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)
