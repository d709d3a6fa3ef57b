"""Constants that are stored in one float type and cast to another: they become constants of that type.

Files store weights so to be small. No engine gains by it: the plugin takes no weight behind a Cast, and
TensorRT 8.6 reads no BF16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.exporters.retyping.converted_constants import ConvertedConstants
from sparseflow_trt.model.constants import constant_of, drop_unused
from sparseflow_trt.model.free_names import Names
from sparseflow_trt.model.model_file import ONNX_DOMAIN
from sparseflow_trt.model.pattern import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def fold_casts(model: ir.Model) -> int:
    """Puts the constant that it gives in the place of each Cast of a constant between floats, in place.

    It is converted when the model is written. A constant that nothing else reads leaves its name to the new
    one; Casts of one constant to one type become one.

    Args:
        model: A model whose local functions are inlined.

    Returns:
        How many Casts there were.
    """
    import onnx_ir as ir

    constants, casts = ConvertedConstants(Names(model), _cast), 0
    floats = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for node in tuple(model.graph.all_nodes()):
        value = node.inputs[0] if node.inputs else None
        if node.op_type != "Cast" or node.domain != ONNX_DOMAIN or value is None:
            continue
        stored, to = constant_of(value), ir.DataType(node.attributes["to"].as_int())
        if stored is None or stored.dtype not in floats or to not in floats:
            continue
        if node.outputs[0].is_graph_output():
            continue
        node.outputs[0].replace_all_uses_with(constants.make(value, stored, to))
        drop_unused(node.outputs[0])
        casts += 1
    constants.keep_names()
    return casts


def _cast(tensor: ir.TensorProtocol, dtype: ir.DataType) -> Array:
    with np.errstate(over="ignore"):  # to infinity, as a Cast does
        return tensor.numpy().astype(dtype.numpy())
