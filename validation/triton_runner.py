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
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64", "BF16": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class ServedAt:
    """A model on a server.

    Attributes:
        address: HOST:PORT.
        version: "" for the newest.
        columns: Inputs and outputs that are [batch] in the engine: clients see them as [batch, 1].
        scalars: Those that are scalars: clients see them as [1].
        item_by_item: Whether a batch is sent as requests of one item each.
    """

    protocol: Protocol
    address: str
    model: str
    version: str = ""
    columns: frozenset[str] = frozenset()
    scalars: frozenset[str] = frozenset()
    item_by_item: bool = False


@dataclass(frozen=True)
class ServedModel:
    """What a server says of a model.

    Attributes:
        types: Triton's type of each input.
        shapes: Of each input, as the engine has it; -1 for a dimension that is not fixed.
        outputs: The outputs' names.
        columns: Those that are [batch] in the engine, and [batch, 1] here: Triton wants a dimension behind
            the batch.
        max_batch_size: The largest batch that a request may have; 0 where the model has no batch.
        scalars: Those that are scalars in the engine, and [1] here.
    """

    types: dict[str, str]
    shapes: dict[str, list[int]]
    outputs: tuple[str, ...]
    columns: frozenset[str]
    max_batch_size: int
    scalars: frozenset[str] = frozenset()


def triton_client(at: ServedAt) -> Any:
    """A client of tritonclient, to be closed by who asked for it.

    Raises:
        NotInstalledError: tritonclient is missing.
    """
    module = require(f"tritonclient.{at.protocol}", "asking a Triton server")
    if at.protocol == "grpc":
        return module.InferenceServerClient(at.address)
    return module.InferenceServerClient(at.address, network_timeout=_TIMEOUT, connection_timeout=_TIMEOUT)


def triton_inputs(protocol: Protocol, served: ServedModel, feeds: dict[str, Array]) -> list[Any]:
    """Arrays as tritonclient sends them.

    Args:
        protocol: Which of tritonclient's modules.
        served: The model that they are for.
        feeds: An array for each; integers are converted where they fit.

    Raises:
        InputError: An integer does not fit.
        NotInstalledError: tritonclient is missing.
    """
    module = require(f"tritonclient.{protocol}", "asking a Triton server")
    inputs = []
    for name, array in feeds.items():
        if name in served.columns:
            array = array.reshape(-1, 1)
        if name in served.scalars:
            array = array.reshape(1)
        given = module.InferInput(name, list(array.shape), served.types[name])
        given.set_data_from_numpy(_as_served(name, array, served.types[name]))
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
                f"input '{name}' holds integers that do not fit {kind}, the served model's type.",
                "Give smaller ones.",
            )
        array = array.astype(dtype)
    return np.ascontiguousarray(array)


def describe_model(client: Any, at: ServedAt) -> ServedModel:
    """What a server says of a model, by its metadata and its configuration."""
    how = {"as_json": True} if at.protocol == "grpc" else {}
    said = client.get_model_metadata(at.model, at.version, **how)
    config = client.get_model_config(at.model, at.version, **how)
    config = config["config"] if at.protocol == "grpc" else config
    ends = (*said["inputs"], *said["outputs"])
    shapes = {tensor["name"]: [int(dim) for dim in tensor["shape"]] for tensor in ends}
    columns = frozenset(name for name in at.columns if len(shapes.get(name, ())) == 2)
    ranks = {**dict.fromkeys(columns, 1), **dict.fromkeys(at.scalars, 0)}
    return ServedModel(
        {tensor["name"]: tensor["datatype"] for tensor in said["inputs"]},
        {t["name"]: shapes[t["name"]][: ranks.get(t["name"])] for t in said["inputs"]},
        tuple(tensor["name"] for tensor in said["outputs"]),
        columns,
        int(config.get("max_batch_size", 0)),
        at.scalars,
    )


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
            self.served = asked(describe_model, self.client, at)

        def deactivate_impl(self) -> None:
            self.client.close()

        def get_input_metadata_impl(self) -> Any:
            described = TensorMetadata()
            for name, shape in self.served.shapes.items():
                dims = [dim if dim >= 0 else None for dim in shape]
                described.add(name, np.dtype(_TYPES[self.served.types[name]]), dims)
            return described

        def infer_impl(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
            started = time.perf_counter()
            most = self.served.max_batch_size
            most = min(most, 1) if at.item_by_item else most
            size = len(next(iter(feed_dict.values()))) if most else 0
            if size <= most:
                outputs = self.ask(feed_dict)
            else:  # what a client does whose batch the server does not take
                parts = [
                    self.ask({name: array[begin : begin + most] for name, array in feed_dict.items()})
                    for begin in range(0, size, most)
                ]
                outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self.inference_time = time.perf_counter() - started
            return outputs

        def ask(self, feeds: dict[str, Array]) -> dict[str, Array]:
            inputs = triton_inputs(at.protocol, self.served, feeds)
            answer = asked(self.client.infer, at.model, inputs, at.version)
            outputs = {name: _array(answer, name) for name in self.served.outputs}
            ranks = {**dict.fromkeys(self.served.columns, (-1,)), **dict.fromkeys(self.served.scalars, ())}
            return {n: a.reshape(ranks[n]) if n in ranks else a for n, a in outputs.items()}

    return TritonRunner(name)


def _array(answer: Any, name: str) -> Array:
    try:
        array = answer.as_numpy(name)
    except ValueError as error:  # "cannot reshape array of size 0"
        raise InputError(
            f"the server's output '{name}' does not have the bytes of its shape ({one_line(error)})",
            "A Python backend from before Triton 25 with NumPy 2 does that: give it numpy<2.",
        ) from error
    if array is None:
        raise InputError(
            f"the server did not give output '{name}'", "Compare its configuration with the model."
        )
    return np.asarray(array, np.float32) if array.dtype.kind == "V" else np.asarray(array)


def asked(call: Any, *arguments: Any) -> Any:
    """What a call of tritonclient's gives.

    Raises:
        InputError: The server refuses, or is not there; in its words.
    """
    from tritonclient.utils import InferenceServerException

    try:
        return call(*arguments)
    except (InferenceServerException, OSError) as error:
        raise InputError(f"the server refused: {one_line(error)}", "Its log says more.") from error
