"""How far an output may be from the reference: defaults by precision, and the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparseflow_trt._schema import Record
from sparseflow_trt.artifacts.verdict import Tolerance
from sparseflow_trt.errors import InputError
from sparseflow_trt.plans.plan import Plan, Precision

# The reasoning, for all of them. A type rounds each value it stores by up to u (its unit roundoff,
# relative), and independent roundings add as the root of their number: through a network of about 100
# rounded tensors (a 12-layer transformer) a typical error is e = 10 u of the output's root mean square.
# (A 6-layer transformer with its weights alone rounded was measured at 2 to 3 u in FP16 and in BF16.)
# The largest of a million normally distributed errors is about 5 e: that is the element-wise bound. A
# vector that is off by e of its length has the cosine 1 - e²/2; `min_cosine` is that of 2 e, and
# `max_rel` is 2 e. A swapped weight, a lost bias or an overflow is off by the size of the output itself.
DEFAULTS: dict[Precision, Tolerance] = {
    "fp32": Tolerance(
        max_abs=1e-6,
        max_abs_rms=1e-3,
        max_rel=1e-3,
        min_cosine=0.999999,
        reason="u = 2^-24 for each addition: a sum of 4096 terms in another order is off by about 64 u, and "
        "100 of them in a row give e = 4e-5; 25 e, since functions such as Erf are approximated too. TF32 "
        "(u = 2^-11) has FP16's accuracy and is not FP32 here.",
    ),
    "fp16": Tolerance(
        max_abs=2.0**-14,
        max_abs_rms=0.1,
        max_rel=0.02,
        min_cosine=0.9998,
        reason="u = 2^-11: 100 roundings give e = 0.5 %; kernels that sum in FP16 too, which TensorRT takes,"
        " give as much again: one MLP block with K = 14336 was off by 0.57 % on an H200, its largest "
        "error ten times that. So e = 1 %, and 10 e for an element. Below 2^-14 FP16 is subnormal.",
    ),
    "bf16": Tolerance(
        max_abs=1e-6,
        max_abs_rms=0.2,
        max_rel=0.08,
        min_cosine=0.997,
        reason="u = 2^-8, eight times FP16's: 100 roundings give e = 4 %.",
    ),
    "int8": Tolerance(
        max_abs=1e-6,
        max_abs_rms=0.5,
        max_rel=0.2,
        min_cosine=0.98,
        reason="A range of ±6 root mean squares in 255 steps is off by 0.047 / √12 = 1.4 % for each tensor; "
        "50 quantized tensors give e = 10 %.",
    ),
    "fp8": Tolerance(
        max_abs=1e-6,
        max_abs_rms=0.9,
        max_rel=0.35,
        min_cosine=0.94,
        reason="E4M3 has u = 2^-4, 2.5 % on average; 50 quantized tensors give e = 18 %.",
    ),
}

_FROM_FINE_TO_COARSE: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")
_ROUNDED: dict[str, Precision] = {"FLOAT16": "fp16", "BFLOAT16": "bf16"}
_ROUNDOFF: dict[Precision, float] = {"fp16": 2.0**-11, "bf16": 2.0**-8}
_FIELDS = {
    "atol": "max_abs",
    "rms_atol": "max_abs_rms",
    "rtol": "max_rel",
    "cosine": "min_cosine",
    "equal": "min_equal",
}
_HINT = (
    "Write OUTPUT:atol=1e-2,rtol=1e-2,cosine=0.999 for one output, or the same without OUTPUT: for all; the "
    f"names are {', '.join(_FIELDS)}."
)


class ToleranceOverride(Record):
    """Some of a tolerance's fields as a user gave them, for one output or, where `output` is "", for all."""

    output: str
    values: dict[str, float]


class Tolerances(Record):
    """What a user asked for; nothing means the defaults of the plan's precision."""

    overrides: tuple[ToleranceOverride, ...] = ()

    def for_plan(
        self, plan: Plan, outputs: Mapping[str, str] | None = None, tf32: bool = False
    ) -> OutputTolerances:
        """The tolerances for a model that runs as planned: those that its precisions were searched for.

        Args:
            plan: The plan.
            outputs: The model's outputs and their ONNX types. One that is FLOAT16 or BFLOAT16 is rounded to
                it, whatever is planned.
            tf32: Whether FP32 products may run in TF32, whose unit roundoff is FP16's.
        """
        precision = plan.search.held_to if plan.search else plan_precision(plan)
        if tf32 and precision == "fp32":
            precision = "fp16"
        coarser = _FROM_FINE_TO_COARSE[_FROM_FINE_TO_COARSE.index(precision) + 1 :]
        types = {name: _ROUNDED.get(dtype) for name, dtype in (outputs or {}).items()}
        rounded = {name: own for name, own in types.items() if own in coarser}
        return output_tolerances(DEFAULTS[precision], self.overrides, rounded)


