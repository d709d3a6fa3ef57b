"""Finds the cheapest precisions that keep every output within tolerance, in few runs."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.errors import PlanError
from sparseflow_trt.exporters.fp32_reference import reference_for
from sparseflow_trt.exporters.retyping.measured import OLDEST_OPSET, OUTPUT, add_measurements
from sparseflow_trt.exporters.retyping.node_types import has_bf16, infer_types
from sparseflow_trt.exporters.retyping.precision_groups import Atom, Group, find_groups, quantized_atoms
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.layer_names import shown_names
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.node_range import NodeRange
from sparseflow_trt.model.sites import find_sites
from sparseflow_trt.plans.precision_record import ModelPrecision, Precision, Precisions, PrecisionSearch
from sparseflow_trt.precision.sufficient import find_sufficient
from sparseflow_trt.precision.summary import cost_of, notes, sensitivities, share_work, told_inputs
from sparseflow_trt.precision.trials import Question, Trials
from sparseflow_trt.validation.compare import reference_outputs
from sparseflow_trt.validation.ranges import measure_ranges
from sparseflow_trt.validation.tolerances import DEFAULTS

_MOST_OUTSIDE = 0.5  # of the work, in FP32, from which BF16 is tried for the whole model


@dataclass(frozen=True)
class _Found:
    """What stays out of FP16: `wide` in FP32, but the layers of `brain` among them in BF16."""

    wide: tuple[Atom, ...]
    brain: tuple[str, ...]
    irreducible: bool


def choose_precisions(question: Question, scratch: Path, on_step: OnProgress = lambda _: None) -> Precisions:
    """Searches for the cheapest precisions whose outputs are within tolerance of FP32.

    Ranges and each node's own sensitivity come from one FP32 run on each input set. Then groups of nodes
    are tried in FP32, likely ones first (`find_sufficient`); what was found is taken apart once more; and
    of what is left the weighted layers are tried in BF16. Every assignment is a typed graph that is
    compared with FP32; only one that passed is an answer. About 8 + 4·log2(groups) are run at most.

    Args:
        question: What is asked.
        scratch: An empty folder.
        on_step: Told of each run.

    Raises:
        PlanError: Not even FP32 keeps the tolerances, or the model's opset is too old to be measured.
        InputError: The reference cannot run on a set.
        ModelError: ONNX Runtime does not take the model.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: ONNX Runtime or Polygraphy.
    """
    model = read_model(question.model)
    reference = reference_for(model, scratch / "reference.onnx")
    ranges = _measure(reference, question, scratch, on_step)
    # twice a typical error of a whole model is what `max_rel` allows
    groups = find_groups(model, question.plan, ranges, DEFAULTS[question.held_to].max_rel / 2)
    quantized = quantized_atoms(model, question.plan, ranges)
    on_step(Progress("Running the FP32 reference"))
    expected = reference_outputs(reference, question.inputs)
    trials = Trials(question, expected, scratch, 8 + 4 * math.ceil(math.log2(len(groups) + 1)), on_step)
    in_bf16 = _takes_bf16(model) if question.takes_bf16 else set()
    found = _find(in_bf16, groups, bool(quantized), trials)

    every = (*_atoms(groups), *(atom for atom, _ in quantized))
    given: dict[str, Precision] = {atom.name: precision for atom, precision in quantized}
    chosen = {**given, **{a.name: _of(a, found.brain) for a in found.wide}}
    precision: ModelPrecision = "fp16"
    much = share_work(every, chosen).get("fp32", 0) > _MOST_OUTSIDE
    all_can = question.takes_bf16 and in_bf16.issuperset(x.name for x in question.plan.layers)
    if much and all_can and trials.passes_in_bf16():
        precision, found = "bf16", _Found((), (), found.irreducible)
        chosen = {**given, **{atom.name: "bf16" for atom in _atoms(groups)}}
    layers: dict[str, Precision] = {
        layer: _of(atom, found.brain) for atom in found.wide for layer in atom.layers
    }
    work = share_work(every, chosen)
    record = PrecisionSearch(
        held_to=question.held_to,
        inputs=told_inputs(question.inputs),
        layers=len(question.plan.layers),
        groups=len(groups),
        measuring_runs=len(question.inputs),
        irreducible=found.irreducible,
        work=work,
        cost=cost_of(work),
        runs=tuple(trials.runs),
        sensitivities=sensitivities(groups, [atom for atom, _ in quantized], chosen),
        notes=notes(every, chosen, question.inputs, shown_names(question.plan.layers)),
    )
    return Precisions(precision, layers, tuple(name for a in found.wide for name in a.nodes), record)


def _takes_bf16(model: OnnxModel) -> set[str]:
    """The layers whose operator the model's opset has in BF16."""
    return {site.name for site in find_sites(model) if has_bf16(site.node, model.opset)}


