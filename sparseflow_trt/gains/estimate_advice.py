"""What would tell or gain more than an estimate says: another option, a measurement, another M."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

from sparseflow_trt._listing import listed
from sparseflow_trt.gains.estimate_record import Estimate, EstimatedLayers
from sparseflow_trt.model.packing import ROWS, round_up
from sparseflow_trt.plans.decide import DENSE_IN_FP32
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.policy import WHOSE, Library, Policy, SparseKernel

_AUTOTUNED = ("FP16", "BF16")
_MOST = 3  # of what is not held that is named; more is counted

Row = tuple[str, int, int, str, str, str]


def advise(
    found: Estimate,
    policy: Policy,
    by: Callable[[SparseKernel, Library], Estimate],
    model: Path,
    no_product: set[tuple[int, int]],
) -> Iterator[str]:
    """Says of an estimate without a time which option gives more; of what none does, what would measure it.

    Args:
        found: The estimate.
        policy: What it was made with.
        by: Makes the same by other kernels.
        model: The model's file.
        no_product: (N, K) of the layers that are not one plain product, which `autotune` does not measure.
    """
    if any(row.why == DENSE_IN_FP32 for row in found.layers):
        yield "In FP16 and BF16 these products may run sparse: try --precision fp16."
    unknown = {_key(row): row for row in found.layers if _is_unknown(row)}
    used = "plugin" if found.kernel == "plugin" else found.library
    gained = {}
    for name in [*sorted({library for library, _ in policy.held}), "plugin"]:
        if name != used:
            other = by("plugin", "tensorrt") if name == "plugin" else by("sparse", _library(name))
            gained[name] = [row for row in other.layers if _says_more(row, unknown)]
    helped = {_key(row) for rows in gained.values() for row in rows}
    in_plugin = ", or --plugin, which runs cuSPARSELt's kernels in TensorRT" if gained.get("plugin") else ""
    for name, rows in gained.items():
        if rows and name != "plugin":
            what = "times" if any(row.sparse_us is not None for row in rows) else "thresholds"
            more = in_plugin if name == "torch" else ""
            yield f"The policy holds {what} of {WHOSE[_library(name)]}, too: try --library {name}{more}."
    if in_plugin and not gained.get("torch"):
        yield "The policy has an answer for the plugin: try --plugin."
    yield from _what_measures(
        [row for key, row in unknown.items() if key not in helped], policy, model, no_product
    )


def advise_padding(rows: Iterable[tuple[EstimatedLayers, Known]]) -> Iterator[str]:
    """Names the M, no multiples of 8, at which layers lose in the plugin that win at the next multiple."""
    layers: dict[int, int] = {}
    for row, known in rows:
        for m, _ in row.sizes if row.sparse_us is not None else ():
            if known.padded(m):
                layers[m] = layers.get(m, 0) + row.count
    if layers:
        said = [f"{m} to {round_up(m)} ({count} more)" for m, count in sorted(layers.items())]
        yield f"Pad M to a multiple of {ROWS}, where the plugin wins in more layers: {listed(said, _MOST)}."


def _what_measures(
    rows: list[EstimatedLayers], policy: Policy, model: Path, no_product: set[tuple[int, int]]
) -> Iterator[str]:
    if not rows:
        return
    held = {dtype for _, dtype in policy.held}
    said = list(
        dict.fromkeys(_what_lacks(row, policy) if row.dtype in held else f"of {row.dtype}" for row in rows)
    )
    yield f"Whatever the library, the policy holds nothing {listed(said, _MOST)}."
    plain = [row for row in rows if row.dtype in _AUTOTUNED and (row.n, row.k) not in no_product]
    if plain:
        options = "".join(f" --dtype {dtype.lower()}" for dtype in sorted({row.dtype for row in plain}))
        command = f"sparseflow-trt autotune {shlex.quote(str(model))}{options} -o FILE"
        yield f"`{command}` measures it, on that GPU."
    if len(plain) < len(rows):
        here = " (the others here)" if plain else ""
        yield (
            f"`autotune` measures only FP16 and BF16, and no Conv with a window or groups{here}. On that GPU "
            "`build --verdict` measures what such an engine gains, and `policy learn` makes a policy from "
            "what TensorRT's builder timed for an engine built with --sparsity force."
        )


def _what_lacks(row: EstimatedLayers, policy: Policy) -> str:
    """What a policy would have to hold for a row: points of such a shape, or of so small an M."""
    asked = ((library, kernel) for library in WHOSE for kernel in get_args(SparseKernel))
    gemm = Gemm(row.kind, row.n, row.k, row.dtype)
    known = (known_of(policy, gemm, *each) for each in asked)
    small = " at so small an M" if any(each.own.shape for each in known) else ""
    return f"near {row.k}→{row.n} of kind '{row.kind}'{small}"


def _is_unknown(row: EstimatedLayers) -> bool:
    return row.worth is None and _says_nothing(row) and bool(row.sizes)


def _says_more(row: EstimatedLayers, unknown: dict[Row, EstimatedLayers]) -> bool:
    """Whether other kernels have a time for a row, or at least a threshold where there was nothing."""
    return row.sparse_us is not None or (
        _key(row) in unknown and not _says_nothing(row) and row.worth is not None
    )


def _says_nothing(row: EstimatedLayers) -> bool:
    """Whether nothing is known of sparse there."""
    return set(row.basis) <= {"unknown", "dense measured"}


def _key(row: EstimatedLayers) -> Row:
    return row.kind, row.n, row.k, row.dtype, row.m, row.state


def _library(name: str) -> Library:
    return "torch" if name == "torch" else "tensorrt"
