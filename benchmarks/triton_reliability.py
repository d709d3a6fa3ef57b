"""A deployed model under what happens to servers: new versions, corrupt files, wrong requests, kill -9.

python benchmarks/triton_reliability.py

A real tritonserver on loopback, the ONNX Runtime route, clients over gRPC (and HTTP for the first scenario).
Every answer is compared with what the version that gave it has to answer. tests/serving/test_reliability.py
runs the same scenarios, shorter.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import write_result
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.triton.server import Server, ServerOptions, start_server
from sparseflow_trt.exporters.triton.rollback import roll_back
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions

MODEL = "mlp"
WIDTH = 64
MAX_BATCH = 8
Figures = dict[str, Any]


@dataclass
class Traffic:
    """What clients sent, and how it ended. `answered` counts by the version that answered."""

    sent: int = 0
    failed: int = 0
    wrong: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def figures(self) -> Figures:
        """As plain data."""
        return {
            "sent": self.sent,
            "failed": self.failed,
            "wrong": self.wrong,
            "by version": dict(self.answered),
        }


class Subject:
    """Two builds of one model with other weights, in a repository, and what each has to answer."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self.artifacts = []
        self.weights = []
        for seed in (0, 1):
            rng = np.random.default_rng(seed)
            self.weights.append(
                (rng.standard_normal((WIDTH, 256)) / 8, rng.standard_normal((256, WIDTH)) / 16)
            )
            path = folder / f"{MODEL}{seed}.onnx"
            write_model(path, *self.weights[-1])
            plan = PlanOptions(axes={"batch": (1, 4, MAX_BATCH)}, precision="fp32")
            self.artifacts.append(build(path, BuildOptions(folder / f"{seed}", plan, "onnxruntime")).artifact)
        self.serves = {}

    def roll_in(self, which: int) -> int:
        """Deploys one of the builds as the next version."""
        written = deploy(self.artifacts[which], DeployOptions(self.repository, MODEL, delay_us=200))[
            0
        ].written
        self.serves[str(written.version)] = which
        return written.version

    def is_right(self, x: np.ndarray, y: np.ndarray | None, version: str) -> bool:
        """Whether a version's answer is its model's."""
        up, down = self.weights[self.serves[version]]
        return (
            y is not None and y.shape == x.shape and np.allclose(y, np.maximum(x @ up, 0) @ down, atol=1e-3)
        )


def write_model(path: Path, up: np.ndarray, down: np.ndarray) -> None:
    """Writes x[batch, 64] through two products."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up_proj"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["y"], "down_proj"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in (("up", up), ("down", down))]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def ask(client: Any, module: Any, x: np.ndarray) -> tuple[np.ndarray | None, str]:
    """One request: the answer and the version that gave it."""
    given = module.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    answer = (
        client.infer(MODEL, [given], client_timeout=30.0)
        if "grpc" in module.__name__
        else client.infer(MODEL, [given])
    )
    said = answer.get_response()
    version = said["model_version"] if isinstance(said, dict) else said.model_version
    return answer.as_numpy("y"), version


@contextlib.contextmanager
def load(server: Server, subject: Subject, clients: int, requests: int = 1 << 30) -> Iterator[Traffic]:
    """Clients that send as fast as they are answered, each on a connection of its own, while the block runs.

    With `requests` each sends that many, and the block's end waits for them.
    """
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    traffic, stop = Traffic(), threading.Event()

    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
            for _ in range(requests):
                if stop.is_set():
                    return
                x = rng.standard_normal((int(rng.integers(1, 4)), WIDTH)).astype(np.float32)
                try:
                    y, version = ask(client, grpc, x)
                    right, error = subject.is_right(x, y, version), ""
                except InferenceServerException as problem:
                    right, error, version = False, str(problem)[:120], ""
                with traffic.lock:
                    traffic.sent += 1
                    traffic.failed += bool(error)
                    traffic.wrong += not right and not error
                    traffic.answered.update([version] if version else [])
                    traffic.errors.update([error] if error else [])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        if requests == 1 << 30:
            stop.set()
        for thread in threads:
            thread.join()


def tell(server: Server) -> str:
    """Has the server load the model anew; returns its refusal, "" where it did."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
        try:
            client.load_model(MODEL, client_timeout=60.0)
        except InferenceServerException as error:
            return str(error)
    return ""


