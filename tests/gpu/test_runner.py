"""The runner on a real GPU: arrays and GPU tensors, streams, captured runs, layers' times, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sparseflow_trt.building.loading import open_artifact
from sparseflow_trt.building.timing import time_artifacts
from sparseflow_trt.engines.running import dlpack
from sparseflow_trt.engines.running.benchmark import ratio, time_interleaved
from sparseflow_trt.engines.running.device_tensor import DeviceTensor, new_tensor
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.errors import InputError

HIDDEN = 256
F32 = np.dtype(np.float32)
Array = npt.NDArray[Any]
Library = tuple[Callable[[Array], Any], Callable[[Any], int], Callable[[Any], Any], Callable[[Any], Array]]


def rows(count: int, seed: int = 0) -> Array:
    """Seeded inputs, float32[count, 256]."""
    return np.random.default_rng((count, seed)).standard_normal((count, HIDDEN)).astype(np.float32)


def close(one: Array, other: Array) -> None:
    """Both come from the same engine, perhaps by way of another kernel."""
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


@pytest.fixture
def load(mlp_artifact: Path) -> Callable[[], Engine]:
    """Loads the small MLP's engine: FP16 inside, FP32 outside; profile 0 to 64 rows, 1 from 65 to 512."""
    return lambda: open_artifact(mlp_artifact)


@pytest.fixture
def engine(load: Callable[[], Engine]) -> Iterator[Engine]:
    """That engine."""
    with load() as loaded:
        yield loaded


def on_gpu(engine: Engine, array: Array) -> DeviceTensor:
    """A copy in GPU memory."""
    tensor = new_tensor(engine.cuda, array.shape, array.dtype)
    tensor.copy_from(array)
    return tensor


@pytest.fixture(params=["torch", "cupy"])
def library(request: pytest.FixtureRequest) -> Library:
    """Another library: array → its tensor on the GPU, the tensor's address, from DLPack, tensor → array."""
    module = pytest.importorskip(request.param)
    if request.param == "torch":
        if not module.cuda.is_available():
            pytest.skip("this PyTorch does not see the GPU")
        return (
            lambda a: module.from_numpy(a).cuda(),
            lambda t: int(t.data_ptr()),
            module.from_dlpack,
            lambda t: np.asarray(t.cpu()),
        )
    return module.asarray, lambda t: int(t.data.ptr), module.from_dlpack, module.asnumpy


