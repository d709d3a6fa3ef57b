"""The three methods on one weight: their laws, and SparseGPT against its definition."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow_trt.errors import InputError
from sparseflow_trt.exporters.pruning.pruning_methods import (
    Hessian,
    Norms,
    Pruned,
    prune_by_magnitude,
    prune_by_sparsegpt,
    prune_by_wanda,
)
from sparseflow_trt.pytorch.torch_pattern import is_2to4, keep_two

torch: Any = pytest.importorskip("torch")


def draw(seed: int, n: int = 6, k: int = 16, rows: int = 64) -> tuple[Any, Any]:
    """W[N, K], and inputs X[rows, K] that depend on each other."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=source) @ torch.randn(k, k, generator=source)
    return torch.randn(n, k, generator=source), x


def norms_of(x: Any) -> Norms:
    """Of X, added in two pieces."""
    made = Norms(x.shape[1], "cpu")
    for piece in x.split(len(x) // 2 + 1):
        made.add(piece)
    return made


def hessian_of(x: Any) -> Hessian:
    """Of X, added in two pieces."""
    made = Hessian(x.shape[1], "cpu")
    for piece in x.split(len(x) // 2 + 1):
        made.add(piece)
    return made


def prune(method: str, weight: Any, x: Any) -> Pruned:
    """By the method's name."""
    if method == "wanda":
        return prune_by_wanda(weight, norms_of(x))
    return prune_by_magnitude(weight) if method == "magnitude" else prune_by_sparsegpt(weight, hessian_of(x))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@given(
    seed=st.integers(0, 2**32), dead=st.booleans(), dtype=st.sampled_from(["float32", "float16", "bfloat16"])
)
@settings(max_examples=25)
def test_what_is_pruned_is_2to4_and_stays_as_it_is(method: str, seed: int, dead: bool, dtype: str) -> None:
    weight, x = draw(seed)
    if dead:
        x[:, 3:6] = 0  # inputs that no batch reaches
    weight, before = weight.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype)).clone()
    once = prune(method, weight, x).weight
    assert torch.equal(weight, before)
    assert once.dtype == weight.dtype
    assert is_2to4(once)
    assert torch.equal(prune(method, once, x).weight, once)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_inputs_that_tell_nothing_leave_magnitude(seed: int) -> None:
    weight, _ = draw(seed)
    alike = torch.eye(16) * 3
    expected = prune_by_magnitude(weight).weight
    assert torch.equal(prune_by_wanda(weight, norms_of(alike)).weight, expected)
    assert torch.allclose(prune_by_sparsegpt(weight, hessian_of(alike)).weight, expected, atol=1e-6)
    nothing = torch.zeros(4, 16)
    assert torch.equal(prune_by_wanda(weight, norms_of(nothing)).weight, expected)
    assert torch.allclose(prune_by_sparsegpt(weight, hessian_of(nothing)).weight, expected, atol=1e-6)


def test_wanda_keeps_what_loud_inputs_meet() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    x = torch.tensor([[100.0, 50.0, 1.0, 1.0]])
    assert prune_by_wanda(weight, norms_of(x)).weight.tolist() == [[1.0, 2.0, 0.0, 0.0]]


def test_sparsegpt_is_its_definition() -> None:
    """Column by column with the inverse of what is left of the Hessian, as section 3 of the paper has it."""
    weight, x = draw(1, n=4, k=136, rows=400)  # more than one block of 128
    damped = (x.t() @ x).double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(136)
    left = weight.double().clone()
    for j in range(136):
        inverse = torch.linalg.inv(damped[j:, j:])
        if j % 4 == 0:
            scores = []
            for i in range(j, j + 4):
                diagonal = torch.linalg.inv(damped[i:, i:])[0, 0]
                scores.append(left[:, i].square() / diagonal)
            mask = keep_two(torch.stack(scores, 1))
        error = left[:, j].masked_fill(mask[:, j % 4], 0)
        left[:, j:] -= torch.outer(error / inverse[0, 0], inverse[0])
        left[:, j] = left[:, j].masked_fill(~mask[:, j % 4], 0)
    found = prune_by_sparsegpt(weight, hessian_of(x)).weight.double()
    assert torch.equal(found != 0, left != 0)
    assert torch.allclose(found, left, rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_sparsegpt_is_closer_than_magnitude(seed: int) -> None:
    weight, x = draw(seed, n=32, k=64, rows=256)
    errors = {
        method: float((x @ (weight - prune(method, weight, x).weight).t()).norm())
        for method in ("magnitude", "sparsegpt")
    }
    assert errors["sparsegpt"] < errors["magnitude"]


def test_a_hessian_that_cannot_be_inverted_is_damped_more() -> None:
    weight, x = draw(0)
    hessian = hessian_of(x)
    hessian.products -= 0.05 * hessian.products.diagonal().mean() * torch.eye(16)  # not positive any more
    smallest = float(torch.linalg.eigvalsh(hessian.products)[0])
    assert smallest < -0.01 * float(hessian.products.diagonal().mean())
    pruned = prune_by_sparsegpt(weight, hessian)
    assert pruned.damping == pytest.approx(0.1)
    assert is_2to4(pruned.weight)


def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, x = draw(0)
    x[3, 3] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        prune_by_sparsegpt(weight, hessian_of(x))
