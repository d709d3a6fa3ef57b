"""Adds to a comparison what each layer adds to the error of each step, on one of its input sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sparseflow_trt._files import temporary_folder
from sparseflow_trt.artifacts.verdict import Attribution, LayerError, StepName, Validation
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.errors import SparseflowError, one_line
from sparseflow_trt.exporters.retyping.probe import (
    GIVEN,
    SIZE,
    common_values,
    write_marked,
    write_sizes,
    write_units,
)
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.layer_errors import Probe, ProbeWriters, measure_layers
from sparseflow_trt.validation.runners import ort_errors
from sparseflow_trt.validation.steps import percent, total_of


def add_layer_errors(
    compared: Validation,
    steps: Sequence[tuple[StepName, Path, Path]],
    inputs: Sequence[InputSet],
    on_step: OnProgress,
    scratch: Path,
) -> Validation:
    """The comparison with each layer's error in these steps, and the worst one in its sentence.

    Args:
        compared: What was found at the outputs.
        steps: The steps, each with the ONNX files before and after it.
        inputs: What was compared on.
        on_step: Told how far it is.
        scratch: A folder for graphs that only this needs.
    """
    attribution = compared.attribution
    if attribution is None:
        return compared
    given = _telling_set(attribution, inputs)
    layers: list[LayerError] = []
    told = [attribution.reason]
    ran = {record.name for record in attribution.steps if record.outputs}
    failures: tuple[type[Exception], ...] = (SparseflowError, *ort_errors())
    for step, before, after in steps:
        if step not in ran:
            continue
        try:
            with temporary_folder(scratch / step) as folder:
                layers += _measure(step, before, after, given, folder, partial(_tell, on_step, step))
        except failures as error:  # the outputs were compared all the same
            told.append(f"The layers of step '{step}' could not be measured: {one_line(error)}.")
    update = {
        "layers": tuple(layers),
        "layers_input_set": given.name,
        "reason": " ".join(filter(None, [*told, _worst_layer(attribution, layers)])),
    }
    return compared.model_copy(update={"attribution": attribution.model_copy(update=update)})


def _telling_set(attribution: Attribution, inputs: Sequence[InputSet]) -> InputSet:
    """The smallest input set on which an output is at least half as far off as on any: it is run often."""
    worst = {given.name: 0.0 for given in inputs}
    for step in attribution.steps:
        for found in step.outputs:
            worst[found.input_set] = max(worst[found.input_set], total_of(found))
    telling = [given for given in inputs if worst[given.name] >= max(worst.values()) / 2]
    return min(telling, key=lambda given: sum(array.size for array in given.feeds.values()))


def _measure(
    step: StepName, before: Path, after: Path, given: InputSet, folder: Path, told: partial[None]
) -> tuple[LayerError, ...]:
    values = common_values(before, after)
    if not values:
        return ()
    names = [value.name for value in values]
    write = ProbeWriters(
        sizes=partial(write_sizes, before),
        whole=(partial(write_marked, before), partial(write_marked, after)),
        units=(partial(write_units, before, names), partial(write_units, after, names)),
        size_suffix=SIZE,
        given_suffix=GIVEN,
    )
    probes = [Probe(v.name, v.layer, v.op_type, v.module, v.dtype, v.masked) for v in values]
    return measure_layers(step, probes, write, given.feeds, folder, told)


def _tell(on_step: OnProgress, step: StepName, done: int, total: int) -> None:
    on_step(Progress(f"Measuring each layer's error ({step})", done, total))


def _worst_layer(attribution: Attribution, layers: Sequence[LayerError]) -> str:
    """The layer to look at in the step that is to blame, as a sentence."""
    worst = next((layer for layer in layers if layer.step == attribution.blamed), None)
    if worst is None:
        return ""
    if worst.nonfinite:
        what = f"is the first to produce NaN or infinity, in {worst.nonfinite} element(s)"
    else:
        what = f"adds the most itself: {percent(worst.own or 0.0)} of its output"
    return f"Among the layers, '{worst.module or worst.layer}' ({worst.op_type}) {what}."
