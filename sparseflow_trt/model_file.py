"""Reads an ONNX file, checking everything before anything is handed out. Weights are not loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_ONNX_DOMAINS = ("", "ai.onnx")
_HINT_EXPORT = "Export the model again, or give another file."


@dataclass(frozen=True)
class OnnxModel:
    """A model file as read: its protobuf, and the onnx-ir graph whose tensors point into it.

    `proto` keeps every byte of the file that is not external data, so that writing it back changes
    nothing but what was changed on purpose; `ir` is what the graph is read through.
    """

    path: Path
    proto: onnx.ModelProto
    ir: ir.Model

    @property
    def opset(self) -> int:
        """The version of the ONNX operator set the model is written in."""
        return self.ir.opset_imports[""]


def read_model(path: Path) -> OnnxModel:
    """Reads and checks an ONNX model file. External data is checked for its place and size, not read.

    Raises:
        ModelError: The file is missing, empty, truncated, not ONNX or of an unknown opset; or its
            external data is missing, too short or outside the model's folder.
    """
    import onnx_ir as ir

    proto = _parse(path)
    _check_header(path, proto)
    for tensor in tensor_protos(proto):
        _check_tensor(path, tensor)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is not a valid ONNX graph: {_deepest(error)}", _HINT_EXPORT) from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, path.parent)
    if "" not in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.get("ai.onnx", 1)
    return OnnxModel(path, proto, model)


def data_files(model: OnnxModel) -> list[Path]:
    """The external data files of a model, each once, in the order they are first named."""
    found = dict.fromkeys(
        _location(tensor) for tensor in tensor_protos(model.proto) if _is_external(tensor)
    )
    return [model.path.parent / name for name in found]


def check_operators(model: OnnxModel) -> None:
    """Checks that each node of ONNX's own domain is an operator of the model's opset.

    Raises:
        ModelError: One is not; it is named with its node.
    """
    import onnx

    functions = {function.name for function in model.ir.functions.values()}
    for node in model.ir.graph.all_nodes():
        if node.domain not in _ONNX_DOMAINS or node.op_type in functions:
            continue
        try:
            onnx.defs.get_schema(node.op_type, model.opset, "")
        except onnx.defs.SchemaError as error:
            known = onnx.defs.has(node.op_type)
            since = f" (it came with opset {onnx.defs.get_schema(node.op_type).since_version})" if known else ""
            raise ModelError(
                f"{model.path}: node '{node.name}' is a '{node.op_type}', which opset {model.opset} "
                f"does not have{since}.",
                "Export with an opset that has it, or replace the operator.",
            ) from error


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and tensor attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist.", "Check the path.") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder, not an ONNX file.", "Name the .onnx file in it.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from error
    if not data:
        raise ModelError(f"{path} is empty.", _HINT_EXPORT)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated ({len(data)} bytes).", _HINT_EXPORT
        ) from error
    return proto


def _check_header(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    if not proto.HasField("graph") or proto.ir_version < 1 or not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX model: it has no graph.", _HINT_EXPORT)
    versions = [entry.version for entry in proto.opset_import if entry.domain in _ONNX_DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not versions and proto.ir_version >= 3:
        raise ModelError(f"{path} names no ONNX opset.", _HINT_EXPORT)
    if versions and not 1 <= max(versions) <= newest:
        raise ModelError(
            f"{path} is written in opset {max(versions)}; onnx {onnx.__version__} knows 1 to {newest}.",
            "Export with an older opset, or install a newer onnx.",
        )


def _is_external(tensor: onnx.TensorProto) -> bool:
    import onnx

    return tensor.data_location == onnx.TensorProto.EXTERNAL


def external_fields(tensor: onnx.TensorProto) -> dict[str, str]:
    """The external_data entries of a tensor (location, offset, length) as they stand in the file."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _location(tensor: onnx.TensorProto) -> str:
    return external_fields(tensor).get("location", "")


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{path}: tensor '{tensor.name}' has a negative dimension.", _HINT_EXPORT)
    if _is_external(tensor):
        _check_external(path, tensor)
    elif tensor.HasField("raw_data"):
        expected, got = _nbytes(path, tensor), len(tensor.raw_data)
        if expected != got:
            raise ModelError(
                f"{path}: tensor '{tensor.name}' of shape {list(tensor.dims)} needs {expected} bytes "
                f"and has {got}.",
                _HINT_EXPORT,
            )


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    folder = path.parent.resolve()
    location = _location(tensor)
    file = folder / location
    hint = f"Put the data file that was exported with the model beside it, in {path.parent}."
    if not location or not file.resolve().is_relative_to(folder):
        raise ModelError(
            f"{path}: the data of tensor '{tensor.name}' lies in '{location}', outside the model's folder.",
            "Only data beside the model or below it is read; save the model again with its data there.",
        )
    if not file.is_file():
        raise ModelError(f"{path}: the data file '{location}' of tensor '{tensor.name}' is missing.", hint)
    fields = external_fields(tensor)
    try:
        offset, length = int(fields.get("offset", 0)), int(fields.get("length", -1))
    except ValueError as error:
        raise ModelError(f"{path}: tensor '{tensor.name}' has external data fields that are not numbers.",
                         _HINT_EXPORT) from error  # fmt: skip
    expected = _nbytes(path, tensor)
    size = file.stat().st_size
    if offset < 0 or offset + expected > size:
        raise ModelError(
            f"{path}: the data file '{location}' is too short: tensor '{tensor.name}' ends at byte "
            f"{offset + expected}, the file at {size}.",
            hint,
        )
    if length not in (-1, expected):
        raise ModelError(
            f"{path}: tensor '{tensor.name}' of shape {list(tensor.dims)} needs {expected} bytes of "
            f"external data and names {length}.",
            _HINT_EXPORT,
        )


def _nbytes(path: Path, tensor: onnx.TensorProto) -> int:
    import onnx_ir as ir

    try:
        dtype = ir.DataType(tensor.data_type)
        return math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' has data type {tensor.data_type}, which has no fixed size.",
            _HINT_EXPORT,
        ) from error


def _deepest(error: BaseException) -> Any:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
