"""sparseflow-trt estimate: what 2:4 weights would gain on a GPU, before anything is pruned or built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.numbers import positive
from sparseflow_trt.cli.option_values import find_policy_for, read_ranges
from sparseflow_trt.cli.options import common_options, model_argument
from sparseflow_trt.errors import EXIT_OK, PolicyError

if TYPE_CHECKING:
    from sparseflow_trt.estimate_record import Estimate, EstimatedLayers


@click.command("estimate")
@model_argument
@click.option(
    "--device", metavar="NAME", help="A GPU with a shipped policy: h200, h100, a100. Default: this one."
)
@click.option("--policy", metavar="NAME|FILE", help="A policy instead of a device.")
@click.option(
    "--dim", "dims", multiple=True, metavar="AXIS=SIZE|MIN,OPT,MAX",
    help="The size of a dynamic axis; of a range its OPT counts.",
)  # fmt: skip
@click.option("--shapes", multiple=True, metavar="INPUT:SHAPE|MIN,OPT,MAX", help="The shape of one input.")
@click.option(
    "--traffic", type=click.Path(path_type=Path), metavar="FILE",
    help="How often which M comes, as CSV (m,weight) or JSON ({\"512\": 10}): M of the layers that most of "
    "the arithmetic is in.",
)  # fmt: skip
@click.option(
    "--library", type=click.Choice(["tensorrt", "torch"]),
    help="Whose kernels will run: TensorRT's, or cuSPARSELt and cuBLAS as PyTorch calls them. Default: "
    "TensorRT's, or --plugin where that gains more or those have no times.",
)  # fmt: skip
@click.option(
    "--plugin", is_flag=True,
    help="Sparse is the 2:4 plugin in TensorRT: as measured, else estimated from cuSPARSELt's times.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "keep"]),
    help="Of every layer. Default: fp16; keep for a model that computes in half precision.",
)  # fmt: skip
@click.option(
    "--gemm-share", type=positive(1), metavar="SHARE",
    help="The share of the GPU's time that these products have in the dense model, such as 0.87: what "
    "`sparseflow-trt profile` measures.",
)  # fmt: skip
@common_options
def command(
    model: Path, device: str | None, policy: str | None, dims: tuple[str, ...], shapes: tuple[str, ...],
    traffic: Path | None, library: Any, plugin: bool, precision: Any, gemm_share: float | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Estimate MODEL's products dense and sparse, pruned or not, from a policy's times. No GPU is needed."""
    from sparseflow_trt.estimate import estimate_model
    from sparseflow_trt.graph import read_layers
    from sparseflow_trt.model_file import read_model
    from sparseflow_trt.traffic import read_traffic

    if device and policy:
        raise click.UsageError("--device and --policy both name a policy: give one of them.")
    if plugin and library == "torch":
        raise click.UsageError("--plugin is of TensorRT's engines: leave out --library torch.")
    axes, inputs = read_ranges(dims, shapes)
    histogram = read_traffic(traffic) if traffic else None
    asked = find_policy_for(device or policy)
    if asked is None:
        raise PolicyError(
            "there is no policy for this machine's GPU, or no GPU.",
            "Name one that `sparseflow-trt policy list` lists, such as --device a100; "
            "`sparseflow-trt autotune MODEL -o FILE` measures one on a GPU.",
        )
    found = read_model(model)
    with console.progress_bar() as show:
        layers = read_layers(found, lambda done, total: show("Reading the weights", done, total))
    result = estimate_model(
        found, layers, asked, axes, inputs, precision, library, histogram, gemm_share, plugin
    )
    if as_json:
        console.print_json(result.model_dump(mode="json"))
    else:
        _print(result)
    return EXIT_OK


def _print(result: Estimate) -> None:
    out = console.out()
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
    out.print(f"{result.model} on {result.device}, by policy '{result.policy}':\n")
    if result.stands_in:
        out.print(
            "TensorRT's own sparse kernels gain less here, or nothing, or were not measured: sparse is the "
            "2:4 plugin (`plan --plugin LIB`); --library tensorrt shows them.\n"
        )
    out.print(table)
    out.print(f"\n{_total(result)}\n")
    for row in result.layers:
        if not row.worth:
            what = "not known" if row.worth is None else "not worth pruning"
            out.print(f"{row.kind} {row.k}→{row.n}: {what}: {row.why}")
    for note in result.notes:
        out.print(console.styled(note, "dim"))


def _total(result: Estimate) -> str:
    sparse = "" if result.dense_us is None else "sparse "
    if result.gemm_speedup is None and any("class threshold (no time)" in row.basis for row in result.layers):
        return (
            f"The policy has no {sparse}time for any of these products, only thresholds: they say whether "
            "sparse wins (Prune), and not by how much."
        )
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
        return f"All products of one run: {dense} µs dense{guessed}. None of them gains by 2:4 weights."
    said = (
        f"All products of one run: {dense} µs dense, {chosen} µs with the policy's choices{guessed}: "
        f"{result.gemm_speedup:.3f}×\n"
    )
    if result.ceiling and result.gemm_share:
        return said + (
            f"The whole model, at most: {result.ceiling:.3f}×, where {result.gemm_share:.0%} of the GPU's "
            "time is in these products when all is dense"
        )
    listed = ", ".join(f"{ceiling:.3f}× with {share:.0%}" for share, ceiling in result.ceilings)
    return said + (
        f"The whole model, at most: {listed}\n"
        "of the GPU's time in these products when all is dense (`sparseflow-trt profile` measures that share)"
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