def infer(server: Server, subject: Subject) -> Figures:
    """Each batch from 1 to the largest, over HTTP and gRPC."""
    import tritonclient.grpc as grpc
    import tritonclient.http as http_module

    traffic = Traffic()
    rng = np.random.default_rng(0)
    for module, address in ((http_module, server.at.http), (grpc, server.at.grpc)):
        with contextlib.closing(module.InferenceServerClient(address)) as client:
            for batch in range(1, MAX_BATCH + 1):
                x = rng.standard_normal((batch, WIDTH)).astype(np.float32)
                y, version = ask(client, module, x)
                traffic.sent += 1
                traffic.wrong += not subject.is_right(x, y, version)
                traffic.answered.update([version])
    return traffic.figures()


def roll_versions(server: Server, subject: Subject, clients: int, seconds: float) -> Figures:
    """A new version in, and back again, while clients send."""
    with load(server, subject, clients) as traffic:
        time.sleep(seconds)
        subject.roll_in(1)
        started = time.perf_counter()
        refused = tell(server)
        took = time.perf_counter() - started
        time.sleep(seconds)
        roll_back(subject.repository / MODEL)
        refused += tell(server)
        time.sleep(seconds)
    return {**traffic.figures(), "refused": refused, "seconds to roll in": round(took, 3)}


def load_corrupt(server: Server, subject: Subject, clients: int, seconds: float) -> Figures:
    """A version whose engine was changed on disk, while clients send: refused, and the old one serves."""
    with load(server, subject, clients) as traffic:
        version = subject.roll_in(1)
        engine = subject.repository / MODEL / str(version) / "model.ort.onnx"
        data = bytearray(engine.read_bytes())
        data[len(data) // 2] ^= 0xFF
        engine.write_bytes(data)
        refused = tell(server)
        time.sleep(seconds)
        roll_back(subject.repository / MODEL)
        after = tell(server)
        time.sleep(seconds)
    return {
        **traffic.figures(),
        "refused": refused.partition("\n")[0],
        "refused after the rollback": after,
        "server is up and serves the model": is_live(server),
    }


def send_wrong(server: Server, subject: Subject, clients: int, seconds: float) -> Figures:
    """Requests that are wrong, among right ones: each is refused in words, and no right one fails by it."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    def request(name: str, array: np.ndarray, kind: str) -> Callable[[Any], None]:
        def send(client: Any) -> None:
            given = grpc.InferInput(name, list(array.shape), kind)
            given.set_data_from_numpy(array)
            client.infer(MODEL, [given], client_timeout=30.0)

        return send

    wrong = {
        "width 63": request("x", np.zeros((1, 63), np.float32), "FP32"),
        "rank 3": request("x", np.zeros((1, 1, WIDTH), np.float32), "FP32"),
        "FP16": request("x", np.zeros((1, WIDTH), np.float16), "FP16"),
        "INT64": request("x", np.zeros((1, WIDTH), np.int64), "INT64"),
        f"batch {MAX_BATCH + 1}": request("x", np.zeros((MAX_BATCH + 1, WIDTH), np.float32), "FP32"),
        "batch 0": request("x", np.zeros((0, WIDTH), np.float32), "FP32"),
        "another input": request("z", np.zeros((1, WIDTH), np.float32), "FP32"),
        "no input": lambda client: client.infer(MODEL, [], client_timeout=30.0),
    }
    said = {}
    with load(server, subject, clients) as traffic:
        with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
            for name, send in wrong.items():
                try:
                    send(client)
                    said[name] = ""
                except InferenceServerException as error:
                    said[name] = str(error)
        said |= {f"HTTP: {name}": _post(server, body, length) for name, body, length in _BODIES}
        time.sleep(seconds)
    return {**traffic.figures(), "refused": said, "server is up and serves the model": is_live(server)}


_HEAD = b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","parameters":{"binary_data_size":256}}]}'
_BODIES = (
    ("no JSON", b"{", None),
    ("half the bytes", _HEAD + bytes(128), len(_HEAD)),
    ("twice the bytes", _HEAD + bytes(512), len(_HEAD)),
    ("a shape of 2^62", _HEAD.replace(b"[1,64]", b"[1,4611686018427387904]"), len(_HEAD) + 17),
)


def _post(server: Server, body: bytes, header_length: int | None) -> str:
    host, _, port = server.at.http.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    headers = {} if header_length is None else {"Inference-Header-Content-Length": str(header_length)}
    connection.request("POST", f"/v2/models/{MODEL}/infer", body, headers)
    with contextlib.closing(connection), connection.getresponse() as answer:
        text = answer.read().decode(errors="replace")
        return "" if answer.status == 200 else f"{answer.status} {text}"


def crowd(server: Server, subject: Subject, clients: int, requests: int) -> Figures:
    """Many clients at once, each on its own connection."""
    started = time.perf_counter()
    with load(server, subject, clients, requests) as traffic:
        pass
    seconds = time.perf_counter() - started
    return {"clients": clients, **traffic.figures(), "per second": round(traffic.sent / seconds)}


def kill_stub(subject: Subject, clients: int, seconds: float) -> Figures:
    """kill -9 of the Python backend's process while clients send.

    Triton does not start it by itself, goes on calling the model ready, and takes a request to load what has
    not changed for done: unloaded and loaded, the model serves again. Now and then the server ends with it.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_server(subject.repository, ServerOptions(load=[MODEL])))
        with load(server, subject, clients) as during:
            time.sleep(seconds)
            for pid in stubs_of(server):
                os.kill(pid, signal.SIGKILL)
            alone = _until_right(server, subject, seconds)
            asked = time.perf_counter()
            stayed = _reload(server)
            if not stayed:
                options = ServerOptions(load=[MODEL], addresses=server.at)
                server = stack.enter_context(start_server(subject.repository, options))
            again = _until_right(server, subject, 60.0)
            took = time.perf_counter() - asked
        with load(server, subject, clients) as after:
            time.sleep(seconds)
        os.kill(server.pid, signal.SIGKILL)  # to end in order it would wait for the stub that is gone
    return {
        "server stayed up": stayed,
        "serves again by itself": alone,
        "serves again": again,
        "seconds until it did": round(took, 3),
        "during": {**during.figures(), "errors": dict(during.errors)},
        "after": after.figures(),
    }


