"""The chain of models from the unpruned one to the engine, while they run on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseflow_trt.artifacts.verdict import Attribution, OutputVerdict, StepName
from sparseflow_trt.validation.runners import ort_runner
from sparseflow_trt.validation.steps import Outputs, Stage, add_outputs, attribute


@dataclass(frozen=True)
class Origin:
    """Where the chain begins.

    Attributes:
        unpruned: The unpruned model in FP32, an ONNX file.
        as_given: The pruned model in FP32, where the reference is that with restored weights.
    """

    unpruned: Path
    as_given: Path | None = None


class Chain:
    """Unpruned model, reference, candidates; what each changes of the one before it.

    Attributes:
        origins: The files that run before the reference, with their runners.
    """

    def __init__(self, origin: Origin | None, candidates: Sequence[Stage]) -> None:
        paths = [origin.unpruned, origin.as_given] if origin else []
        self.origins = [(path, ort_runner(path, "reference")) for path in paths if path is not None]
        self._as_given = Stage("the pruned model as given, FP32") if len(self.origins) > 1 else None
        weights = "the pruned model, FP32" if origin else "the model as given, FP32"
        if self._as_given:
            weights = "the pruned model with restored weights, FP32"
        first = [Stage("the unpruned model, FP32")] if origin else []
        self._stages = [*first, Stage(weights, "pruning" if origin else None), *candidates]

    def add(
        self, input_set: str, before: Sequence[Outputs], expected: Outputs, got: Sequence[Outputs | None]
    ) -> None:
        """Adds the outputs on one input set: of the origins, the reference and each candidate."""
        add_outputs(self._stages, input_set, [*before[:1], expected, *got])
        if self._as_given:
            add_outputs([self._stages[0], self._as_given], input_set, before)

    def attribution(self, failed: Sequence[tuple[StepName, OutputVerdict]]) -> Attribution:
        """The step to blame, given the outputs that are out of tolerance."""
        return attribute(self._stages, failed, self._as_given)
