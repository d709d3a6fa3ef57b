"""A PyTorch module to ONNX through torch's own exporter, with names that lead back to the module.

Weights stay as the module holds them: none is folded into a transposed or merged copy, so that an
initializer is the parameter of that name, byte for byte, and is written straight from it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._deps import require
from sparseflow_trt.errors import ModelError, SparseflowError, deepest
from sparseflow_trt.exporters.torch_ends import check_exported, check_given, name_inputs, name_outputs
from sparseflow_trt.model.infer_shapes import reshape_behind_recurrence

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparseflow_trt.pytorch.exportable import Exportable

DEFAULT_OPSET = 20
LEAVE_OUT = (
    "Leave it out of the axes that FILE.py:FUNCTION returns (for a folder: one that loads the model), and "
    "export one file for each size."
)
# Of what torch.export says where it finds so itself; where it does not, the exported file fails (`export`).
_FIXED = re.compile(
    r"static shape of (?P<size>\d+) for dimension inputs\['(?P<name>\w+)'\]"
    r"(\[(?P<position>\d+)\])?\.shape\[(?P<index>\d+)\]"  # a position: of a wrapper's forward(*tensors)
)
# Above it weights stand in a file of their own: a protobuf ends at 2 GiB, and is held in memory twice
# while it is written.
_INLINE_BYTES = 256 << 20
_SMALLEST_EXTERNAL = 1024
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx.experimental.symbolic_shapes")
_SCOPES = "pkg.torch.onnx.name_scopes"
_KEPT = (_SCOPES, "pkg.torch.onnx.class_hierarchy")


def export_module(found: Exportable, opset: int) -> ir.Model:
    """Exports a module to an ONNX graph whose initializers are the module's parameters, in place.

    Args:
        found: The module, inputs to trace it with, and names.
        opset: Of ONNX, from 18 on.

    Raises:
        ModelError: torch cannot export it, with torch's first words on why; it gives something else than
            tensors; or torch makes one axis of two.
        NotInstalledError: PyTorch or onnxscript.
    """
    torch = require("torch", "exporting PyTorch modules")
    require("onnxscript", "exporting PyTorch modules")
    from onnxscript import optimizer

    names, shapes = _dynamic_shapes(found)
    with _quiet():
        try:
            program = torch.onnx.export(
                found.module,
                _apart(found.inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(found.inputs),
                output_names=list(found.outputs) or None,
                dynamic_shapes=shapes,
                optimize=False,
                verbose=False,
            )
        # torch.onnx's classes share no base, and any operator's converter can raise anything
        except Exception as error:
            if fixed := _FIXED.search(str(deepest(error))):
                name = list(found.inputs)[int(fixed["position"])] if fixed["position"] else fixed["name"]
                axis = found.axes.get(name, {}).get(int(fixed["index"]), fixed["index"])
                raise ModelError(
                    f"torch's exporter fixes axis '{axis}' (dimension {fixed['index']} of input "
                    f"'{name}') at {fixed['size']}, the size it is traced with.",
                    LEAVE_OUT,
                ) from error
            check_given(found, _class_name(found))
            words = _first_words(error)
            if "unexpected keyword argument" in words:
                raise ModelError(
                    f"the {_class_name(found)} has no such input: {words}.",
                    "Name them as `forward` names its arguments.",
                ) from error
            raise ModelError(
                f"torch cannot export the {_class_name(found)}: {words}.",
                _plain_attention(found.module)
                or "Run it with --debug for torch's own report. Do not name an axis "
                "as dynamic if the module fixes it; write code that branches on values "
                "with torch.where or torch.cond.",
            ) from error
        model: ir.Model = program.model
        check_exported(program.exported_program, model, _class_name(found))
        parameters = {name for name, _ in found.module.named_parameters(remove_duplicate=False)}
        optimizer.optimize_ir(model, should_fold=lambda node: _may_fold(node, parameters))
    name_inputs(model, found.inputs)
    if not found.outputs:
        name_outputs(model, program.exported_program)
    _name_axes(model, names)
    reshape_behind_recurrence(model)
    _check_axes(model, found)
    _drop_unused(model)
    _name_after_modules(model, found.prefix)
    return model


def save_export(
    model: ir.Model, path: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """Writes a graph whose tensors are a module's own; large ones one by one into a file beside it.

    Args:
        model: The graph; it is not changed.
        path: The file, in an existing folder; its data file is PATH.data.
        progress: Called with (bytes written, bytes to write).

    Returns:
        The files written.

    Raises:
        OSError: They cannot be written.
    """
    import onnx_ir as ir

    total = weight_bytes(model)
    done = 0

    def tell(tensor: ir.TensorProtocol, _: Any) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress:
            progress(min(done, total), total)

    data = f"{path.name}.data" if total > _INLINE_BYTES else None
    ir.save(
        model,
        path,
        external_data=data,
        size_threshold_bytes=_SMALLEST_EXTERNAL,
        callback=tell if data else None,
    )
    return (path.with_name(data), path) if data else (path,)


def weight_bytes(model: ir.Model) -> int:
    """How many bytes a graph's initializers take."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _apart(tensors: Iterable[Any]) -> tuple[Any, ...]:
    """The tensors, each an object of its own: of one that is given twice torch reads one input twice."""
    seen: set[int] = set()
    apart = []
    for tensor in tensors:
        apart.append(tensor.clone() if id(tensor) in seen else tensor)
        seen.add(id(tensor))
    return tuple(apart)


