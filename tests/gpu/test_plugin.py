"""The 2:4 plugin in real engines: built, run at many M, captured, run from two threads, in part dense.

The environment variable SPARSEFLOW_PLUGIN names the compiled library (plugins/sparse_linear/README.md).
"""

from __future__ import annotations

import os
import random
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sparseflow_trt.errors import BuildError

if TYPE_CHECKING:
    from sparseflow_trt.engines.tensorrt.api import Flavour

Array = npt.NDArray[Any]
K, N, MOST = 256, 512, 2048
DENSE_BELOW = 64
ROWS = (1, 7, 8, 9, 64, 250, 256, 257, 1000, 1001, 2048)
TOLERANCE = 2e-3  # of the largest output; FP16 rounds to half of 2^-10


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """TensorRT, with the plugin."""
    from sparseflow_trt.engines.plugin.loading import load_plugin
    from sparseflow_trt.engines.tensorrt.api import load_flavour

    library = os.environ.get("SPARSEFLOW_PLUGIN")
    if not library:
        pytest.skip("SPARSEFLOW_PLUGIN does not name the plugin's library")
    loaded = load_flavour("tensorrt")
    load_plugin(loaded, Path(library))
    return loaded


@pytest.fixture(scope="module")
def tensors() -> dict[str, Array]:
    """Two layers' weights and a bias, FP16."""
    from sparseflow_trt.model.pattern import prune_2to4

    rng = np.random.default_rng(0)

    def weight(k: int, n: int) -> Array:
        return prune_2to4((rng.standard_normal((k, n)) * k**-0.5).astype(np.float16), 0)

    return {"up": weight(K, N), "bias": rng.standard_normal(N).astype(np.float16), "down": weight(N, K)}


@pytest.fixture(scope="module")
def engine_file(
    flavour: Flavour, tensors: dict[str, Array], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """y = relu(x·up + bias)·down as an engine of plugin nodes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from sparseflow_trt.engines.protocol import EngineOptions
    from sparseflow_trt.engines.tensorrt.build_engine import build_engine
    from sparseflow_trt.engines.tensorrt.log import BuildLog
    from sparseflow_trt.exporters.plugin.nodes import put_into_plugin
    from sparseflow_trt.exporters.saving import save_plugin_model
    from sparseflow_trt.model.model_file import read_model
    from sparseflow_trt.plans.shapes import Profile, ShapeRange

    folder = tmp_path_factory.mktemp("plugin")
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up_proj"),
        helper.make_node("Add", ["a", "bias"], ["b"], "add"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("MatMul", ["c", "down"], ["y"], "down_proj"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["m", K]) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "mlp", ends[:1], ends[1:], [numpy_helper.from_array(t, name) for name, t in tensors.items()]
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "mlp.onnx")
    model = read_model(folder / "mlp.onnx")
    assert [r.folded for r in put_into_plugin(model, ["up_proj", "down_proj"])] == [("add", "relu"), ()]
    save_plugin_model(model.ir, folder / "plugin.onnx")
    shapes = ShapeRange(min=(1, K), opt=(256, K), max=(MOST, K))
    with (folder / "build.log").open("w") as stream:
        log = BuildLog(stream)
        profiles = (Profile(name="m", inputs={"x": shapes}),)
        build_engine(
            flavour, folder / "plugin.onnx", folder / "mlp.engine", profiles, False, EngineOptions(), log,
            lambda _: None,
        )  # fmt: skip
    assert "SparseFlowLinear24: M=2048: algorithm" in (folder / "build.log").read_text()
    return folder / "mlp.engine"


@pytest.fixture(scope="module")
def dense_file(
    flavour: Flavour, engine_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The same with dense products below M = 64, for two contexts; and the build's log."""
    import onnx

    from sparseflow_trt.engines.protocol import EngineOptions
    from sparseflow_trt.engines.tensorrt.build_engine import build_engine
    from sparseflow_trt.engines.tensorrt.log import BuildLog
    from sparseflow_trt.plans.shapes import Profile, ShapeRange

    if _cublaslt() is None:
        pytest.skip("cuBLASLt is not here")
    folder = tmp_path_factory.mktemp("dense")
    model = onnx.load(engine_file.with_name("plugin.onnx"))
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != "dense_below_m"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("dense_below_m", DENSE_BELOW)])
    onnx.save(model, folder / "dense.onnx")
    shapes = ShapeRange(min=(1, K), opt=(256, K), max=(MOST, K))
    with (folder / "build.log").open("w") as stream:
        profiles = tuple(Profile(name=f"m{i}", inputs={"x": shapes}) for i in range(2))
        build_engine(
            flavour, folder / "dense.onnx", folder / "dense.engine", profiles, False, EngineOptions(),
            BuildLog(stream), lambda _: None,
        )  # fmt: skip
    return folder / "dense.engine", (folder / "build.log").read_text()


