"""How an estimate is printed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sparseflow_trt.cli import console

if TYPE_CHECKING:
    from sparseflow_trt.gains.estimate_record import Estimate, EstimatedLayers

_SPEEDUP = re.compile(r"\d+\.\d\d×")


def print_estimate(result: Estimate) -> None:
    """Prints an estimate: a row for layers that are alike, the whole, and why layers are not taken."""
    sparse = "Plugin" if result.kernel == "plugin" else "Sparse"
    table = console.table(
        "Kind", ">N", ">K", ">Count", ">M", "Type", "2:4", ">Dense µs", f">{sparse} µs", ">Speedup", ">Share",
        "Basis", "Prune", spared=("Type", f"{sparse} µs", "Count", "2:4"),
    )  # fmt: skip
    for row in result.layers:
        table.add_row(
            row.kind, str(row.n), str(row.k), str(row.count), _m_of(row), row.dtype,
            {"sparse": "yes", "not-sparse": "no", "not-eligible": "cannot"}[row.state],
            _us(row.dense_us), _us(row.sparse_us), f"{row.speedup:.2f}×" if row.speedup else "-",
            "-" if row.share is None else f"{row.share:.1%}", ", ".join(row.basis), _prune(row),
        )  # fmt: skip
    console.say(f"{result.model} on {result.device}, by policy '{result.policy}':\n")
    if result.stands_in:
        console.say(
            "Sparse is the 2:4 plugin here (`plan --plugin LIB`), as TensorRT's own sparse kernels gain less "
            "or nothing, or were not measured; --library tensorrt shows them.\n"
        )
    console.out().print(table)
    console.say(f"\n{_total(result)}\n")
    for reason in reasons(result.layers):
        console.say(reason)
    for note in result.notes:
        console.say(console.styled(note, "dim"))


def reasons(rows: Iterable[EstimatedLayers]) -> Iterator[str]:
    """Why rows are not taken: each reason once, behind all layers that it is of.

    Reasons that are alike but for the layer's own kind and shape are one, and those that are alike but for
    the speedup, too, with the range of it.
    """
    from sparseflow_trt.policies.reasons import WINS_PADDED

    alike: dict[tuple[bool | None, str, str], list[tuple[str, str]]] = {}
    for row in rows:
        if not row.worth:
            before, speedup, after = _parts(_of_any(row))
            layers = alike.setdefault((row.worth, before, after), [])
            layers.append((f"{row.kind} {row.k}→{row.n}", speedup))
    for (worth, before, after), layers in alike.items():
        names = ", ".join(dict.fromkeys(name for name, _ in layers))
        what = "not known" if worth is None else "not worth pruning"
        if (after or before).endswith(WINS_PADDED):
            what = "worth pruning only with M padded"
        speedups = sorted({speedup for _, speedup in layers}, key=lambda said: float(said[:-1] or 0))
        between = " to ".join(dict.fromkeys((speedups[0], speedups[-1])))
        yield f"{names}: {what}: {before}{between}{after}"


def _of_any(row: EstimatedLayers) -> str:
    """The reason without the layer's kind and shape, which stand before it."""
    own = {
        f" of kind '{row.kind}'": " of its kind",
        f" near {row.k}→{row.n} ": " near it ",
        f"({row.k}→{row.n}, ": "(",
    }
    return functools.reduce(lambda said, one: said.replace(*one), own.items(), row.why)


def _parts(reason: str) -> tuple[str, str, str]:
    """A reason before the first speedup in it, that, and the rest; all before where it has none."""
    found = _SPEEDUP.search(reason)
    return (reason[: found.start()], found[0], reason[found.end() :]) if found else (reason, "", "")


def _total(result: Estimate) -> str:
    sparse = "" if result.dense_us is None else "sparse "
    if result.gemm_speedup is None and any("class threshold (no time)" in row.basis for row in result.layers):
        return (
            f"The policy has no {sparse}time for any of these products, only thresholds: they say whether "
            "sparse wins (Prune), but not by how much."
        )
    if result.gemm_speedup is None and all(row.worth is False for row in result.layers):
        return "None of these products would run sparse: 2:4 weights gain nothing here."
    if result.gemm_speedup is None:
        return f"The policy has no {sparse}time for any of these products: what they would gain is not known."
    unknown = result.guessed_us or 0.0
    gains = any(row.taken for row in result.layers)
    dense, chosen = (_us((us or 0.0) + unknown) for us in (result.dense_us, result.policy_us))
    guessed = (
        f" ({_us(unknown)} of {'both' if gains else 'it'} guessed, {result.guessed_share:.1%} of dense)"
        if unknown and result.guessed_share
        else ""
    )
    if not gains:
        return f"All products of one run: {dense} µs dense{guessed}. None of them gains from 2:4 weights."
    said = (
        f"All products of one run: {dense} µs dense, {chosen} µs with the policy's choices{guessed}: "
        f"{result.gemm_speedup:.3f}×\n"
    )
    if result.ceiling and result.gemm_share:
        return said + (
            f"The whole model, at most: {result.ceiling:.3f}×, if these products take "
            f"{result.gemm_share:.0%} of the dense model's GPU time"
        )
    listed = ", ".join(f"{ceiling:.3f}× with {share:.0%}" for share, ceiling in result.ceilings)
    return said + (
        f"The whole model, at most: {listed}\n"
        "of the dense model's GPU time in these products (`sparseflow-trt profile` measures that share)"
    )


def _prune(row: EstimatedLayers) -> str:
    if row.worth is None:
        return "unknown"
    if not row.worth:
        return "no"
    return "yes" if row.taken > 0.9995 else f"yes, {row.taken:.0%} of runs"


def _m_of(row: EstimatedLayers) -> str:
    if len(row.sizes) > 1:
        return f"{row.sizes[0][0]}…{row.sizes[-1][0]}"
    return str(row.sizes[0][0]) if row.sizes else row.m


def _us(time: float | None) -> str:
    return "-" if time is None else f"{time:.2f}" if time < 1000 else f"{time:,.0f}"
