"""Writes graphs that show what single nodes compute: with values marked as outputs, or each node on its own.

Two graphs of one model, of other types or with other weights, have values in common, by name. Cut at these
each node reads what it is given, so that what differs in its output is its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.infer_shapes import infer_shapes
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.sites import find_sites, module_of
from sparseflow_trt.model.subgraphs import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

GIVEN = "__given"  # behind the name of a value that is fed to the nodes that read it
SIZE = "__size"
_SOFTMAX = {"LogSoftmax", "Softmax"}
_KEEP_MASKS = {"Add", "Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class CommonValue:
    """A floating-point value that depends on the inputs and that both graphs have.

    Attributes:
        name: The value's.
        layer: The name of the node that makes it in the first graph, "OPERATOR:VALUE" where it has none.
        module: The torch module it came from, where the exporter says.
        dtype: Its type in the second graph: "FLOAT", "FLOAT16" or "BFLOAT16".
        masked: Whether it goes into nothing but Softmax: minus infinity is what a mask means there.
    """

    name: str
    layer: str
    op_type: str
    module: str
    dtype: str
    masked: bool


def common_values(before: Path, after: Path) -> tuple[CommonValue, ...]:
    """The values of the main graph that two models have in common, in the order of the first.

    Raises:
        ModelError: One of them cannot be read.
    """
    model = _read(before)
    first, second, masked = _values(model), _values(_read(after)), _masked(model)
    return tuple(
        CommonValue(name, _label(node, name), node.op_type, module_of(node), second[name][1], name in masked)
        for name, (node, _) in first.items()
        if name in second
    )


def write_sizes(path: Path, names: Iterable[str], output: Path) -> None:
    """Writes a model whose outputs are how many elements each of some values has, NAME__size."""
    import onnx_ir as ir

    model = _read(path)
    values = _by_name(model)
    sizes = []
    for name in names:
        node = ir.node("Size", [values[name]], name=f"{name}{SIZE}")
        node.outputs[0].name, node.outputs[0].type = f"{name}{SIZE}", ir.TensorType(ir.DataType.INT64)
        model.ir.graph.append(node)
        sizes.append(node.outputs[0])
    _write(model, sizes, output)


def write_marked(path: Path, names: Iterable[str], output: Path) -> None:
    """Writes a model whose outputs are some of its values; of half precision the twin that a CPU rounds."""
    model = _read(path)
    values = _by_name(model)
    _write(model, [values[name] for name in names], output)


def write_units(path: Path, cut: Collection[str], names: Iterable[str], output: Path) -> None:
    """Writes a model whose outputs are some values, with every value of `cut` fed to its readers.

    What a reader of VALUE gets is the input VALUE__given, of VALUE's type in this model.
    """
    import onnx_ir as ir

    model = _read(path)
    values = _by_name(model)
    for name in cut:
        value = values[name]
        given = ir.Value(name=f"{name}{GIVEN}", type=value.type, shape=value.shape)
        for reader, index in tuple(value.uses()):
            reader.replace_input_with(index, given)
        model.ir.graph.inputs.append(given)
    _write(model, [values[name] for name in names], output)


def _read(path: Path) -> OnnxModel:
    model = read_model(path)
    find_sites(model)  # inlines functions, as they are in every graph that is written
    if any(v.dtype is None for node in model.ir.graph for v in node.outputs):
        infer_shapes(model.ir)
    return model


def _write(model: OnnxModel, outputs: Iterable[ir.Value], output: Path) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.ir.graph
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(model.ir)
    unread = [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]
    for value in unread:
        graph.inputs.remove(value)
    save_model(model.ir, output)
    written = read_model(output)
    if needs_twin(written):
        twin = output.with_name(f"twin-{output.name}")
        write_twin(written, twin)
        twin.replace(output)  # its constants stay in the file that it names


def _by_name(model: OnnxModel) -> dict[str, ir.Value]:
    return {v.name: v for node in model.ir.graph for v in node.outputs if v.name}


def _values(model: OnnxModel) -> dict[str, tuple[ir.Node, str]]:
    """The floating-point values that depend on an input, with their nodes and types."""
    import onnx_ir as ir

    graph = model.ir.graph
    moving = {value for value in graph.inputs if value.name not in graph.initializers}
    found: dict[str, tuple[ir.Node, str]] = {}
    for node in graph:
        if not any(value in moving for value in _read_by(node)):
            continue
        moving.update(node.outputs)
        for value in node.outputs:
            dtype = value.dtype.name if isinstance(value.type, ir.TensorType) and value.dtype else ""
            if value.name and dtype in ("FLOAT", "FLOAT16", "BFLOAT16"):
                found[value.name] = node, dtype
    return found


def _masked(model: OnnxModel) -> set[str]:
    """The values that reach nothing but Softmax, at most through additions and what moves elements."""
    graph = model.ir.graph
    found: set[str] = set()
    for node in reversed(tuple(graph)):
        for value in node.outputs:
            readers = [reader for reader, _ in value.uses()]
            if not value.name or not readers or value.is_graph_output():
                continue
            if all(
                reader.op_type in _SOFTMAX
                or (reader.op_type in _KEEP_MASKS and all(v.name in found for v in reader.outputs))
                for reader in readers
            ):
                found.add(value.name)
    return found


def _read_by(node: ir.Node) -> Iterable[ir.Value]:
    """What a node reads, and what is read in its subgraphs."""
    yield from (value for value in node.inputs if value is not None)
    for _, body in bodies_of(node):
        for inner in body:
            yield from _read_by(inner)


def _label(node: ir.Node, value: str) -> str:
    return node.name or f"{node.op_type}:{value}"
