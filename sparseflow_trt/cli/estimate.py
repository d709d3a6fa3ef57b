"""sparseflow-trt estimate: what 2:4 weights would gain on a GPU, before anything is pruned or built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.estimate_tables import print_estimate
from sparseflow_trt.cli.numbers import positive
from sparseflow_trt.cli.option_values import find_policy_for, read_ranges
from sparseflow_trt.cli.options import common_options, model_argument
from sparseflow_trt.errors import EXIT_OK, PolicyError


@click.command("estimate")
@model_argument
@click.option(
    "--device", metavar="NAME", help="A GPU with a shipped policy: h200, h100, a100. Default: this machine's."
)
@click.option("--policy", metavar="NAME|FILE", help="A policy instead of a device.")
@click.option(
    "--dim", "dims", multiple=True, metavar="AXIS=SIZE|MIN,OPT,MAX",
    help="The size of a dynamic axis; of a range only OPT counts.",
)  # fmt: skip
@click.option("--shapes", multiple=True, metavar="INPUT:SHAPE|MIN,OPT,MAX", help="The shape of one input.")
@click.option(
    "--traffic", type=click.Path(path_type=Path), metavar="FILE",
    help="How often each M occurs, as CSV (m,weight) or JSON ({\"512\": 10}): the M of the layers with most "
    "of the arithmetic.",
)  # fmt: skip
@click.option(
    "--library", type=click.Choice(["tensorrt", "torch"]),
    help="Whose kernels will run: TensorRT's, or cuSPARSELt and cuBLAS as PyTorch calls them. Default: "
    "TensorRT's, or --plugin if that gains more or TensorRT's were not timed.",
)  # fmt: skip
@click.option(
    "--plugin", is_flag=True,
    help="Take the 2:4 plugin in TensorRT as sparse: its measured times, else estimates from cuSPARSELt's.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "keep"]),
    help="Precision of every layer. Default: fp16, or keep for a model that computes in half precision.",
)  # fmt: skip
@click.option(
    "--gemm-share", type=positive(1), metavar="SHARE",
    help="The share of the dense model's GPU time that these products take, such as 0.87; "
    "`sparseflow-trt profile` measures it.",
)  # fmt: skip
@common_options
def command(
    model: Path, device: str | None, policy: str | None, dims: tuple[str, ...], shapes: tuple[str, ...],
    traffic: Path | None, library: Any, plugin: bool, precision: Any, gemm_share: float | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Estimate MODEL's products dense and sparse, pruned or not, from a policy's times. No GPU is needed."""
    from sparseflow_trt.gains.estimate import estimate_model
    from sparseflow_trt.model.graph import read_layers
    from sparseflow_trt.model.model_file import read_model
    from sparseflow_trt.plans.traffic import read_traffic

    if device and policy:
        raise click.UsageError("--device and --policy both name a policy: give one of them.")
    if plugin and library == "torch":
        raise click.UsageError("--plugin runs in TensorRT: leave out --library torch.")
    axes, inputs = read_ranges(dims, shapes)
    histogram = read_traffic(traffic) if traffic else None
    asked = find_policy_for(device or policy)
    found = read_model(model)  # a wrong file stays wrong, whatever GPU is named
    if asked is None:
        raise PolicyError(
            "this machine has no GPU, or one with no shipped policy.",
            "Name one that `sparseflow-trt policy list` lists, such as --device a100; "
            "`sparseflow-trt autotune MODEL -o FILE` measures one on a GPU.",
        )
    with console.progress_bar() as show:
        layers = read_layers(
            found, lambda done, total: show("Reading the weights", done, total), state_only=True
        )
    result = estimate_model(
        found, layers, asked, axes, inputs, precision, library, histogram, gemm_share, plugin
    )
    if as_json:
        console.print_json(result.model_dump(mode="json"))
    else:
        print_estimate(result)
    return EXIT_OK
