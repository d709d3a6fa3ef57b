"""2:4 arithmetic on PyTorch's tensors, as `pattern` has it on arrays: of W[N, K], in groups along K."""

from __future__ import annotations

import hashlib
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt.model.pattern import GROUP, KEPT

Tensor = Any  # torch.Tensor; torch is imported when it is needed

_ROWS_AT_ONCE = 1 << 24  # elements whose comparisons are held at a time, in bytes


def keep_two(scores: Tensor) -> Tensor:
    """True for the two largest scores of each four along K; the first win a tie.

    Args:
        scores: [N, K] of a floating type, K a multiple of four.

    Returns:
        [N, K], bool, on the same device.
    """
    torch = require("torch", "2:4 weights in PyTorch")
    n, k = scores.shape
    mask = torch.empty(n, k, dtype=torch.bool, device=scores.device)
    step = max(1, _ROWS_AT_ONCE // max(k, 1))
    for begin in range(0, n, step):
        rows = scores[begin : begin + step]
        groups = rows.reshape(len(rows), k // GROUP, GROUP).unbind(-1)
        kept = []
        for i, mine in enumerate(groups):
            larger = torch.zeros_like(mine, dtype=torch.uint8)
            for j, other in enumerate(groups):
                if j != i:
                    larger += (other >= mine) if j < i else (other > mine)
            kept.append(larger < KEPT)
        mask[begin : begin + step] = torch.stack(kept, -1).view(len(rows), k)
    return mask


def prune_rows(weight: Tensor) -> Tensor:
    """A copy of W[N, K] that keeps the two largest of each four along K; the first win a tie."""
    return weight * keep_two(weight.abs())


def is_2to4(weight: Tensor) -> bool:
    """Whether each aligned four along K of W[N, K] holds at most two non-zeros."""
    n, k = weight.shape
    return k % GROUP == 0 and bool(((weight.reshape(n, k // GROUP, GROUP) != 0).sum(-1) <= KEPT).all())


def mask_hash(weight: Tensor) -> str:
    """The SHA-256 of the places of W[N, K]'s non-zeros, one bit each in C order."""
    import numpy as np

    places = (weight.detach() != 0).cpu().numpy()
    return hashlib.sha256(np.packbits(places).tobytes()).hexdigest()
