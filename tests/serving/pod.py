"""A pod of Linux namespaces: runs a Deployment's container as its manifest says, on the test's tritonserver.

Its user, its rights, its read-only root, its volumes, its command, its environment and its probes are the
manifest's. There is no image, no kubelet and no seccomp profile: the server is the test's, laid out as in
Triton's images.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt.engines.triton.server import Installation

_UNSHARE = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork"]
_HOST = ("usr", "etc", "bin", "sbin", "lib", "lib64", "sys", "dev/null", "dev/zero", "dev/urandom")


def why_no_pod() -> str:
    """Why none can be made here; "" where it can."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "ip", "curl"))):
        return "it needs root, util-linux, iproute2 and curl"
    done = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return done.stderr


@dataclass(frozen=True)
class Pod:
    """A running one.

    Attributes:
        pid: Of its first process, as the host sees it.
        log: What it prints.
    """

    pid: int
    container: Mapping[str, Any]
    as_user: tuple[str, ...]
    root: Path
    log: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, as `kubectl exec` does."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--root", "--wd"]
        return subprocess.run([*enter, *self.as_user, *command], capture_output=True, text=True, check=False)

    def probe(self, name: str) -> bool:
        """Whether the container's startupProbe, readinessProbe or livenessProbe succeeds."""
        return self.run(*self.container[name]["exec"]["command"]).returncode == 0

    def reach(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the host's that sees the pod's network, as other pods do."""
        enter = ["nsenter", f"--target={self.pid}", "--net"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)

    def memory(self) -> int:
        """Bytes that its processes hold at most so far, and its volumes in memory."""
        held = 0
        for pid in self.processes():
            (line,) = (
                line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line
            )
            held += int(line.split()[1]) << 10
        shared = shutil.disk_usage(f"/proc/{self.pid}/root/dev/shm")
        return held + shared.used

    def processes(self) -> list[int]:
        """Its processes, as the host numbers them; the first one is the server."""
        found, new = [], [self.pid]
        while new:
            found += new
            told = [Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in new]
            new = [int(word) for text in told for word in text.split()]
        return found


@contextlib.contextmanager
def start_pod(
    deployment: Mapping[str, Any], claims: Mapping[str, Path], installed: Installation, scratch: Path
) -> Iterator[Pod]:
    """Runs the Deployment's pod in the block, until its startup probe succeeds; it is gone afterwards.

    Args:
        deployment: The manifest.
        claims: The folders of its persistent volume claims, by their names.
        installed: The tritonserver.
        scratch: A folder for the pod's root and its log.
    """
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    root, log = scratch / "root", scratch / "log"
    root.mkdir()
    as_user = _as_user(spec, container, installed)
    script = [
        "set -e",
        "mount --make-rprivate /",
        f"mount -t tmpfs -o mode=755 tmpfs {root}",
        *_volumes(spec, container, claims, root),  # before what the tests run with, which may lie in /tmp
        *_image(installed, root, scratch),
        f"mkdir {root}/proc && mount -t proc proc {root}/proc",
        *([f"mount -o remount,ro {root}"] if container["securityContext"]["readOnlyRootFilesystem"] else []),
        "ip link set lo up",
        f"exec chroot {root} {shlex.join([*as_user, *container['args']])}",
    ]
    with log.open("wb") as stream:
        started = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", "\n".join(script)], stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        pid = _first_process(started)
        try:
            pod = Pod(pid, container, as_user, root, log)
            probe, until = container["startupProbe"], time.monotonic() + 60
            while not pod.probe("startupProbe"):
                assert started.poll() is None and time.monotonic() < until, log.read_text(encoding="utf-8")
                time.sleep(min(0.2, probe["periodSeconds"]))
            yield pod
            os.kill(pid, signal.SIGTERM)
            assert started.wait(spec["terminationGracePeriodSeconds"]) == 0, log.read_text(encoding="utf-8")
        finally:
            if started.poll() is None:  # with the first process all others end
                os.kill(pid, signal.SIGKILL)
    finally:
        started.wait(10)


def _first_process(started: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if told := Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
                return int(told[0])
        time.sleep(0.01)
    started.kill()
    raise AssertionError("the pod did not start")


def _as_user(
    spec: Mapping[str, Any], container: Mapping[str, Any], installed: Installation
) -> tuple[str, ...]:
    """What a command is run by, that it has the rights and the environment which the manifest gives."""
    user, rights = spec["securityContext"], container["securityContext"]
    assert user["runAsNonRoot"] and user["runAsUser"] and rights["capabilities"] == {"drop": ["ALL"]}
    environment = {
        "PATH": f"/opt/tritonserver/bin:{installed.environment}/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": ":".join(map(str, installed.libraries)),
        **{one["name"]: one["value"] for one in container["env"]},
    }
    return (
        "setpriv",
        f"--reuid={user['runAsUser']}",
        f"--regid={user['runAsGroup']}",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        *([] if rights["allowPrivilegeEscalation"] else ["--no-new-privs"]),
        "env",
        "-i",
        *(f"{name}={value}" for name, value in environment.items()),
    )


def _image(installed: Installation, root: Path, scratch: Path) -> Iterator[str]:
    """The server where Triton's images have it, with what it needs of this machine; none of it is written."""
    assert installed.stub and installed.environment
    backends = scratch / "backends"  # the stub lies beside its backend there
    shutil.copytree(installed.backends / "python", backends / "python")
    shutil.copy(installed.stub, backends / "python")
    places = {Path(f"/{name}"): Path(f"/{name}") for name in _HOST}
    for own in (installed.environment, Path(sys.base_prefix), *installed.libraries):
        places[own.resolve()] = own
    opt = Path("/opt/tritonserver")
    places |= {
        installed.binary.parent: opt / "bin",
        backends: opt / "backends",
        installed.caches: opt / "caches",
    }
    for source, place in places.items():
        target = shlex.quote(f"{root}{place}")
        if source.is_symlink():
            yield f"cp -P {source} {target}"
        elif source.exists():
            make = (
                f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}); touch {target}"
            )
            yield f"{make}; mount --bind {shlex.quote(str(source))} {target}"
            if not str(place).startswith("/dev"):
                yield f"mount -o remount,ro,bind {target}"


def _volumes(
    spec: Mapping[str, Any], container: Mapping[str, Any], claims: Mapping[str, Path], root: Path
) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        volume, target = volumes[mount["name"]], f"{root}{mount['mountPath']}"
        yield f"mkdir -p {target}"
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["readOnly"] and mount["readOnly"]
            yield f"mount --bind {claims[claim['claimName']]} {target}; mount -o remount,ro,bind {target}"
        else:
            size = volume["emptyDir"]["sizeLimit"].removesuffix("i")
            yield f"mount -t tmpfs -o size={size},mode=1777 tmpfs {target}"
