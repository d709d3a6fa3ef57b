"""Finds the nodes that multiply by a weight, each seen as a GEMM; no weight is read."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparseflow_trt.errors import ModelError, deepest, one_line
from sparseflow_trt.model.infer_shapes import forget_made_up_dims, infer_shapes, reshape_behind_recurrence
from sparseflow_trt.model.model_file import ONNX_DOMAIN, OnnxModel
from sparseflow_trt.model.operators import QUANTIZED
from sparseflow_trt.model.parts import take_parts
from sparseflow_trt.model.pattern import GROUP
from sparseflow_trt.model.runtimes_own import (
    BEFORE_OPTIMISER,
    RUNTIMES_DOMAIN,
    is_fused,
    multiplies,
    operator_of,
)
from sparseflow_trt.model.subgraphs import bodies_of
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.model.symbolic_shapes import find_dims, lacks_dims
from sparseflow_trt.model.trace import is_dequantized, trace_weight
from sparseflow_trt.model.unread import drop_unread
from sparseflow_trt.model.weights import TracedWeight, Untraceable

if TYPE_CHECKING:
    import onnx_ir as ir

OPS = ("MatMul", "Gemm", "Conv")
# They multiply by weights, too, and have no 2:4 path here: said rather than passed over.
UNSUPPORTED = (
    "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulInteger", "MatMulNBits",
    "QLinearConv", "QLinearMatMul", "RNN",
)  # fmt: skip

# The smallest K of an mma.sp instruction of each type (PTX ISA, "Matrix shape" of mma.sp): a shorter
# product cannot fill one sparse tensor core instruction. FP32 weights run 2:4 in 16 bits alone: of TF32 the
# instructions take one of two, not two of four.
SMALLEST_K = {"FP32": 16, "FP16": 16, "BF16": 16, "INT8": 32, "UINT8": 32, "FP8": 32, "FP8-E5M2": 32}
_DTYPE_NAMES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64",
    "FLOAT8E4M3FN": "FP8", "FLOAT8E5M2": "FP8-E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class LayerSite:
    """A weighted layer before its weight is read: the node, its weight, and the operand's axis K."""

    name: str
    node: ir.Node
    weight: TracedWeight | Untraceable
    side: str
    k_axis: int
    m: SymbolicM
    n: int
    k: int
    batch: int
    pattern_k: int = field(default=0)  # the length that has to be a multiple of 4: Conv's channels a group

    @property
    def module(self) -> str:
        """The torch module path that the exporter left in the node's metadata, or ""."""
        return module_of(self.node)


def find_sites(model: OnnxModel) -> list[LayerSite]:
    """Finds the weighted layers of the main graph and of every subgraph; no weight is read.

    In `model.ir` calls of the model's own functions are inlined, nodes that nothing reads are left out,
    shapes that it lacks are added, and weights that a Split or Slices take apart become one for each part
    (`parts`).

    Raises:
        ModelError: A node says something impossible.
    """
    _inline_functions(model)
    drop_unread(model.ir.graph)
    _take_parts(model)
    reshape_behind_recurrence(model.ir)
    if any(value is not None and value.shape is None for value in _of_products(model.ir)):
        infer_shapes(model.ir)
    forget_made_up_dims(model.ir)
    if lacks_dims(model.ir, _of_products(model.ir)):
        find_dims(model.ir)
    used: set[str] = set()
    sites = []
    for prefix, node in _walk(model.ir.graph, ""):
        known = node.op_type in OPS and node.domain == ONNX_DOMAIN
        if (known or _multiplies_otherwise(node)) and len(node.inputs) > 1:
            try:
                sites.append(_site(_layer_name(prefix, node, used), node))
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:
                label = f"'{node.name}'" if node.name else "without a name"
                raise ModelError(
                    f"{model.path}: the {node.op_type} node {label} is not valid: {error}.",
                    "Export the model again; onnx.checker says more.",
                ) from error
    return sites


def why_not_eligible(site: LayerSite) -> str:
    """Why a layer's weight cannot be 2:4, or "" where it can."""
    if isinstance(site.weight, Untraceable):
        return site.weight.reason
    dtype = product_dtype(site.weight)
    if (stored := dtype_name(site.weight.tensor)) not in (*SMALLEST_K, "FP64"):  # whatever a Cast makes of it
        return f"no sparse tensor core product for {stored} weights"
    if dtype in SMALLEST_K and site.node.op_type == "Conv" and site.pattern_k % GROUP:
        return f"input channels a group={site.pattern_k} is not a multiple of {GROUP}"
    if dtype in SMALLEST_K and not (site.n and site.batch):
        return "too small: the weight is empty"
    return why_not_2to4(dtype, site.k)


