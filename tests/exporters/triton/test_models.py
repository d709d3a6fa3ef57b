"""The generated model.py, on the CPU with stand-ins for TensorRT, CUDA and Triton's module."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.exporters.triton.models import write_model_py
from tests.graphs import quantized_concat

torch = pytest.importorskip("torch")
LOAD, RUN = "while it is loaded", "with a request"


class TensorRT(ModuleType):
    """Its API as far as model.py goes: y = 2x, z = 3x in FP32, two profiles; what `refuses` names says no."""

    def __init__(self, refuses: str = "", host: str = "") -> None:
        super().__init__("tensorrt")
        self.refuses, self.host = refuses, host
        self.log: Any = None
        self.device: object = None  # the process's own GPU when the engine is loaded
        self.output_shape: tuple[int, ...] | None = None

        class ILogger:
            ERROR, WARNING = 1, 2

            def __init__(self) -> None:
                """As the bindings have it."""

        self.ILogger = ILogger

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        self.log = log
        self.device = sys.modules["torch"].cuda.own
        return self

    def answer(self, call: str, value: Any = True) -> Any:
        if call != self.refuses:
            return value
        self.log.log(1, f"{call} is out of luck")
        return None if value is self else False

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        return self.answer("deserialize_cuda_engine", self)

    # the engine

    num_optimization_profiles = 2
    num_io_tensors = 3

    def get_tensor_name(self, index: int) -> str:
        return "xyz"[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name == "x" else "OUTPUT")

    def get_tensor_location(self, name: str) -> Any:
        return SimpleNamespace(name="HOST" if name == self.host else "DEVICE")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return (((0, 4), (1, 4), (2, 4)), ((3, 4), (4, 4), (8, 4)))[profile]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4)

    def create_execution_context(self) -> Any:
        return None if not self.answer("create_execution_context") else Context(self)


class Context:
    def __init__(self, tensorrt: TensorRT) -> None:
        self.tensorrt, self.answer = tensorrt, tensorrt.answer
        self.shape: tuple[int, ...] = (-1, 4)
        self.addresses: dict[str, int] = {}

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensorrt.output_shape or self.shape

    def set_optimization_profile_async(self, profile: int, stream: int) -> Any:
        return self.answer("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> Any:
        self.shape = shape
        return self.answer("set_input_shape")

    def set_tensor_address(self, name: str, address: int) -> Any:
        assert address and not address % 64  # what the CPU's allocator gives
        self.addresses[name] = address
        return self.answer("set_tensor_address")

    def execute_async_v3(self, stream: int) -> Any:
        if not (done := self.answer("execute_async_v3")):
            return done
        size = int(np.prod(self.shape))
        x, y, z = ((ctypes.c_float * size).from_address(self.addresses[name]) for name in "xyz")
        y[:], z[:] = [2 * value for value in x], [3 * value for value in x]
        return True


@contextmanager
def _stream(_: object) -> Iterator[None]:
    yield


def cpu_torch() -> ModuleType:
    """PyTorch with the CPU in the place of CUDA."""
    made, cuda = ModuleType("torch"), SimpleNamespace(own=None)
    made.__dict__.update(
        {name: getattr(torch, name) for name in ("empty", "cat", "from_dlpack", "float32")},
        device=lambda *_: torch.device("cpu"),
        cuda=cuda,
    )
    cuda.__dict__.update(
        is_available=lambda: True,
        set_device=lambda device: setattr(cuda, "own", device),
        Stream=lambda _: SimpleNamespace(cuda_stream=7, synchronize=lambda: None),
        stream=_stream,
    )
    return made


class Tensor:
    def __init__(self, name: str, tensor: Any) -> None:
        self.name, self.tensor = name, tensor

    from_dlpack = classmethod(lambda cls, name, tensor: cls(name, tensor))

    def as_numpy(self) -> Any:
        return self.tensor.numpy() if hasattr(self.tensor, "numpy") else self.tensor

    def __dlpack__(self, **_: Any) -> Any:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def triton_module() -> ModuleType:
    class TritonModelException(Exception):  # noqa: N818 - Triton's name
        pass

    made = ModuleType("triton_python_backend_utils")
    made.__dict__.update(
        TritonModelException=TritonModelException,
        Logger=SimpleNamespace(log_error=lambda _: None, log_warn=lambda _: None),
        Tensor=Tensor,
        TritonError=str,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error),
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
    )
    return made


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Loads the generated file with a TensorRT, or for an ONNX file, and initializes its model."""

    def load(tensorrt: TensorRT | None, outputs: tuple[str, ...] = ("y",), data: bytes = b"an engine") -> Any:
        engine = tmp_path / "m" / "1" / "model.engine"
        engine.parent.mkdir(parents=True, exist_ok=True)
        engine.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        path = tmp_path / "model.py"
        text = write_model_py("tensorrt" if tensorrt else "onnxruntime", engine.name, {engine.name: digest})
        path.write_text(text, encoding="utf-8")
        for name, module in (
            ("tensorrt", tensorrt),
            ("torch", cpu_torch()),
            ("triton_python_backend_utils", triton_module()),
        ):
            monkeypatch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("generated_model", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = {
            "max_batch_size": 8,
            "input": [{"name": "x"}],
            "output": [{"name": name} for name in outputs],
            "parameters": {},
        }
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_repository": str(engine.parents[1]),
                "model_version": "1",
                "model_config": json.dumps(config),
                "model_instance_device_id": "0",
            }
        )
        return model

    return load


