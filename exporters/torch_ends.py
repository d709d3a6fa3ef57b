"""What an exported module takes and gives: that it is tensors, and what the ONNX file calls them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sparseflow_trt._deps import require
from sparseflow_trt._listing import listed
from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.free_names import Names

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparseflow_trt.pytorch.exportable import Exportable

_MOST_NAMED = 3  # types, in a sentence
_TENSORS_ALONE = (
    "An ONNX file can return only tensors: let `forward` leave out everything else. None may stay."
)


def check_given(found: Exportable, name: str) -> None:
    """Checks that a module which torch does not export gives tensors: it is run for that, once.

    Args:
        found: The module.
        name: What it is called.

    Raises:
        ModelError: It gives something else.
    """
    torch = require("torch", "exporting PyTorch modules")
    from torch.utils import _pytree as pytree

    try:
        with torch.no_grad():
            given = pytree.tree_leaves(found.module(*found.inputs.values()))
    except Exception:  # noqa: BLE001 - a user's code; what it raises torch's exporter has met, too, and tells
        return
    _refuse([type(one).__name__ for one in given if one is not None and not torch.is_tensor(one)], name)


def check_exported(program: Any, model: ir.Model, name: str) -> None:
    """Checks that an exported program gives tensors, and one at least.

    Args:
        program: torch's ONNXProgram's `exported_program`.
        model: The graph made of it.
        name: What the module is called.

    Raises:
        ModelError: It gives something else, such as a size of an input, or nothing.
    """
    given = [spec.arg for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    kinds = [type(arg).__name__ for arg in given]
    numbers = [
        kind.removeprefix("Sym").removesuffix("Argument").lower() for kind in kinds if kind.startswith("Sym")
    ]
    constants = [arg.value for arg, kind in zip(given, kinds, strict=True) if kind == "ConstantArgument"]
    _refuse([*numbers, *(type(value).__name__ for value in constants if value is not None)], name)
    if not model.graph.outputs:
        raise ModelError(f"torch cannot export the {name}: it returns no tensor.", _TENSORS_ALONE)


def _refuse(types: Iterable[str], name: str) -> None:
    if said := sorted(set(types)):
        raise ModelError(
            f"torch cannot export the {name}: its `forward` gives {listed(said, _MOST_NAMED)}, which is "
            "not a tensor.",
            _TENSORS_ALONE,
        )


def name_inputs(model: ir.Model, names: Iterable[str]) -> None:
    """Names inputs as they are given: of one that is given out as it is onnx_ir names the output so."""
    free = Names(model)
    given = set(names)
    for value in model.graph.inputs:
        name = (value.name or "").removesuffix("_orig")
        if value.name in given or name not in given:
            continue
        for output in model.graph.outputs:
            if output.name == name:
                output.name = free.new(f"{name}_out")
        value.name = name


def name_outputs(model: ir.Model, program: Any) -> None:
    """Names outputs after the keys or fields that the module gives them in; the others keep torch's names."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.out_spec
    leaves = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = (path for path, _ in pytree.tree_flatten_with_path(leaves)[0])
    given = program.graph_signature.user_outputs  # an output's name; of one that is no tensor its value
    kept = [path for path, output in zip(paths, given, strict=True) if isinstance(output, str)]
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken |= {value.name for node in model.graph.all_nodes() for value in node.outputs}
    for value, path in zip(model.graph.outputs, kept, strict=True):
        words = (getattr(part, "key", getattr(part, "name", getattr(part, "idx", ""))) for part in path)
        name = ".".join(map(str, words))
        if name not in taken and not all(isinstance(part, pytree.SequenceKey) for part in path):
            value.name = name
            taken.add(name)
