"""A router and its two engines change together for a running server, wherever an update is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow_trt.engines.triton.server import Server, ServerOptions, start_server
from sparseflow_trt.exporters.triton.manifests import alive_command, ready_command
from sparseflow_trt.exporters.triton.rollback import roll_back
from sparseflow_trt.exporters.triton.version import served_versions, versions_in
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server
from tests.serving.conftest import build_artifact, client_of, succeeds

MODELS = ("m-sparse", "m-dense", "m")  # the router last, as it is told to a server
BATCHES = (1, 8)  # to the dense engine, and to the sparse one
# Runs the command for each N on its standard input, killed before the N-th rename in the repository, and says
# how it ended. What the runs import is imported once, which takes longer than they do.
KILLED = """
import os, signal, sys
from sparseflow_trt.cli.main import main
from sparseflow_trt.serving import deploying
repository, command = sys.argv[1], sys.argv[2:]
def run(number):
    def hook(event, arguments):
        nonlocal number
        if event == "os.rename" and str(arguments[1]).startswith(repository + "/"):
            number -= 1
            if number < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.argv = ["sparseflow-trt", *command]
    sys.addaudithook(hook)
    os.dup2(2, 1)
    main()
for line in sys.stdin:
    if not (child := os.fork()):
        run(int(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def other_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second model, planned dense."""
    return build_artifact(tmp_path_factory.mktemp("artifact"), "other", seed=1, policy=None)


def inputs_of(batch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(batch).standard_normal((batch, 32, 64)).astype(np.float32)


def ask(client: Any, batch: int) -> tuple[np.ndarray[Any, Any], str]:
    """The router's answer, and the version of it that gave it."""
    import tritonclient.grpc as grpc

    given = grpc.InferInput("x", [batch, 32, 64], "FP32")
    given.set_data_from_numpy(inputs_of(batch))
    answer = client.infer("m", [given], client_timeout=30.0)
    return answer.as_numpy("y"), answer.get_response().model_version


class Answers:
    """What clients got of a router: by its version, which of the known pairs of engines answered."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pairs: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
        self.seen: set[tuple[str, int, str]] = set()
        self.failed: list[str] = []

    def learn(self, pair: str) -> None:
        """Takes what is answered now as what a pair answers."""
        with client_of(self.server) as client:
            self.pairs[pair] = {batch: ask(client, batch)[0] for batch in BATCHES}

    def pair_of(self, batch: int, y: np.ndarray[Any, Any]) -> str:
        return next((pair for pair, of in self.pairs.items() if np.array_equal(of[batch], y)), "none")

    def now(self) -> set[str]:
        """Which pairs answer at this moment."""
        with client_of(self.server) as client:
            return {self.pair_of(batch, ask(client, batch)[0]) for batch in BATCHES}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Clients of both batches ask on and on."""
        stop = threading.Event()

        def run(batch: int) -> None:
            with client_of(self.server) as client:
                while not stop.is_set():
                    try:
                        y, version = ask(client, batch)
                    except Exception as error:  # noqa: BLE001 - tritonclient's, whatever its class
                        self.failed.append(str(error))
                        time.sleep(0.05)
                    else:
                        self.seen.add((version, batch, self.pair_of(batch, y)))
                        stop.wait(0.03)  # without it the update has little of the processor

        threads = [threading.Thread(target=run, args=(batch,)) for batch in BATCHES]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def killed_runs(*command: str) -> Iterator[Callable[[int], int]]:
    """Runs a command up to a rename, and says what it ended with."""
    runs = subprocess.Popen(
        [sys.executable, "-c", KILLED, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert runs.stdin and runs.stdout
    given, told = runs.stdin, runs.stdout

    def run(number: int) -> int:
        print(number, file=given, flush=True)
        return int(told.readline())

    with runs:
        yield run


def processes_of(server: Server) -> list[str]:
    tasks = Path(f"/proc/{server.pid}/task").iterdir()
    return [pid for task in tasks for pid in (task / "children").read_text().split()]


def tell(server: Server) -> None:
    """Has a server take what lies in the repository, in the order that `deploy triton` says."""
    with client_of(server) as client:
        for name in MODELS:
            client.load_model(name)


def test_an_update_that_is_killed_anywhere_leaves_one_pair_answering(
    ort_artifact: Path, dense_artifact: Path, other_artifact: Path, other_dense: Path, tmp_path: Path,
    tritonserver: None,
) -> None:  # fmt: skip
    """Each run is killed one rename later, and goes on from what the one before left."""
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m", dense=dense_artifact, delay_us=0))
    command = [str(repository), "deploy", "triton", str(other_artifact), "--dense", str(other_dense),
               "--name", "m", "--repository", str(repository), "--queue-delay", "0"]  # fmt: skip
    with killed_runs(*command) as run, start_server(repository, ServerOptions(load=MODELS)) as server:
        answers = Answers(server)
        answers.learn("old")
        left = []
        with answers.watched():
            for number in range(4):
                assert run(number) == -signal.SIGKILL
                left.append([versions_in(repository / name) for name in MODELS])
                tell(server)
                assert answers.now() == {"old"}, number
            # nothing; one engine, which its configuration does not name; both; the router, not named either
            assert left == [
                [[1], [1], [1]],
                [[1, 2], [1], [1]],
                [[1, 2, 3], [1], [1]],
                [[1, 2, 3], [1, 2], [1, 2]],
            ]
            assert [served_versions(repository / name) for name in MODELS] == [[1, 3], [1, 2], [1]]
            assert run(99) == 0
            with client_of(server) as client:
                for name in MODELS[:2]:
                    client.load_model(name)
            assert answers.now() == {"old"}  # until the router is told, too
        tell(server)
        answers.learn("new")
        assert not answers.failed and answers.seen == {("1", batch, "old") for batch in BATCHES}

        plan = plan_server(repository, (), None)
        assert succeeds(ready_command(plan), server) and succeeds(alive_command(plan), server)

        answers.seen.clear()
        with answers.watched():
            assert roll_back(repository / "m") == (3, 1)
            tell(server)
            assert answers.now() == {"old"}
        assert not answers.failed
        assert answers.seen == {(v, b, pair) for v, pair in (("3", "new"), ("1", "old")) for b in BATCHES}
        assert succeeds(alive_command(plan), server)
        stubs = [Path(f"/proc/{pid}/cmdline") for pid in processes_of(server)]
        (one, *_) = [stub for stub in stubs if "m-sparse" in stub.read_text()]  # two versions are loaded
        os.kill(int(one.parent.name), signal.SIGKILL)
        until = time.monotonic() + 20  # the router's that was withdrawn is on its way out
        while succeeds(alive_command(plan), server) and time.monotonic() < until:
            time.sleep(0.1)
        assert succeeds(ready_command(plan), server) and not succeeds(alive_command(plan), server)
