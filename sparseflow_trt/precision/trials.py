"""Runs assignments of precisions: one typed graph each, compared with FP32 as every validation is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseflow_trt.artifacts.verdict import CandidateVerdict
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.retyping.precision_groups import Atom
from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.plans.plan import Plan, PlannedLayer, Precision
from sparseflow_trt.plans.precision_record import PrecisionRun
from sparseflow_trt.validation.compare import compare_one
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.runners import Outputs
from sparseflow_trt.validation.tolerances import OutputTolerances
from sparseflow_trt.validation.trial import Candidate


@dataclass(frozen=True)
class Question:
    """What a search is asked.

    Attributes:
        model: The model's file.
        plan: Everything in FP16 that can be, with the default islands.
        held_to: The precision whose tolerances are asked for.
        tolerances: For each output.
        inputs: At least one set.
        takes_bf16: Whether what runs the plan has BF16.
    """

    model: Path
    plan: Plan
    held_to: Precision
    tolerances: OutputTolerances
    inputs: Sequence[InputSet]
    takes_bf16: bool


class Trials:
    """The runs of one search: each assignment once, and not more than there may be.

    Attributes:
        runs: What was run, in order.
        why: The sentence of the last comparison that failed.
    """

    def __init__(
        self, question: Question, expected: Sequence[Outputs], scratch: Path, most: int, on_step: OnProgress
    ) -> None:
        self._question, self._expected, self._scratch = question, expected, scratch
        self._most, self._on_step = most, on_step
        self._known: dict[object, bool] = {}
        self.runs: list[PrecisionRun] = []
        self.why = ""

    def left(self) -> bool:
        """Whether there may be another run."""
        return len(self.runs) < self._most

    def passes(self, wide: Iterable[Atom], what: str, brain: Collection[str] = ()) -> bool:
        """Whether the outputs are within tolerance with these atoms in FP32, layers of `brain` in BF16."""
        atoms = tuple(wide)
        layers: dict[str, Precision] = {name: "fp32" for atom in atoms for name in atom.layers}
        layers.update(dict.fromkeys(brain, "bf16"))
        islands = tuple(name for atom in atoms for name in atom.nodes)
        said = what if atoms else "everything in FP16"
        return self._run(assigned(self._question.plan, layers, islands), said, len(atoms))

    def passes_in_bf16(self) -> bool:
        """Whether they are with everything in BF16 that was in FP16."""
        return self._run(in_bf16(self._question.plan), "everything in BF16", 0)

    def _run(self, plan: Plan, what: str, wide: int) -> bool:
        key = (plan.precision, plan.layers, frozenset(plan.islands))
        if key not in self._known:
            self._on_step(Progress(f"Choosing precisions: {what}", len(self.runs), self._most))
            verdict = self._compare(plan)
            self._known[key] = verdict.verdict == "pass"
            self.runs.append(_recorded(verdict, what, wide))
            if verdict.verdict != "pass":
                self.why = verdict.reason
        return self._known[key]

    def _compare(self, plan: Plan) -> CandidateVerdict:
        path = self._scratch / "candidate.onnx"
        apply_plan(read_model(self._question.model), plan, path)
        typed = read_model(path)
        if needs_twin(typed):
            path = self._scratch / "twin.onnx"
            write_twin(typed, path)
        candidate = Candidate("candidate", path, "onnx", as_written=True)
        return compare_one(candidate, self._question.inputs, self._expected, self._question.tolerances)


def assigned(plan: Plan, layers: dict[str, Precision], islands: tuple[str, ...]) -> Plan:
    """The plan with other precisions for some layers, and more islands; nothing planned sparse."""
    given = tuple(_dense(layer, layers.get(layer.name, layer.precision)) for layer in plan.layers)
    return plan.model_copy(update={"layers": given, "islands": (*plan.islands, *islands)})


def in_bf16(plan: Plan) -> Plan:
    """The plan with BF16 in the place of FP16; nothing planned sparse."""
    given = tuple(
        _dense(layer, "bf16" if layer.precision == "fp16" else layer.precision) for layer in plan.layers
    )
    return plan.model_copy(update={"layers": given, "precision": "bf16"})


def _dense(layer: PlannedLayer, precision: Precision) -> PlannedLayer:
    # the values are the same, and a layer that is not planned sparse is not scanned again
    return layer.model_copy(update={"precision": precision, "sparsity": "dense"})


def _recorded(verdict: CandidateVerdict, what: str, wide: int) -> PrecisionRun:
    outputs = verdict.outputs
    errors = [o.max_abs / o.abs_bound if o.max_abs is not None and o.abs_bound else None for o in outputs]
    cosines = [o.cosine for o in outputs]
    return PrecisionRun(
        what=what,
        groups=wide,
        passed=verdict.verdict == "pass",
        max_abs=_worst(errors, max),
        cosine=_worst(cosines, min),
    )


def _worst(values: list[float | None], pick: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return pick(known) if known and len(known) == len(values) else None
