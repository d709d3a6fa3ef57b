"""cuSPARSELt's 2:4 products of PyTorch's tensors.

y = x · Wᵀ is computed as PyTorch's own semi-structured linear layer does: the packed weight on the left of
xᵀ, the result written transposed. Rows of x are padded with zeros to a multiple of 8, which the library
wants. Weights are packed by PyTorch; plans are kept (cusparselt_plan), which PyTorch's own calls do not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm, Plan, Shape
from sparseflow_trt.errors import NotInstalledError, PolicyError

ROWS = 8  # M is padded to a multiple of this
_WEIGHT = 16  # N and K have to be multiples of this
_MOST_ALGORITHMS = 64  # numbers tried; 0.8.0 has 36 for FP16 and 21 for BF16 on an H200
_MOST_AT_ONCE = 16
_NEEDED_FOR = "measuring cuSPARSELt against PyTorch's dense kernels"

Tensor = Any  # torch.Tensor; torch is imported when it is needed


def load_torch() -> Any:
    """PyTorch, where it has a GPU and cuSPARSELt.

    Raises:
        NotInstalledError: It is not installed, sees no GPU, or was built without cuSPARSELt.
    """
    torch = _torch()
    if not torch.cuda.is_available():
        raise NotInstalledError(
            f"PyTorch {torch.__version__} sees no GPU, which is needed for {_NEEDED_FOR}.",
            "Install a build of PyTorch for CUDA, on a machine with an NVIDIA GPU.",
        )
    if not torch.backends.cusparselt.is_available():
        raise NotInstalledError(
            f"PyTorch {torch.__version__} was built without cuSPARSELt, which is needed for {_NEEDED_FOR}.",
            "Install PyTorch from its own package index; those builds have it.",
        )
    return torch


def why_not(n: int, k: int) -> str:
    """Why a weight W[N, K] has no sparse product in FP16 or BF16, "" where it has one."""
    if n % _WEIGHT or k % _WEIGHT:
        return f"cuSPARSELt needs N and K that are multiples of {_WEIGHT}, and {k}→{n} is not"
    return ""


def pack(weight: Tensor) -> Tensor:
    """A 2:4 weight W[N, K] on the GPU as cuSPARSELt reads it: the kept elements and where they stood."""
    torch = _torch()
    return torch._cslt_compress(weight.contiguous())


def pad_rows(x: Tensor) -> Tensor:
    """x[M, K] with zero rows added up to a multiple of ROWS."""
    torch = _torch()
    missing = -x.shape[0] % ROWS
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x


def sparse_linear(x: Tensor, packed: Tensor, algorithm: Algorithm, bias: Tensor | None = None) -> Tensor:
    """x · Wᵀ + bias.

    Args:
        x: [M, K], FP16 or BF16, M a multiple of ROWS.
        packed: W[N, K] from `pack`, of x's type.
        algorithm: How to compute it.
        bias: [N], of x's type.

    Returns:
        [M, N], of x's type.

    Raises:
        RuntimeError: The library's words, where the algorithm does not take this product.
    """
    torch = _torch()
    rows, n = len(x), len(packed)
    shape = Shape(rows, n, x.shape[1], str(x.dtype).removeprefix("torch."))
    with torch.cuda.device(x.device):
        plan = plan_for(shape, algorithm, 0 if bias is None else bias.data_ptr(), x.device.index)
        x = x.contiguous()
        y = torch.empty(rows, n, dtype=x.dtype, device=x.device)
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=x.device)
        stream = torch.cuda.current_stream().cuda_stream
        plan.run(packed.data_ptr(), x.data_ptr(), y.data_ptr(), workspace.data_ptr(), stream)
    return y


@functools.cache
def _plans() -> dict[tuple[Shape, Algorithm, int, int], Plan]:
    return {}


def plan_for(shape: Shape, algorithm: Algorithm, bias: int, device: int) -> Plan:
    """The plan of a product, made at its first use and kept: CUDA graphs may hold its kernel.

    Raises:
        RuntimeError: The library's words, where the algorithm does not take this product.
    """
    plans = _plans()
    key = (shape, algorithm, bias, device)
    if key not in plans:
        plans[key] = Plan(*key)
    return plans[key]


def make_plans(shape: Shape, algorithms: Iterable[Algorithm]) -> None:
    """Makes the plans of a product side by side: for FP16 each takes a fifth of a second of one core.

    An algorithm that does not take the product has none; using it says why.
    """
    torch = _torch()
    device = torch.cuda.current_device()
    plans = _plans()

    def make(algorithm: Algorithm) -> None:
        torch.cuda.set_device(device)
        with contextlib.suppress(RuntimeError):
            plans[shape, algorithm, 0, device] = Plan(shape, algorithm, 0, device)

    missing = [one for one in algorithms if (shape, one, 0, device) not in plans]
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
        list(pool.map(make, missing))


@contextlib.contextmanager
def passing_plans() -> Iterator[None]:
    """Gives back the plans that are made in the block; no graph recorded with one may be replayed afterwards.

    Plans that were there before stay: a module's sparse layers may run by them.
    """
    plans = _plans()
    before = set(plans)
    try:
        yield
    finally:
        for key in set(plans) - before:
            plans.pop(key).close()


@functools.cache
def find_algorithms(dtype: str) -> tuple[Algorithm, ...]:
    """The algorithms that the library has for products of a type, tried once in a process of their own.

    Its own search is not used, and numbers that it may not have are not tried here: on an H200, version
    0.8.0 ends both, for FP16, in an illegal instruction, after which a process has no GPU any more.

    Args:
        dtype: As PyTorch calls it, such as "float16".

    Raises:
        PolicyError: None works.
    """
    tried = subprocess.run(
        [sys.executable, "-c", _TRIAL, dtype, str(_MOST_ALGORITHMS)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = tuple(Algorithm(int(number)) for number in tried.stdout.split())
    if not found:
        said = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PolicyError(
            f"no algorithm of cuSPARSELt multiplies {dtype} on this GPU: {said}",
            "Look at `sparseflow-trt doctor`; PyTorch's own packages bring the cuSPARSELt that fits.",
        )
    return found


_TRIAL = """
import sys, torch
kind = getattr(torch, sys.argv[1])
weight = torch.tensor([1, 1, 0, 0], dtype=kind, device="cuda").repeat(256, 64)
packed, x = torch._cslt_compress(weight), torch.ones(64, 256, dtype=kind, device="cuda")
for number in range(int(sys.argv[2])):
    try:
        y = torch._cslt_sparse_mm(packed, x.t(), transpose_result=True, alg_id=number)
        right = bool((y == 128).all())
    except RuntimeError:
        continue
    if right:
        print(number, flush=True)
"""


def rank_algorithms(
    candidates: Iterable[Algorithm], time_us: Callable[[Algorithm], float]
) -> list[Algorithm]:
    """The candidates, the fastest first; those that do not take the product are left out.

    Args:
        candidates: What to time.
        time_us: Microseconds of one product; raises RuntimeError where the algorithm does not take it.

    Raises:
        PolicyError: None takes it.
    """
    times: dict[Algorithm, float] = {}
    refused = "there is none"
    for algorithm in candidates:
        try:
            times[algorithm] = time_us(algorithm)
        except RuntimeError as error:
            refused = f"{algorithm}: {str(error).splitlines()[0]}"
    if not times:
        raise PolicyError(
            f"cuSPARSELt has no algorithm for this product ({refused}).", "Leave its layer out."
        )
    return sorted(times, key=times.__getitem__)


@functools.cache  # it looks into package metadata, which takes longer than a product
def _torch() -> Any:
    return require("torch", _NEEDED_FOR)
