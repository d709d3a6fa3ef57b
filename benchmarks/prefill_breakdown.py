"""Writes the tables and plots of docs/PREFILL_BREAKDOWN.md from the results of end_to_end_torch.py. No GPU.

    python benchmarks/prefill_breakdown.py

Reads results/end_to_end_torch_DTYPE.json, an H200's, of BF16 and FP16 whichever there is. The page's text
around the tables is written by hand; tests/test_prefill_breakdown.py holds both to the results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseflow_trt._files import write_atomically
from sparseflow_trt.engines.torch_kernels.kernel_profile import CLASSES, IN_WORDS
from sparseflow_trt.gains.estimate_record import end_to_end
from sparseflow_trt.report.profile_plot import plot_profile

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "PREFILL_BREAKDOWN.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- tables: benchmarks/prefill_breakdown.py -->\n", "<!-- end of tables -->\n"
DTYPES = ("bf16", "fp16")
SPEEDUPS = (1.1, 1.3, 1.5, 2.0)  # 2 is the peak of sparse tensor cores over dense ones


def main() -> None:
    """Writes the page's tables and draws its plots."""
    results = read_results()
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    write_atomically(PAGE, head + BEGIN + tables(results) + END + tail)
    for dtype, result in results.items():
        plot_profile(title_of(dtype, result), bars(result), PAGE.parent / "images" / image_of(dtype))


def read_results() -> dict[str, dict[str, Any]]:
    """The results that there are, by type."""
    paths = {dtype: RESULTS / f"end_to_end_torch_{dtype}.json" for dtype in DTYPES}
    return {
        dtype: json.loads(path.read_text(encoding="utf-8")) for dtype, path in paths.items() if path.exists()
    }


def tables(results: dict[str, dict[str, Any]]) -> str:
    """All that stands between the page's markers: a section for each type."""
    return (
        "\n"
        + "\n".join(
            section(dtype, results[dtype])
            if dtype in results
            else f"## {dtype.upper()}\n\nNot measured end to end yet (`{command_of(dtype)}`).\n"
            for dtype in DTYPES
        )
        + "\n"
    )


def section(dtype: str, result: dict[str, Any]) -> str:
    """One type: the dense pass by class, its products, and each choice of sparse layers."""
    model, libraries, gpu = result["model"], result["libraries"], result["machine"]
    return "\n".join((
        f"## {dtype.upper()}",
        "",
        f"{gpu['gpu']}, driver {gpu['driver']}, PyTorch {libraries['torch']}, "
        f"cuSPARSELt {libraries['cusparselt']}, cuBLAS {libraries['cublas']}; "
        f"M = {model['batch']} × {model['seq']} = {model['batch'] * model['seq']};",
        f"`{result['command']}`, {result['date']}.",
        "",
        f"![{title_of(dtype, result)}: GPU time by class](images/{image_of(dtype)})",
        "",
        "Where the dense pass's time goes:",
        "",
        *time_table(result["dense"]),
        "",
        "Its products, each by itself:",
        "",
        *product_table(result["products"]),
        "",
        "What follows from the two, and what was reached:",
        "",
        *variant_table(result),
        "",
        "What products of another speed would make of the same pass:",
        "",
        *ceiling_table(result["dense"]),
        "",
    ))  # fmt: skip


def time_table(dense: dict[str, Any]) -> list[str]:
    """Milliseconds by class, their share of the kernels' time and of the pass's."""
    whole, kernels = dense["graph ms"]["median"], dense["kernel ms"]
    rows = [
        (IN_WORDS[kind], f"{dense['classes'][kind]['ms']:.3f}", percent(dense["classes"][kind]["share"]),
         percent(dense["classes"][kind]["ms"] / whole))
        for kind in CLASSES
        if dense["classes"][kind]["ms"]
    ]  # fmt: skip
    return table(
        ("what", "ms", "of the kernels", "of the pass"),
        [
            *rows,
            ("all kernels", f"{kernels:.3f}", percent(1), percent(kernels / whole)),
            ("between kernels", f"{whole - kernels:.3f}", "", percent(1 - kernels / whole)),
            ("the pass, as a CUDA graph", f"{whole:.3f}", "", percent(1)),
        ],
    )


