"""sparseflow-trt profile: where a model's GPU time goes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt._listing import counted
from sparseflow_trt.cli import console
from sparseflow_trt.cli.numbers import FiniteRange
from sparseflow_trt.cli.options import PlotFile, common_options, module_options
from sparseflow_trt.errors import EXIT_OK, InputError

if TYPE_CHECKING:
    from sparseflow_trt.engines.torch_kernels.kernel_profile import KernelProfile
    from sparseflow_trt.gains.profiling import Profiled
    from sparseflow_trt.policies.policy import Policy


@click.command("profile")
@click.argument("source")
@module_options("fp16")
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True, help="Measured runs.")
@click.option(
    "--speedup",
    type=FiniteRange(1),
    default=1.3,
    show_default=True,
    help="Speedup of products that become sparse, for the ceiling.",
)
@click.option(
    "--policy", metavar="NAME|FILE", help="A policy that gives the speedup of the model's own products, too."
)
@click.option(
    "--sparsify",
    is_flag=True,
    help="Run the MLP layers that --policy picks on cuSPARSELt's 2:4 products, and profile that, too.",
)
@click.option("--attention", is_flag=True, help="With --sparsify: attention's projections, too.")
@click.option("--top", type=click.IntRange(0), default=15, show_default=True, help="Kernels to list.")
@click.option("--plot", type=PlotFile(), metavar="FILE", help="Draw the profile to a .png or .svg file.")
@common_options
def command(
    source: str,
    batch: int | None,
    seq: int | None,
    dtype: Any,
    runs: int,
    speedup: float,
    policy: str | None,
    sparsify: bool,
    attention: bool,
    top: int,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Show where the GPU time of SOURCE goes (kernel time, not wall-clock), and the ceiling that follows.

    SOURCE is an artifact with a TensorRT engine, a folder with a Hugging Face config.json (weights are random
    where there are none), or FILE.py:FUNCTION or MODULE:FUNCTION that returns (module, inputs).
    """
    from sparseflow_trt.gains.profiling import profile_artifact, profile_module
    from sparseflow_trt.policies.policy import find_policy

    if source.endswith(".onnx"):
        build = shlex.join(["sparseflow-trt", "build", source])
        raise InputError(
            f"{source} is an ONNX file, which runs nothing by itself.",
            f"Build it on the machine with the GPU and profile the artifact: {build}",
        )
    chosen = find_policy(policy) if policy else None
    artifact = Path(source, "manifest.json").is_file()
    of_config = artifact or (":" in source and not Path(source).exists())
    if of_config and (batch or seq or dtype):
        raise click.UsageError(
            "--batch, --seq and --dtype are for the inputs of a Hugging Face configuration."
        )
    if attention and not sparsify:
        raise click.UsageError("--attention extends what --sparsify swaps: give both.")
    if sparsify:
        if chosen is None or artifact or plot:
            raise click.UsageError("--sparsify is for PyTorch modules: it needs --policy, and draws no plot.")
        return _profile_sparsified(
            source, chosen, batch or 1, seq or 128, dtype or "fp16", attention, runs, as_json
        )
    with console.progress_bar() as show:
        if artifact:
            found = profile_artifact(Path(source), runs, speedup, chosen, show)
        else:
            found = profile_module(
                source, batch or 1, seq or 128, dtype or "fp16", runs, speedup, chosen, show
            )
    if plot:
        _draw(found, plot)
    if as_json:
        console.print_json([_as_data(profiled) for profiled in found])
        return EXIT_OK
    for profiled in found:
        print_profiled(profiled, top)
    if plot:
        console.out().print(f"\nDrawn: {plot}")
    return EXIT_OK


