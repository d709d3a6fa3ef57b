"""What a policy is asked about: a layer's matrix product, whatever its M."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gemm:
    """y[M, N] = x[M, K] · Wᵀ of a layer, of any M.

    Attributes:
        kind: The layer's kind, see `kinds`.
        n: Its outputs.
        k: Its inputs.
        dtype: The type of the product, such as "FP16". Another type says nothing of it: on an H200
            cuSPARSELt is 1.31 times as fast as dense at 4096→6144 and M=64 in FP16, and 0.69 in BF16.
    """

    kind: str
    n: int
    k: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), as measured shapes are named."""
        return self.n, self.k
