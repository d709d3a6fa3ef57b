"""Runs a graph that measures itself, and reads what it says of each node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sparseflow_trt._deps import require
from sparseflow_trt.model.node_range import NodeRange, joined, range_from_row
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.messages import numpy_only, quiet_polygraphy
from sparseflow_trt.validation.runners import cannot_run, ort_runner, run_errors, run_once


def measure_ranges(
    path: Path,
    output: str,
    rows: Sequence[tuple[str, bool]],
    inputs: Sequence[InputSet],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, NodeRange]:
    """Each node's range over all input sets, by the node's name.

    Args:
        path: A model that measures itself.
        output: The name of the output that holds the measurements: a row for each node.
        rows: For each row the node's name, and whether it was computed in narrower types.
        inputs: What it runs on, once on each set.
        on_progress: Told of each run as it ends.

    Raises:
        InputError: The model cannot run on a set.
        ModelError: ONNX Runtime does not take the model.
        UnsupportedError: ONNX Runtime's CPU has no kernel for one of its nodes.
        NotInstalledError: ONNX Runtime or Polygraphy.
    """
    require("polygraphy", "comparing outputs")
    if not rows:  # of a model in FP64, say
        return {}
    found: dict[str, list[NodeRange]] = {}
    with quiet_polygraphy(), numpy_only():
        runner = ort_runner(path, "ranges")
        for done, given in enumerate(inputs, 1):
            try:
                table = run_once(runner, given)[output]
            except run_errors() as error:
                raise cannot_run("the model", runner, given, error) from error
            for (name, measured), row in zip(rows, table, strict=True):
                found.setdefault(name, []).append(range_from_row(row, measured))
            on_progress(done, len(inputs))
    return {name: joined(ranges) for name, ranges in found.items()}
