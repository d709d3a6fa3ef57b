"""cuSPARSELt's products through PyTorch against FP32: every algorithm that autotune may pick, case by case.

    python benchmarks/torch_correctness.py [--dtype bf16]

--dtype runs all cases in that type alone. Needs a GPU and a PyTorch with cuSPARSELt. Writes
results/torch_correctness.json, and exits with 1 where a product is more than 1e-2 off FP32 (relative, in the
2-norm), holds a NaN, or differs between a call and the replay of a CUDA graph.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from measure import write_result

from sparseflow_trt.engines.measuring.time_torch import DTYPES, MOST_ERROR, TorchMeasurer
from sparseflow_trt.engines.torch_kernels import cusparselt
from sparseflow_trt.engines.torch_kernels.cusparselt import Tensor
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm, Shape
from sparseflow_trt.engines.torch_kernels.torch_timing import capture
from sparseflow_trt.policies.policy import Dtype
from sparseflow_trt.pytorch.torch_pattern import prune_rows


@dataclass(frozen=True)
class Case:
    """One product: x[M, K] · W[N, K]ᵀ, with a bias [N] or none."""

    n: int
    k: int
    m: int
    dtype: Dtype = "FP16"
    bias: bool = False


CASES = (
    Case(14336, 4096, 1),
    Case(14336, 4096, 7),
    Case(14336, 4096, 13, bias=True),
    Case(14336, 4096, 1024),
    Case(14336, 4096, 1024, "BF16"),
    Case(4096, 14336, 100, bias=True),
    Case(4096, 14336, 512),
    Case(4096, 14336, 513, "BF16", bias=True),
    Case(6144, 4096, 2048, bias=True),
    Case(3072, 768, 257, bias=True),
    Case(768, 3072, 128, "BF16"),
    Case(5632, 2048, 33, "BF16", bias=True),
    Case(128, 8192, 9),
    Case(3584, 8192, 64),
    Case(8192, 1024, 4095, "BF16"),
    Case(256, 2048, 16384),
)


def main() -> None:
    """Runs all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("fp16", "bf16"))
    dtype = parser.parse_args().dtype
    cases = [replace(case, dtype=dtype.upper()) for case in CASES] if dtype else CASES
    torch = cusparselt.load_torch()
    with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
        rows = [check(torch, case, seed) for seed, case in enumerate(cases)]
    failed = sum(not row["passed"] for row in rows)
    figures = {
        "gpu": torch.cuda.get_device_name(),
        "libraries": TorchMeasurer().versions(),
        "most error": MOST_ERROR,
        "cases": len(rows),
        "failed": failed,
        "worst relative error": max(row["worst"]["relative"] for row in rows),
        "rows": rows,
    }
    asked = f" --dtype {dtype}" if dtype else ""
    write_result("torch_correctness", figures, f"python benchmarks/torch_correctness.py{asked}")
    if failed:
        raise SystemExit(1)


def check(torch: Any, case: Case, seed: int) -> dict[str, Any]:
    """The errors of one case: of dense FP16 or BF16, and of the worst of all sparse algorithms."""
    source = torch.Generator(device="cuda").manual_seed(seed)
    kind = getattr(torch, DTYPES[case.dtype])

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device="cuda", dtype=kind)

    weight = prune_rows(random(case.n, case.k) * case.k**-0.5)
    x, bias = random(case.m, case.k), random(case.n) if case.bias else None
    exact = x.float() @ weight.float().t() + (0.0 if bias is None else bias.float())
    padded, packed = cusparselt.pad_rows(x), cusparselt.pack(weight)
    tried: dict[Algorithm, dict[str, float]] = {}
    refused, unlike = [], []
    algorithms = cusparselt.find_algorithms(DTYPES[case.dtype])
    if bias is None:  # with one, a plan is of its address
        cusparselt.make_plans(Shape(len(padded), case.n, case.k, DTYPES[case.dtype]), algorithms)
    for algorithm in algorithms:
        try:
            y = cusparselt.sparse_linear(padded, packed, algorithm, bias)
        except RuntimeError as error:
            refused.append(f"{algorithm}: {str(error).splitlines()[0]}")
            continue
        tried[algorithm] = errors(torch, y[: case.m], exact)
        if not equal_replayed(torch, padded, packed, algorithm, bias, y):
            unlike.append(str(algorithm))
    worst = max(tried, key=lambda a: order(tried[a]["relative"])) if tried else None
    row = {
        "n": case.n,
        "k": case.k,
        "m": case.m,
        "rows": len(padded),
        "dtype": case.dtype,
        "bias": case.bias,
        "passed": bool(tried) and all(e["relative"] < MOST_ERROR for e in tried.values()) and not unlike,
        "worst": {"algorithm": str(worst), **tried[worst]} if worst else {"relative": float("inf")},
        "dense": errors(torch, torch.nn.functional.linear(x, weight, bias), exact),
        "algorithms": len(tried),
        "refused": refused,
        "graph differs": unlike,
    }
    print(f"{case}: {row['worst']}", flush=True)
    return row


def errors(torch: Any, y: Tensor, exact: Tensor) -> dict[str, float]:
    """How far y is from the exact product: relative in the 2-norm, at most, and by the cosine."""
    difference = y.float() - exact
    norm = torch.linalg.vector_norm
    return {
        "relative": float(norm(difference) / norm(exact)),
        "max_abs": float(difference.abs().max()),
        "cosine": float((y.double() * exact.double()).sum() / (norm(y.double()) * norm(exact.double()))),
    }


def equal_replayed(
    torch: Any, x: Tensor, packed: Tensor, algorithm: Algorithm, bias: Tensor | None, expected: Tensor
) -> bool:
    """Whether a CUDA graph of the call gives what the call gave."""
    graph, y = capture(torch, lambda: cusparselt.sparse_linear(x, packed, algorithm, bias))
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.current_stream().synchronize()
    return bool(torch.equal(y, expected))


def order(error: float) -> float:
    """An error to sort by: a NaN is the worst."""
    return error if error == error else float("inf")


if __name__ == "__main__":
    main()
