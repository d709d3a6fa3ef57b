"""Which Linear layers of a module are swapped for sparse ones, and that they come back. No GPU.

The kernel here multiplies by the dense weight: what cuSPARSELt itself computes is checked on a GPU, by
benchmarks/end_to_end_torch.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm
from sparseflow_trt.engines.torch_kernels.torch_sparse import CuSparseLt, restore_linears, swap_linears
from sparseflow_trt.pytorch.torch_pattern import prune_rows

torch = pytest.importorskip("torch")


class Dense:
    """Takes any weight, remembers what was searched, and multiplies as PyTorch does."""

    def __init__(self) -> None:
        self.searched: list[tuple[int, tuple[int, int]]] = []

    def why_not(self, weight: Any) -> str:
        """Nothing."""
        return ""

    def pack(self, weight: Any) -> Any:
        """A copy."""
        return weight.clone()

    def search(self, x: Any, packed: Any, shape: tuple[int, int]) -> Algorithm:
        """The first."""
        self.searched.append((len(x), shape))
        return Algorithm(0)

    def multiply(self, x: Any, packed: Any, algorithm: Algorithm, bias: Any) -> Any:
        """F.linear; rows come in eights."""
        assert len(x) % 8 == 0
        return torch.nn.functional.linear(x, packed, bias)


Module: Any = torch.nn.Module


class Block(Module):  # type: ignore[misc]
    """A gated MLP, with a layer that stands in two places and a subclass of Linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj = torch.nn.Linear(32, 64, bias=False)
        self.up_proj = torch.nn.Linear(32, 64)
        self.down_proj = torch.nn.Linear(64, 32)
        self.tied = self.down_proj
        self.strange = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(32, 32)

    def forward(self, x: Any) -> Any:
        hidden = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.strange(self.down_proj(hidden)) + self.tied(hidden)


@pytest.fixture
def model() -> Any:
    """Two blocks, all of whose weights are 2:4 but the second's gate."""
    made = torch.nn.Sequential(Block(), Block()).eval()
    with torch.no_grad():
        for name, layer in made.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "1.gate_proj":
                layer.weight.copy_(prune_rows(layer.weight))
    return made


def test_what_can_be_swapped_is_and_computes_the_same(model: Any) -> None:
    kernel, x = Dense(), torch.randn(2, 5, 32)
    with torch.no_grad():
        before = model(x)
        swapped = swap_linears(model, lambda name, layer: True, kernel)
        after = model(x)
        assert torch.allclose(before, after, atol=1e-6)
        assert model[0].up_proj(input=x).shape == (2, 5, 64)
        assert sorted(swapped.dense) == sorted(
            [*(f"{i}.{name}" for i in (0, 1) for name in ("up_proj", "down_proj", "tied")), "0.gate_proj"]
        )
        assert swapped.kept == {
            "0.strange": "it is a NonDynamicallyQuantizableLinear, not a plain Linear",
            "1.strange": "it is a NonDynamicallyQuantizableLinear, not a plain Linear",
            "1.gate_proj": "its weights are not 2:4",
        }
        assert model[0].tied is model[0].down_proj
        assert "SparseLinear(in_features=64, out_features=32, 2:4)" in repr(model)
        assert model[0].up_proj.weight.dtype == torch.float32
        # 10 rows are padded to 16; each shape is searched once, whatever layer has it
        assert kernel.searched == [(16, (64, 32)), (16, (32, 64))]
        model(torch.randn(16, 32))
        assert len(kernel.searched) == 2
        model(torch.randn(17, 32))
        assert len(kernel.searched) == len(swapped.algorithms) == 4


def test_no_rows_give_none_as_in_a_dense_layer(model: Any) -> None:
    """An expert of a mixture gets no token now and then: there is no product of none to search."""
    kernel = Dense()
    for shape in ((0, 32), (2, 0, 32)):
        expected = model(torch.empty(shape))
        swapped = swap_linears(model, lambda name, layer: True, kernel)
        found = model(torch.empty(shape))
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype) == (shape, torch.float32)
        restore_linears(swapped)
    assert not kernel.searched


def test_a_swap_is_undone(model: Any) -> None:
    modules, state = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    swapped = swap_linears(model, lambda name, layer: name.endswith("up_proj"), Dense())
    assert sorted(swapped.dense) == ["0.up_proj", "1.up_proj"]
    assert "0.up_proj.weight" not in model.state_dict()
    restore_linears(swapped)
    assert dict(model.named_modules()) == modules
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_a_layer_with_hooks_is_kept(model: Any) -> None:
    model[0].up_proj.register_forward_hook(lambda *_: None)
    swapped = swap_linears(model, lambda name, layer: name == "0.up_proj", Dense())
    assert (swapped.dense, swapped.kept) == ({}, {"0.up_proj": "it has hooks, which would be lost"})


def test_what_cusparselt_does_not_take() -> None:
    kernel = CuSparseLt()
    assert kernel.why_not(torch.zeros(64, 32)) == "its weight is float32, not float16 or bfloat16"
    assert "64→40" in kernel.why_not(torch.zeros(40, 64, dtype=torch.float16))
    assert kernel.why_not(torch.zeros(48, 64, dtype=torch.bfloat16)) == ""