@pytest.mark.parametrize("count", [1, 64, 65, 512])
def test_arrays_give_what_onnx_runtime_gives(engine: Engine, mlp_model: Path, count: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(mlp_model), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": rows(count)})
    found = engine.run({"x": rows(count)})["y"]
    assert found.dtype == F32
    assert np.linalg.norm(found - expected) < 0.005 * np.linalg.norm(expected)


def test_the_profile_follows_the_shapes_whatever_came_before(engine: Engine) -> None:
    expected = {count: engine.run({"x": rows(count)})["y"] for count in (64, 65)}
    for count in (64, 65, 65, 64, 65):
        made = engine.run_device({"x": on_gpu(engine, rows(count))})["y"]
        assert engine.profile == (count > 64)
        close(made.numpy(), expected[count])
        close(engine.run({"x": rows(count)})["y"], expected[count])


def test_gpu_tensors_are_read_and_written_where_they_lie(engine: Engine) -> None:
    x, y = on_gpu(engine, rows(32)), on_gpu(engine, np.zeros((32, HIDDEN), np.float32))
    made = engine.run_device({"x": x}, {"y": y})["y"]
    assert made.pointer == y.pointer
    assert dlpack.read_tensor(made, 1).pointer == y.pointer
    close(y.numpy(), engine.run({"x": rows(32)})["y"])
    np.testing.assert_array_equal(x.numpy(), rows(32))


def test_one_engines_output_is_anothers_input_with_no_copy(
    engine: Engine, load: Callable[[], Engine]
) -> None:
    expected = engine.run({"x": engine.run({"x": rows(16)})["y"]})["y"]
    with load() as other:
        between = engine.run_device({"x": on_gpu(engine, rows(16))})["y"]
        with other.capture({"x": between}) as captured:
            assert captured.inputs["x"].pointer == between.pointer
        made = other.run_device({"x": between})["y"]
        engine.close()
        close(made.numpy(), expected)
    close(made.numpy(), expected)  # what an engine wrote outlives it


def test_another_librarys_tensors_with_no_copy(engine: Engine, library: Library) -> None:
    to_gpu, address, from_dlpack, to_host = library
    expected = engine.run({"x": rows(32)})["y"]
    x, y = to_gpu(rows(32)), to_gpu(np.zeros((32, HIDDEN), np.float32))
    with engine.capture({"x": x}, {"y": y}) as captured:
        assert captured.inputs["x"].pointer == address(x)
        assert captured.outputs["y"].pointer == address(y)
    close(to_host(y), expected)
    made = engine.run_device({"x": x})["y"]
    taken = from_dlpack(made)
    assert address(taken) == made.pointer
    del made
    engine.close()
    close(to_host(taken), expected)


def test_another_librarys_tensors_that_do_not_fit(engine: Engine, library: Library) -> None:
    to_gpu, *_ = library
    wide = to_gpu(np.zeros((4, 2 * HIDDEN), np.float32))
    with pytest.raises(InputError, match=r"input 'x' is not contiguous: its strides are \[512, 1\]"):
        engine.run_device({"x": wide[:, :HIDDEN]})
    with pytest.raises(
        InputError, match="input 'x' begins at an address that is not a multiple of 256 bytes"
    ):
        engine.run_device({"x": wide.reshape(-1)[1 : 1 + 4 * HIDDEN].reshape(4, HIDDEN)})
    with pytest.raises(InputError, match="input 'x' is float16; the engine takes float32"):
        engine.run_device({"x": to_gpu(rows(4).astype(np.float16))})


def test_tensors_that_do_not_fit_are_refused_and_the_engine_goes_on(engine: Engine) -> None:
    x = on_gpu(engine, rows(4))
    cases = {
        "input 'x' is float16; the engine takes float32": on_gpu(engine, rows(4).astype(np.float16)),
        "input 'x' has 1 dimensions; the engine takes 2": on_gpu(engine, rows(1)[0]),
        r"the shapes x \[513, 256\] fit no profile": on_gpu(engine, rows(513)),
        "input 'x' is not in GPU memory": rows(4),
        "begins at an address that is not a multiple": DeviceTensor(
            engine.cuda, x.pointer + 16, (1, HIDDEN), F32, engine.device, x
        ),
        "is on GPU 1; the engine is on GPU 0": DeviceTensor(engine.cuda, x.pointer, x.shape, F32, 1, x),
    }
    for message, tensor in cases.items():
        with pytest.raises(InputError, match=message):
            engine.run_device({"x": tensor})
    with pytest.raises(
        InputError, match=r"output 'y' is given as \[5, 256\]; for these inputs it is \[4, 256\]"
    ):
        engine.run_device({"x": x}, {"y": on_gpu(engine, rows(5))})
    close(engine.run_device({"x": x})["y"].numpy(), engine.run({"x": rows(4)})["y"])


def test_a_run_on_the_callers_stream_is_waited_for(engine: Engine, load: Callable[[], Engine]) -> None:
    streams = [engine.cuda.new_stream() for _ in range(2)]
    expected = engine.run({"x": engine.run({"x": rows(256)})["y"]})["y"]
    x = on_gpu(engine, rows(256))
    with load() as other:
        for _ in range(20):
            between = engine.run_device({"x": x}, stream=streams[0])
            made = other.run_device({"x": between["y"]}, stream=streams[1])
            close(made["y"].numpy(), expected)
        engine.run_device({"x": x}, stream=streams[0])
        close(engine.run({"x": rows(256, 1)})["y"], other.run({"x": rows(256, 1)})["y"])


def test_a_captured_run_computes_what_its_inputs_hold_at_the_launch(engine: Engine) -> None:
    expected = [engine.run({"x": rows(128, seed)})["y"] for seed in range(3)]
    stream = engine.cuda.new_stream()
    with engine.capture({"x": rows(128, 0)}) as captured:
        close(captured.outputs["y"].numpy(), expected[0])
        captured.inputs["x"].copy_from(rows(128, 1))
        captured.launch()
        close(captured.outputs["y"].numpy(), expected[1])
        captured.inputs["x"].copy_from(rows(128, 2))
        captured.launch(stream)
        close(captured.outputs["y"].numpy(), expected[2])
        assert all(0 < ms < 100 for ms in captured.time(10))


def test_a_captured_run_ends_with_another_shape_and_is_captured_again(engine: Engine) -> None:
    expected = engine.run({"x": rows(32)})["y"]
    captured = engine.capture({"x": rows(32)})
    engine.run({"x": rows(300)})
    with pytest.raises(InputError, match=r"has since run with the shapes x \[300, 256\]"):
        captured.launch()
    captured.close()
    with engine.capture({"x": rows(32)}) as again:
        again.launch()
        close(again.outputs["y"].numpy(), expected)


def test_a_run_is_recorded_into_the_callers_graph(engine: Engine) -> None:
    x, y = on_gpu(engine, rows(8)), on_gpu(engine, np.zeros((8, HIDDEN), np.float32))
    stream = engine.cuda.new_stream()
    expected = [engine.run({"x": rows(8, seed)})["y"] for seed in range(2)]
    engine.run_device({"x": x}, {"y": y}, stream)

    def record() -> None:
        engine.run_device({"x": x}, {"y": y}, stream)
        with pytest.raises(InputError, match="no memory can be allocated while a stream is being captured"):
            engine.run_device({"x": x}, stream=stream)
        with pytest.raises(InputError, match="was not run with these shapes right before the capture"):
            engine.run_device({"x": z}, {"y": z}, stream)

    z = on_gpu(engine, rows(9))
    graph = engine.cuda.capture(stream, record)
    for seed in (1, 0):
        x.copy_from(rows(8, seed))
        engine.cuda.call("cudaGraphLaunch", graph.executable, stream)
        engine.cuda.synchronize(stream)
        close(y.numpy(), expected[seed])


@pytest.mark.parametrize("count", [64, 512])
def test_the_layers_times_add_up_to_about_the_runs(engine: Engine, count: int) -> None:
    feeds = {"x": rows(count)}
    expected = engine.run(feeds)["y"]
    layers = engine.profile_layers(feeds)
    assert layers
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    whole = float(np.median(engine.time(feeds, 50)))
    # Each layer is timed by events of its own, which take some microseconds.
    assert 0.5 * whole < sum(layer.ms for layer in layers) < 3 * whole + 0.02 * len(layers)
    close(engine.run(feeds)["y"], expected)
    engine.run({"x": rows(1)})
    close(engine.run(feeds)["y"], expected)


def test_engines_are_timed_in_turn(engine: Engine, load: Callable[[], Engine]) -> None:
    with load() as other:
        timings = time_interleaved((engine, other), {"x": rows(512)}, rounds=5, launches=10)
    for timing in timings:
        assert timing.launches == 50
        assert 0 < timing.p50 <= timing.p90 <= timing.p99
        assert timing.per_second == 1000 / timing.p50
        assert timing.memory is not None
        assert timing.memory.context == engine.device_memory_bytes >= 0
        assert timing.memory.loaded >= 0
    found = ratio(*timings)
    assert found.low <= found.median <= found.high
    assert 0.5 < found.median < 2  # one engine, twice


def test_an_artifacts_layers_are_timed_in_each_profile(mlp_artifact: Path) -> None:
    timed = time_artifacts(mlp_artifact, mlp_artifact, 2, 3, layers=True)
    for row in timed:
        assert row.against is not None
        assert [t.name for t in row.timing.layers] == [t.name for t in row.against.layers]
        assert all(t.ms >= 0 for t in row.timing.layers)
        assert row.timing.layers


def test_two_engines_in_two_threads(load: Callable[[], Engine]) -> None:
    with load() as alone:
        expected = {count: alone.run({"x": rows(count)})["y"] for count in (3, 64, 65, 512)}
    wrong: list[Any] = []

    def work(counts: tuple[int, ...]) -> None:
        try:
            with load() as engine:
                for count in counts * 25:
                    close(engine.run({"x": rows(count)})["y"], expected[count])
                    made = engine.run_device({"x": on_gpu(engine, rows(count))})["y"]
                    close(made.numpy(), expected[count])
                with engine.capture({"x": rows(counts[0])}) as captured:
                    for _ in range(25):
                        captured.launch()
                    close(captured.outputs["y"].numpy(), expected[counts[0]])
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(counts,)) for counts in ((3, 512), (65, 64))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
