"""A TinyLlama prefill in PyTorch, dense against 2:4: where GPU time goes, the ceiling, what is reached.

    python benchmarks/end_to_end_torch.py [--dtype bf16] [--seq 1024] [--layers 22] [--samples 60] [--runs 20]
    python benchmarks/end_to_end_torch.py --conclude FILE...

TinyLlama-1.1B's architecture with random weights, all Linear layers of its blocks pruned 2:4 on both
sides, one prompt, its key-value cache written, logits of every token. Dense is cuBLAS as PyTorch calls it;
sparse is cuSPARSELt in the MLPs ("mlp"), in the attention's projections too ("mlp+attention"), and where a
product by itself is faster by 2 % ("measured"). Then:

- the kernel profile of each (kernel time, not wall-clock);
- each product by itself, dense and sparse in turn, on buffers that exceed the L2 cache: from these the
  speedup s of all products together;
- the whole forward pass as a CUDA graph, the variants in turn;
- the ceiling 1 / (1 - g + g / s), with g the products' share of the dense one's time: of the kernels' time,
  which is held against the kernels', and of the pass, which has gaps between kernels, against the pass's;
- the error of the logits against the same weights in FP32, of each.

Writes results/end_to_end_torch_DTYPE.json. With --conclude the ceilings in such files are reckoned anew from
the times in them, which needs no GPU; what was measured stays, with its date.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import write_result

from sparseflow_trt._files import write_atomically
from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.medians import Median, median_of
from sparseflow_trt.engines.measuring.time_torch import DTYPES, TorchMeasurer
from sparseflow_trt.engines.timing.turns import times_in_turn
from sparseflow_trt.engines.torch_kernels.cusparselt import load_torch
from sparseflow_trt.engines.torch_kernels.kernel_profile import CLASSES, KernelProfile
from sparseflow_trt.engines.torch_kernels.torch_profile import (
    LinearProduct,
    profile_torch_model,
    record_products,
)
from sparseflow_trt.engines.torch_kernels.torch_sparse import Swapped, restore_linears, swap_linears
from sparseflow_trt.engines.torch_kernels.torch_timing import capture, new_event
from sparseflow_trt.gains.estimate_record import end_to_end
from sparseflow_trt.policies.policy import MARGIN, Dtype
from sparseflow_trt.pytorch.torch_pattern import prune_rows
from sparseflow_trt.pytorch.torch_source import TorchModel, load_torch_model

TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "initializer_range": 0.02,
}  # fmt: skip
MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_TOP = 12

Shape = tuple[int, int]
Times = Mapping[Shape, tuple[float, float]]  # dense and sparse microseconds by (N, K)


def main() -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="bf16")
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=TINYLLAMA["num_hidden_layers"])
    parser.add_argument("--samples", type=int, default=60, help="CUDA graph replays of each variant")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kernel profile")
    parser.add_argument("--conclude", type=Path, nargs="+", metavar="FILE", help="only reckon ceilings anew")
    asked = parser.parse_args()
    if asked.conclude:
        for path in asked.conclude:
            conclude_again(path)
        return
    torch = load_torch()
    with tempfile.TemporaryDirectory() as name:
        config = {**TINYLLAMA, "num_hidden_layers": asked.layers}
        Path(name, "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        model = load_torch_model(name, 1, asked.seq, asked.dtype)
    prune_blocks(torch, model)
    say("each product by itself")
    products = record_products(model)
    times = time_products(products, asked.dtype.upper())
    say("the dense module")
    with torch.no_grad():
        model, attention = capturable(torch, model)
        exact = fp32_logits(model)
        dense = Variant(torch, "dense", model, (), asked.runs)
        variants = [dense]
        for label, wanted in choices(times).items():
            say(label)
            variants.append(Variant(torch, label, model, wanted, asked.runs))
        say("all in turn")
        medians = time_variants(torch, variants, asked.samples)
    figures = {
        "model": {
            **config,
            "dtype": DTYPES[asked.dtype.upper()],
            "batch": 1,
            "seq": asked.seq,
            "weights": "random, 2:4",
            "attention": attention,
        },
        "libraries": {**TorchMeasurer().versions(), "transformers": version("transformers")},
        "products": [describe_product(p, count, times) for p, count in products.items()],
        "dense": describe(dense, medians["dense"], exact),
        "variants": [
            {
                **describe(variant, medians[variant.name], exact),
                **conclude(dense, variant, products, times, medians),
            }
            for variant in variants[1:]
        ],
    }
    arguments = "".join(
        f" --{name} {value}" for name, value in vars(asked).items() if value != parser.get_default(name)
    )
    write_result(
        f"end_to_end_torch_{asked.dtype}", figures, f"python benchmarks/end_to_end_torch.py{arguments}"
    )


class Variant:
    """The module with some layers swapped: its kernel profile, its logits, and itself as a CUDA graph."""

    def __init__(self, torch: Any, name: str, model: TorchModel, wanted: tuple[str, ...], runs: int) -> None:
        """Swaps, runs, records, and swaps back; the graph goes on reading the packed weights."""
        self.name = name
        self.swapped: Swapped = swap_linears(model.module, lambda path, _: path.endswith(wanted or "\0"))
        try:
            if wanted and not self.swapped.dense:
                raise SystemExit(f"{name}: no layer was swapped: {self.swapped.kept}")
            self.profile: KernelProfile = profile_torch_model(model, runs)
            self.layers = [model.module.get_submodule(path) for path in self.swapped.dense]  # kept alive
            self.graph, self.logits = record_graph(torch, model)
        finally:
            restore_linears(self.swapped)


def record_graph(torch: Any, model: TorchModel) -> tuple[Any, Any]:
    """The forward pass as a CUDA graph, and the logits that each replay computes anew."""
    stream = torch.cuda.Stream()  # graphs are not recorded on the default one
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model.run()
        graph, output = capture(torch, model.run)
        graph.replay()
    stream.synchronize()
    return graph, output.logits


def capturable(torch: Any, model: TorchModel) -> tuple[TorchModel, str]:
    """Inputs with which the module can be recorded, and how they tell attention to be causal.

    A release of transformers that looks at a tensor's values on the way cannot; with a mask none looks.
    """
    try:
        record_graph(torch, model)
    except RuntimeError as error:
        say(f"an explicit mask, since: {str(error).splitlines()[0]}")
        tokens = model.kwargs["input_ids"]
        size = tokens.shape[1]
        mask = torch.ones(1, 1, size, size, dtype=torch.bool, device=tokens.device).tril()
        kwargs = {**model.kwargs, "attention_mask": mask, "use_cache": False}
        return dataclasses.replace(model, kwargs=kwargs), "an explicit mask"
    return model, "is_causal"


def prune_blocks(torch: Any, model: TorchModel) -> None:
    """Prunes the Linear layers of the blocks 2:4 in place; the language model's head stays as it is."""
    with torch.no_grad():
        for name, layer in model.module.named_modules():
            if name.endswith(MLP + ATTENTION):
                layer.weight.copy_(prune_rows(layer.weight))