@dataclass(frozen=True)
class OutputTolerances:
    """The tolerance of each output: its own, or the one for all."""

    default: Tolerance
    outputs: dict[str, Tolerance] = field(default_factory=dict)

    def of(self, output: str) -> Tolerance:
        """The tolerance of an output."""
        return self.outputs.get(output, self.default)


def plan_precision(plan: Plan) -> Precision:
    """The coarsest precision that a plan uses: the one that bounds how near its outputs can be."""
    used = {layer.precision for layer in plan.layers if layer.precision in _FROM_FINE_TO_COARSE}
    if plan.precision != "keep":
        used.add(plan.precision)
    return max(used, key=_FROM_FINE_TO_COARSE.index, default="fp32")


def parse_tolerance(text: str) -> ToleranceOverride:
    """Reads "sentence_embedding:atol=1e-2,rtol=1e-2,cosine=0.999", or it without the name for all outputs.

    Raises:
        InputError: It reads otherwise, names a field twice, or a value is out of its range.
    """
    output, _, fields = text.rpartition(":")
    values: dict[str, float] = {}
    for part in fields.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or name not in _FIELDS:
            raise InputError(
                f"'{part.strip()}' in the tolerance '{text}' is not a known NAME=NUMBER.", _HINT, usage=True
            )
        if _FIELDS[name] in values:
            raise InputError(f"the tolerance '{text}' gives {name} twice.", _HINT, usage=True)
        values[_FIELDS[name]] = _number(text, name, number)
    if "max_abs" in values:
        values.setdefault("max_abs_rms", 0.0)  # who names an absolute bound means that bound
    return ToleranceOverride(output=output.strip(), values=values)


def parse_tolerances(texts: Sequence[str]) -> Tolerances:
    """Reads what `parse_tolerance` reads, one for each output.

    Raises:
        InputError: One reads otherwise, or an output, or all of them, is given twice.
    """
    overrides = tuple(parse_tolerance(text) for text in texts)
    names = [override.output for override in overrides]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"output '{twice}' is given two tolerances."
            if twice
            else "all outputs are given two tolerances.",
            "Join them into one: atol=1e-2,rtol=1e-2.",
            usage=True,
        )
    return Tolerances(overrides=overrides)


def output_tolerances(
    default: Tolerance,
    overrides: Sequence[ToleranceOverride] = (),
    coarser: Mapping[str, Precision] | None = None,
) -> OutputTolerances:
    """A default with what the user asked for: first what is for all outputs, on it what is for one.

    Args:
        default: For every output.
        overrides: What the user asked for.
        coarser: Outputs that are rounded to a coarser type than the default is for, and that type.
    """
    asked = {override.output: override.values for override in overrides}
    common = asked.pop("", {})
    rounded = {name: _rounded_once(default, own) for name, own in (coarser or {}).items()}
    by_output = {
        name: _overridden(_overridden(rounded.get(name, default), common), asked.get(name, {}))
        for name in dict.fromkeys((*rounded, *asked))
    }
    return OutputTolerances(_overridden(default, common), by_output)


def _rounded_once(tolerance: Tolerance, precision: Precision) -> Tolerance:
    """What is allowed of an output that is rounded to a type at last: e grows by u at most."""
    unit = _ROUNDOFF[precision]
    said = f"The output is {precision.upper()}: it is rounded once, u = 2^{math.log2(unit):.0f}."
    return tolerance.model_copy(
        update={
            "max_rel": tolerance.max_rel + unit,
            "min_cosine": tolerance.min_cosine - unit**2,
            "reason": f"{tolerance.reason} {said}",
        }
    )


def _overridden(tolerance: Tolerance, values: dict[str, float]) -> Tolerance:
    if not values:
        return tolerance
    given = ", ".join(f"{name} = {value:g}" for name, value in values.items())
    reason = f"asked for: {given}. The rest: {tolerance.reason}"
    return tolerance.model_copy(update={**values, "reason": reason})


def _number(text: str, name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        raise InputError(
            f"'{number}' for {name} in the tolerance '{text}' is not a number.", _HINT, usage=True
        ) from None
    low, high = {"cosine": (-1.0, 1.0), "equal": (0.0, 1.0)}.get(name, (0.0, math.inf))
    if not math.isfinite(value) or not low <= value <= high:
        bound = f"from {low:g} to {high:g}" if math.isfinite(high) else "finite and not negative"
        raise InputError(
            f"{name} in the tolerance '{text}' is {number}; it has to be {bound}.", _HINT, usage=True
        )
    return value
