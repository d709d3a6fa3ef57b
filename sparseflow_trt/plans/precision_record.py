"""What a search for precisions found: sensitivities, runs, and what was chosen. It goes into the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import FiniteFloat

from sparseflow_trt._schema import Record

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "fp64", "int32", "int64", "uint32", "uint64"]
# A layer has these of the model: no plan changes them.
UNCHANGED: tuple[Precision, ...] = ("int8", "fp8", "fp64", "int32", "int64", "uint32", "uint64")


def unchanged_precision(dtype: str) -> Precision | None:
    """The precision that a layer has of the model, by what it multiplies; None where a plan chooses."""
    known = {"UINT8": "int8", "FP8-E5M2": "fp8"}.get(dtype, dtype.lower())
    return next((precision for precision in UNCHANGED if precision == known), None)


ModelPrecision = Literal["fp32", "fp16", "bf16", "keep"]


class Sensitivity(Record):
    """One layer, product or other node that the search could switch, with what rides along with it.

    Figures are null where they are infinite (the type cannot hold it) or were not measured (nodes in the
    bodies of If and Loop).

    Attributes:
        node: Its name, a weighted layer's being the plan's.
        work: M·N·K of a product, else its output's elements, on the largest calibration input.
        largest: The largest magnitude of its output in FP32; mask fills of 1e30 and more are left out.
        subnormal: The share of its output's elements that FP16 holds with fewer bits, or as zero.
        fp16_error: The relative L2 error of its output where it alone reads and writes FP16.
        bf16_error: The same for BF16.
        sum_bound: For a product, the largest sum of its terms' magnitudes: no partial sum is beyond.
        precision: What it was given.
        why: Why that is not FP16; or, where it is, what FP16 accumulators of an engine could do to it.
    """

    node: str
    op_type: str
    work: FiniteFloat
    largest: FiniteFloat | None = None
    subnormal: FiniteFloat | None = None
    fp16_error: FiniteFloat | None = None
    bf16_error: FiniteFloat | None = None
    sum_bound: FiniteFloat | None = None
    precision: Precision
    why: str = ""


class PrecisionRun(Record):
    """One assignment that was run and compared with FP32.

    Attributes:
        what: The assignment, in words.
        groups: How many groups were not in FP16.
        max_abs: The largest error of an output, in units of its absolute bound; null where it is infinite.
        cosine: The least of the outputs' cosines; null where it is not a number.
    """

    what: str
    groups: int
    passed: bool
    max_abs: FiniteFloat | None = None
    cosine: FiniteFloat | None = None


class PrecisionSearch(Record):
    """How the precisions of a plan were found.

    Attributes:
        held_to: The precision whose tolerances every output had to keep.
        inputs: What it was measured on, in words.
        layers: How many weighted layers the model has.
        groups: How many groups of nodes could be switched apart from one another.
        measuring_runs: Runs in FP32 that measured ranges and sensitivities: one for each input set.
        irreducible: Whether no group can go back to FP16 alone; False where the runs were used up.
        work: The share of the work (M·N·K) in each precision.
        cost: Of the products, relative to all in FP16 (`COSTS`).
        runs: The assignments that were compared, in order.
        sensitivities: Every product, and every other node that FP16 cannot hold or that is not in FP16.
        notes: What these runs cannot show.
    """

    held_to: Precision
    inputs: str
    layers: int
    groups: int
    measuring_runs: int
    irreducible: bool
    work: dict[str, FiniteFloat]
    cost: FiniteFloat
    runs: tuple[PrecisionRun, ...]
    sensitivities: tuple[Sensitivity, ...]
    notes: tuple[str, ...] = ()


def by_need(search: PrecisionSearch) -> tuple[Sensitivity, ...]:
    """The sensitivities for a reader: what is not in FP16 first, then what has a remark, then by error."""
    rows = search.sensitivities
    return tuple(sorted(rows, key=lambda r: (r.precision == "fp16", not r.why, -(r.fp16_error or 0))))


@dataclass(frozen=True)
class Precisions:
    """What a search chose: the model's precision, the layers that have another, islands besides the default.

    `search` is how it was found; `reasons` say of layers why they are FP32 whatever is asked for.
    """

    model: ModelPrecision
    layers: Mapping[str, Precision] = field(default_factory=dict)
    islands: tuple[str, ...] = ()
    search: PrecisionSearch | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


# What one multiplication costs, FP16's as 1: from the rates of NVIDIA's A100 data sheet (TFLOPS, dense: 624
# in INT8, 312 in FP16 and BF16, 19.5 in FP32). TF32 has FP16's accuracy and is not FP32 here.
COSTS: dict[str, float] = {"fp8": 0.5, "int8": 0.5, "fp16": 1.0, "bf16": 1.0, "fp32": 16.0}
