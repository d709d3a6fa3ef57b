"""Starts a real tritonserver on this machine, for loopback alone, and ends it with all that it started."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from sparseflow_trt.engines.triton.staging import stage_backends, stage_model
from sparseflow_trt.errors import DeployError, NotInstalledError

_HINT = (
    "Install one into an environment of its own, since it needs NumPy 1: python -m venv tritonserver; "
    "tritonserver/bin/pip install nvidia-pytriton onnxruntime; then --server tritonserver. Or run this where "
    "`tritonserver` is on the PATH, as in NVIDIA's containers; or name a running one with --http and --grpc."
)
# The Python backend starts its stub through a shell, and does not quote its paths; it takes them for ASCII.
_PLAIN = re.compile(r"[\w/.,:@+-]+", re.ASCII)
_REASONS = ("failed to load", "error:", "Poll failed", "Invalid argument", "Internal:", "Exception")


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine.

    Attributes:
        binary: The program.
        backends: Its folder of backends.
        caches: Its folder of response caches.
        stub: The Python backend's stub, where it does not lie beside the backend.
        environment: A Python environment whose packages the Python backend's models get.
        libraries: Folders that the program and its backends find their libraries in.
    """

    binary: Path
    backends: Path
    caches: Path
    stub: Path | None = None
    environment: Path | None = None
    libraries: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Addresses:
    """Where a server is reached, as HOST:PORT."""

    http: str
    grpc: str
    metrics: str = ""


@dataclass(frozen=True)
class ServerOptions:
    """How a server is started.

    Attributes:
        load: The models to load; with any, none is loaded that is not named, and each can be loaded anew.
        as_they_are: Whether it serves those as they are now, by links to their files, and none that comes
            later. Nothing is written into the repository then, where else a model.py's bytecode would lie.
        config_name: Which of a model's configs/NAME.pbtxt is read in the place of config.pbtxt.
        backends: Python-based backends to add: model.py's text by the backend's name.
        arguments: More arguments.
        timeout: Seconds that it has to become ready.
        addresses: Where it listens; by default on free ports.
        server: Which tritonserver, as `find_server` takes it.
    """

    load: Sequence[str] = ()
    as_they_are: bool = False
    config_name: str = ""
    backends: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    timeout: float = 120.0
    addresses: Addresses | None = None
    server: Path | None = None


