"""Saves models: large constants, and packed weights of the plugin's nodes, go beside the .onnx file.

Whether what was written is valid ONNX is seen here, too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import EXPORT_AGAIN
from sparseflow_trt.model.target import PLUGIN_DOMAIN, PLUGIN_OP

if TYPE_CHECKING:
    import onnx_ir as ir

INLINE_BYTES = 1024  # constants up to this size stay in the .onnx file, larger ones go beside it
IR_VERSION = 10  # of 2024, with opset 21: whatever this tool builds with reads it


def save_model(model: ir.Model, output: Path) -> None:
    """Saves a model; constants larger than INLINE_BYTES go to `output`.data, one at a time.

    Large Constant nodes become initializers of their names, in the graph in memory, too: only these are
    written beside the file. An IR version beyond IR_VERSION is lowered to what the model's opsets need: ONNX
    Runtime and TensorRT read new ones a few releases after onnx writes them.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    import onnx
    import onnx_ir as ir

    _gather_constants(model)
    if model.ir_version > IR_VERSION:
        opsets = [
            onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()
        ]
        needed = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
        model.ir_version = max(needed, IR_VERSION)
    try:
        ir.save(model, output, external_data=f"{output.name}.data", size_threshold_bytes=INLINE_BYTES)
    except OSError as error:
        if error.errno is None:  # NumPy's "262144 requested and 200000 written" does not say why
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output)) from error
        raise


def _gather_constants(model: ir.Model) -> None:
    """Makes initializers of large Constant nodes, and takes other tensors that nodes hold into memory.

    A tensor that was read is a range of the file that it stands in, which lies elsewhere.
    """
    import onnx_ir as ir

    for node in tuple(model.graph.all_nodes()):
        for attribute in tuple(node.attributes.values()):
            if attribute.type != ir.AttributeType.TENSOR or _is_plugin_node(node):
                continue
            tensor, value, graph = attribute.as_tensor(), node.outputs[0], node.graph
            lifted = node.op_type == "Constant" and not value.is_graph_output()
            if lifted and tensor.nbytes > INLINE_BYTES and isinstance(graph, ir.Graph):
                tensor.name = value.name
                made = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
                value.replace_all_uses_with(made)
                graph.remove(node, safe=True)
                graph.register_initializer(made)
            elif isinstance(tensor, ir.ExternalTensor):
                held = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
                node.attributes.add(ir.AttrTensor(attribute.name, held))


def save_plugin_model(model: ir.Model, output: Path) -> None:
    """Saves a model as `save_model` does, with the packed weights of its plugin nodes in `output`.packed.

    Inside of the .onnx file they could not exceed 2 GB together.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    import onnx_ir as ir

    beside = output.with_name(f"{output.name}.packed")
    large = [
        (node, attribute)
        for node in plugin_nodes(model)
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().nbytes > INLINE_BYTES
    ]
    places: dict[int, Any] = {}
    try:
        with beside.open("wb") as stream:
            for node, attribute in large:
                tensor = attribute.as_tensor()
                if id(tensor) not in places:
                    places[id(tensor)] = ir.ExternalTensor(
                        beside.name, stream.tell(), tensor.nbytes, tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()), name=attribute.name, base_dir=output.parent,
                    )  # fmt: skip
                    stream.write(tensor.tobytes())
                node.attributes.add(ir.AttrTensor(attribute.name, places[id(tensor)]))
        save_model(model, output)
    finally:
        for node, attribute in large:
            node.attributes.add(attribute)
    if not large:
        beside.unlink()


def plugin_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """The nodes of the plugin in a model and its subgraphs."""
    return tuple(node for node in model.graph.all_nodes() if _is_plugin_node(node))


def _is_plugin_node(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (PLUGIN_DOMAIN, PLUGIN_OP)


def check_valid(path: Path, given: Path) -> None:
    """Checks that a model that was written is valid ONNX, as far as the one that it was made of is.

    Args:
        path: The model as written.
        given: The file that it was made of.

    Raises:
        ModelError: It is not valid.
    """
    wrong = _why_not_valid(path)
    if not wrong:
        return
    before = _why_not_valid(given)
    # what the checker refused before (an output of unknown rank, say) may run all the same
    if before and before != wrong:
        raise ModelError(f"{given} is not valid ONNX: {before}; {wrong}.", EXPORT_AGAIN)
    if not before:
        raise ModelError(
            f"the model rewritten for the plan is not valid ONNX: {wrong}.",
            "This is a bug in the rewriting: please report it with the model; --precision keep avoids it.",
        )


def _why_not_valid(path: Path) -> str:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return ""