def _dynamic_shapes(found: Exportable) -> tuple[dict[str, str], Any]:
    """Axes as torch takes them: identifiers. Returns what each stands for, too."""
    names: dict[str, str] = {}

    def identifier(name: str) -> str:
        made = name if name.isidentifier() else "_".join(filter(str.isalnum, name.split()))
        names[made] = name
        return made

    axes = tuple(
        {i: identifier(name) for i, name in found.axes.get(given, {}).items()} for given in found.inputs
    )
    takes_all = bool(found.prefix)  # a wrapper's forward(*tensors) is one argument
    return names, (axes,) if takes_all else axes


def _may_fold(node: ir.Node, parameters: set[str]) -> bool | None:
    """False for what has a parameter as its input; None leaves it to the optimizer's rules."""
    return False if any(value is not None and value.name in parameters for value in node.inputs) else None


def _name_axes(model: ir.Model, names: dict[str, str]) -> None:
    """Gives axes the names that torch could not take ("past + seq")."""
    import onnx_ir as ir

    changed = {made: name for made, name in names.items() if made != name}
    for name in tuple(changed.values()):  # torch sorts the terms of a sum its own way
        changed |= {" + ".join(terms): name for terms in itertools.permutations(name.split(" + "))}
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is None or not changed:
            continue
        dims = [d if isinstance(d, int) else changed.get(str(d.value), d.value) for d in value.shape]
        value.shape = ir.Shape(dims)


def _check_axes(model: ir.Model, found: Exportable) -> None:
    """Checks that torch left apart what has names of its own: it makes one axis of those it finds equal."""
    made = {value.name: value.shape for value in model.graph.inputs if value.shape is not None}
    given = [(axis, name, i) for name, named in found.axes.items() for i, axis in named.items()]
    places = {axis: f"'{axis}' (dimension {i} of input '{name}')" for axis, name, i in reversed(given)}
    for axis, name, i in given:
        if name not in made:  # nothing reads it
            continue
        other = str(made[name][i])
        if other != axis and other in places:
            raise ModelError(
                f"torch's exporter finds axes {places[other]} and {places[axis]} always equal, and "
                f"merges them into one, '{other}'.",
                "Give both the same name in the axes that FILE.py:FUNCTION returns; leave out an "
                "axis of size 1 that is broadcast to the other.",
            )


def _drop_unused(model: ir.Model) -> None:
    """Leaves out parameters that nothing reads: a decoder's, where only the encoder was exported."""
    unused = [
        name
        for name, value in model.graph.initializers.items()
        if not value.uses() and not value.is_graph_output()
    ]
    for name in unused:
        del model.graph.initializers[name]


def _name_after_modules(model: ir.Model, prefix: str) -> None:
    """Names nodes and weights after the user's modules, and leaves out what tells of this machine."""
    for value in list(model.graph.initializers.values()):
        if prefix and value.name and value.name.startswith(prefix):
            value.name = value.name.removeprefix(prefix)
    used: dict[str, int] = {}
    for node in model.graph.all_nodes():
        kept = {key: node.metadata_props[key] for key in _KEPT if key in node.metadata_props}
        path = _module_path(node, kept.get(_SCOPES, ""), prefix)
        if _SCOPES in kept:
            kept[_SCOPES] = repr(["", *([path] if path else []), node.op_type])
        node.metadata_props.clear()
        node.metadata_props.update(kept)
        name = f"{path}/{node.op_type}" if path else node.op_type
        used[name] = count = used.get(name, -1) + 1
        node.name = f"{name}_{count}" if count else name
    for key in list(model.graph.metadata_props):
        if key.startswith("pkg.torch.export"):  # the signature of the whole program: as long as the graph
            del model.graph.metadata_props[key]


def _module_path(node: ir.Node, scopes: str, prefix: str) -> str:
    """The module that a node came from, as the user's state dict names it."""
    path = ast.literal_eval(scopes) if scopes else []
    module = str(path[-2]) if len(path) > 1 else ""
    module = "" if module == prefix.rstrip(".") else module.removeprefix(prefix)
    holder, _, leaf = _weight_name(node).rpartition(".")
    if node.op_type == "Conv" and holder:
        return holder  # a normalisation that was folded into it left its own name there
    # a parameter of a module that has several: its own name tells more (experts.down_proj)
    return f"{module}.{leaf}" if module and holder == module and leaf != "weight" else module


def _weight_name(node: ir.Node) -> str:
    """The initializer that a product multiplies by, or ""."""
    value = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if producer.op_type in ("Reshape", "Split", "Transpose") else None
    return value.name or "" if value is not None and value.is_initializer() else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's exporter from telling users of its own affairs.

    What is printed meanwhile, a user's module among it, comes behind it; where it fails torch prints whole
    graphs, which are left to the error's traceback.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(printed.getvalue())
    except SparseflowError as error:
        error.__notes__ = [*error.__notes__, *filter(None, [printed.getvalue()])]
        raise
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _plain_attention(module: Any) -> str:
    """What to try first with a model of transformers whose attention is one call to torch; "" with others."""
    kinds = (
        getattr(getattr(part, "config", None), "_attn_implementation", None) for part in module.modules()
    )
    kind = next((kind for kind in kinds if kind not in (None, "eager")), None)
    if kind is None:
        return ""
    return (
        f"Its attention is transformers' '{kind}', which torch does not always export: call the model's "
        "set_attn_implementation('eager') in the function, before it is returned."
    )


def _class_name(found: Exportable) -> str:
    module = found.module.model if found.prefix else found.module
    return type(module).__name__


def _first_words(error: BaseException) -> str:
    """What an error's first cause says, in one line: torch wraps it in pages of advice."""
    error = deepest(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else ''}".rstrip(".")