def why_not_2to4(dtype: str, k: int) -> str:
    """Why no weight of a type and a K can be 2:4 in a sparse kernel, or "" where one can."""
    if dtype not in SMALLEST_K:
        return f"no sparse tensor core product for {dtype} weights"
    if k % GROUP:
        return f"K={k} is not a multiple of {GROUP}"
    return why_too_small(dtype, k)


def why_too_small(dtype: str, k: int) -> str:
    """Why K fills no sparse instruction of a type, "" where it does, or where there is none."""
    smallest = SMALLEST_K.get(dtype, 0)
    runs_in = "FP16 or BF16" if dtype == "FP32" else dtype
    return f"too small: K={k}, a sparse {runs_in} instruction takes {smallest}" if k < smallest else ""


def dtype_name(tensor: ir.TensorProtocol) -> str:
    """FP32, FP16, BF16, INT8, UINT8, FP8 (E4M3), FP8-E5M2, or ONNX's own name for the others."""
    return type_name(tensor.dtype)


def type_name(dtype: ir.DataType | None) -> str:
    """What `dtype_name` calls a type, "" where none is known."""
    return _DTYPE_NAMES.get(dtype.name, dtype.name) if dtype is not None else ""


def product_dtype(weight: TracedWeight) -> str:
    """The type of the values that are multiplied: as stored, or as a Cast or QuantizeLinear makes it."""
    return type_name(weight.made) or dtype_name(weight.tensor)


def multiplied_as(site: LayerSite) -> str:
    """The type of a layer's product: a weight that is dequantized is multiplied as a float where the other
    operand is one. "" where nothing is known of it."""
    if not isinstance(site.weight, TracedWeight):
        return ""
    operands = site.node.inputs[:2]
    if any(map(is_dequantized, operands)) and not all(map(is_dequantized, operands)):
        return type_name(site.node.outputs[0].dtype) or "FP32"
    return product_dtype(site.weight)


def _walk(graph: ir.Graph, prefix: str) -> Iterator[tuple[str, ir.Node]]:
    for node in graph:
        yield prefix, node
        for name, body in bodies_of(node):
            yield from _walk(body, f"{prefix}{name_of(node)}/{name}/")


def _multiplies_otherwise(node: ir.Node) -> bool:
    """Whether a node of another kind has a constant weight: a product of two activations is none of ours."""
    known = node.op_type in UNSUPPORTED and node.domain in (ONNX_DOMAIN, RUNTIMES_DOMAIN)
    if not known and not multiplies(node):
        return False
    traced = [trace_weight(value) for value in node.inputs if value is not None]
    return any(
        len(weight.operand_shape) > 1 if isinstance(weight, TracedWeight) else weight.computed
        for weight in traced
    )


def _layer_name(prefix: str, node: ir.Node, used: set[str]) -> str:
    first = name = prefix + name_of(node)
    number = 1
    while name in used:
        number += 1
        name = f"{first}#{number}"
    used.add(name)
    return name


def _site(name: str, node: ir.Node) -> LayerSite:
    if (operator := operator_of(node)) not in OPS:
        why = f"{operator} multiplies by its weight in a way that has no 2:4 path here"
        if is_fused(node):
            why += f": {BEFORE_OPTIMISER}"
        if node.op_type.startswith(QUANTIZED):
            why += ": quantized by quantize_static with QuantFormat.QDQ it has one"
        return LayerSite(name, node, Untraceable(why), "right", 0, SymbolicM((None,)), 0, 0, 0)
    right = trace_weight(node.inputs[1])
    if node.op_type == "Conv":
        return _conv_site(name, node, right)
    left = trace_weight(node.inputs[0])
    if isinstance(left, TracedWeight) and isinstance(right, TracedWeight):
        right = Untraceable("both operands are constant: folded when the engine is built")
    elif isinstance(left, TracedWeight):
        return _left_site(name, node, left)
    elif isinstance(right, Untraceable) and left.computed:
        return LayerSite(name, node, left, "left", 0, SymbolicM((None,)), 0, 0, 0)
    return _right_site(name, node, right)


def _conv_site(name: str, node: ir.Node, weight: TracedWeight | Untraceable) -> LayerSite:
    group = node.attributes.get("group")
    groups = group.as_int() if group else 1
    shape = _operand_shape(node, 1, weight)
    if isinstance(weight, TracedWeight) and len(shape) < 3:
        raise ValueError(f"its weight '{weight.name}' has {len(shape)} dimensions")
    output = _dims(node.outputs[0])
    m = SymbolicM((output[0], *output[2:]) if output else (None,))
    channels = shape[1] if len(shape) > 1 else 0
    kernel = 1
    for size in shape[2:]:
        kernel *= size
    n = shape[0] // max(groups, 1) if shape else 0
    return LayerSite(name, node, weight, "right", 1, m, n, channels * kernel, groups, channels)


