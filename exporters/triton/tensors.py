"""What a model takes and gives, as Triton names it: types and dimensions of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import DeployError
from sparseflow_trt.plans.shapes import Dims

if TYPE_CHECKING:
    import onnx

    from sparseflow_trt.model.model_file import OnnxModel

# ONNX's names of types, and those of model_config.proto, which has no FP8, INT4, FP4 and complex numbers. Of
# text ONNX Runtime makes Python's strings, and Triton's Python backend bytes.
TRITON_TYPES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64", "BOOL": "BOOL",
    "INT8": "INT8", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64",
    "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
}  # fmt: skip
# TensorRT's engines take no others at their ends (tensorrt_backend, src/tensorrt_utils.cc).
TENSORRT_TYPES = ("FP32", "FP16", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL")


@dataclass(frozen=True)
class ServedTensor:
    """An input or output of a served model.

    Attributes:
        type: Triton's name without "TYPE_": "FP32".
        dims: All of them, with the batch: a size, a symbol, or None where nothing is known. None at all for a
            scalar, which clients see as [1].
    """

    name: str
    type: str
    dims: Dims


@dataclass(frozen=True)
class Ends:
    """The inputs and the outputs of a model."""

    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]

    def each(self, change: Callable[[ServedTensor], ServedTensor]) -> Ends:
        """The same with every tensor changed."""
        return Ends(tuple(map(change, self.inputs)), tuple(map(change, self.outputs)))


def read_ends(model: OnnxModel, seen: Sequence[Mapping[str, tuple[int, ...]]] = ()) -> Ends:
    """The inputs and outputs of an ONNX file, with what shape inference tells of the outputs.

    Args:
        model: The typed model of an artifact.
        seen: Shapes that the outputs had when they were validated: they tell a rank that inference does not.

    Raises:
        DeployError: A type that Triton has not, a value that is no tensor, or an output of unknown rank.
    """
    import onnx

    proto = model.proto
    weights = {tensor.name for tensor in proto.graph.initializer}
    named = {dim.dim_param for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
             for dim in value.type.tensor_type.shape.dim}  # fmt: skip
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    inputs = [value for value in inferred.input if value.name not in weights]
    return Ends(
        tuple(_tensor(model, value, (), named) for value in inputs),
        tuple(
            _tensor(model, value, [shapes[value.name] for shapes in seen if value.name in shapes], named)
            for value in inferred.output
        ),
    )


def _tensor(
    model: OnnxModel, value: onnx.ValueInfoProto, seen: Sequence[tuple[int, ...]], named: Set[str]
) -> ServedTensor:
    import onnx

    where = f"{model.path}: '{value.name}'"
    if not value.type.HasField("tensor_type"):
        raise DeployError(
            f"{where} is not a tensor, and Triton serves only tensors.", "Export the model with tensors."
        )
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if kind not in TRITON_TYPES:
        raise DeployError(
            f"{where} is of type {kind}, which Triton does not serve here; it has {', '.join(TRITON_TYPES)}.",
            "Cast it inside the model: inputs and outputs need one of these types.",
        )
    if value.type.tensor_type.HasField("shape"):
        dims = tuple(_dim(dim, named) for dim in value.type.tensor_type.shape.dim)
    elif seen and len({len(shape) for shape in seen}) == 1:
        dims = tuple(sizes[0] if len(seen) > 1 and len(set(sizes)) == 1 else None
                     for sizes in zip(*seen, strict=True))  # fmt: skip
    else:
        raise DeployError(
            f"{where} has no known rank, which a Triton configuration has to state.",
            "Export the model with shapes.",
        )
    return ServedTensor(value.name, TRITON_TYPES[kind], dims)


def _dim(dim: Any, named: Set[str]) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param if dim.dim_param in named - {""} else None  # inference makes up names of its own
