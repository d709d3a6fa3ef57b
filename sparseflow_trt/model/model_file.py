"""Reads an ONNX file, checking everything before anything is handed out. Weights are not loaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt._paths import AnyPath
from sparseflow_trt._utf8 import check_utf8
from sparseflow_trt.errors import ModelError, deepest, one_line
from sparseflow_trt.model.inline_data import read_skeleton
from sparseflow_trt.model.tensor_data import check_tensor, is_external, is_in_file, location_of, tensor_protos

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

ONNX_DOMAIN = ""  # of ONNX's own operators, in every graph in memory
_OTHER_NAME = "ai.onnx"  # of the same, in files: onnx-ir makes it "" of nodes, not of the opsets' names
_HINT_EXPORT = "Export the model again, or give another file."
# What else is named, by the endings: what that is, and what to do.
_OTHER_FILES = {
    (".py",): ("Python code", "Name its function, too, for `export`, `build` or `prune`: FILE.py:FUNCTION."),
    (".safetensors", ".pt", ".pth"): (
        "a checkpoint",
        "Export the module that it is of: `sparseflow-trt export`, of its folder or of FILE.py:FUNCTION.",
    ),
    (".engine",): ("an engine", "Name the artifact's folder, or the model.onnx in it."),
}
# Of a model that reads well and is no valid ONNX: what exporters write seldom is, and what converters do.
EXPORT_AGAIN = (
    "Export the model again. If another tool has changed the file since, give the file from before that: "
    "`plan` and `build` convert to FP16 themselves, with --precision."
)


@dataclass(frozen=True)
class OnnxModel:
    """A model file as read: its protobuf, and the onnx-ir graph whose tensors point into it.

    Large tensors inside the file are not in `proto`: they are ranges of the file, as external data whose
    location is the file's own name (see inline_data). Read with `inline`, `proto` is the whole file.
    """

    path: Path
    proto: onnx.ModelProto
    ir: ir.Model

    @property
    def maps_itself(self) -> bool:
        """Whether tensors of `proto` are ranges of the model file itself."""
        return any(is_in_file(self.path, tensor) for tensor in tensor_protos(self.proto))

    @property
    def opset(self) -> int:
        """The version of the ONNX operator set the model is written in."""
        return self.ir.opset_imports[ONNX_DOMAIN]


def read_model(path: AnyPath, inline: bool = False) -> OnnxModel:
    """Reads and checks an ONNX model file. External data is checked for its place and size, not read.

    Args:
        path: The file.
        inline: Parse the weights inside the file, too, instead of leaving them there.

    Raises:
        ModelError: The file is missing, empty, truncated, not ONNX or of an unknown opset; its name is not
            UTF-8; or its external data is missing, too short or outside the model's folder.
    """
    import onnx_ir as ir

    path = Path(path)
    check_utf8(path, ModelError)
    proto = _parse(path, inline)
    _check_header(path, proto)
    if any(isinstance(text, bytes) for text in _texts(proto)):  # how protobuf hands out what is no UTF-8
        raise ModelError(f"{path} is not an ONNX model: a name in it is not text.", _HINT_EXPORT)
    _check_types(path, proto)
    for tensor in tensor_protos(proto):
        check_tensor(path, tensor)
    _check_dense(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{path} is not a valid ONNX graph: {one_line(deepest(error))}.", _HINT_EXPORT
        ) from error
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, path.parent)  # of its subgraphs too
    _name_axes(model.graph)
    _check_values(path, model)
    version = model.opset_imports.pop(_OTHER_NAME, 1)
    model.opset_imports.setdefault(ONNX_DOMAIN, version)
    return OnnxModel(path, proto, model)


def _name_axes(graph: ir.Graph) -> None:
    """Names the dimensions of inputs that the file leaves without a name, `x.0`: M follows from them."""
    import onnx_ir as ir

    given = [value for value in graph.inputs if value.shape is not None]
    taken = {dim.value for v in given for dim in v.shape or () if not isinstance(dim, int)}
    for value in given:
        dims = list(value.shape or ())
        for i, dim in enumerate(dims):
            unnamed = dim < 0 if isinstance(dim, int) else not dim.value  # old exporters write -1
            if unnamed and (axis := f"{value.name}.{i}") not in taken:
                dims[i] = ir.SymbolicDim(axis)
        value.shape = ir.Shape(dims)


def data_files(model: OnnxModel) -> list[Path]:
    """The external data files of a model, each once, in the order they are first named."""
    found: dict[Path, Path] = {}
    for tensor in tensor_protos(model.proto):
        if is_external(tensor) and not is_in_file(model.path, tensor):
            path = model.path.parent / location_of(tensor)
            found.setdefault(path.resolve(), path)  # 'w.bin' and './w.bin' are one file
    return list(found.values())


def given_inputs(model: OnnxModel) -> list[ir.Value]:
    """The inputs that a caller has to give; an initializer may be listed as one, too."""
    return [v for v in model.ir.graph.inputs if v.name and v.name not in model.ir.graph.initializers]


def input_dims(model: OnnxModel) -> dict[str, tuple[int | str | None, ...]]:
    """The dimensions of each input a caller has to give: sizes and axes, `x.0` where the file names none.

    Raises:
        ModelError: Of an input the file does not even say how many dimensions it has.
    """
    import onnx_ir as ir

    dims: dict[str, tuple[int | str | None, ...]] = {}
    for value in given_inputs(model):
        if value.shape is None and isinstance(value.type, ir.TensorType):
            raise ModelError(
                f"{model.path}: input '{value.name}' has no shape, not even a number of dimensions.",
                "Export the model with a shape for it; its axes may be dynamic.",
            )
        dims[value.name or ""] = tuple(d if isinstance(d, int) else d.value for d in value.shape or ())
    return dims


def output_types(model: OnnxModel) -> dict[str, str]:
    """ONNX's name of each output's type, "" where the file does not say it."""
    return {value.name or "": value.dtype.name if value.dtype else "" for value in model.ir.graph.outputs}


def _parse(path: Path, inline: bool) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        # A link to a file elsewhere is parsed whole: its own ranges would lie outside the model's folder.
        skeleton = None if inline or path.is_symlink() else read_skeleton(path)
        data = skeleton or path.read_bytes()
    except FileNotFoundError:
        if ".py:" in path.name:
            raise ModelError(
                f"{path} is a function, and this command reads ONNX files.",
                f"Write one first: `sparseflow-trt export {path}`.",
            ) from None
        raise ModelError(f"{path} does not exist.", "Check the path.") from None
    except IsADirectoryError:
        from_hub = (path / "config.json").is_file()
        export = shlex.join(["sparseflow-trt", "export", str(path)])
        hint = f"Export it first: {export}" if from_hub else "Name the .onnx file in it."
        raise ModelError(f"{path} is a folder, not an ONNX file.", hint) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from error
    if not data:
        raise ModelError(f"{path} is empty.", _HINT_EXPORT)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        for endings, (what, hint) in _OTHER_FILES.items():
            if path.name.lower().endswith(endings):
                raise ModelError(f"{path} is {what}, not an ONNX model.", hint) from error
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated ({len(data)} bytes).", _HINT_EXPORT
        ) from error
    return proto


def _check_header(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    if not proto.HasField("graph") or proto.ir_version < 1 or not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX model: it has no graph.", _HINT_EXPORT)
    versions = [entry.version for entry in proto.opset_import if entry.domain in (ONNX_DOMAIN, _OTHER_NAME)]
    newest = onnx.defs.onnx_opset_version()
    if not versions and proto.ir_version >= 3:
        raise ModelError(f"{path} names no ONNX opset.", _HINT_EXPORT)
    if versions and not 1 <= max(versions) <= newest:
        raise ModelError(
            f"{path} is written in opset {max(versions)}; onnx {onnx.__version__} supports 1 to {newest}.",
            "Export with an older opset, or install a newer onnx.",
        )


def _check_types(path: Path, proto: onnx.ModelProto) -> None:
    """Checks that no value is a map, which onnx-ir does not read: classifiers of scikit-learn give such."""
    for graph in _graphs(proto):
        for value in (*graph.output, *graph.input, *graph.value_info):
            kind = value.type
            while kind.HasField("sequence_type") or kind.HasField("optional_type"):
                nested = kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type
                kind = nested.elem_type
            if kind.HasField("map_type"):
                raise ModelError(
                    f"{path}: '{value.name}' is a map, not a tensor, as ZipMap makes them.",
                    "Export the model without it; skl2onnx does with options={'zipmap': False}.",
                )


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while waiting or nodes:
        if waiting:
            graph = waiting.pop()
            yield graph
            nodes += graph.node
        while nodes:
            for attribute in nodes.pop().attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _texts(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    """Every name in a model that something is looked up by."""
    nodes = [node for function in proto.functions for node in function.node]
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    for graph in _graphs(proto):
        nodes += graph.node
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for node in nodes:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor in tensor_protos(proto):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _check_dense(path: Path, proto: onnx.ModelProto) -> None:
    """Refuses ONNX's sparse tensors, which onnx-ir does not read."""
    for graph in _graphs(proto):
        names = [tensor.values.name for tensor in graph.sparse_initializer]
        names += [
            node.output[0]
            for node in graph.node
            if any(attribute.HasField("sparse_tensor") for attribute in node.attribute)
        ]
        if names:
            raise ModelError(
                f"{path} stores '{names[0]}' as an ONNX sparse tensor, which is not supported.",
                "Store it as a dense tensor with its zeros: 2:4 is found in those.",
            )


def _check_values(path: Path, model: ir.Model) -> None:
    """Checks that whatever is read is made."""
    for graph in model.graphs():
        for node in graph:
            for value in node.inputs:
                if value is not None and not _is_made(value):
                    name = node.name or node.op_type
                    raise ModelError(
                        f"{path}: node '{name}' reads '{value.name}', which nothing produces.", _HINT_EXPORT
                    )
        for value in graph.outputs:
            if not _is_made(value):
                raise ModelError(f"{path}: nothing produces the output '{value.name}'.", _HINT_EXPORT)


def _is_made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()
