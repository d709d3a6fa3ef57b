"""The record of an estimate: what a model's products take, dense and as a policy would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sparseflow_trt._schema import Record, load_json, parse, read_text
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.policy import Library, SparseKernel

Basis = Literal[
    "measured",
    "estimated",
    "interpolated",
    "extrapolated",
    "learned",
    "nearest shape",
    "class threshold (no time)",
    "unknown",
    "dense measured",
]

_HINT = "`sparseflow-trt estimate MODEL --json > FILE` writes one."


class EstimatedLayers(Record):
    """Layers of one kind, shape and M, and the time to expect of each of them in one run of the model.

    Times are of one product, in microseconds: means over the runs, where runs with no time count as 0.

    Attributes:
        m: M as the model has it, such as "batch*seq".
        sizes: Each M that was asked for, with the share of the runs that have it; empty where it is unknown.
        count: How many such products one run of the model has.
        state: Of their weights: "sparse" (2:4 already), "not-sparse" or "not-eligible".
        basis: How that is known, for most of the arithmetic first. "dense measured" after another says that
            the dense kernel was measured alone around an M, and the dense time is that.
        dense_us: Dense; None where there is no time.
        sparse_us: Sparse at every M, as dense where a dense time alone is known; None where no sparse time
            is known, and for weights that cannot be 2:4.
        policy_us: Sparse where the policy takes it and its time is known.
        guessed_us: What the runs with no time may take, dense: no less than at the smallest measured M
            where theirs is below it, else as long for each element as the other layers; 0 where every run
            has a time, None where there is nothing to guess from.
        speedup: Dense time over sparse time.
        share: Of the dense time of all products, known and guessed; None where there is none of
            this one.
        taken: The share of the runs that the policy takes sparse for.
        worth: Whether to prune them: it takes sparse for some. None where it knows nothing of them.
        why: The policy's reason, of the M with most arithmetic.
    """

    kind: str
    n: int
    k: int
    dtype: str
    m: str
    sizes: tuple[tuple[int, float], ...]
    count: int
    state: str
    basis: tuple[Basis, ...]
    dense_us: float | None
    sparse_us: float | None
    policy_us: float | None
    guessed_us: float | None
    speedup: float | None
    share: float | None = None
    taken: float
    worth: bool | None
    why: str


class Estimate(Record):
    """What a model's products take on a device, dense and as a policy would have them.

    Attributes:
        library: Whose kernels the times are of.
        kernel: What sparse means: the library's own kernels, or the plugin.
        stands_in: Whether the plugin was not asked for: by the policy it gains as much as TensorRT's own
            sparse kernels or more, or these have no times there.
        dense_us: Of the products of one run that there are times for, in microseconds: the mean over runs.
            None where there are none.
        policy_us: The same with sparse where the policy takes it.
        guessed_us: What the others may take; None where there is nothing to guess from.
        guessed_share: The share that is guessed of the dense time of all products, known and guessed; None
            where no time is known or guessed.
        gemm_speedup: Of all products; those with no sparse time count as dense. None where none has one and
            the policy does not have all of them dense, or no time is known; then there are no ceilings.
        gemm_share: The share of the GPU's time that these products have in the dense model, where given.
        ceiling: Of the whole model at that share, where all other work takes as long as before.
        ceilings: The same at other shares.
        notes: What the figures rest on, in words.
    """

    schema_version: Literal[1] = 1
    model: str
    policy: str
    device: str
    library: Library
    kernel: SparseKernel = "sparse"
    stands_in: bool = False
    dense_us: float | None = Field(ge=0, allow_inf_nan=False)
    policy_us: float | None = Field(ge=0, allow_inf_nan=False)
    guessed_us: float | None = Field(ge=0, allow_inf_nan=False)
    guessed_share: float | None = Field(default=None, ge=0, le=1)
    gemm_speedup: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gemm_share: float | None = Field(default=None, gt=0, le=1)
    ceiling: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ceilings: tuple[tuple[float, float], ...]
    layers: tuple[EstimatedLayers, ...]
    notes: tuple[str, ...]


def end_to_end(speedup: float, share: float) -> float:
    """Amdahl's law: the speedup of a whole of which a share gets faster and the rest does not."""
    return 1 / (1 - share + share / speedup)


def read_estimate(path: Path) -> Estimate:
    """Reads what `sparseflow-trt estimate --json` wrote.

    Raises:
        PolicyError: It is missing, is not JSON or has wrong fields.
    """
    text = read_text(path, PolicyError, "estimate")
    data = load_json(text, str(path), PolicyError, _HINT)
    return parse(Estimate, data, str(path), PolicyError, _HINT)
