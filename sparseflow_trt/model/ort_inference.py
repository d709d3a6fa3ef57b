"""The ONNX Runtime's symbolic shape inference, where it need not guess."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    import onnx

_NAME = re.compile(r"[A-Za-z_][\w.]*")  # of an axis in an expression: "batch-size" would be a difference


def symbolic_dims(model: onnx.ModelProto, axes: Collection[str]) -> dict[str, tuple[int | str | None, ...]]:
    """What the dimensions of a model's values are of axes, each None where that is not known.

    Nothing is known where the ONNX Runtime is not installed, nor behind what its inference does not take.
    """
    tool = _tool()
    if tool is None:
        return {}
    inference = _inference_of(tool)()
    with contextlib.suppress(Exception):  # it raises any
        inference._preprocess(model)
        inference._infer_impl()
    symbols, text = inference.symbolic_dims_, functools.cache(_printer_of(tool).doprint)

    def dim_of(dim: int | str | None) -> int | str | None:
        if not isinstance(dim, str):
            return dim
        size = symbols.get(dim)  # of a damaged file it may be a number of NumPy's
        names = {symbol.name for symbol in size.free_symbols} if isinstance(size, tool.sympy.Basic) else {dim}
        readable = dim in names or all(map(_NAME.fullmatch, names))
        return text(symbols.get(dim, dim)) if readable and names <= set(axes) else None

    tensors = [value for value in inference.out_mp_.graph.value_info if value.type.HasField("tensor_type")]
    shapes = {value.name: tool.get_shape_from_value_info(value) for value in tensors}
    return {name: tuple(map(dim_of, shape)) for name, shape in shapes.items() if shape is not None}


@functools.cache
def _tool() -> ModuleType | None:
    """Its module, by its path: the package that it lies in imports torch."""
    package = importlib.util.find_spec("onnxruntime")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        path = f"{folder}/tools/symbolic_shape_infer.py"
        spec = importlib.util.spec_from_file_location(f"{__name__}.tool", path)
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            with contextlib.suppress(ImportError, OSError):
                spec.loader.exec_module(module)
                module.logger.addHandler(_Guess(logging.WARNING))
                module.logger.propagate = False
                return module
    return None


class _Guess(logging.Handler):
    """Ends an inference that warns of a guess."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ArithmeticError(record.getMessage())


@functools.cache
def _inference_of(tool: ModuleType) -> Any:
    """Its class, where dimensions of other names are neither taken for equal nor the end."""
    sympy = tool.sympy

    class Inference(tool.SymbolicShapeInference):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(2**31 - 1, False, False, 0)
            self.dispatcher_["Mod"] = self._infer_symbolic_compute_ops
            self.dispatcher_["ConvTranspose"] = self._infer_transposed_convolution

        def _add_suggested_merge(self, symbols: object, apply: bool = False) -> None:
            pass

        def _merge_symbols(self, dims: list[int | str]) -> int | str:
            """What is equal in a model that runs, or one of which is repeated along the other."""
            if sizes := [dim for dim in dims if not isinstance(dim, str)]:
                return sizes[0]
            some = [self.symbolic_dims_[dim] for dim in dims]
            alike = len({frozenset(dim.free_symbols) for dim in some}) == 1
            merged = min(some, key=lambda dim: len(str(dim))) if alike else sympy.Max(*some)
            self.symbolic_dims_[str(merged)] = merged
            return str(merged)

        def _update_computed_dims(self, new_sympy_shape: list[Any]) -> None:
            for index, dim in enumerate(new_sympy_shape):
                if isinstance(dim, sympy.Expr) and dim.has(sympy.floor, sympy.ceiling):
                    dim = dim.replace(sympy.ceiling, functools.partial(_floor, sympy, up=True))
                    new_sympy_shape[index] = dim.replace(sympy.floor, functools.partial(_floor, sympy))
            super()._update_computed_dims(new_sympy_shape)

        def _infer_transposed_convolution(self, node: onnx.NodeProto) -> None:
            """What makes an image larger, as decoders do; the tool leaves its sizes unknown."""
            sizes, weight = self._get_sympy_shape(node, 0), self._get_shape(node, 1)
            rank = len(sizes) - 2
            given = functools.partial(tool.get_attribute, node)
            strides, pads = given("strides", [1] * rank), given("pads", [0] * 2 * rank)
            wider, apart = given("output_padding", [0] * rank), given("dilations", [1] * rank)
            asked, same = given("output_shape"), given("auto_pad", b"NOTSET").startswith(b"SAME")
            for i in range(rank):
                size, kernel = sizes[2 + i], (weight[2 + i] - 1) * apart[i] + 1
                size = strides[i] * (size - 1) + kernel + wider[i] - pads[i] - pads[rank + i]
                sizes[2 + i] = asked[-rank + i] if asked else strides[i] * sizes[2 + i] if same else size
            sizes[1] = weight[1] * given("group", 1)
            self._update_computed_dims(sizes)
            kind = self.known_vi_[node.input[0]].type.tensor_type.elem_type
            made = self.known_vi_[node.output[0]]
            shape = tool.get_shape_from_sympy_shape(sizes)
            made.CopyFrom(tool.helper.make_tensor_value_info(made.name, kind, shape))

        def _infer_symbolic_compute_ops(self, node: onnx.NodeProto) -> None:
            if node.op_type == "Mod":
                self._compute_on_sympy_data(node, lambda both: both[0] % both[1])
            else:
                super()._infer_symbolic_compute_ops(node)
            shapes = [self._get_shape(node, index) for index in range(len(node.input))]
            made = self.known_vi_[node.output[0]]
            kind, shape = made.type.tensor_type.elem_type, functools.reduce(self._broadcast_shapes, shapes)
            made.CopyFrom(tool.helper.make_tensor_value_info(made.name, kind, shape))

    return Inference


@functools.lru_cache(4096)
def _floor(sympy: ModuleType, quotient: Any, up: bool = False) -> Any:
    """A quotient rounded once: half of a half is a quarter."""
    above, below = sympy.nsimplify(quotient, rational=True).together().as_numer_denom()
    above += below - 1 if up else 0
    inner = [term for term in sympy.Add.make_args(above) if isinstance(term, sympy.floor)]
    if below.is_Integer and len(inner) == 1 and (above - inner[0]).is_Integer:
        above += inner[0].args[0] - inner[0]
    return sympy.floor(above / below)


@functools.cache
def _printer_of(tool: ModuleType) -> Any:
    class Printer(tool.sympy.StrPrinter):  # type: ignore[misc,name-defined]
        """Writes quotients as Python does."""

        def _print_floor(self, expression: Any) -> str:
            above, below = expression.args[0].together().as_numer_denom()
            return f"({self.parenthesize(above, 50)}//{self.parenthesize(below, 50)})"

    return Printer()
