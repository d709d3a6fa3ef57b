"""Turns what a search for precisions found into its record: sensitivities, shares of the work, notes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from sparseflow_trt._listing import listed
from sparseflow_trt.exporters.retyping.measured import PRODUCTS
from sparseflow_trt.exporters.retyping.precision_groups import Atom, Group
from sparseflow_trt.model.node_range import LARGEST_FP16, fp16_sum_error
from sparseflow_trt.plans.plan import Precision
from sparseflow_trt.plans.precision_record import COSTS, Sensitivity
from sparseflow_trt.validation.feeds import InputSet

_MOST_NAMED = 3  # nodes, in a sentence
_LOSES = 0.01  # what adding up in FP16 may be off by before it is said
_GIVEN = "CPU runs accumulate in FP32: they show the rounding of tensors and types, not a GPU's accumulators."


def share_work(atoms: Iterable[Atom], chosen: Mapping[str, Precision]) -> dict[str, float]:
    """The share of the products' M·N·K in each precision; what is not in `chosen` is FP16."""
    work = dict.fromkeys(COSTS, 0.0)
    for atom in atoms:
        if atom.op_type in PRODUCTS:
            work[chosen.get(atom.name, "fp16")] += atom.work
    total = sum(work.values())
    return {name: figure(work[name] / total) for name in COSTS if total and work[name]}


def cost_of(shares: Mapping[str, float]) -> float:
    """What products cost, relative to all in FP16."""
    return figure(sum(COSTS[name] * share for name, share in shares.items()))


def sensitivities(
    groups: Sequence[Group], quantized: Iterable[Atom], chosen: Mapping[str, Precision]
) -> tuple[Sensitivity, ...]:
    """Every product, and what else is suspected or not in FP16, in the order of the groups."""
    rows = [
        _sensitivity(atom, chosen.get(atom.name, "fp16"), group.suspicion)
        for group in groups
        for atom in group.atoms
        if atom.op_type in PRODUCTS or group.suspicion or atom.name in chosen
    ]
    return (*rows, *(_sensitivity(atom, chosen[atom.name], "") for atom in quantized))


def notes(
    atoms: Iterable[Atom],
    chosen: Mapping[str, Precision],
    inputs: Sequence[InputSet],
    shown: Mapping[str, str],
) -> tuple[str, ...]:
    """What these runs do not show of an engine, and where a product's sum could overflow or lose there.

    Args:
        atoms: All of the model's.
        chosen: The precision of each that is not FP16, by its name.
        inputs: What was run on.
        shown: The names of layers, as `layer_names.shown_names` gives them; other nodes keep their own.
    """
    in_fp16 = [a for a in atoms if a.range and a.op_type in PRODUCTS and a.name not in chosen]
    over = [shown.get(a.name, a.name) for a in in_fp16 if a.range and a.range.sum_bound > LARGEST_FP16]
    longest = max((a.range.k for a in in_fp16 if a.range), default=1)
    said = [_GIVEN]
    if over:
        said.append(
            f"{len(over)} product(s) in FP16 have partial sums that may exceed {LARGEST_FP16:.0f}, "
            f"though their final sums do not: an engine that accumulates in FP16 could overflow there: "
            f"{listed(over, _MOST_NAMED)}."
        )
    if fp16_sum_error(longest) > _LOSES:
        lossy = [shown.get(a.name, a.name) for a in in_fp16 if a.range and fp16_sum_error(a.range.k) > _LOSES]
        said.append(
            f"Accumulating in FP16 term by term would be off by about {100 * fp16_sum_error(longest):.1f} % "
            f"for K = {longest}: {len(lossy)} product(s) lose more than {100 * _LOSES:.0f} %: "
            f"{listed(lossy, _MOST_NAMED)}."
        )
    if any(given.seed is not None for given in inputs):
        said.append(
            "The inputs were drawn at random: real ones may reach other ranges. Give some with --inputs."
        )
    return tuple(said)


def told_inputs(inputs: Sequence[InputSet]) -> str:
    """What was measured on, in words."""
    drawn = inputs[0].seed is not None
    origin = f"drawn with seed {inputs[0].seed} and the next" if drawn else inputs[0].origin
    names = ", ".join(given.name for given in inputs[:4]) + (", …" if len(inputs) > 4 else "")
    return f"{len(inputs)} input set(s) {origin}: {names}"


def figure(value: float) -> float:
    """Four digits: what threads add up in another order does not change a plan's text."""
    return float(f"{value:.4g}")


def _finite(value: float | None) -> float | None:
    return figure(value) if value is not None and math.isfinite(value) else None


def _sensitivity(atom: Atom, precision: Precision, suspicion: str) -> Sensitivity:
    found = atom.range
    why = suspicion if precision != "fp16" else _accumulation(atom)
    if precision in ("fp32", "bf16") and not why:
        why = "the outputs leave their tolerances without it"
    known = {
        "largest": _finite(found.largest),
        "subnormal": _finite(found.tiny),
        "fp16_error": _finite(found.fp16_error),
        "bf16_error": _finite(found.bf16_error),
        "sum_bound": _finite(found.sum_bound) if atom.op_type in PRODUCTS else None,
    } if found else {}  # fmt: skip
    return Sensitivity(
        node=atom.name, op_type=atom.op_type, work=atom.work, precision=precision, why=why, **known
    )


def _accumulation(atom: Atom) -> str:
    if atom.range is None or atom.op_type not in PRODUCTS:
        return ""
    if atom.range.sum_bound > LARGEST_FP16:
        return f"partial sums may reach {atom.range.sum_bound:.3g}: beyond FP16 accumulators"
    lost = fp16_sum_error(atom.range.k)
    return f"K = {atom.range.k}: FP16 accumulators may lose {100 * lost:.1f} %" if lost > _LOSES else ""