def _cublaslt() -> str | None:
    """cuBLASLt where the plugin finds it, None where it is missing or is another library of that name."""
    from sparseflow_trt.engines.machine.cuda_libraries import find_libraries

    return next((found.file for found in find_libraries() if found.name == "cublasLt"), "") or None


def _x(m: int) -> Array:
    return np.random.default_rng(m).standard_normal((m, K)).astype(np.float16)


def _exact(tensors: dict[str, Array], x: Array) -> Array:
    up, bias, down = (tensors[name].astype(np.float32) for name in ("up", "bias", "down"))
    hidden = np.maximum(x.astype(np.float32) @ up + bias, 0).astype(np.float16)
    return np.asarray(hidden.astype(np.float32) @ down)


def _assert_close(got: Array, exact: Array) -> None:
    assert got.dtype == np.float16
    assert float(np.abs(got - exact).max()) < TOLERANCE * float(np.abs(exact).max())


def test_every_number_of_rows_is_computed(
    flavour: Flavour, engine_file: Path, tensors: dict[str, Array]
) -> None:
    from sparseflow_trt.engines.running.runner import Engine

    with Engine(flavour, engine_file) as engine:
        for m in ROWS:
            _assert_close(engine.run({"x": _x(m)})["y"], _exact(tensors, _x(m)))


@pytest.mark.parametrize("m", [1, 64, 1001])
def test_a_run_is_captured(flavour: Flavour, engine_file: Path, tensors: dict[str, Array], m: int) -> None:
    from sparseflow_trt.engines.running.runner import Engine

    with Engine(flavour, engine_file) as engine, engine.capture({"x": _x(m)}) as captured:
        for seed in (m, m + 10_000):
            x = np.random.default_rng(seed).standard_normal((m, K)).astype(np.float16)
            captured.inputs["x"].copy_from(x)
            captured.launch()
            _assert_close(captured.outputs["y"].numpy(), _exact(tensors, x))


def test_two_threads_run_at_once(flavour: Flavour, engine_file: Path, tensors: dict[str, Array]) -> None:
    from sparseflow_trt.engines.running.runner import Engine

    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            chosen = random.Random(seed)
            with Engine(flavour, engine_file) as engine:
                for _ in range(60):
                    m = chosen.randint(1, MOST)
                    _assert_close(engine.run({"x": _x(m)})["y"], _exact(tensors, _x(m)))
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_few_rows_run_dense(
    flavour: Flavour, dense_file: tuple[Path, str], engine_file: Path, tensors: dict[str, Array]
) -> None:
    from sparseflow_trt.engines.running.runner import Engine

    engine, log = dense_file
    assert re.search(r"M=1: dense, [0-9.]+ us", log)
    assert re.search(rf"M={DENSE_BELOW - 1}: dense, [0-9.]+ us", log)
    for m in (8, 16, 32):  # what is left of a large M that is made of two products, whatever runs dense
        assert re.search(rf"M={m}: algorithm", log)
    content = engine.read_bytes()  # TensorRT writes a plugin's layer once for each of the two profiles
    assert len(content) < 2 * engine_file.stat().st_size + 65536
    assert all(np.ascontiguousarray(tensors[name].T).tobytes() not in content for name in ("up", "down"))
    with Engine(flavour, engine) as loaded:
        for m in (*ROWS, DENSE_BELOW - 1, DENSE_BELOW):
            _assert_close(loaded.run({"x": _x(m)})["y"], _exact(tensors, _x(m)))