def time_products(products: Mapping[LinearProduct, int], dtype: Dtype) -> Times:
    """Each shape's microseconds, dense and sparse, as the policy's are measured."""
    measurer = TorchMeasurer()
    times: dict[Shape, tuple[float, float]] = {}
    for p in products:
        if (p.n, p.k) in times:
            continue
        pair = measurer.measure(Request(Curve("torch", dtype, p.n, p.k, p.kind), p.m)).pair
        times[p.n, p.k] = (pair.dense.us, pair.sparse.us)
    return times


def choices(times: Times) -> dict[str, tuple[str, ...]]:
    """Which layers each variant has sparse."""
    hidden, kv = TINYLLAMA["hidden_size"], 4 * 64
    inner = TINYLLAMA["intermediate_size"]
    shapes = {
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
        "q_proj": (hidden, hidden), "o_proj": (hidden, hidden),
        "k_proj": (kv, hidden), "v_proj": (kv, hidden),
    }  # fmt: skip
    won = tuple(name for name in MLP + ATTENTION if wins(*times[shapes[name]]))
    found = {"mlp": MLP, "mlp+attention": MLP + ATTENTION}
    return {**found, "measured": won} if won and won not in found.values() else found


def wins(dense_us: float, sparse_us: float) -> bool:
    """Whether sparse is faster by a policy's margin."""
    return dense_us >= sparse_us * (1 + MARGIN)


def fp32_logits(model: TorchModel) -> Any:
    """The logits of the same weights in FP32, on the CPU's side of memory."""
    exact = TorchModel(copy.deepcopy(model.module).float(), model.args, model.kwargs, model.shapes)
    return exact.run().logits.cpu()


def time_variants(torch: Any, variants: list[Variant], samples: int) -> dict[str, Median]:
    """Milliseconds of a forward pass of each, replayed in turn."""
    works = [variant.graph.replay for variant in variants]
    event = functools.partial(new_event, torch)
    times_in_turn(event, works, 5, works[0])  # warms up
    taken = times_in_turn(event, works, samples, works[0])
    return {variant.name: median_of(ms) for variant, ms in zip(variants, taken.ms, strict=True)}


