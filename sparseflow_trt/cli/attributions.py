"""Renders where the error comes from: by step, and by layer where that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparseflow_trt._listing import listed
from sparseflow_trt.cli import console

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.graph_record import GraphRecord
    from sparseflow_trt.artifacts.verdict import Attribution, LayerError, StepName

_MOST_OUTPUTS = 3  # in a sentence
_MOST_LAYERS = 10  # of each step: the rest is in the JSON


def print_attribution(attribution: Attribution) -> None:
    """Prints the step to blame, what each step changes of each output, and the layers that add most."""
    from sparseflow_trt.artifacts.verdict import cancelling, shown_outputs

    out = console.out()
    console.say(f"\nWhere the error comes from: {attribution.reason}")
    outputs = [found for step in attribution.steps for found in step.outputs]
    spared = [
        *(() if any(found.equal is not None for found in outputs) else ("Equal",)),
        *(() if any(found.nonfinite for found in outputs) else ("Not finite",)),
    ]
    table = console.table(
        "Step", "Output", ">Error", ">So far", ">Share", ">Max abs", ">Equal", ">Not finite", "Input set",
        spared=tuple(spared),
    )  # fmt: skip
    steps, without_shares = list(attribution.steps), dict[tuple[str, str], float]()
    left = cancelling(steps)
    if attribution.unrestored:
        steps.insert(0, attribution.unrestored)
    for step in steps:
        as_given = step is attribution.unrestored
        name = "pruning, not restored" if as_given else step.name
        for found in shown_outputs(step, "" if as_given else attribution.input_set):
            place = (found.output, found.input_set)
            if place in left and not as_given:
                without_shares[place] = left[place]
            share = None if as_given or place in left else found.share
            table.add_row(
                name, found.output, _percent(found.error), _percent(found.accumulated),
                "-" if share is None else f"{round(100 * share, 1) + 0.0:.1f} %",
                "-" if found.max_abs is None else f"{found.max_abs:.2e}",
                "-" if found.equal is None else f"{found.equal:.4f}", str(found.nonfinite or "-"),
                found.input_set,
            )  # fmt: skip
        if not step.outputs:
            table.add_row(name, "not run")
    if steps:
        out.print(table)
    if without_shares:
        named = [
            f"'{output}' on '{on}' (an error of {_percent(error)} is left)"
            for (output, on), error in without_shares.items()
        ]
        said = listed(named, _MOST_OUTPUTS)
        console.say(f"  No shares where one step undoes another's error: {said}.")
    for name in dict.fromkeys(layer.step for layer in attribution.layers):
        _print_layers(attribution, name)


def print_restored(graph: GraphRecord, names: Mapping[str, str]) -> None:
    """Prints which layers got their unpruned weights back, and what became of the guarded 2:4 patterns.

    Args:
        graph: A manifest's.
        names: Of its layers, as `layer_names.shown_names` gives them.
    """
    if back := len(graph.restored_layers):
        console.say(f"{back} layer(s) planned dense got back the unpruned model's weights.")
    for record in graph.restored:
        if record.route == "kept":
            said = f"Layer '{names.get(record.layer, record.layer)}' keeps its weight: {record.reason}."
            console.say(console.styled(said, "yellow"))
    read = sum(check.read for check in graph.mask_checks)
    if read:
        console.say(
            f"{read} layer(s) planned sparse are still 2:4 in the graph that the engine is built from."
        )


def _print_layers(attribution: Attribution, step: StepName) -> None:
    layers = [layer for layer in attribution.layers if layer.step == step]
    shown = [layer for layer in layers if _adds(layer)][:_MOST_LAYERS]
    out = console.out()
    console.say(
        f"\nLayers by the error that each adds, step '{step}', input set '{attribution.layers_input_set}':"
    )
    table = console.table("Layer", "Operator", ">Own error", ">So far", ">Not finite", ">Clipped")
    for layer in shown:
        table.add_row(
            layer.module or layer.layer, layer.op_type, _percent(layer.own), _percent(layer.accumulated),
            str(layer.nonfinite or "-"), str(layer.saturated or "-"),
        )  # fmt: skip
    out.print(table)
    if len(layers) > len(shown):
        console.say(f"  {len(layers) - len(shown)} more add less: --json lists all.")


def _adds(layer: LayerError) -> bool:
    return bool(layer.nonfinite or layer.own or layer.own is None)


def _percent(size: float | None) -> str:
    if size is None:
        return "-"
    return f"{100 * size:.0f} %" if size >= 0.1 else f"{100 * size:.2g} %" if size else "0"