def test_contexts_of_one_engine_run_at_once(
    flavour: Flavour, dense_file: tuple[Path, str], tensors: dict[str, Array]
) -> None:
    from sparseflow_trt.engines.running.cuda import Cuda, DeviceMemory

    trt, cuda = flavour.module, Cuda()
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(dense_file[0].read_bytes())
    contexts = [engine.create_execution_context() for _ in range(2)]
    streams = [cuda.new_stream() for _ in contexts]
    for number, (context, stream) in enumerate(zip(contexts, streams, strict=True)):
        assert context.set_optimization_profile_async(number, stream)
        cuda.synchronize(stream)
    chosen = random.Random(0)
    memory = [[DeviceMemory(cuda, MOST * K * 2) for _ in range(2)] for _ in contexts]
    for _ in range(60):
        sizes = [chosen.randint(1, MOST) for _ in contexts]
        outputs = [np.empty((m, K), np.float16) for m in sizes]
        for context, stream, (x, y), m in zip(contexts, streams, memory, sizes, strict=True):
            cuda.copy_to_device(x.pointer, _x(m), stream)
            context.set_input_shape("x", (m, K))
            context.set_tensor_address("x", x.pointer)
            context.set_tensor_address("y", y.pointer)
        for context, stream in zip(contexts, streams, strict=True):
            assert context.execute_async_v3(stream)
        for stream, (_, y), output in zip(streams, memory, outputs, strict=True):
            cuda.copy_to_host(output, y.pointer, stream)
            cuda.synchronize(stream)
        for m, output in zip(sizes, outputs, strict=True):
            _assert_close(output, _exact(tensors, _x(m)))


def test_errors_are_those_of_dense_fp16(
    flavour: Flavour, engine_file: Path, tensors: dict[str, Array]
) -> None:
    from sparseflow_trt.engines.running.runner import Engine

    x = _x(1024)
    exact = _exact(tensors, x)
    with Engine(flavour, engine_file) as engine:
        got = engine.run({"x": x})["y"]
    rounded = exact.astype(np.float16)  # what no FP16 output can be better than
    error, least = (float(np.linalg.norm(y.astype(np.float64) - exact)) for y in (got, rounded))
    assert error < 1.5 * least


def test_an_engine_holds_the_packed_weights(engine_file: Path, tensors: dict[str, Array]) -> None:
    from sparseflow_trt.model.packing import pack_2to4

    content = engine_file.read_bytes()
    for name in ("up", "down"):
        packed = pack_2to4(np.ascontiguousarray(tensors[name].T))
        assert packed.values.tobytes() in content
        assert packed.indices.tobytes() in content
        assert np.ascontiguousarray(tensors[name].T).tobytes() not in content


def test_damaged_weights_are_refused(flavour: Flavour, engine_file: Path, tensors: dict[str, Array]) -> None:
    from sparseflow_trt.engines.running.runner import Engine
    from sparseflow_trt.model.packing import pack_2to4

    indices = pack_2to4(np.ascontiguousarray(tensors["up"].T)).indices.tobytes()
    damaged = engine_file.with_name("damaged.engine")
    damaged.write_bytes(engine_file.read_bytes().replace(indices, b"\0" * len(indices)))
    with pytest.raises(BuildError, match="does not load") as caught:
        Engine(flavour, damaged)
    assert "its indices are not in rising order" in caught.value.message