def describe(variant: Variant, median: Median, exact: Any) -> dict[str, Any]:
    """The kernel profile, the time of the CUDA graph and the logits' error of one variant."""
    profile, difference = variant.profile, variant.logits.cpu().float() - exact
    same = variant.logits.cpu().argmax(-1) == exact.argmax(-1)
    return {
        "name": variant.name,
        "graph ms": figures_of(median),
        "kernel ms": round(profile.ms, 4),
        "wall ms, without a graph": round(profile.wall_ms or 0.0, 4),
        "classes": {
            kind: {"ms": round(profile.ms_of(kind), 4), "share": round(profile.ms_of(kind) / profile.ms, 4)}
            for kind in CLASSES
        },
        "sparse products ms": round(profile.sparse_ms, 4),
        "kernels": [
            {"name": k.name, "class": k.kind, "ms": round(k.ms, 4), "launches": round(k.launches, 2)}
            for k in profile.kernels[:_TOP]
        ],
        "algorithms": {
            f"{shape[1]}→{shape[0]}, {rows} rows": str(algorithm)
            for (shape, rows, _), algorithm in variant.swapped.algorithms.items()
        },
        "kept dense": variant.swapped.kept,
        "logits against FP32": {
            "relative error": float(f"{difference.norm() / exact.norm():.3g}"),
            "same most likely token": round(float(same.float().mean()), 4),
        },
    }


def conclude(
    dense: Variant,
    variant: Variant,
    products: Mapping[LinearProduct, int],
    times: Times,
    medians: Mapping[str, Median],
) -> dict[str, Any]:
    """What a variant's products gain by themselves, what is reached, and the ceilings of `ceilings_of`."""
    sparse = {layer.weight.shape for layer in variant.swapped.dense.values()}
    before = sum(count * times[p.n, p.k][0] for p, count in products.items())
    after = sum(count * times[p.n, p.k][(p.n, p.k) in sparse] for p, count in products.items())
    reached = medians["dense"].value / medians[variant.name].value
    by_kernels = dense.profile.ms / variant.profile.ms
    whole = dense.profile.ms, medians["dense"].value
    offset = variant.logits.float() - dense.logits.float()
    return {
        "layers swapped": len(variant.swapped.dense),
        "products": {
            "dense us": round(before, 2),
            "us": round(after, 2),
            "speedup": round(before / after, 4),
        },
        **ceilings_of(before / after, dense.profile.ms_of("gemm"), whole, (by_kernels, reached)),
        "logits against dense, relative error": float(f"{offset.norm() / dense.logits.float().norm():.3g}"),
    }


def ceilings_of(
    speedup: float, gemm_ms: float, whole_ms: tuple[float, float], reached: tuple[float, float]
) -> dict[str, Any]:
    """Ceilings of the kernels' time and of the pass, each beside what is reached of the same.

    Args:
        speedup: Of all products together, each by itself.
        gemm_ms: The products' time in the dense pass.
        whole_ms: The dense kernels' time, and the dense pass's as a CUDA graph.
        reached: The speedups of these two.
    """
    found: dict[str, Any] = {}
    for of, ms, by in zip(("kernel time", "the pass"), whole_ms, reached, strict=True):
        ceiling = end_to_end(speedup, gemm_ms / ms)
        saved = (1 - 1 / by) / (1 - 1 / ceiling) if ceiling > 1 else None
        found[of] = {
            "share of the products": round(gemm_ms / ms, 4),
            "ceiling": round(ceiling, 4),
            "speedup": round(by, 4),
            "of the ceiling's saving": None if saved is None else round(saved, 4),
        }
    return found


def conclude_again(path: Path) -> None:
    """Reckons a result's ceilings anew from the times that it holds."""
    result = json.loads(path.read_text(encoding="utf-8"))
    result["variants"] = [concluded(result["dense"], variant) for variant in result["variants"]]
    write_atomically(path, json.dumps(result, indent=2) + "\n")


def concluded(dense: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """A result's variant with the ceilings that follow from its times."""
    ms = [(side["kernel ms"], side["graph ms"]["median"]) for side in (dense, variant)]
    kernels, graphs = (before / after for before, after in zip(*ms, strict=True))
    products = variant["products"]
    speedup = products["dense us"] / products["us"]
    ceilings = ceilings_of(speedup, dense["classes"]["gemm"]["ms"], ms[0], (kernels, graphs))
    return {**variant, **ceilings}


def describe_product(p: LinearProduct, count: int, times: Times) -> dict[str, Any]:
    """One row of the table of products."""
    dense_us, sparse_us = times[p.n, p.k]
    return {
        "kind": p.kind, "n": p.n, "k": p.k, "m": p.m, "count": count, "dense us": dense_us,
        "sparse us": sparse_us, "speedup": round(dense_us / sparse_us, 4),
    }  # fmt: skip


def figures_of(median: Median) -> dict[str, Any]:
    """A median with its interval."""
    return {
        "median": round(median.value, 4), "low": round(median.low, 4), "high": round(median.high, 4),
        "runs": median.runs,
    }  # fmt: skip


def say(step: str) -> None:
    """Tells what is being done."""
    print(f"  {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