def _reload(server: Server) -> bool:
    """Has the model unloaded and loaded; False where the server has ended."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
        try:
            client.unload_model(MODEL)
            client.load_model(MODEL)
        except InferenceServerException:
            end = time.monotonic() + 10
            while not server.ended() and time.monotonic() < end:
                time.sleep(0.05)
            if not server.ended():
                raise
            return False
    return True


def is_live(server: Server) -> bool:
    """Whether the server is up and serves the model."""
    import tritonclient.grpc as grpc

    with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
        return bool(client.is_server_live() and client.is_model_ready(MODEL))


def stubs_of(server: Server) -> list[int]:
    """The processes of the Python backend."""
    found = []
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def _until_right(server: Server, subject: Subject, patience: float) -> bool:
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    x = np.ones((1, WIDTH), np.float32)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
            try:
                if subject.is_right(x, *ask(client, grpc, x)):
                    return True
            except InferenceServerException:
                time.sleep(0.02)
    return False


def kill_server(subject: Subject, clients: int, seconds: float) -> Figures:
    """kill -9 of the server; nothing of it is left, and one that is started at its addresses serves again."""
    with start_server(subject.repository, ServerOptions(load=[MODEL])) as server:
        at, stubs = server.at, stubs_of(server)
        with load(server, subject, clients) as during:
            time.sleep(seconds)
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(seconds)
    left = [pid for pid in stubs if Path(f"/proc/{pid}").exists()]
    regions = [region.name for region in Path("/dev/shm").glob(f"{server.prefix}*")]
    started = time.perf_counter()
    with start_server(subject.repository, ServerOptions(load=[MODEL], addresses=at)) as server:
        again = _until_right(server, subject, 60.0)
        took = time.perf_counter() - started
        with load(server, subject, clients) as after:
            time.sleep(seconds)
    return {
        "serves again": again,
        "seconds until it did": round(took, 3),
        "stubs left": len(left),
        "shared memory left": len(regions),
        "during": during.figures(),
        "after": after.figures(),
    }


def run(folder: Path, clients: int, crowd_size: int, seconds: float, trials: int) -> Figures:
    """All scenarios, on one server but for those that kill it."""
    subject = Subject(folder)
    subject.roll_in(0)
    with start_server(subject.repository, ServerOptions(load=[MODEL])) as server:
        found = {
            "load and infer": infer(server, subject),
            "a new version in under load, and back": roll_versions(server, subject, clients, seconds),
            "a corrupt version under load": load_corrupt(server, subject, clients, seconds),
            "wrong requests among right ones": send_wrong(server, subject, clients, seconds),
            "many clients": crowd(server, subject, crowd_size, 50),
        }
    return {
        **found,
        "kill -9 of the stub": [kill_stub(subject, clients, seconds) for _ in range(trials)],
        "kill -9 of the server": kill_server(subject, clients, seconds),
    }


def main() -> None:
    """Runs all and writes results/triton_reliability.json."""
    with tempfile.TemporaryDirectory() as folder:
        write_result("triton_reliability", {"server": "tritonserver 2.51.0 of nvidia-pytriton 0.7.0, CPU",
                                            "scenarios": run(Path(folder), 16, 200, 5.0, 5)})  # fmt: skip


if __name__ == "__main__":
    main()