def rows(count: int, begin: float = 0) -> Any:
    return torch.arange(begin, begin + count * 4, dtype=torch.float32).reshape(count, 4)


def test_requests_share_a_batch_and_get_their_own_rows(serve: Serve) -> None:
    model = serve(TensorRT())
    first, second = rows(1), rows(2, 50)
    responses = model.execute([{"x": first}, {"x": second}])
    for sent, got in zip((first, second), responses, strict=True):
        assert got.error is None
        assert torch.equal(got.tensors[0].tensor, 2 * sent)
    (empty,) = model.execute([{"x": rows(0)}])  # as an empty KV cache: it has no address of its own
    assert empty.error is None and tuple(empty.tensors[0].tensor.shape) == (0, 4)


def test_outputs_may_be_left_out_and_in_another_order(serve: Serve) -> None:
    for names in (("z",), ("z", "y")):
        (response,) = serve(TensorRT(), names).execute([{"x": rows(2)}])
        assert [tensor.name for tensor in response.tensors] == list(names)
        assert torch.equal(response.tensors[0].tensor, 3 * rows(2))


def test_an_engine_is_loaded_onto_the_gpu_of_its_instance(serve: Serve) -> None:
    tensorrt = TensorRT()
    model = serve(tensorrt)
    assert tensorrt.device is model.device


def test_a_request_that_no_profile_takes_leaves_the_others_right(serve: Serve) -> None:
    model = serve(TensorRT())
    right, wrong = model.execute([{"x": rows(2)}, {"x": rows(9)}])
    assert torch.equal(right.tensors[0].tensor, 2 * rows(2))
    assert wrong.error == "no optimization profile takes x [9, 4]"


@pytest.mark.parametrize(
    ("call", "when", "said"),
    [
        ("deserialize_cuda_engine", LOAD, "TensorRT refused model.engine"),
        ("create_execution_context", LOAD, "TensorRT made no context for profile 0"),
        ("set_optimization_profile_async", LOAD, "TensorRT did not set profile 0"),
        ("set_input_shape", RUN, "TensorRT does not take the shape (2, 4) of 'x'"),
        ("set_tensor_address", RUN, "TensorRT does not take the memory of 'x'"),
        ("execute_async_v3", RUN, "TensorRT does not run the engine"),
    ],
)
def test_a_call_that_tensorrt_refuses_is_an_error_with_its_words(
    call: str, when: str, said: str, serve: Serve
) -> None:
    tensorrt = TensorRT()
    said = f"{said}: {call} is out of luck"
    if when == LOAD:
        tensorrt.refuses = call
        with pytest.raises(Exception, match=r"^" + said.replace("(", r"\(").replace(")", r"\)")):
            serve(tensorrt)
        return
    model = serve(tensorrt)
    tensorrt.refuses = call
    (response,) = model.execute([{"x": rows(2)}])
    assert (response.error, list(response.tensors)) == (said, [])
    tensorrt.refuses = ""
    (response,) = model.execute([{"x": rows(2)}])  # the next one is answered
    assert response.error is None and torch.equal(response.tensors[0].tensor, 2 * rows(2))


def test_an_output_whose_shape_follows_from_values_is_an_error(serve: Serve) -> None:
    tensorrt = TensorRT()
    tensorrt.output_shape = (-1, 4)
    (response,) = serve(tensorrt).execute([{"x": rows(2)}])
    assert response.error.startswith("TensorRT gives no shape of 'y' before it runs, but (-1, 4)")


def test_what_does_not_fit_the_engine_is_refused_while_it_is_loaded(serve: Serve) -> None:
    with pytest.raises(Exception, match=r"has inputs \['x'\] and outputs \['w'\], and the engine \['x'\]"):
        serve(TensorRT(), ("w",))
    with pytest.raises(Exception, match="'x' is read on the host"):
        serve(TensorRT(host="x"))


def test_an_output_that_does_not_follow_the_batch_is_not_cut(serve: Serve) -> None:
    """Each request gets what it has for itself: pieces of the batch's would be wrong, without a word."""
    pytest.importorskip("onnxruntime")
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
    ]
    reduce = helper.make_node("ReduceMax", ["x"], ["y"], axes=[0])
    graph = helper.make_graph([reduce], "g", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = serve(None, data=made.SerializeToString())
    sent = (rows(2), rows(1, 50))
    for given, response in zip(sent, model.execute([{"x": x} for x in sent]), strict=True):
        assert response.error is None
        assert response.tensors[0].tensor.tolist() == given.amax(0, keepdim=True).tolist()


def test_a_quantized_concat_with_fp16_scales_is_served(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = serve(None, data=quantized_concat(tmp_path / "concat.onnx").read_bytes())
    x = torch.linspace(-1, 1, 64, dtype=torch.float16).reshape(1, 64)
    (response,) = model.execute([{"x": x}])
    np.testing.assert_allclose(response.tensors[0].tensor, np.hstack((x, -x)), atol=0.02)
