"""Gives the Linear layers that a policy picks 2:4 products, in a PyTorch module itself, and takes them back.

The product is y = F.linear(x, W), W[N, K] packed on the right of x, as PyTorch's semi-structured linear
layers compute it: neither x nor y is copied to another layout. What is searched for each product, its
algorithm by shape and rows, is searched once and kept (`torch_sparse`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sparseflow_trt.engines.torch_kernels.torch_sparse import (
    SparseKernel,
    Swapped,
    restore_linears,
    swap_linears,
)
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import expect
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.pytorch.torch_layers import Choice, TorchLayer, find_layers, judge_choices

MLP = ("gate_up", "down", "ffn")
ATTENTION = ("qkv", "o")


@dataclass(frozen=True)
class Coverage:
    """What shares of the time of a module's products its parts have, from 0 to 1.

    Attributes:
        basis: Where times are from: the policy's dense times, where it has one for every layer, else M·N·K.
        mlp: Of the layers of kind gate_up, down and ffn.
        attention: Of those of kind qkv and o.
        other: Of the rest, such as a classifier.
        swapped: Of the layers that are sparse now.
    """

    basis: Literal["policy times", "M·N·K"]
    mlp: float
    attention: float
    other: float
    swapped: float


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify_module` did; `restore_module` undoes it.

    Attributes:
        swapped: The layers that are sparse now, with the dense ones that stood there.
        choices: Each layer, whether it is sparse now, and why or why not.
        coverage: Of the products' time.
    """

    swapped: Swapped
    choices: tuple[Choice, ...]
    coverage: Coverage


def sparsify_module(
    module: Any,
    policy: Policy,
    rows: int | Mapping[str, int],
    attention: bool = False,
    kernel: SparseKernel | None = None,
) -> Sparsified:
    """Swaps the Linear layers that win by a policy's torch points for 2:4 products; the others stay dense.

    Args:
        module: A module on the GPU, in FP16 or BF16, with 2:4 weights. It is changed in place.
        policy: The times; those of PyTorch's kernels (library "torch") count.
        rows: M of the products: one for all layers, or by layer as `torch_layers.record_rows` gives them.
        attention: Swap the projections of attention (Q, K, V, O), too, not the MLP alone.
        kernel: What multiplies; cuSPARSELt where none is given.

    Returns:
        What was done. No layer is swapped where the policy picks none: the reasons say so.
    """
    layers = find_layers(module)
    wanted = judge_choices(_by_part(layers, attention), policy, rows, None, "torch")
    taken = {choice.layer.name for choice in wanted if choice.taken}
    # a layer that stands in several places is found under the first name, and swapped in all
    places = {id(choice.layer.module) for choice in wanted if choice.taken}
    swapped = swap_linears(module, lambda name, layer: name in taken or id(layer) in places, kernel)
    choices = tuple(_as_swapped(choice, swapped) for choice in wanted)
    sparse = {choice.layer.name for choice in choices if choice.taken}
    return Sparsified(swapped, choices, _cover(layers, policy, rows, sparse))


def is_asked_for(layer: TorchLayer, attention: bool) -> bool:
    """Whether a layer is of the parts that are swapped where the policy picks them, see `sparsify_module`."""
    return layer.kind in MLP or (attention and layer.kind in ATTENTION)


def restore_module(sparsified: Sparsified) -> None:
    """Puts the dense layers back: the module is as it was, to the bit."""
    restore_linears(sparsified.swapped)


def _by_part(layers: Sequence[TorchLayer], attention: bool) -> tuple[Choice, ...]:
    def choose(layer: TorchLayer) -> Choice:
        if is_asked_for(layer, attention):
            return Choice(layer, True, "of an MLP" if layer.kind in MLP else "of attention")
        if layer.kind in ATTENTION:
            return Choice(layer, False, "of attention, not asked for")
        return Choice(layer, False, f"of kind '{layer.kind}', neither an MLP's nor attention's")

    return tuple(map(choose, layers))


def _as_swapped(choice: Choice, swapped: Swapped) -> Choice:
    if not choice.taken or choice.layer.name in swapped.dense:
        return choice
    why = swapped.kept.get(
        choice.layer.name, f"it is a {type(choice.layer.module).__name__}, not a plain Linear"
    )
    return replace(choice, taken=False, why=why)


def _cover(
    layers: Sequence[TorchLayer], policy: Policy, rows: int | Mapping[str, int], sparse: set[str]
) -> Coverage:
    called = [(layer, rows if isinstance(rows, int) else rows.get(layer.name, 0)) for layer in layers]
    called = [(layer, m) for layer, m in called if m]
    times = [expect(policy, Gemm(each.kind, each.n, each.k, each.dtype), m, "torch") for each, m in called]
    known = all(times)
    costs = [
        time.dense_us if known and time else float(m * layer.n * layer.k)
        for (layer, m), time in zip(called, times, strict=True)
    ]
    whole = sum(costs) or 1.0

    def share(kinds: Sequence[str]) -> float:
        return (
            sum(cost for (layer, _), cost in zip(called, costs, strict=True) if layer.kind in kinds) / whole
        )

    mlp, attention = share(MLP), share(ATTENTION)
    return Coverage(
        basis="policy times" if known and called else "M·N·K",
        mlp=mlp,
        attention=attention,
        other=max(0.0, 1.0 - mlp - attention) if called else 0.0,
        swapped=sum(cost for (layer, _), cost in zip(called, costs, strict=True) if layer.name in sparse)
        / whole,
    )
