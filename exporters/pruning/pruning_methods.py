"""2:4 pruning of one weight: by magnitude, by Wanda, by SparseGPT. Written from the papers.

Wanda: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
SparseGPT: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv:2301.00774, Algorithm 1 with its n:m pattern.

Weights are W[N, K] and inputs X[rows, K], as in y = x · Wᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparseflow_trt._deps import require
from sparseflow_trt.errors import InputError
from sparseflow_trt.model.pattern import GROUP
from sparseflow_trt.pytorch.torch_pattern import Tensor, keep_two

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS: tuple[Method, ...] = ("magnitude", "wanda", "sparsegpt")

DAMPING = 0.01  # of the Hessian's mean diagonal, as the paper has it
_MOST_DAMPING = 1.0
_BLOCK = 128  # columns whose errors are spread over those to the right at once; the paper's
_LEAST_NORM = 1e-8  # of the largest: an input that is always 0 still orders its weights by magnitude
_NEEDED_FOR = "calibrated pruning"


class Norms:
    """‖X_k‖² of each input of a layer, added up over calls."""

    def __init__(self, k: int, device: object) -> None:
        torch = require("torch", _NEEDED_FOR)
        self.squares: Tensor = torch.zeros(k, dtype=torch.float32, device=device)

    def add(self, x: Tensor) -> None:
        """Adds X[rows, K], of any floating type."""
        self.squares += x.float().square().sum(0)


class Hessian:
    """Xᵀ · X of a layer's inputs, [K, K] in FP32, added up over calls."""

    def __init__(self, k: int, device: object) -> None:
        torch = require("torch", _NEEDED_FOR)
        self.products: Tensor = torch.zeros(k, k, dtype=torch.float32, device=device)

    def add(self, x: Tensor) -> None:
        """Adds X[rows, K], of any floating type."""
        x = x.float()
        self.products.addmm_(x.t(), x)


@dataclass(frozen=True)
class Pruned:
    """A pruned weight.

    Attributes:
        weight: [N, K] of the given one's type, 2:4 along K.
        damping: The share of the Hessian's mean diagonal that was added to it; None where there is none.
    """

    weight: Tensor
    damping: float | None = None


def prune_by_magnitude(weight: Tensor) -> Pruned:
    """Keeps the two of each four along K that are largest. W[N, K] itself is not changed."""
    return Pruned(weight.masked_fill(~keep_two(weight.abs()), 0))


def prune_by_wanda(weight: Tensor, norms: Norms) -> Pruned:
    """Keeps the two of each four along K with the largest |W_nk| · ‖X_k‖ (arXiv:2306.11695, equation 1).

    Args:
        weight: [N, K]; not changed.
        norms: Of the layer's inputs.
    """
    scale = norms.squares.sqrt()
    scale = scale.clamp(min=float(scale.max()) * _LEAST_NORM)
    if not float(scale.max()):
        return prune_by_magnitude(weight)
    return Pruned(weight.masked_fill(~keep_two(weight.float().abs() * scale), 0))


def prune_by_sparsegpt(weight: Tensor, hessian: Hessian, damping: float = DAMPING) -> Pruned:
    """Prunes column by column and has the columns to the right make up for each error (arXiv:2301.00774).

    Of each four along K the two with the smallest W_nk² / [H⁻¹]_kk of what is left go.

    Args:
        weight: [N, K]; not changed.
        hessian: Of the layer's inputs.
        damping: The share of the Hessian's mean diagonal that is added to its diagonal. It grows tenfold
            where the Hessian is not positive definite with it, to 1 at most.

    Raises:
        InputError: The Hessian holds values that are not finite, or cannot be inverted with any damping.
    """
    torch = require("torch", _NEEDED_FOR)
    factor, used = _factor_of_inverse(hessian.products, damping)
    left = weight.float().clone()  # what the columns not yet pruned have become
    k = left.shape[1]
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        block = left[:, begin:end].t().contiguous()  # [columns, N]: each column in one piece of memory
        errors = torch.zeros_like(block)
        local = factor[begin:end, begin:end]
        diagonal = local.diagonal()
        for j in range(end - begin):
            if j % GROUP == 0:
                group = slice(j, j + GROUP)
                mask = keep_two((block[group].t() / diagonal[group]).square()).t()
            kept = block[j].masked_fill(~mask[j % GROUP], 0)
            torch.div(block[j] - kept, diagonal[j], out=errors[j])
            block[j:].addr_(local[j, j:], errors[j], alpha=-1)
            block[j] = kept
        left[:, begin:end] = block.t()
        left[:, end:] -= errors.t() @ factor[begin:end, end:]
    return Pruned(left.to(weight.dtype), used)


def _factor_of_inverse(products: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the damped Hessian's inverse, and the damping that it took."""
    torch = require("torch", _NEEDED_FOR)
    mean = float(products.diagonal().mean())
    if mean != mean or mean in (float("inf"), float("-inf")):
        raise InputError(
            "the layer's inputs on the calibration batches are not finite.",
            "Run the module on them to find where the first NaN or infinity appears, or calibrate in FP32 or "
            "BF16.",
        )
    if not mean:  # every input is 0: any weight does
        return torch.eye(len(products), device=products.device), damping
    used = damping
    while True:
        damped = products.clone()
        damped.diagonal().add_(used * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(factor.diagonal().isfinite().all()):
                return factor, used
        used *= 10
        if used > _MOST_DAMPING:
            raise InputError(
                "the Hessian of the layer's inputs cannot be inverted.",
                "Give more calibration rows, or prune by Wanda.",
            )
