"""The tensors of a model file: which there are, where each one's values lie, and whether they are whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.errors import ModelError

if TYPE_CHECKING:
    import onnx

_MOST_DIMENSIONS = 32  # NumPy 1 makes no array of more
_HINT_EXPORT = "Export the model again, or give another file."


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and tensor attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _attribute_tensors(function.attribute_proto)
        for node in function.node:
            yield from _attribute_tensors(node.attribute)
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _sparse_tensors(graph.sparse_initializer)
    for node in graph.node:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _sparse_tensors([attribute.sparse_tensor])
        yield from _sparse_tensors(attribute.sparse_tensors)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _sparse_tensors(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's values stand in another file."""
    import onnx

    return tensor.data_location == onnx.TensorProto.EXTERNAL


def is_in_file(path: Path, tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's values are a range of the model file itself."""
    return is_external(tensor) and location_of(tensor) == path.name


def external_fields(tensor: onnx.TensorProto) -> dict[str, str]:
    """The external_data entries of a tensor (location, offset, length) as they stand in the file."""
    return {entry.key: entry.value for entry in tensor.external_data}


def location_of(tensor: onnx.TensorProto) -> str:
    """The data file that a tensor names, below the model's folder; "" where it names none."""
    return external_fields(tensor).get("location", "")


def check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    """Checks that a tensor's values are all there, inside the file or beside it; they are not read.

    Args:
        path: The model file.
        tensor: One of its tensors.

    Raises:
        ModelError: Its shape or type is impossible, or its data is missing, too short or outside the folder.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{path}: tensor '{tensor.name}' has a negative dimension.", _HINT_EXPORT)
    if len(tensor.dims) > _MOST_DIMENSIONS:
        raise ModelError(f"{path}: tensor '{tensor.name}' has {len(tensor.dims)} dimensions.", _HINT_EXPORT)
    if math.prod(dim for dim in tensor.dims if dim) >= 1 << 62 and 0 in tensor.dims:  # of no elements, yet
        raise ModelError(f"{path}: tensor '{tensor.name}' has an impossible shape.", _HINT_EXPORT)
    if is_external(tensor):
        _check_external(path, tensor)
        return
    if tensor.HasField("raw_data"):
        what, expected, got = "bytes", _nbytes(path, tensor), len(tensor.raw_data)
    else:
        what = "values"
        expected, got = _typed_values(path, tensor)
    if expected != got:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' of shape {list(tensor.dims)} needs {expected} {what} and has "
            f"{got}.",
            _HINT_EXPORT,
        )


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    if is_in_file(path, tensor):
        _check_length(path, tensor, "and has")
        return
    location = location_of(tensor)
    hint = f"Put the data file that was exported with the model beside it, in '{path.parent.resolve()}'."
    size = _size_inside(path.parent, location)
    if size is None:
        raise ModelError(
            f"{path}: the data of tensor '{tensor.name}' lies in '{location}', outside the model's folder.",
            "Only data beside the model or below it is read; save the model again with its data there.",
        )
    if size < 0:
        raise ModelError(f"{path}: the data file '{location}' of tensor '{tensor.name}' is missing.", hint)
    fields = external_fields(tensor)
    if not all(re.fullmatch(r"[0-9]+", fields.get(key, "0")) for key in ("offset", "length")):
        raise ModelError(
            f"{path}: tensor '{tensor.name}' has an external offset '{fields.get('offset', 0)}' and length "
            f"'{fields.get('length', '')}', which are not both numbers from 0 on.",
            _HINT_EXPORT,
        )
    expected = _nbytes(path, tensor)
    offset = int(fields.get("offset", 0))
    if offset + expected > size:
        raise ModelError(
            f"{path}: the data file '{location}' is too short: tensor '{tensor.name}' ends at byte "
            f"{offset + expected}, the file at {size}.",
            hint,
        )
    _check_length(path, tensor, "of external data and names")


def _check_length(path: Path, tensor: onnx.TensorProto, names: str) -> None:
    expected = _nbytes(path, tensor)
    length = int(external_fields(tensor).get("length", expected))
    if length != expected:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' of shape {list(tensor.dims)} needs {expected} bytes {names} "
            f"{length}.",
            _HINT_EXPORT,
        )


def _size_inside(folder: Path, location: str) -> int | None:
    """The size of a data file; -1 where there is none, None where it lies outside the folder."""
    if not location or Path(location).is_absolute():
        return None
    try:
        file = (folder / location).resolve()
        if not file.is_relative_to(folder.resolve()):
            return None
        return file.stat().st_size if file.is_file() else -1
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, links in a circle
        return -1


def _typed_values(path: Path, tensor: onnx.TensorProto) -> tuple[int, int]:
    """How many values a tensor without raw data needs in the field of its type, and how many it has there."""
    import onnx

    elements = math.prod(tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        return elements, len(tensor.string_data)
    packed = _nbytes(path, tensor)
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if name in ("FLOAT", "COMPLEX64"):
        return packed // 4, len(tensor.float_data)
    if name in ("DOUBLE", "COMPLEX128"):
        return packed // 8, len(tensor.double_data)
    if name in ("INT64", "UINT32", "UINT64"):
        return elements, len(tensor.int64_data if name == "INT64" else tensor.uint64_data)
    # types of two and four bits stand packed in bytes, all others one in a value
    return (packed if name.endswith(("INT2", "INT4", "FLOAT4E2M1")) else elements), len(tensor.int32_data)


def _nbytes(path: Path, tensor: onnx.TensorProto) -> int:
    import onnx_ir as ir

    try:
        dtype = ir.DataType(tensor.data_type)
        bits: int = math.prod(tensor.dims) * dtype.bitwidth
        return -(-bits // 8)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' has data type {tensor.data_type}, which has no fixed size.",
            _HINT_EXPORT,
        ) from error
