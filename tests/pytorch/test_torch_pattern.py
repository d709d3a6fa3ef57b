"""2:4 arithmetic on tensors: the same as on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pytorch.torch_pattern import is_2to4, keep_two, mask_hash, prune_rows

torch: Any = pytest.importorskip("torch")


@given(st.integers(0, 2**32), st.sampled_from(["float16", "bfloat16", "float32"]), st.booleans())
def test_weights_are_pruned_as_everywhere_else(seed: int, dtype: str, ties: bool) -> None:
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    if ties:
        weight = weight.round()
    weight = weight.to(getattr(torch, dtype))
    expected = prune_2to4(weight.float().numpy(), 1)
    assert np.array_equal(prune_rows(weight).float().numpy(), expected)


def test_rows_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(33, 64)
    whole = keep_two(scores)
    monkeypatch.setattr("sparseflow_trt.pytorch.torch_pattern._ROWS_AT_ONCE", 200)
    assert torch.equal(keep_two(scores), whole)
    assert torch.equal(keep_two(scores.t().contiguous().t()), whole)


def test_a_mask_hash_is_of_the_places_alone() -> None:
    weight = prune_rows(torch.randn(8, 16))
    assert mask_hash(weight) == mask_hash(weight.half() * 3) != mask_hash(weight.roll(1, 1))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([[1.0, 0.0, 2.0, 0.0]], True),
        ([[0.0, 0.0, 0.0, 0.0]], True),
        ([[1.0, 0.0, 2.0, 3.0]], False),
        ([[1.0, 0.0, 2.0, 0.0, 0.0, 1.0]], False),
        ([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1e-8, 0.0]], False),
    ],
)
def test_2to4(weight: list[list[float]], expected: bool) -> None:
    assert is_2to4(torch.tensor(weight)) is expected