def _profile_sparsified(
    source: str, policy: Policy, batch: int, seq: int, dtype: Any, attention: bool, runs: int, as_json: bool
) -> int:
    from sparseflow_trt.gains.sparsified_profile import profile_sparsified

    with console.progress_bar() as show:
        found = profile_sparsified(source, policy, batch, seq, dtype, attention, runs, show)
    if as_json:
        sides = {"dense": _as_data(found.dense), "sparse": _as_data(found.sparse)}
        console.print_json({**found.model_dump(mode="json"), **sides})
        return EXIT_OK
    print_profiled(found.dense, 0)
    print_profiled(found.sparse, 0)
    dense, sparse, out = found.dense.profile.ms, found.sparse.profile.ms, console.out()
    shares = f"MLPs take {found.mlp_share:.1%} and attention's projections {found.attention_share:.1%}"
    out.print(f"\nOf the products' time ({found.basis}) {shares}; {found.swapped_share:.1%} are sparse now.")
    swapped = counted(len(found.swapped), "layer", "is", "are")
    out.print(f"{swapped} sparse: {dense:.3f} ms to {sparse:.3f} ms, {dense / sparse:.3f}×")
    table = console.table("Layer", "Why")
    console.add_alike(table, found.kept.items(), {})
    if found.kept:
        out.print("\nDense as before:")
        out.print(table)
    return EXIT_OK


def print_profiled(profiled: Profiled, top: int) -> None:
    """Prints the classes, the slowest kernels and the ceilings of one profile."""
    from sparseflow_trt.engines.torch_kernels.kernel_profile import IN_WORDS

    profile, out = profiled.profile, console.out()
    wall = f"; {profile.wall_ms:.3f} ms wall-clock" if profile.wall_ms is not None else ""
    title = f"{profile.shapes} on {profiled.device}: {profile.ms:.3f} ms of GPU time per run{wall}, "
    out.print(f"\n{title}{counted(profile.runs, 'run')}")
    table = console.table("Class", ">ms", ">Share")
    for kind, ms in _by_class(profile).items():
        table.add_row(IN_WORDS[kind], f"{ms:.4f}", _share(ms, profile))
        if kind == "gemm" and profile.sparse_ms:
            table.add_row("  of which sparse", f"{profile.sparse_ms:.4f}", _share(profile.sparse_ms, profile))
    out.print(table)
    if top and profile.kernels:
        kernels = console.table(
            ">ms", ">Share", ">Launches", "Class", "Kernel or layer", title="\nThe slowest"
        )
        for kernel in profile.kernels[:top]:
            kernels.add_row(
                f"{kernel.ms:.4f}", _share(kernel.ms, profile), f"{kernel.launches:g}", kernel.kind,
                kernel.name if len(kernel.name) <= 120 else kernel.name[:119] + "…",
            )  # fmt: skip
        out.print(kernels)
    out.print(f"\nDense products take {profiled.dense_share:.1%} of the GPU time.")
    for gain in profiled.ceilings:
        out.print(f"With products {gain.speedup:.3g}× faster ({gain.why}): {gain.ceiling:.3f}× at most.")


def _by_class(profile: KernelProfile) -> dict[Any, float]:
    from sparseflow_trt.engines.torch_kernels.kernel_profile import CLASSES

    return {kind: profile.ms_of(kind) for kind in CLASSES}


def _share(ms: float, profile: KernelProfile) -> str:
    return f"{ms / profile.ms:.1%}" if profile.ms else "-"


def _as_data(profiled: Profiled) -> dict[str, Any]:
    profile = profiled.profile
    totals = {"ms": profile.ms, "classes": _by_class(profile), "gemm_share": profile.gemm_share}
    return {**profiled.model_dump(mode="json"), **totals}


def _draw(found: tuple[Profiled, ...], path: Path) -> None:
    from sparseflow_trt.report.profile_plot import plot_profile

    bars = []
    for profiled in found:
        times, sparse = _by_class(profiled.profile), profiled.profile.sparse_ms
        products = {"dense products": times.pop("gemm") - sparse, "sparse products": sparse}
        bars.append((profiled.profile.shapes, {**products, **times}))
    plot_profile(f"{found[0].source} · {found[0].device}", bars, path)
