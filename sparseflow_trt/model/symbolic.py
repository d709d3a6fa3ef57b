"""The M of a layer: a product of integers and of the model's named dimensions."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass

from sparseflow_trt import _deps


@dataclass(frozen=True)
class SymbolicM:
    """The M of a GEMM: a product of integers and named dimensions. `None` stands for an unknown one."""

    factors: tuple[int | str | None, ...]

    def __str__(self) -> str:
        names = [str(f) for f in self.factors if f != 1 and not isinstance(f, int)]
        constant = 1
        for factor in self.factors:
            constant *= factor if isinstance(factor, int) else 1
        parts = ([str(constant)] if constant != 1 or not names else []) + names
        if len(parts) > 1:
            parts = [f"({part})" if _is_compound(part) else part for part in parts]
        return "*".join("?" if p == "None" else p for p in parts)

    def is_multiple_of(self, number: int) -> bool:
        """Whether M is a multiple of it whatever the named dimensions are."""
        return math.prod(f for f in self.factors if isinstance(f, int)) % number == 0

    def evaluate(self, dims: dict[str, int]) -> int | None:
        """M for the given named dimensions, or None where one of them is not given."""
        product = 1
        for factor in self.factors:
            if isinstance(factor, str):
                # a name first: "batch-size" is a name too, and no difference
                known = dims.get(factor)
                factor = _evaluate(factor, dims) if known is None else known
            if not isinstance(factor, int):
                return None
            product *= factor
        return product

    @property
    def not_known(self) -> str:
        """That it is not known, in words; where the file does not say it, what may find it, too."""
        told = f"M={self} is not known"
        return f"{told}: the file does not say it; {to_know_m()}" if None in self.factors else told


def to_know_m() -> str:
    """What makes an M known that a file does not say, as far as something does."""
    fixed = "export it with fixed shapes"
    if _deps.version_of("onnxruntime") is not None:
        return fixed
    return f"`{_deps.install_line('onnxruntime')}` lets it be followed, or {fixed}"


def _is_compound(expression: str) -> bool:
    """Whether something binds less than the product that an expression becomes a factor of."""
    inner = None
    while inner != expression:
        inner, expression = expression, re.sub(r"\w*\([^()]*\)", "", expression)
    return any(sign in expression for sign in (" + ", " - ", "/", "%"))


def _evaluate(expression: str, dims: dict[str, int]) -> int | None:
    import onnx_ir as ir

    with contextlib.suppress(ValueError, ArithmeticError):
        value = ir.SymbolicDim(expression).evaluate(dims)
        return value if isinstance(value, int) else None
    return None