def _right_site(name: str, node: ir.Node, weight: TracedWeight | Untraceable) -> LayerSite:
    transposed = _flag(node, "transB")
    shape = _operand_shape(node, 1, weight)
    _check_rank(node, weight, shape)
    if len(shape) == 1:
        shape = (shape[0], 1)
    k_axis = len(shape) - (1 if transposed else 2) if shape else 0
    k = shape[k_axis] if shape else 0
    n = shape[-2 if transposed else -1] if shape else 0
    rows = _dims(node.inputs[0])
    if _flag(node, "transA"):
        rows = tuple(reversed(rows or ()))
    m = SymbolicM((*_shared_batch(rows, shape), *rows[-2:-1]) if rows else (None,))
    return LayerSite(name, node, weight, "right", max(k_axis, 0), m, n, k, math.prod(shape[:-2]), k)


def _left_site(name: str, node: ir.Node, weight: TracedWeight) -> LayerSite:
    transposed = _flag(node, "transA")
    shape = weight.operand_shape
    _check_rank(node, weight, shape)
    if len(shape) == 1:
        shape = (1, shape[0])
        transposed = False
    k_axis = len(weight.operand_shape) - (2 if transposed else 1)
    k, n = (shape[-2], shape[-1]) if transposed else (shape[-1], shape[-2])
    columns = _dims(node.inputs[1])
    if columns and _flag(node, "transB"):
        columns = tuple(reversed(columns))
    if not columns:
        m = SymbolicM((None,))
    else:
        m = SymbolicM((*_shared_batch(columns, shape), columns[-1]) if len(columns) > 1 else ())
    return LayerSite(name, node, weight, "left", k_axis, m, n, k, math.prod(shape[:-2]), k)


def _check_rank(node: ir.Node, weight: TracedWeight | Untraceable, shape: tuple[int, ...]) -> None:
    if isinstance(weight, TracedWeight) and (len(shape) != 2 if node.op_type == "Gemm" else not shape):
        raise ValueError(f"its weight '{weight.name}' has {len(shape)} dimensions")


def _shared_batch(
    dims: tuple[int | str | None, ...], weight: tuple[int, ...]
) -> tuple[int | str | None, ...]:
    """The batch dimensions of an operand along which the weight is the same: they make M larger."""
    batch = dims[:-2]
    sizes = (1,) * len(batch) + weight[:-2]
    return tuple(d for d, size in zip(batch, sizes[len(sizes) - len(batch) :], strict=True) if size == 1)


def _operand_shape(node: ir.Node, index: int, weight: TracedWeight | Untraceable) -> tuple[int, ...]:
    if isinstance(weight, TracedWeight):
        return weight.operand_shape
    dims = _dims(node.inputs[index])
    return tuple(d if isinstance(d, int) else 0 for d in dims) if dims else ()


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return bool(attribute and attribute.as_int())


def _dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    if value is None or value.shape is None:
        return None
    dims: list[int | str | None] = []
    for dim in value.shape:
        symbol = dim if isinstance(dim, int) else dim.value
        dims.append(None if isinstance(symbol, int) and symbol < 0 else symbol)  # old exporters write -1
    return tuple(dims)


def _of_products(model: ir.Model) -> Iterator[ir.Value | None]:
    """What is multiplied in a model, and the products."""
    for node in model.graph.all_nodes():
        if node.op_type in OPS:
            yield from (*node.inputs[:2], *node.outputs)


def _inline_functions(model: OnnxModel) -> None:
    if not model.ir.functions:
        return
    import onnx_ir as ir
    from onnx_ir.passes import common

    try:
        common.InlinePass()(model.ir)
    except (ir.passes.InvariantError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise ModelError(
            f"{model.path}: a function of the model cannot be inlined: {one_line(deepest(error))}.",
            "Inline the model's functions with onnx.inliner, or export it without functions.",
        ) from error


def _take_parts(model: OnnxModel) -> None:
    try:
        take_parts(model.ir)
    except (ValueError, TypeError, LookupError) as error:
        raise ModelError(
            f"{model.path}: {error}.", "Export the model again; onnx.checker says more."
        ) from error


def name_of(node: ir.Node) -> str:
    """What a node is called in a plan: its name, or its operator and its first output where it has none."""
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


def module_of(node: ir.Node) -> str:
    """The torch module path that the exporter left in a node's metadata, or ""."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    try:
        path = ast.literal_eval(scopes) if scopes else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    # the last entry is the operation itself, the one before it the module that holds it
    return str(path[-2]) if isinstance(path, list) and len(path) > 1 else ""
