"""Says which node of a graph that failed its comparison is the first that FP16 cannot hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.artifacts.verdict import CandidateVerdict, Validation
from sparseflow_trt.errors import SparseflowError
from sparseflow_trt.exporters.retyping.measured import OUTPUT, add_measurements
from sparseflow_trt.exporters.retyping.node_types import infer_types
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.node_range import LARGEST_FP16, NodeRange
from sparseflow_trt.model.sites import name_of
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.ranges import measure_ranges

if TYPE_CHECKING:
    import onnx_ir as ir


def with_first_overflow(
    validation: Validation, candidate: str, twin: Path, inputs: Sequence[InputSet], scratch: Path
) -> Validation:
    """The validation, where a candidate failed since FP16 overflowed with a sentence that says where.

    Args:
        validation: The comparison.
        candidate: The name of the candidate that `twin` was.
        twin: A graph that rounds each tensor to FP16 or BF16 by a Cast and back.
        inputs: What was compared on.
        scratch: A folder for the graph that is measured.
    """
    failed = next((c for c in validation.candidates if c.name == candidate and c.verdict == "fail"), None)
    if failed is None:
        return validation
    try:
        said = _first_overflow(twin, _failing(failed, inputs), scratch / "overflow.onnx")
    except SparseflowError:
        return validation  # it failed for another reason, which the verdict says
    if not said:
        return validation
    told = failed.model_copy(update={"reason": f"{failed.reason} {said}"})
    return validation.model_copy(
        update={
            "reason": validation.reason.replace(failed.reason, told.reason),
            "candidates": tuple(told if c is failed else c for c in validation.candidates),
        }
    )


def _failing(verdict: CandidateVerdict, inputs: Sequence[InputSet]) -> list[InputSet]:
    names = {output.input_set for output in verdict.outputs if not output.passed}
    return [given for given in inputs if given.name in names][:1] or list(inputs[:1])


def _first_overflow(twin: Path, inputs: Sequence[InputSet], path: Path) -> str:
    model = read_model(twin)
    infer_types(model.ir)
    ends = [value.producer() for value in model.ir.graph.outputs]
    rows = add_measurements(model.ir, narrower=False)
    save_model(model.ir, path)
    ranges = measure_ranges(path, OUTPUT, rows, inputs)
    order = {node: i for i, node in enumerate(model.ir.graph)}
    casts = _overflowing_casts([node for node in ends if node is not None], ranges) or [
        node for node in order if _overflows(node, ranges)
    ]
    if not casts:
        return ""
    maker = min(casts, key=order.__getitem__).inputs[0]
    node = maker.producer() if maker is not None else None
    if node is None:
        return ""
    found = ranges.get(name_of(node))  # none of an integer's
    reaches = f"it reaches {found.largest:.3g}, and " if found else ""
    return (
        f"The first to overflow in FP16 is '{name_of(node)}' ({node.op_type}): {reaches}FP16 ends at "
        f"{LARGEST_FP16:.0f}. Plan it in fp32 (a layer's precision, or an island), or "
        "let --precision auto find what has to be in FP32."
    )


def _overflowing_casts(ends: list[ir.Node], ranges: Mapping[str, NodeRange]) -> list[ir.Node]:
    """Where the infinities and NaN of these nodes come from: the ways back along what is not finite.

    So a mask's fill that overflows and vanishes in a Softmax is not taken for the cause.
    """
    found, seen, open_ends = [], set(ends), list(ends)
    while open_ends:
        node = open_ends.pop()
        if not _broken(node, ranges):
            continue
        if _overflows(node, ranges):
            found.append(node)
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker not in seen:
                seen.add(maker)
                open_ends.append(maker)
    return found


def _overflows(node: ir.Node, ranges: Mapping[str, NodeRange]) -> bool:
    """Whether a Cast makes infinities of finite numbers."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    maker = value.producer() if value is not None else None
    return maker is not None and _broken(node, ranges) and not _broken(maker, ranges)


def _broken(node: ir.Node, ranges: Mapping[str, NodeRange]) -> bool:
    found = ranges.get(name_of(node))
    return found is not None and found.fills > 0
