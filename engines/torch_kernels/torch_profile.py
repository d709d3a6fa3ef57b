"""Where the GPU time of a PyTorch module goes, kernel by kernel, and which products its layers compute."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sparseflow_trt._deps import require
from sparseflow_trt.engines.torch_kernels.kernel_profile import KernelProfile, make_profile
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.model.kinds import kind_from_names
from sparseflow_trt.pytorch.torch_layers import rows_given
from sparseflow_trt.pytorch.torch_source import TorchModel

_NO_KERNELS = ("cuda_sync", "overhead", "gpu_user_annotation")
_DTYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class LinearProduct:
    """y[M, N] = x[M, K] · Wᵀ of a Linear layer; `dtype` is the weight's, such as "FP16"."""

    kind: str
    n: int
    k: int
    m: int
    dtype: str


def require_gpu() -> Any:
    """PyTorch, where it sees a GPU.

    Raises:
        NotInstalledError: It is not installed, or sees none.
    """
    torch = require("torch", "profiling PyTorch modules")
    if not torch.cuda.is_available():
        raise NotInstalledError(
            f"PyTorch {torch.__version__} sees no GPU, and a profile is of GPU kernels.",
            "Install a build of PyTorch for CUDA, on a machine with an NVIDIA GPU.",
        )
    return torch


def profile_torch_model(
    model: TorchModel, runs: int = 10, warm_up: int = 3, on: Literal["cuda", "cpu"] = "cuda"
) -> KernelProfile:
    """Adds up each kernel's time over some runs of a module, without gradients.

    Args:
        model: What to run.
        runs: How many runs count.
        warm_up: How many come before.
        on: "cpu" profiles PyTorch's operators in place of kernels, for machines with no GPU.

    Returns:
        Times of one run. `wall_ms` is taken in runs of their own, which no profiler slows down.
    """
    torch = require("torch", "profiling PyTorch modules")
    settle = torch.cuda.synchronize if on == "cuda" else lambda: None
    activities = torch.profiler.ProfilerActivity
    with torch.no_grad():
        for _ in range(max(warm_up, 1)):
            model.run()
        settle()
        begun = time.perf_counter()
        for _ in range(runs):
            model.run()
        settle()
        wall_ms = (time.perf_counter() - begun) * 1000 / runs
        used = activities.CUDA if on == "cuda" else activities.CPU
        # One cycle, of which nothing is cleared; PyTorch 2.10 to 2.12 warn all the same where this is off.
        with torch.profiler.profile(activities=[used], acc_events=True) as profiler:
            for _ in range(runs):
                model.run()
            settle()
    times = kernel_times(profiler.events(), on)
    return make_profile(
        model.shapes,
        runs,
        [(name, us / 1000 / runs, launches / runs) for name, us, launches in times],
        wall_ms=wall_ms,
    )


def kernel_times(events: Iterable[Any], on: Literal["cuda", "cpu"] = "cuda") -> list[tuple[str, float, int]]:
    """Name, microseconds and launches of each kernel among a profiler's events, added up by name.

    Ranges that PyTorch shows beside kernels, such as annotations and waiting, are left out: their time is
    their kernels' time once more, or none at all.
    """
    added: dict[str, tuple[float, int]] = {}
    for event in events:
        if event.device_type.name.lower() != on or getattr(event, "is_user_annotation", False):
            continue
        if on == "cuda":
            if getattr(event, "activity_type", None) in _NO_KERNELS:
                continue
            taken = float(event.time_range.elapsed_us())
        else:
            taken = float(event.self_cpu_time_total)
        us, launches = added.get(event.name, (0.0, 0))
        added[event.name] = us + taken, launches + 1
    return [(name, us, launches) for name, (us, launches) in added.items()]


def record_products(model: TorchModel) -> dict[LinearProduct, int]:
    """The products of a module's Linear layers in one run, with how many there are of each."""
    torch = require("torch", "profiling PyTorch modules")
    found: Counter[LinearProduct] = Counter()

    def record(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            n, k = layer.weight.shape
            kind, dtype = kind_from_names((name,), n, k), str(layer.weight.dtype).removeprefix("torch.")
            m = rows_given(k, args, named)
            found[LinearProduct(kind, n, k, m, _DTYPES.get(dtype, dtype.upper()))] += 1

        return hook

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, layer in model.module.named_modules():
            if isinstance(layer, torch.nn.Linear):
                stack.callback(layer.register_forward_pre_hook(record(name), with_kwargs=True).remove)
        model.run()
    return dict(found)
