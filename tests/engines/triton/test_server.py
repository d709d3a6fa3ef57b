"""A server that is started here is gone afterwards, with all that it started, however that came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sparseflow_trt.engines.triton.server import ServerOptions, find_server, free_addresses, start_server
from sparseflow_trt.errors import DeployError, NotInstalledError

MODEL = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.get_input_tensor_by_name(r, "x")]) for r in requests]
"""
CONFIG = """backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU }]
"""
RUN = """
import sys, time
from pathlib import Path
from sparseflow_trt.engines.triton.server import *

with start_server(Path(sys.argv[1])) as server:
    print(server.pid, server.prefix, server._log.parent, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def installed() -> None:
    try:
        find_server()
    except NotInstalledError as error:
        pytest.skip(error.message)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "echo" / "1").mkdir(parents=True)
    (folder / "echo" / "1" / "model.py").write_text(MODEL, encoding="utf-8")
    (folder / "echo" / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    return folder


def left_of(prefix: str) -> list[str]:
    """Processes and shared memory of the server whose shared memory's names begin so."""
    found = [region.name for region in Path("/dev/shm").glob(f"{prefix}*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if prefix.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def wait_until_nothing_is_left(prefix: str) -> None:
    end = time.monotonic() + 40
    while left_of(prefix) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_of(prefix) == []


def test_a_server_serves_and_is_gone(repository: Path) -> None:
    with start_server(repository, ServerOptions(load=["echo"])) as server:
        assert server.is_ready()
        assert len(left_of(server.prefix)) >= 3  # the guard, the server, the stub, shared memory
        assert all(address.startswith("127.0.0.1:") for address in (server.at.http, server.at.grpc))
    assert server.ended()
    assert left_of(server.prefix) == []


def test_models_served_as_they_are_get_nothing_written_beside_them(repository: Path) -> None:
    before = sorted(repository.rglob("*"))
    with start_server(repository, ServerOptions(load=["echo"], as_they_are=True)) as server:
        assert server.is_ready()
    assert sorted(repository.rglob("*")) == before


def test_a_repository_may_lie_where_the_python_backend_cannot_look(repository: Path) -> None:
    folder = repository.rename(repository.with_name("a größe; it's"))
    with start_server(folder, ServerOptions(load=["echo"], timeout=30)) as server:
        assert server.is_ready()


def test_temporary_files_have_to_lie_where_it_can(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "with space").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    said = pytest.raises(DeployError, match=r"the folder for temporary files is '.*with space'")
    with said as caught, start_server(repository):
        pytest.fail("it is not ready")
    assert caught.value.hint == "Name another one: TMPDIR=/tmp."


def test_a_server_that_was_killed_leaves_nothing(repository: Path) -> None:
    with start_server(repository) as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until_nothing_is_left(server.prefix)
        assert server.ended()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_tool_that_was_killed_or_interrupted_leaves_nothing(how: signal.Signals, repository: Path) -> None:
    command = [sys.executable, "-c", RUN, str(repository)]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    assert tool.stdout is not None
    with tool.stdout:
        _, prefix, folder = tool.stdout.readline().split()
        assert left_of(prefix) and Path(folder).is_dir()
        tool.send_signal(how)
        tool.wait(40)
        wait_until_nothing_is_left(prefix)
        assert not Path(folder).exists()


def test_a_model_that_does_not_load_is_told_with_its_reason(repository: Path) -> None:
    (repository / "echo" / "1" / "model.py").write_text(
        "raise ValueError('no such weights')", encoding="utf-8"
    )
    said = pytest.raises(DeployError, match=r"(?s)ended before it was ready: .*no such weights")
    with said, start_server(repository):
        pytest.fail("it is not ready")


def test_a_port_that_is_taken_is_told(repository: Path) -> None:
    taken = ServerOptions(addresses=free_addresses())
    said = pytest.raises(DeployError, match="ended before it was ready")
    with start_server(repository, taken), said, start_server(repository, taken):
        pytest.fail("it is not ready")


def test_a_machine_without_a_server_is_told_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match="there is no tritonserver in") as caught:
        find_server(tmp_path)
    assert "pip install nvidia-pytriton" in caught.value.hint
    (tmp_path / "server").write_text("another program")
    with pytest.raises(NotInstalledError, match="server is not a tritonserver: it has no folder"):
        find_server(tmp_path / "server")
