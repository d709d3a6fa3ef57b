"""The older forms of operators that changed after opset 17, one function an operator (see lower)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.exporters.lowering.rewriting import Rewriting, input_of, not_lowered, sizes_of
from sparseflow_trt.model.constants import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir


def _gelu(work: Rewriting) -> bool:
    x = work.node.inputs[0]
    if x is None or x.dtype is None:
        raise not_lowered(work.node, "the type of its input is not known")
    kind = x.dtype.numpy()

    def number(value: float, what: str) -> ir.Value:
        return work.constant(np.array(value, kind), what)

    approximate = work.node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        cube = work.add("Mul", work.add("Mul", x, x), x)
        inner = work.add("Add", x, work.add("Mul", cube, number(0.044715, "kappa")))
        curve = work.add("Tanh", work.add("Mul", inner, number(np.sqrt(2 / np.pi), "beta")))
    else:
        curve = work.add("Erf", work.add("Div", x, number(np.sqrt(2), "sqrt2")))
    # halved first: x·(1 + 1) is beyond FP16 from 32768 on
    half = work.add("Mul", x, number(0.5, "half"))
    work.replace(work.add("Mul", half, work.add("Add", curve, number(1, "one"))))
    return True


def _rms_normalization(work: Rewriting) -> bool:
    """As ONNX defines it, but for the axes: it computes them from the rank, and here they are constants."""
    import onnx_ir as ir

    node = work.node
    x, scale = node.inputs[0], node.inputs[1]
    if x is None or x.dtype is None:
        raise not_lowered(node, "the type of its input is not known")
    axis, rank = work.pop_int("axis", -1), len(sizes_of(node))
    stash = ir.DataType(work.pop_int("stash_type", 1))
    epsilon = node.attributes.get("epsilon")
    added = work.constant(np.array(epsilon.as_float() if epsilon else 1e-5, stash.numpy()), "epsilon")
    wide = x if x.dtype == stash else work.add("Cast", x, dtype=stash, to=stash)
    square = work.add("Mul", wide, wide)
    mean = work.add("ReduceMean", square, axes=list(range(axis % rank, rank)))
    normal = work.add("Div", wide, work.add("Sqrt", work.add("Add", mean, added)))
    normal = normal if x.dtype == stash else work.add("Cast", normal, dtype=x.dtype, to=x.dtype)
    work.replace(work.add("Mul", normal, scale))
    return True


def _reduce(work: Rewriting) -> bool:
    import onnx_ir as ir

    node = work.node
    axes = work.ints(1, "axes")
    noop = work.pop_int("noop_with_empty_axes")
    if noop and not axes and "axes" not in node.attributes:
        # 'over no axis' leaves ReduceL2's root of a square to do: over a new axis of size one
        wide = work.add("Unsqueeze", node.inputs[0], work.constant(np.array([-1]), "axes"))
        work.replace(work.add(node.op_type, wide, axes=[-1], keepdims=0))
        return True
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    node.resize_inputs(1)
    return axes is not None


def _split(work: Rewriting) -> bool:
    node = work.node
    if "num_outputs" not in node.attributes:
        return False
    number = work.pop_int("num_outputs")
    axis = node.attributes.get("axis")
    size = sizes_of(node)[axis.as_int() if axis is not None else 0]
    if number == 1 or input_of(node, 1) is not None:
        return True
    if size is None:
        raise not_lowered(node, f"whether {number} parts are of one size depends on a dynamic dimension")
    part = -(-size // number)
    last = size - part * (number - 1)
    if last < 1:
        raise not_lowered(node, f"{size} elements do not make {number} parts")
    if last != part:
        node.resize_inputs(2)
        node.replace_input_with(1, work.constant(np.array([part] * (number - 1) + [last]), "sizes"))
    return True


def _pad(work: Rewriting) -> bool:
    node = work.node
    axes = work.ints(3, "axes")
    if axes is None:
        return False
    pads, rank = work.ints(1, "pads beside axes") or (), len(sizes_of(node))
    spread = np.zeros((2, rank), np.int64)
    for at, axis in enumerate(axes):
        spread[:, axis] = pads[at], pads[at + len(axes)]
    node.resize_inputs(3)
    node.replace_input_with(1, work.constant(spread.reshape(-1), "pads"))
    return True


def _resize(work: Rewriting) -> bool:
    axes = work.node.attributes.get("axes")
    if axes is None:
        return False
    rank = len(sizes_of(work.node))
    if [axis % rank for axis in axes.as_ints()] != list(range(rank)):
        raise not_lowered(work.node, "it resizes only some axes")
    del work.node.attributes["axes"]
    return True


def _cast(work: Rewriting) -> bool:
    # Both are about floats of eight bits and fewer, which opset 17 does not have.
    found = [name for name in ("saturate", "round_mode") if name in work.node.attributes]
    for name in found:
        del work.node.attributes[name]
    return bool(found)


def _pool(work: Rewriting) -> bool:
    dilations = work.node.attributes.get("dilations")
    if dilations is None or set(dilations.as_ints()) != {1}:
        return False
    del work.node.attributes["dilations"]
    return True


def _grid_sample(work: Rewriting) -> bool:
    import onnx_ir as ir

    if len(sizes_of(work.node)) != 4:
        raise not_lowered(work.node, "it samples other than images there")
    mode = work.node.attributes.get("mode")
    old = {"linear": "bilinear", "cubic": "bicubic"}.get(mode.as_string() if mode is not None else "")
    if old is not None:
        work.node.attributes["mode"] = ir.AttrString("mode", old)
    return old is not None


def _dft(work: Rewriting) -> bool:
    if work.opset >= 20:
        raise not_lowered(work.node, "its axis was an attribute with another default")
    return False


def _mod(work: Rewriting) -> bool:
    fmod = work.node.attributes.get("fmod")
    value = work.node.inputs[0]
    floating = value is not None and value.dtype is not None and value.dtype.is_floating_point()
    if floating and (fmod is None or not fmod.as_int()):
        raise not_lowered(work.node, "fmod=0 is for integers there")
    return False


def _quantize(work: Rewriting) -> bool:
    import onnx_ir as ir

    node, wide = work.node, ir.DataType.FLOAT
    x, scale, zero_point = node.inputs[0], node.inputs[1], input_of(node, 2)
    output = node.outputs[0].dtype
    if x is None or scale is None or output is None:
        raise not_lowered(node, "its types are not known")
    typed = work.pop_int("output_dtype") != 0
    precision = work.pop_int("precision") != 0  # of the division: FP32 is all there was
    if zero_point is None and output != ir.DataType.UINT8:
        if scale.shape is None or not scale.shape.is_static():
            raise not_lowered(node, "its zero point has to be given, and the shape of its scale is not known")
        zero_point = work.constant(np.zeros(scale.shape.numpy(), output.numpy()), "zero_point")
        node.resize_inputs(3)
        node.replace_input_with(2, zero_point)
    if scale.dtype == wide and x.dtype in (wide, ir.DataType.INT32):
        return typed or precision
    x = x if x.dtype == wide else work.add("Cast", x, dtype=wide, to=wide)
    inputs = (x, _widened(work, scale), zero_point)
    work.replace(work.add("QuantizeLinear", *inputs, dtype=output, **_layout(node)))
    return True


def _dequantize(work: Rewriting) -> bool:
    import onnx_ir as ir

    node, wide = work.node, ir.DataType.FLOAT
    scale, output = node.inputs[1], node.outputs[0].dtype
    if scale is None or output is None:
        raise not_lowered(node, "its types are not known")
    typed = work.pop_int("output_dtype") != 0
    if scale.dtype == wide and output == wide:
        return typed
    # A product of 8 and 11 bits is exact in FP32, and rounded once, by the Cast: as it was.
    inputs = (node.inputs[0], _widened(work, scale), input_of(node, 2))
    product = work.add("DequantizeLinear", *inputs, dtype=wide, **_layout(node))
    work.replace(product if output == wide else work.add("Cast", product, dtype=output, to=output))
    return True


def _layout(node: ir.Node) -> dict[str, int]:
    kept = [name for name in ("axis", "block_size") if name in node.attributes]
    return {name: node.attributes[name].as_int() for name in kept}


def _widened(work: Rewriting, scale: ir.Value) -> ir.Value:
    """A scale in FP32: a constant stays one, as TensorRT wants it."""
    import onnx_ir as ir

    if scale.dtype == ir.DataType.FLOAT:
        return scale
    tensor = constant_of(scale)
    if tensor is None:
        return work.add("Cast", scale, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    return work.constant(tensor.numpy().astype(np.float32), "scale")


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

# What each returns: whether the node was written anew. ModelError where it cannot be.
RULES: dict[str, Callable[[Rewriting], bool]] = {
    "AveragePool": _pool, "Cast": _cast, "CastLike": _cast, "DFT": _dft, "DequantizeLinear": _dequantize,
    "Gelu": _gelu, "GridSample": _grid_sample, "LpPool": _pool, "Mod": _mod, "Pad": _pad,
    "QuantizeLinear": _quantize, "RMSNormalization": _rms_normalization, "Resize": _resize, "Split": _split,
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
}  # fmt: skip
