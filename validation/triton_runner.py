"""A Polygraphy runner that asks a running Triton server, over HTTP or gRPC."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparseflow_trt._deps import require
from sparseflow_trt.errors import InputError, one_line

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

    from sparseflow_trt.validation.feeds import Array

Protocol = Literal["http", "grpc"]
_TIMEOUT = 300.0  # seconds: the first request of a shape may compile kernels
_TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "BF16": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class ServedAt:
    """A model on a server.

    Attributes:
        address: HOST:PORT.
        version: "" for the newest.
    """

    protocol: Protocol
    address: str
    model: str
    version: str = ""


def triton_client(at: ServedAt) -> Any:
    """A client of tritonclient, to be closed by who asked for it.

    Raises:
        NotInstalledError: tritonclient is missing.
    """
    module = require(f"tritonclient.{at.protocol}", "asking a Triton server")
    if at.protocol == "grpc":
        return module.InferenceServerClient(at.address)
    return module.InferenceServerClient(at.address, network_timeout=_TIMEOUT, connection_timeout=_TIMEOUT)


def triton_inputs(protocol: Protocol, types: dict[str, str], feeds: dict[str, Array]) -> list[Any]:
    """Arrays as tritonclient sends them.

    Args:
        protocol: Which of tritonclient's modules.
        types: Triton's type of each input.
        feeds: An array for each; integers are converted where they fit.

    Raises:
        InputError: An integer does not fit.
        NotInstalledError: tritonclient is missing.
    """
    module = require(f"tritonclient.{protocol}", "asking a Triton server")
    inputs = []
    for name, array in feeds.items():
        given = module.InferInput(name, list(array.shape), types[name])
        given.set_data_from_numpy(_as_served(name, array, types[name]))
        inputs.append(given)
    return inputs


def _as_served(name: str, array: Array, kind: str) -> Array:
    """An array as an input of a Triton type takes it; BF16 is given as FP32, and rounded.

    An engine of TensorRT 8.6 has INT32 where its model has INT64.
    """
    dtype = np.dtype(_TYPES[kind])
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.dtype != dtype:
        limits = np.iinfo(dtype)
        if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
            raise InputError(
                f"input '{name}' holds integers that {kind}, the served model's type, has not.",
                "Give smaller ones.",
            )
        array = array.astype(dtype)
    return np.ascontiguousarray(array)


def model_metadata(client: Any, at: ServedAt) -> dict[str, Any]:
    """What a server says of a model: its inputs and outputs with their types and shapes."""
    if at.protocol == "grpc":
        return dict(client.get_model_metadata(at.model, at.version, as_json=True))
    return dict(client.get_model_metadata(at.model, at.version))


def max_batch_size(client: Any, at: ServedAt) -> int:
    """The largest batch that a request may have; 0 where the model has no batch."""
    if at.protocol == "grpc":
        return int(client.get_model_config(at.model, at.version).config.max_batch_size)
    return int(client.get_model_config(at.model, at.version).get("max_batch_size", 0))


def triton_runtime(at: ServedAt) -> str:
    """What answers, in words."""
    with contextlib.closing(triton_client(at)) as client:
        said = client.get_server_metadata()
        version = said.version if at.protocol == "grpc" else said["version"]
    return f"Triton {version} over {at.protocol}"


def triton_runner(at: ServedAt, name: str) -> BaseRunner:
    """A runner that sends its inputs to a server.

    Args:
        at: The model.
        name: The runner's.

    Raises:
        NotInstalledError: tritonclient or Polygraphy is missing.
    """
    require("polygraphy", "comparing outputs")
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class TritonRunner(BaseRunner):  # type: ignore[misc]
        """Asks the server, which may refuse: an InputError with its words."""

        def activate_impl(self) -> None:
            self.client = triton_client(at)
            self.said = _asked(model_metadata, self.client, at)
            self.types = {tensor["name"]: tensor["datatype"] for tensor in self.said["inputs"]}
            self.most = max_batch_size(self.client, at)

        def deactivate_impl(self) -> None:
            self.client.close()

        def get_input_metadata_impl(self) -> Any:
            described = TensorMetadata()
            for tensor in self.said["inputs"]:
                dims = [int(dim) if int(dim) >= 0 else None for dim in tensor["shape"]]
                described.add(tensor["name"], np.dtype(_TYPES[tensor["datatype"]]), dims)
            return described

        def infer_impl(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
            started = time.perf_counter()
            size = len(next(iter(feed_dict.values()))) if self.most else 0
            if size <= self.most:
                outputs = self.ask(feed_dict)
            else:  # what a client does whose batch the server does not take
                parts = [
                    self.ask({name: array[begin : begin + self.most] for name, array in feed_dict.items()})
                    for begin in range(0, size, self.most)
                ]
                outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self.inference_time = time.perf_counter() - started
            return outputs

        def ask(self, feeds: dict[str, Array]) -> dict[str, Array]:
            inputs = triton_inputs(at.protocol, self.types, feeds)
            answer = _asked(self.client.infer, at.model, inputs, at.version)
            return {tensor["name"]: _array(answer, tensor["name"]) for tensor in self.said["outputs"]}

    return TritonRunner(name)


def _array(answer: Any, name: str) -> Array:
    try:
        array = answer.as_numpy(name)
    except ValueError as error:  # "cannot reshape array of size 0"
        raise InputError(
            f"the server's output '{name}' has not the bytes of its shape ({one_line(error)})",
            "A Python backend from before Triton 25 with NumPy 2 does that: give it numpy<2.",
        ) from error
    if array is None:
        raise InputError(
            f"the server did not give output '{name}'", "Compare its configuration with the model."
        )
    return np.asarray(array, np.float32) if array.dtype.kind == "V" else np.asarray(array)


def _asked(call: Any, *arguments: Any) -> Any:
    from tritonclient.utils import InferenceServerException

    try:
        return call(*arguments)
    except (InferenceServerException, OSError) as error:
        raise InputError(f"the server refused: {one_line(error)}", "Its log says more.") from error