class Server:
    """A running tritonserver, made by `start_server`.

    Attributes:
        pid: The server's process.
        prefix: What the names of its shared memory begin with.
        at: Where it listens.
    """

    def __init__(self, guard: subprocess.Popen[str], pid: int, at: Addresses, prefix: str, log: Path) -> None:
        self.pid = pid
        self.prefix = prefix
        self.at = at
        self._guard = guard
        self._log = log

    def log(self) -> str:
        """What the server has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        """Whether the server has ended."""
        return self._guard.poll() is not None

    def is_ready(self) -> bool:
        """Whether the server and all models that it was asked to load are ready.

        It has to say itself that it listens: what answers at its address could be another server.
        """
        return "Started HTTPService" in self.log() and is_ready(self.at.http)

    def why_not(self) -> str:
        """The last lines of the log that tell of something that went wrong."""
        lines = [line.strip() for line in self.log().splitlines() if any(word in line for word in _REASONS)]
        return " ".join(lines[-2:])[:800] or "it says nothing."


def is_ready(http: str, what: str = "health") -> bool:
    """Whether a server at HOST:PORT says that it is ready, or `what` of it: models/NAME/versions/N."""
    try:
        with urllib.request.urlopen(f"http://{http}/v2/{what}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):  # the latter where what answers speaks no HTTP, or the address is none
        return False


def find_server(where: Path | None = None) -> Installation:
    """The tritonserver that is named, else that of `make setup`, else the one on the PATH.

    Args:
        where: A Python environment with nvidia-pytriton, or the program itself.

    Raises:
        NotInstalledError: There is none.
    """
    environment = where or Path(sys.prefix) / "tritonserver"
    # the parts of the folder's name are those of the environment's Python
    for site in sorted(environment.glob("lib/python3.*/site-packages")):
        root = site / "pytriton" / "tritonserver"
        stub = (
            root
            / "python_backend_stubs"
            / site.parent.name.removeprefix("python")
            / "triton_python_backend_stub"
        )
        if (root / "bin" / "tritonserver").is_file() and stub.is_file():
            libraries = (site / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or "/"))
            return Installation(
                root / "bin" / "tritonserver",
                root / "backends",
                root / "caches",
                stub,
                environment,
                libraries,
            )
    found = str(where) if where and where.is_file() else None if where else shutil.which("tritonserver")
    if found is None:
        at = f"in {where}" if where else "on this machine"
        raise NotInstalledError(f"there is no tritonserver {at}.", _HINT)
    binary = Path(found).resolve()
    if not (binary.parent.parent / "backends").is_dir():
        raise NotInstalledError(f"{found} is not a tritonserver: it has no folder ../backends.", _HINT)
    return Installation(binary, binary.parent.parent / "backends", binary.parent.parent / "caches")


def free_addresses() -> Addresses:
    """Three ports on loopback that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        http, grpc, metrics = (f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    return Addresses(http, grpc, metrics)


@contextlib.contextmanager
def start_server(repository: Path, options: ServerOptions = ServerOptions()) -> Iterator[Server]:
    """Runs a tritonserver on a repository in the block, on loopback.

    It is gone when the block ends, with its stubs and its shared memory; also when this process is killed.

    Raises:
        DeployError: It ended before it was ready, or is not ready in time; with the log's reason. Or the
            folder for temporary files has a name that Triton's Python backend cannot take.
        NotInstalledError: There is no tritonserver.
    """
    installed = find_server(options.server)
    at = options.addresses or free_addresses()
    prefix = f"sparseflow-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="sparseflow-triton-", ignore_cleanup_errors=True) as scratch:
        if not _PLAIN.fullmatch(scratch):
            raise DeployError(
                "Triton's Python backend takes only paths of ASCII letters without spaces, and the folder "
                f"for temporary files is '{tempfile.gettempdir()}'.",
                "Name another one: TMPDIR=/tmp.",
            )
        linked = Path(scratch) / "repository"  # whatever its own path holds
        if options.as_they_are:
            for name in options.load:
                stage_model(repository / name, linked / name)
        else:
            linked.symlink_to(repository.resolve(), target_is_directory=True)
        folder = Path(scratch) / "backends"
        backends = stage_backends(installed.backends, installed.stub, folder, options.backends)
        log = Path(scratch) / "server.log"
        log.touch()
        command = [
            str(installed.binary),
            *_arguments(linked, installed.caches, backends, at, prefix, options),
        ]
        guard = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(__file__).with_name("guard.py")),
                prefix,
                str(log),
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(installed),
            start_new_session=True,
        )
        assert guard.stdout is not None
        try:
            said = guard.stdout.readline().split()
            server = Server(guard, int(said[1]) if said else 0, at, prefix, log)
            _wait_until_ready(
                server, options.timeout, f"tritonserver --model-repository={shlex.quote(str(repository))}"
            )
            yield server
        finally:
            guard.communicate("done")


def _wait_until_ready(server: Server, timeout: float, by_hand: str) -> None:
    deadline = time.monotonic() + timeout
    while not server.is_ready():
        if server.ended():
            raise DeployError(
                f"tritonserver ended before it was ready: {server.why_not()}",
                f"Its log was removed; to see all of it, run the server by hand: {by_hand}",
            )
        if time.monotonic() > deadline:
            raise DeployError(
                f"tritonserver was not ready after {timeout:.0f} s: {server.why_not()}",
                "Give it more time: --timeout.",
            )
        time.sleep(0.05)


def _arguments(
    repository: Path, caches: Path, backends: Path, at: Addresses, prefix: str, options: ServerOptions
) -> Iterator[str]:
    yield f"--model-repository={repository}"
    yield f"--backend-directory={backends}"
    yield f"--cache-directory={caches}"
    for name, address in (("http", at.http), ("grpc", at.grpc), ("metrics", at.metrics)):
        if address:
            host, _, port = address.rpartition(":")
            yield f"--{name}-address={host}"
            yield f"--{name}-port={port}"
    yield "--allow-gpu-metrics=false"
    for name in ("python", *options.backends):
        yield f"--backend-config={name},shm-region-prefix-name={prefix}"
    if options.load:
        yield "--model-control-mode=explicit"
        yield from (f"--load-model={name}" for name in options.load)
    if options.config_name:
        yield f"--model-config-name={options.config_name}"
    yield from options.arguments


def _environment(installed: Installation) -> dict[str, str]:
    # The stub embeds Python, and finds an environment's packages through the `python3` on the PATH.
    libraries = [*map(str, installed.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    path = [str(installed.environment / "bin") if installed.environment else "", os.environ.get("PATH", "")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": ":".join(filter(None, path)),
    }