def product_table(products: Sequence[dict[str, Any]]) -> list[str]:
    """Each product's times, and all of one pass."""
    rows = [
        (p["kind"], f"{p['k']}→{p['n']}", str(p["count"]), f"{p['dense us']:.1f}", f"{p['sparse us']:.1f}",
         f"{p['speedup']:.2f}×", f"{p['count'] * p['dense us'] / 1000:.3f}")
        for p in products
    ]  # fmt: skip
    heads = ("kind", "K→N", "in a pass", "dense µs", "sparse µs", "speedup", "dense ms a pass")
    return table(heads, rows)


def variant_table(result: dict[str, Any]) -> list[str]:
    """Dense and each choice of sparse layers: what is to be expected, and what came of it."""
    dense = result["dense"]
    rows = [
        ("none", "0", "", "", "", "", times(dense["graph ms"]), "",
         f"{dense['wall ms, without a graph']:.1f}", percent(dense["logits against FP32"]["relative error"])),
    ]  # fmt: skip
    for variant in result["variants"]:
        rows.append((
            variant["name"], str(variant["layers swapped"]), f"{variant['products']['speedup']:.3f}×",
            f"{variant['kernel time']['ceiling']:.3f}×", f"{variant['kernel time']['speedup']:.3f}×",
            f"{variant['the pass']['ceiling']:.3f}×", times(variant["graph ms"]),
            f"**{variant['the pass']['speedup']:.3f}×**",
            f"{variant['wall ms, without a graph']:.1f}",
            percent(variant["logits against FP32"]["relative error"]),
        ))  # fmt: skip
    heads = (
        "sparse", "layers", "all products, s", "kernels, ceiling", "kernels, reached", "pass, ceiling",
        "pass, as a CUDA graph, ms", "pass, reached", "no graph, ms", "logits' error",
    )  # fmt: skip
    return table(heads, rows)


def ceiling_table(dense: dict[str, Any]) -> list[str]:
    """The ceilings for a few speedups of all products, of the kernels' time and of the whole pass."""
    ms = dense["classes"]["gemm"]["ms"]
    shares = ms / dense["kernel ms"], ms / dense["graph ms"]["median"]
    named = zip(("of the kernels' time", "of the pass"), shares, strict=True)
    return table(
        ("ceiling", "g", *(f"s = {s:g}" for s in SPEEDUPS)),
        [(what, percent(g), *(f"{end_to_end(s, g):.2f}×" for s in SPEEDUPS)) for what, g in named],
    )


def bars(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Milliseconds by class of the dense pass and of each choice, for the plot."""
    found = []
    for variant in (result["dense"], *result["variants"]):
        ms = {kind: variant["classes"][kind]["ms"] for kind in CLASSES}
        sparse = variant["sparse products ms"]
        found.append((
            variant["name"] if variant is result["dense"] else f"sparse: {variant['name']}",
            {"dense products": ms.pop("gemm") - sparse, "sparse products": sparse, **ms},
        ))  # fmt: skip
    return found


def title_of(dtype: str, result: dict[str, Any]) -> str:
    """What the plot says of itself."""
    return (
        f"TinyLlama prefill, {result['model']['seq']} tokens · {result['machine']['gpu']} · {dtype.upper()}"
    )


def image_of(dtype: str) -> str:
    """The plot's file."""
    return f"prefill-{dtype}.png"


def command_of(dtype: str) -> str:
    """What measures a type."""
    return f"python benchmarks/end_to_end_torch.py --dtype {dtype}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = (heads, ["---"] * len(heads), *rows)
    return [f"| {' | '.join(cell or '–' for cell in cells)} |" for cells in lines]


def times(median: dict[str, Any]) -> str:
    """A median with its interval."""
    return f"{median['median']:.3f} ({median['low']:.3f}–{median['high']:.3f})"


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
