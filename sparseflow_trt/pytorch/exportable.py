"""What an export starts from: a module that takes and gives tensors alone, with a name for each axis."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sparseflow_trt._deps import require
from sparseflow_trt._user_code import call_for_module
from sparseflow_trt.errors import InputError, one_line

Axes = dict[int, str]

_HINT = (
    "Let FILE.py:FUNCTION return (module, inputs) or (module, inputs, axes): inputs are a tensor, a tuple, "
    'or a mapping by name, axes say which dimensions vary: {"input_ids": {0: "batch", 1: "seq"}}.'
)


@dataclass(frozen=True)
class Exportable:
    """A module ready to be exported.

    Attributes:
        module: Takes the inputs by position and gives tensors, in whatever of tuples, lists and mappings.
        inputs: One set of tensors to trace it with, by name, in their order.
        axes: For each input the dimensions that vary, by their names. "past + seq" is the sum of two.
        outputs: A name for each tensor that it gives; none names them by the keys or fields that they are
            given in, and lets the exporter name the others.
        prefix: What stands before the user's own names in the module's ("model."), and is left out.
        task: What was exported, in a word.
    """

    module: Any
    inputs: dict[str, Any]
    axes: dict[str, Axes]
    outputs: tuple[str, ...]
    prefix: str
    task: str


def wrap(model: Any, forward: Any) -> Any:
    """A module of one child, `model`, that calls forward(model, *tensors).

    Raises:
        NotInstalledError: PyTorch.
    """
    module_class: Any = require("torch", "exporting PyTorch modules").nn.Module

    class Wrapper(module_class):  # type: ignore[misc]  # PyTorch may be missing
        """Passes tensors on by position."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return forward(self.model, *tensors)

    return Wrapper().eval()


def load_function(source: str) -> Exportable:
    """Calls FILE.py:FUNCTION or MODULE:FUNCTION for a module, inputs and, where it says so, axes.

    Where it gives no axes, the first dimension of every input is 'batch' if all agree on its size, and the
    second of token ids and hidden states (2-D integers, 3-D floats) is 'seq'. Of a model of transformers the
    tensors that it names are taken ("logits"), and not its cache.

    Raises:
        InputError: The function cannot be called, fails, or returns something else, or a model of
            transformers does not run on its inputs.
        NotInstalledError: PyTorch.
    """
    torch = require("torch", "exporting PyTorch modules")
    module, given, named = call_for_module(torch, source, _HINT)
    inputs = _named(torch, source, module, given)
    axes = _guess(inputs) if named is None else _checked(source, named)
    unknown = sorted(set(axes) - set(inputs))
    if unknown:
        raise InputError(f"{source} gives axes for '{unknown[0]}', which is not an input.", _HINT)
    for name, found in axes.items():
        if wrong := [i for i in found if not 0 <= i < inputs[name].dim()]:
            raise InputError(
                f"{source} names dimension {wrong[0]} of '{name}', which has {inputs[name].dim()}.", _HINT
            )
    names = tuple(inputs) if isinstance(given, Mapping) else ()

    def call(model: Any, *tensors: Any) -> Any:
        return model(**dict(zip(names, tensors, strict=True))) if names else model(*tensors)

    if outputs := _named_tensors(torch, source, module.eval(), lambda: call(module, *inputs.values())):
        wrapped = wrap(module, lambda model, *tensors: _each(call(model, *tensors), outputs))
        return Exportable(wrapped, inputs, axes, outputs, "model.", "function")
    if names:
        return Exportable(wrap(module, call), inputs, axes, (), "model.", "function")
    return Exportable(module, inputs, axes, (), "", "function")


def _named_tensors(torch: Any, source: str, module: Any, run: Callable[[], Any]) -> tuple[str, ...]:
    """The tensors that one of transformers' models gives by name, but for its cache; none of another module.

    Raises:
        InputError: It does not run on the inputs.
    """
    if not any(made_by.__module__.startswith("transformers.") for made_by in type(module).__mro__):
        return ()
    try:
        with torch.no_grad():
            made = run()
    except Exception as error:  # whatever a model raises that is given the wrong tensors
        words = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"{source}: a {type(module).__name__} fails on its inputs: {words}.", _HINT
        ) from error
    return (
        tuple(k for k, v in made.items() if isinstance(v, torch.Tensor)) if isinstance(made, Mapping) else ()
    )


def _each(made: Any, names: tuple[str, ...]) -> Any:
    return tuple(made[name] for name in names)


def _named(torch: Any, source: str, module: Any, given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        inputs = {str(name): value for name, value in given.items()}
    else:
        if not isinstance(given, torch.Tensor | Iterable):
            raise InputError(f"{source} gives a {type(given).__name__} as inputs.", _HINT)
        values = (given,) if isinstance(given, torch.Tensor) else tuple(given)
        parameters = inspect.signature(module.forward).parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names += [f"input_{i}" for i in range(len(names), len(values))]
        inputs = dict(zip(names, values, strict=False))
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{source} gives '{name}' as a {type(value).__name__}, not a tensor.", _HINT)
    return inputs


def _checked(source: str, named: Any) -> dict[str, Axes]:
    """The axes that a function gave, where they are such."""
    try:
        return TypeAdapter(dict[str, Axes]).validate_python(named)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"{source} gives axes that name no dimensions{f' of {where!r}' if where else ''}: {named!r}.",
            f"{_HINT} Give its range to `build`: --dim batch=1,8,16.",
        ) from error


def _guess(inputs: Mapping[str, Any]) -> dict[str, Axes]:
    sizes = {tensor.shape[0] for tensor in inputs.values() if tensor.dim()}
    axes: dict[str, Axes] = {}
    for name, tensor in inputs.items():
        found: Axes = {0: "batch"} if tensor.dim() and len(sizes) == 1 else {}
        if tensor.dim() == (3 if tensor.is_floating_point() else 2):
            found[1] = "seq"
        axes[name] = found
    return axes
