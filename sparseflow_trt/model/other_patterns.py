"""What is found in a weight that is not 2:4 along K: another pattern, many zeros, NaN."""

from __future__ import annotations

import math
from dataclasses import replace

from sparseflow_trt.model.pattern import GROUP
from sparseflow_trt.model.scan import PatternScan, WeightReader, scan_pattern
from sparseflow_trt.model.sites import LayerSite
from sparseflow_trt.model.weights import TracedWeight

_MANY_ZEROS = 0.25  # INT8 weights that nobody pruned have some


def seems_pruned(zeros: int, elements: int) -> bool:
    """Whether a weight that is not 2:4 was pruned another way, as it seems: many of its elements are zero."""
    return zeros >= _MANY_ZEROS * elements


def other_pattern(reader: WeightReader, site: LayerSite, scan: PatternScan) -> str:
    """What the zeros of a layer's weight tell that is not 2:4 along K; "" where it has few.

    Args:
        reader: Of the model's weights.
        site: The layer; its weight was read.
        scan: What reading it along K found.
    """
    weight = site.weight
    assert isinstance(weight, TracedWeight)
    elements = GROUP * scan.groups
    if not seems_pruned(scan.zeros, elements):
        return ""
    shape = weight.operand_shape
    along_n = 0 if site.node.op_type == "Conv" else 2 * len(shape) - 3 - site.k_axis
    groups_along_n = len(shape) > 1 and shape[along_n] % GROUP == 0
    if groups_along_n and not scan_pattern(reader, weight, along_n).violating:
        return "it is 2:4 along N, not K"
    if site.node.op_type == "Conv" and math.prod(shape[2:]) > 1:
        # as weight.flatten(1) lays it: the kernel's places are next to each other, the channels are not
        flattened = ("reshape", (shape[0], math.prod(shape[1:])))
        if not scan_pattern(reader, replace(weight, steps=(*weight.steps, flattened)), 1).violating:
            return "it is 2:4 along its flattened kernel, not along its input channels"
    return f"{percent(scan.zeros / elements)} of the weight is zero"


def told_of_nan(number: int) -> str:
    """That a weight holds so many NaN; "" for none."""
    return f"it holds NaN in {number} place(s), which count as non-zeros" if number else ""


def percent(share: float) -> str:
    """A share in whole percents, so that layers pruned alike read alike; below one more of it."""
    return f"{100 * share:.0f}%" if share >= 0.01 else f"{100 * share:.2g}%"