def _find(in_bf16: Container[str], groups: tuple[Group, ...], quantized: bool, trials: Trials) -> _Found:
    kept, sure = find_sufficient(
        groups, lambda some: trials.passes(_atoms(some), _told(some, groups, "groups")), trials.left
    )
    wide = _atoms(kept)
    if sure and len(wide) > len(kept):
        parts = wide
        wide, sure = find_sufficient(
            parts, lambda some: trials.passes(some, _told(some, parts, "parts of these groups")), trials.left
        )
    layers = sorted(
        (layer for atom in wide for layer in atom.layers),
        key=lambda name: -max(_bf16_error(atom) for atom in wide if name in atom.layers),
    )
    able = [name for name in layers if name in in_bf16]
    stay: tuple[str, ...] = tuple(able)
    if able:
        stay, _ = find_sufficient(
            able,
            lambda some: trials.passes(
                wide,
                f"{len(able) - len(some)} of {len(layers)} wide layers in BF16",
                tuple(name for name in able if name not in some),
            ),
            trials.left,
        )
    brain = tuple(name for name in able if name not in stay)
    if not trials.passes(wide, _told(wide, _atoms(groups), "nodes"), brain):
        if quantized:  # whose scales and products take the model's precision, FP16, in every trial
            raise PlanError(
                "no precision of what is not quantized keeps the outputs within tolerance, not even FP32: "
                f"{trials.why}",
                "--precision fp32 computes what is around the quantized values in FP32, too; or allow more "
                "with --tolerance.",
            )
        raise PlanError(
            f"no precision keeps the outputs within tolerance, not even FP32: {trials.why}",
            "Allow more with --tolerance.",
        )
    return _Found(wide, brain, sure)


def _measure(reference: Path, question: Question, scratch: Path, on_step: OnProgress) -> dict[str, NodeRange]:
    step = "Measuring ranges and sensitivities"
    on_step(Progress(step, 0, len(question.inputs)))
    model = read_model(reference)
    if model.opset < OLDEST_OPSET:
        raise PlanError(
            f"{question.model} is written in opset {model.opset}; --precision auto measures with opset "
            f"{OLDEST_OPSET} and newer.",
            "Convert it with onnx.version_converter, export it again, or name a precision: --precision fp16.",
        )
    find_sites(model)  # inlines functions
    infer_types(model.ir)
    rows = add_measurements(model.ir, narrower=True)
    path = scratch / "measured.onnx"
    save_model(model.ir, path)
    return measure_ranges(
        path, OUTPUT, rows, question.inputs, lambda done, total: on_step(Progress(step, done, total))
    )


def _told(some: tuple[object, ...], of: tuple[object, ...], what: str) -> str:
    return f"{len(some)} of {len(of)} {what} in FP32"


def _atoms(groups: Iterable[Group]) -> tuple[Atom, ...]:
    return tuple(atom for group in groups for atom in group.atoms)


def _of(atom: Atom, brain: tuple[str, ...]) -> Precision:
    return "bf16" if set(atom.layers) & set(brain) else "fp32"


def _bf16_error(atom: Atom) -> float:
    error = atom.range.bf16_error if atom.range else None
    return math.inf if error is None else error
