"""What is served in the tests: artifacts of small models, and a real tritonserver on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from sparseflow_trt._files import sha256_of
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.triton.server import Server, find_server
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.profile_specs import parse_profile
from sparseflow_trt.policies.policy import find_policy

LIBRARY = "libsparseflow_linear24.trt10.so"
WithPlugin = Callable[..., Path]
PROFILES = ("short:batch=1,8,16:seq=1,32,32", "long:batch=1,4,16:seq=33,64,64")


@pytest.fixture(scope="session")
def tritonserver() -> None:
    """Skips where there is no server: `make setup` installs one."""
    try:
        find_server()
    except NotInstalledError as error:
        pytest.skip(error.message)


def succeeds(command: str, server: Server) -> bool:
    """Whether a probe of the Deployment does, but for the port, and for other tests' servers."""
    words = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    (backends,) = (word.partition("=")[2] for word in words if word.startswith("--backend-directory="))
    command = command.replace("127.0.0.1:8000", server.at.http)
    command = command.replace("[t]riton", f"{backends}/python/[t]riton")
    return subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def client_of(server: Server) -> Iterator[Any]:
    import tritonclient.grpc as grpc

    with contextlib.closing(grpc.InferenceServerClient(server.at.grpc)) as client:
        yield client


def ask(client: Any, model: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import tritonclient.grpc as grpc

    given = grpc.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return np.asarray(client.infer(model, [given], client_timeout=30.0).as_numpy("y"))


def write_model(path: Path, seed: int = 0) -> Path:
    """x[batch, seq, 64] through two products, both 2:4."""
    rng = np.random.default_rng(seed)
    up = prune_2to4(rng.standard_normal((64, 256)).astype(np.float32) / 8, 0)
    down = prune_2to4(rng.standard_normal((256, 64)).astype(np.float32) / 16, 0)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "gate_proj"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["y"], "down_proj"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "seq", 64]) for n in "xy"]
    weights = [numpy_helper.from_array(up, "up"), numpy_helper.from_array(down, "down")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def write_model_of_ids(path: Path) -> Path:
    """ids[batch, seq] in INT64 to y[batch, seq, 64] and the place of each row's largest, in INT64, too."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((100, 64)).astype(np.float32)
    weight = prune_2to4(rng.standard_normal((64, 64)).astype(np.float32) / 8, 0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"], "o_proj"),
        helper.make_node("ArgMax", ["y"], ["best"], axis=-1, keepdims=0),
    ]
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 64]),
        helper.make_tensor_value_info("best", TensorProto.INT64, ["batch", "seq"]),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "ids", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def write_model_of_columns(path: Path) -> Path:
    """x[batch, 64] to y[batch, 64], and n[batch] in INT32 to the next number, k[batch]."""
    rng = np.random.default_rng(0)
    weight = prune_2to4(rng.standard_normal((64, 64)).astype(np.float32) / 8, 0)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"], "gate_proj"),
        helper.make_node("Add", ["n", "one"], ["k"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, kind, ["batch", *more])
        for name, kind, more in (
            ("n", TensorProto.INT32, ()),
            ("x", TensorProto.FLOAT, (64,)),
            ("k", TensorProto.INT32, ()),
            ("y", TensorProto.FLOAT, (64,)),
        )
    ]
    weights = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.asarray([1], np.int32), "one"),
    ]
    graph = helper.make_graph(nodes, "columns", ends[:2], ends[2:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def write_model_of_many_types(path: Path) -> Path:
    """x[rows, 64] in FP64, scale and n[rows] in UINT16 to y in FP64, k in UINT16 and the scalar total."""
    weight = np.random.default_rng(0).standard_normal((64, 32)) / 8
    nodes = [
        helper.make_node("Cast", ["scale"], ["factor"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["x", "weight"], ["m"], "up_proj"),
        helper.make_node("Mul", ["m", "factor"], ["y"]),
        helper.make_node("Cast", ["n"], ["wide"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["wide"], ["total"], keepdims=0),
        helper.make_node("Add", ["wide", "one"], ["next"]),
        helper.make_node("Cast", ["next"], ["k"], to=TensorProto.UINT16),
    ]
    shapes: tuple[tuple[str, int, tuple[str | int, ...]], ...] = (
        ("x", TensorProto.DOUBLE, ("rows", 64)),
        ("scale", TensorProto.FLOAT, ()),
        ("n", TensorProto.UINT16, ("rows",)),
        ("y", TensorProto.DOUBLE, ("rows", 32)),
        ("k", TensorProto.UINT16, ("rows",)),
        ("total", TensorProto.INT64, ()),
    )
    ends = [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in shapes]
    weights = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.asarray([1]), "one")]
    graph = helper.make_graph(nodes, "types", ends[:3], ends[3:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def build_artifact(folder: Path, name: str, seed: int = 0, **options: Any) -> Path:
    """Builds one with the ONNX Runtime; its model lies beside it as NAME.onnx."""
    model = write_model(folder / f"{name}.onnx", seed)
    known = {"policy": find_policy("a100-80gb"), "profiles": tuple(map(parse_profile, PROFILES))}
    plan = PlanOptions(**{**known, **options})
    return build(model, BuildOptions(folder / name, plan, "onnxruntime")).artifact


@pytest.fixture(scope="session")
def ort_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two profiles, both layers sparse, an ONNX Runtime engine; mlp.onnx beside it is the model."""
    return build_artifact(tmp_path_factory.mktemp("artifact"), "mlp")


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return build_artifact(tmp_path_factory.mktemp("artifact"), "other", seed=1)


@pytest.fixture(scope="session")
def dense_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first one's model, planned dense."""
    return build_artifact(tmp_path_factory.mktemp("artifact"), "dense", policy=None)


@pytest.fixture(scope="session")
def as_tensorrt() -> Callable[..., Path]:
    """Turns an artifact into what one of TensorRT's would be, but for an engine that TensorRT would load."""

    def change(artifact: Path, folder: Path, name: str = "mlp", **engine: Any) -> Path:
        made = folder / name
        made.mkdir(parents=True)
        plugin = (engine.get("plugin") or {}).get("file", "")
        for file in (
            "model.onnx",
            "model.onnx.data",
            "model.onnx.packed",
            "plan.yaml",
            "policy.json",
            plugin,
        ):
            if (artifact / file).is_file():
                (made / file).write_bytes((artifact / file).read_bytes())
        (made / "model.engine").write_bytes(b"no plan")
        manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
        told = {"file": "model.engine", "backend": "tensorrt", "versions": {"tensorrt": "10.16.1.11"}}
        manifest["engine"].update({**told, **engine})
        manifest["files"] = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(made.iterdir())
        }
        (made / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return made

    return change


@pytest.fixture
def plan_artifact(ort_artifact: Path, as_tensorrt: Callable[..., Path], tmp_path: Path) -> Path:
    return as_tensorrt(ort_artifact, tmp_path / "artifacts")


@pytest.fixture
def with_plugin(
    ort_artifact: Path, other_artifact: Path, as_tensorrt: Callable[..., Path], tmp_path: Path
) -> WithPlugin:
    """An artifact of TensorRT's whose engine needs a library with the given content."""

    def make(name: str, content: bytes, cusparselt: str = "0.8.1", **engine: Any) -> Path:
        source = tmp_path / f"source-{name}"
        shutil.copytree(ort_artifact if name == "a" else other_artifact, source)
        (source / LIBRARY).write_bytes(content)
        versions = {"cuSPARSELt": cusparselt}
        plugin = {"file": LIBRARY, "sha256": sha256_of(source / LIBRARY), "versions": versions}
        return as_tensorrt(source, tmp_path / "with-plugin", name, plugin=plugin, **engine)

    return make
