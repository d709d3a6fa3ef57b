"""Laying a weight's values out as the node sees them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.model.weights import Step, TracedWeight


@st.composite
def steps(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Step, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    stored, result = shape, []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(len(shape)))))
            result.append(("transpose", order))
            shape = tuple(shape[i] for i in order)
        else:
            shape = (shape[0], int(np.prod(shape[1:])))
            result.append(("reshape", shape))
    return stored, tuple(result)


@given(case=steps())
def test_stored_is_the_inverse_of_operand(case: Any) -> None:
    shape, way = case
    values = np.arange(np.prod(shape)).reshape(shape)
    weight = TracedWeight(ir.Value(name="w"), ir.tensor(values), way)
    operand = weight.operand(values)
    assert operand.shape == weight.operand_shape
    np.testing.assert_array_equal(weight.stored(operand), values)
