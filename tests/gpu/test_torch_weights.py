"""Sparse weights of PyTorch modules on a GPU: swapped in by a policy, unpacked from files, pruned there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.engines.torch_kernels import cusparselt
from sparseflow_trt.engines.torch_kernels.sparsify import restore_module, sparsify_module
from sparseflow_trt.exporters.pruning.prune_torch import prune_module
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.pytorch.sparse_checkpoint import load_checkpoint, unpack_checkpoint
from sparseflow_trt.pytorch.torch_pattern import is_2to4, prune_rows

NEEDS_TENSORRT = False


pytestmark = pytest.mark.needs_torch


def make_mlp(torch: Any, hidden: int = 4096, inner: int = 14336) -> Any:
    """A gate, an up and a down projection with 2:4 weights, and a head, in FP16."""
    torch.manual_seed(0)

    class Mlp(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj = torch.nn.Linear(hidden, inner, bias=False)
            self.up_proj = torch.nn.Linear(hidden, inner, bias=False)
            self.down_proj = torch.nn.Linear(inner, hidden)
            self.lm_head = torch.nn.Linear(hidden, 128)

        def forward(self, x: Any) -> Any:
            return self.lm_head(self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)))

    with torch.device("cuda"):
        made = Mlp().half().eval()
    with torch.no_grad():
        for layer in made.children():
            layer.weight.copy_(prune_rows(layer.weight))
    return made


def test_a_policy_swaps_layers_that_compute_the_same_and_come_back() -> None:
    torch = cusparselt.load_torch()
    module = make_mlp(torch)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(1024, 4096, dtype=torch.float16, device="cuda")
    with torch.no_grad():
        dense = module(x).float()
        done = sparsify_module(module, find_policy("a100-80gb"), 1024)
        assert sorted(done.swapped.dense) == ["down_proj", "gate_proj", "up_proj"]
        assert done.coverage.swapped == pytest.approx(done.coverage.mlp)
        sparse = module(x).float()
        assert len(done.swapped.algorithms) == 2  # one plan for each shape, kept
        module(x)
        assert len(done.swapped.algorithms) == 2
    assert float((sparse - dense).norm() / dense.norm()) < 5e-3
    restore_module(done)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():
        assert torch.equal(module(x).float(), dense)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_what_cusparselt_packed_is_unpacked_to_the_bit(kind: str, tmp_path: Path) -> None:
    torch = cusparselt.load_torch()
    module = make_mlp(torch, 512, 1024).to(getattr(torch, kind))
    dense = {name: value.cpu().clone() for name, value in module.state_dict().items()}
    packed = {
        name: torch.sparse.to_sparse_semi_structured(value)
        if name != "lm_head.weight" and value.dim() == 2
        else value
        for name, value in module.state_dict().items()
    }
    assert isinstance(packed["up_proj.weight"], torch.sparse.SparseSemiStructuredTensorCUSPARSELT)
    torch.save(packed, tmp_path / "packed.pt")
    target = make_mlp(torch, 512, 1024).to(getattr(torch, kind)).cpu()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    found = load_checkpoint(target, tmp_path / "packed.pt")
    assert {layer.form for layer in found} == {"semi-structured (cuSPARSELt)"}
    assert sorted(layer.name for layer in found) == ["down_proj", "gate_proj", "up_proj"]
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in dense.items())
    unpack_checkpoint(tmp_path / "packed.pt", tmp_path / "plain.safetensors")
    assert len(load_checkpoint(target, tmp_path / "plain.safetensors")) == 3


def test_sparsegpt_on_the_gpu_is_2to4_and_closer_than_magnitude() -> None:
    torch = cusparselt.load_torch()
    torch.manual_seed(0)
    with torch.device("cuda"):
        module = torch.nn.Sequential(torch.nn.Linear(1024, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))
        mixing = torch.randn(1024, 1024)
        batches = [torch.randn(512, 1024) @ mixing for _ in range(4)]
    errors = {}
    for method in ("magnitude", "sparsegpt"):
        pruned = copy.deepcopy(module)
        record = prune_module(pruned, method, batches)
        assert all(is_2to4(layer.weight) for layer in pruned if hasattr(layer, "weight"))
        assert all(layer.rows == 2048 for layer in record.layers)
        errors[method] = [layer.output_error or 0.0 for layer in record.layers]
    assert all(a < b for a, b in zip(errors["sparsegpt"], errors["magnitude"], strict=True))
