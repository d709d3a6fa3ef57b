"""The runner on a simulated GPU: what is checked, placed, ordered and said. tests/gpu runs the real one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparseflow_trt.engines.running.device_tensor import DeviceTensor, is_on_device, new_tensor
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.errors import BuildError, InputError, SparseflowError

Load = Callable[..., Engine]
F32 = np.dtype(np.float32)


def rows(count: int, start: float = 0.0) -> Any:
    """An input of `count` rows."""
    return np.arange(start, start + count * 2, dtype=np.float32).reshape(count, 2)


def says(error: pytest.ExceptionInfo[SparseflowError]) -> str:
    return f"{error.value.message} | {error.value.hint}"


def test_numpy_in_and_out(load: Load) -> None:
    with load() as engine:
        for count in (1, 4, 2):
            np.testing.assert_array_equal(engine.run({"x": rows(count)})["y"], 2 * rows(count) + 1)


def test_the_profile_is_chosen_by_shape(load: Load) -> None:
    with load() as engine:
        used = []
        for count in (4, 5, 8, 1):
            np.testing.assert_array_equal(engine.run({"x": rows(count)})["y"], 2 * rows(count) + 1)
            used.append(engine.profile)
        assert used == [0, 1, 1, 0]
        with pytest.raises(InputError) as error:
            engine.run({"x": rows(9)})
        assert says(error) == (
            "the shapes x [9, 2] fit no profile of the engine. | Its profiles take: x [1, 2] to [4, 2]; "
            "x [5, 2] to [8, 2]. Plan a profile that holds these shapes."
        )
        np.testing.assert_array_equal(engine.run({"x": rows(3)})["y"], 2 * rows(3) + 1)  # it still runs


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing. | The engine takes: x."),
        ({"x": rows(1), "z": rows(1)}, "input 'z' is not one of the engine's."),
        ({"x": rows(1)[0]}, "input 'x' has 1 dimensions; the engine takes 2."),
        ({"x": rows(0)}, "input 'x' is empty."),
        ({"x": rows(1).astype(np.float64)}, "input 'x' is float64; the engine takes float32."),
        ({"x": [[1.0, 2.0], [3.0]]}, "input 'x' is not an array: "),
    ],
)
def test_wrong_arrays(load: Load, feeds: Any, message: str) -> None:
    with load() as engine, pytest.raises(InputError) as error:
        engine.run(feeds)
    assert says(error).startswith(message)


def test_integers_that_fit_are_converted(load: Load) -> None:
    with load(dtype="int32") as engine:
        assert engine.run({"x": np.asarray([[1, 2]], np.int64)})["y"].tolist() == [[3, 5]]
        with pytest.raises(InputError, match="is int64; the engine takes int32"):
            engine.run({"x": np.asarray([[1, 2**40]], np.int64)})


def test_gpu_tensors_are_read_and_written_where_they_lie(
    load: Load, on_gpu: Callable[..., Any], gpu: Any
) -> None:
    with load() as engine:
        x, y = on_gpu(rows(2)), on_gpu(np.zeros((2, 2), np.float32))
        allocated = len(gpu.allocated)
        made = engine.run_device({"x": x}, {"y": y})
        assert len(gpu.allocated) == allocated
        assert made["y"].pointer == y.array.ctypes.data
        np.testing.assert_array_equal(y.array, 2 * rows(2) + 1)
        assert x.read_on == [engine.stream]


def test_outputs_that_are_not_given_are_new_and_outlive_the_engine(
    load: Load, on_gpu: Callable[..., Any], gpu: Any
) -> None:
    with load() as engine:
        first = engine.run_device({"x": on_gpu(rows(2))})["y"]
        second = engine.run_device({"x": on_gpu(rows(2, 10))})["y"]
    np.testing.assert_array_equal(first.numpy(), 2 * rows(2) + 1)
    np.testing.assert_array_equal(second.numpy(), 2 * rows(2, 10) + 1)
    assert len(gpu.allocated) == 2
    del first, second
    gc.collect()
    assert not gpu.allocated
    assert not gpu.events


def test_one_engines_output_is_anothers_input(load: Load, on_gpu: Callable[..., Any]) -> None:
    with load() as one, load() as other:
        between = one.run_device({"x": on_gpu(rows(2))})
        assert is_on_device(between["y"])
        with other.capture({"x": between["y"]}) as captured:
            assert captured.inputs["x"].pointer == between["y"].pointer
        result = other.run_device({"x": between["y"]})
        np.testing.assert_array_equal(result["y"].numpy(), 4 * rows(2) + 3)


@pytest.mark.parametrize("own_stream", [True, False])
def test_a_run_waits_for_the_tensors_writer(load: Load, on_gpu: Callable[..., Any], own_stream: bool) -> None:
    x = on_gpu(rows(2))
    x.write(rows(2, 100))
    with load() as engine:
        made = engine.run_device({"x": x}, stream=None if own_stream else 55)
        np.testing.assert_array_equal(made["y"].numpy(), 2 * rows(2, 100) + 1)


def test_a_run_on_a_stream_is_queued_and_its_readers_wait(
    load: Load, on_gpu: Callable[..., Any], gpu: Any
) -> None:
    y = on_gpu(np.zeros((2, 2), np.float32))
    with load() as one, load() as other:
        x = on_gpu(rows(2))
        made = one.run_device({"x": x}, {"y": y}, stream=55)
        assert not y.array.any()  # queued
        result = other.run_device({"x": made["y"]}, stream=66)
        gpu.drain(66)
        np.testing.assert_array_equal(result["y"].numpy(), 4 * rows(2) + 3)


def test_runs_on_several_streams_follow_each_other(load: Load, on_gpu: Callable[..., Any], gpu: Any) -> None:
    with load() as engine:
        done: list[str] = []
        x, kept = on_gpu(rows(2)), []  # giving an output back would wait for the GPU
        gpu.put(55, lambda: done.append("55"))
        kept.append(engine.run_device({"x": x}, stream=55))
        kept.append(engine.run_device({"x": x}, stream=66))
        assert not done
        gpu.drain(66)
        assert done == ["55"]
        gpu.put(66, lambda: done.append("66"))
        kept.append(engine.run_device({"x": x}, stream=66))
        engine.run({"x": rows(2)})
        assert done == ["55", "66"]


class StreamObject:
    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, 55)


class TorchStream:
    cuda_stream = 55


@pytest.mark.parametrize("stream", [55, np.int64(55), StreamObject(), TorchStream()])
def test_streams_of_several_libraries(load: Load, on_gpu: Callable[..., Any], stream: Any) -> None:
    x = on_gpu(rows(2))
    with load() as engine:
        engine.run_device({"x": x}, stream=stream)
    assert x.read_on == [55]


@pytest.mark.parametrize("stream", ["main", -1, True, 1.5])
def test_what_is_no_stream(load: Load, on_gpu: Callable[..., Any], stream: Any) -> None:
    with load() as engine, pytest.raises(InputError, match="is not a CUDA stream"):
        engine.run_device({"x": on_gpu(rows(2))}, stream=stream)


def test_the_default_stream_is_1_to_dlpack(load: Load, on_gpu: Callable[..., Any]) -> None:
    x = on_gpu(rows(2))
    with load() as engine:
        made = engine.run_device({"x": x}, stream=0)
        np.testing.assert_array_equal(made["y"].numpy(), 2 * rows(2) + 1)
    assert x.read_on == [1]


def test_wrong_gpu_tensors(load: Load, on_gpu: Callable[..., Any]) -> None:
    good = on_gpu(rows(2))
    sliced = on_gpu(np.zeros((2, 4), np.float32))
    sliced.array = sliced.array[:, ::2]
    cases = {
        "input 'x' is not in GPU memory. | Move it there": rows(2),
        "input 'x' is on GPU 1; the engine is on GPU 0.": on_gpu(rows(2), (2, 1)),
        "input 'x' is float16; the engine takes float32. | Convert it first, in PyTorch "
        "with .to(torch.float32).": on_gpu(rows(2).astype(np.float16)),
        "input 'x' is not contiguous: its strides are [4, 2]. | Make it contiguous, ": sliced,
        "input 'x' begins at an address that is not a multiple of 256 bytes": on_gpu(rows(2), offset=16),
        "input 'x' is a list, which does not export DLPack.": [1.0],
        "input 'x' has 1 dimensions; the engine takes 2.": on_gpu(rows(1)[0]),
        "input 'x' is empty.": on_gpu(rows(0)),
        "the shapes x [9, 2] fit no profile": on_gpu(rows(9)),
    }
    with load() as engine:
        for message, x in cases.items():
            with pytest.raises(InputError) as error:
                engine.run_device({"x": x})
            assert says(error).startswith(message)
        outputs = {
            "output 'z' is not one of the engine's. | It has: y.": {"z": good},
            "output 'y' is given as [3, 2]; for these inputs it is [2, 2].": {"y": on_gpu(rows(3))},
            "output 'y' is not in GPU memory.": {"y": rows(2)},
        }
        for message, given in outputs.items():
            with pytest.raises(InputError) as error:
                engine.run_device({"x": good}, given)
            assert says(error).startswith(message)
        with pytest.raises(InputError, match=r"input 'x' is in GPU memory\."):
            engine.run({"x": good})
        engine.run_device({"x": good})


def test_managed_memory_is_gpu_memory(load: Load, on_gpu: Callable[..., Any]) -> None:
    with load() as engine:
        made = engine.run_device({"x": on_gpu(rows(2), (13, 0))})
        np.testing.assert_array_equal(made["y"].numpy(), 2 * rows(2) + 1)


def test_torch_tensors_that_cannot_be_taken(load: Load) -> None:
    torch = pytest.importorskip("torch")
    with load() as engine:
        for tensor in (torch.zeros(2, 2), torch.zeros(2, 2, device="meta")):
            with pytest.raises(InputError, match="is not in GPU memory"):
                engine.run_device({"x": tensor})
        np.testing.assert_array_equal(engine.run({"x": torch.ones(2, 2)})["y"], np.full((2, 2), 3))
        with pytest.raises(InputError, match=r"input 'x' is not an array: .*grad"):
            engine.run({"x": torch.ones(2, 2, requires_grad=True)})


def test_why_a_library_exports_nothing_is_said(load: Load, on_gpu: Callable[..., Any]) -> None:
    class WithGradient:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **_: Any) -> object:
            raise BufferError("Can't export tensors that\nrequire gradient")

    with load() as engine, pytest.raises(InputError) as error:
        engine.run_device({"x": WithGradient()})
    assert says(error).startswith("input 'x' is not exported: Can't export tensors that require gradient")


def test_a_read_only_tensor_is_an_input_and_no_output(load: Load, on_gpu: Callable[..., Any]) -> None:
    x = on_gpu(rows(2))
    x.array.flags.writeable = False
    try:
        x.array.__dlpack__(max_version=(1, 0))
    except TypeError:
        pytest.skip("this NumPy exports no array that is read-only")
    with load() as engine:
        y = engine.run_device({"x": x})["y"]
        with pytest.raises(InputError, match=r"output 'y' is read\-only, and the engine writes to it\."):
            engine.run_device({"x": y}, {"y": x})


def test_a_captured_run_reads_what_is_there_at_its_launch(load: Load, on_gpu: Callable[..., Any]) -> None:
    x, y = on_gpu(rows(2)), on_gpu(np.zeros((2, 2), np.float32))
    with load() as engine, engine.capture({"x": x}, {"y": y}) as captured:
        for start in (5, 50):
            x.array[...] = rows(2, start)
            captured.launch()
            np.testing.assert_array_equal(y.array, 2 * rows(2, start) + 1)


def test_a_captured_run_of_arrays(load: Load) -> None:
    with load() as engine, engine.capture({"x": rows(3)}) as captured:
        np.testing.assert_array_equal(captured.outputs["y"].numpy(), 2 * rows(3) + 1)
        captured.inputs["x"].copy_from(rows(3, 7))
        captured.launch()
        np.testing.assert_array_equal(captured.outputs["y"].numpy(), 2 * rows(3, 7) + 1)
        with pytest.raises(InputError, match=r"an array \[2, 2\] of float32 does not fit a tensor \[3, 2\]"):
            captured.inputs["x"].copy_from(rows(2))
        assert captured.time(4) == [2.0] * 4
        assert engine.time({"x": rows(3)}, 3) == [2.0] * 3


def test_a_launch_on_a_stream_is_queued(load: Load, gpu: Any) -> None:
    with load() as engine, engine.capture({"x": rows(2)}) as captured:
        captured.inputs["x"].copy_from(rows(2, 9))
        captured.launch(stream=55)
        assert gpu.queues[55]
        captured.inputs["x"].copy_from(rows(2))  # once the launch has read what was there
        np.testing.assert_array_equal(captured.outputs["y"].numpy(), 2 * rows(2, 9) + 1)


def test_a_captured_run_ends_when_its_engine_does_something_else(load: Load) -> None:
    with load() as engine:
        others: dict[str, Callable[[], object]] = {
            "has since run with the shapes x [4, 2]": lambda: engine.run({"x": rows(4)}),
            "has since run with other tensors": lambda: engine.run({"x": rows(2)}),
            "has been closed or profiled, or has failed": lambda: engine.profile_layers({"x": rows(2)}, 1),
        }
        for since, other in others.items():
            captured = engine.capture({"x": rows(2)})
            captured.launch()
            other()
            with pytest.raises(InputError) as error:
                captured.launch()
            assert says(error).startswith(
                f"the captured run cannot be launched: its engine {since}. | Capture it again"
            )
            with pytest.raises(InputError) as again:
                captured.time(1)
            assert says(again) == says(error)
        captured = engine.capture({"x": rows(2)})
        captured.close()
        captured.close()
        with pytest.raises(InputError, match="the captured run is closed"):
            captured.launch()
        last = engine.capture({"x": rows(2)})
    with pytest.raises(InputError, match="has been closed"):
        last.launch()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.run({"x": rows(2)})
    engine.close()


def test_an_output_that_nobody_keeps_is_given_back_when_it_is_written(
    load: Load, on_gpu: Callable[..., Any], gpu: Any
) -> None:
    with load() as one, load() as other:
        for start in (0, 7):
            between = one.run_device({"x": on_gpu(rows(2, start))}, stream=55)
            made = other.run_device({"x": between["y"]}, stream=66)
        del between
        gc.collect()
        np.testing.assert_array_equal(made["y"].numpy(), 4 * rows(2, 7) + 3)
        assert len(gpu.allocated) == 1


def test_a_larger_run_does_not_take_a_captured_runs_memory(load: Load, gpu: Any) -> None:
    with load() as engine:
        captured = engine.capture({"x": rows(2)})
        engine.run({"x": rows(8)})
        for tensor in (*captured.inputs.values(), *captured.outputs.values()):
            assert tensor.pointer in gpu.allocated
        captured.close()
        del captured, tensor
        gc.collect()
        assert len(gpu.allocated) == 2
    assert not gpu.allocated
    assert not gpu.graphs


def test_recording_into_the_callers_graph(load: Load, on_gpu: Callable[..., Any], gpu: Any) -> None:
    x, y = on_gpu(rows(2)), on_gpu(np.zeros((2, 2), np.float32))
    x.stream = 55
    with load() as engine:
        engine.run_device({"x": x}, {"y": y}, stream=55)
        gpu.drain(55)
        gpu._StreamBeginCapture(55, 2)
        made = engine.run_device({"x": x}, {"y": y}, stream=55)
        with pytest.raises(InputError) as no_output:
            engine.run_device({"x": x}, stream=55)
        with pytest.raises(InputError) as new_shape:
            engine.run_device({"x": on_gpu(rows(4))}, {"y": on_gpu(rows(4))}, stream=55)
        executable = gpu._GraphInstantiate(gpu._StreamEndCapture(55), 0)
        x.array[...] = rows(2, 30)
        gpu._GraphLaunch(executable, 55)
        gpu.drain(55)
        np.testing.assert_array_equal(made["y"].numpy(), 2 * rows(2, 30) + 1)
    assert says(no_output) == (
        "output 'y' was given no tensor, and no memory can be allocated while a stream is being captured. | "
        "Give one [2, 2] of float32."
    )
    assert new_shape.value.message == "the engine was not run with these shapes right before the capture."


def test_layers_are_timed_in_a_context_of_their_own(load: Load, gpu: Any) -> None:
    with load() as engine:
        engine.run({"x": rows(5)})
        layers = engine.profile_layers({"x": rows(2)}, 3)
        assert [(t.name, t.ms, t.share) for t in layers] == [("first", 1.0, 0.25), ("second", 3.0, 0.75)]
        assert engine.profile == -1
        np.testing.assert_array_equal(engine.run({"x": rows(5)})["y"], 2 * rows(5) + 1)
        with pytest.raises(InputError, match="fit no profile"):
            engine.profile_layers({"x": rows(9)})
        np.testing.assert_array_equal(engine.run({"x": rows(1)})["y"], 2 * rows(1) + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupt": True}, "TensorRT 8.6.0 does not load model.engine: magicTag does not match. | Use the"),
        ({"no_context": True}, "there is no memory for a context of "),
        ({"dtype": "int4"}, "tensor 'x' is INT4, which has no NumPy type here."),
        (
            {"tensors": {"x": {"input": True, "shape": [2], "location": "HOST"}}},
            "tensor 'x' is read or written on the host",
        ),
    ],
)
def test_engines_that_are_not_run(load: Load, changes: Any, message: str) -> None:
    with pytest.raises(SparseflowError) as error:
        load(**changes)
    assert says(error).startswith(message)


def test_an_output_whose_shape_depends_on_values(load: Load) -> None:
    with load(by_values=True) as engine, pytest.raises(InputError, match="depends on the values"):
        engine.run({"x": rows(2)})


def test_a_run_that_fails_says_so_and_ends_the_capture(load: Load, gpu: Any) -> None:
    with load(fails=True) as engine:
        with pytest.raises(BuildError, match="the engine failed to run"):
            engine.run({"x": rows(2)})
        with pytest.raises(BuildError, match="the engine failed to run"):
            engine.cuda.capture(engine.stream, lambda: engine._context.enqueue(engine.stream))
        assert not gpu.recording
        assert not gpu.graphs


def test_the_first_error_is_told_where_cuda_does_not_go_on_after_it(
    load: Load, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_everything(*_: Any) -> tuple[int]:
        return (1,)

    engine = load(fails=True)
    with pytest.raises(BuildError, match="the engine failed to run"), engine:
        monkeypatch.setattr(type(gpu), "_StreamSynchronize", ends_everything)
        engine.run({"x": rows(1)})
    with pytest.raises(InputError, match="the engine is closed"):
        engine.run({"x": rows(1)})
    other = load()
    with pytest.raises(BuildError, match="cudaStreamSynchronize failed"), other:
        pass


def test_static_inputs_need_no_profile(load: Load) -> None:
    static = {"x": {"input": True, "shape": [2, 2]}, "y": {"input": False, "shape": [2, 2]}}
    with load(tensors=static) as engine:
        np.testing.assert_array_equal(engine.run({"x": rows(2)})["y"], 2 * rows(2) + 1)
        with pytest.raises(InputError, match=r"x \[3, 2\] fit no profile"):
            engine.run({"x": rows(3)})


def test_memory_is_told(load: Load, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1000, 400])
    monkeypatch.setattr(gpu.__class__, "_MemGetInfo", lambda self: (0, next(free), 2000))
    with load() as engine:
        assert (engine.loaded_bytes, engine.device_memory_bytes) == (600, 4096)


def test_what_does_not_fit_in_memory_says_so(load: Load, gpu: Any) -> None:
    with load() as engine:
        gpu.memory = 8
        with pytest.raises(BuildError, match="cudaMalloc failed: out of memory"):
            engine.run({"x": rows(4)})
        gpu.memory = 1 << 20
        np.testing.assert_array_equal(engine.run({"x": rows(4)})["y"], 2 * rows(4) + 1)


def test_another_gpu_of_the_thread_is_left_as_it_was(load: Load, gpu: Any) -> None:
    with load() as engine:
        gpu.device = 1
        assert engine.run_device({"x": new_tensor_on(engine, 2)})["y"].device == 0
        assert gpu.device == 1


def new_tensor_on(engine: Engine, count: int) -> DeviceTensor:
    with engine.cuda.on(engine.device):
        return new_tensor(engine.cuda, (count, 2), F32)


def test_a_device_tensor_is_exported_where_it_lies_or_not_at_all(load: Load) -> None:
    with load() as engine:
        tensor = new_tensor_on(engine, 2)
        assert tensor.__dlpack_device__() == (2, 0)
        tensor.__dlpack__(dl_device=(2, 0), copy=False, max_version=(1, 0))
        for wanted in ({"copy": True}, {"dl_device": (1, 0)}):
            with pytest.raises(BufferError, match="with no copy"):
                tensor.__dlpack__(**wanted)
