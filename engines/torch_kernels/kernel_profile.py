"""Where GPU time goes: kernels by what they do, and their shares.

Kernels are told apart by name. The rules are few and read in order; the names they were made for are in
the tests. A kernel that no rule knows is 'other', which is shown beside the rest and never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from pydantic import Field

from sparseflow_trt._schema import Record
from sparseflow_trt.engines.evidence.tactics import is_sparse_tactic

KernelClass = Literal["gemm", "attention", "elementwise", "copy", "other"]
CLASSES: tuple[KernelClass, ...] = get_args(KernelClass)
IN_WORDS: Mapping[KernelClass, str] = {
    "gemm": "products (GEMM, convolution)",
    "attention": "fused attention",
    "elementwise": "elementwise, normalisations, reductions",
    "copy": "copies, reshapes, look-ups",
    "other": "other",
}

_WORDS: tuple[tuple[KernelClass, str], ...] = (
    ("other", r"^\{ForeignNode ^nccl"),  # a region that TensorRT compiled whole: of everything something
    ("copy", r"^(\[CUDA.)?mem(cpy|set) ^reformat"),
    # before products: FlashAttention 3 and the memory-efficient kernels are CUTLASS's, too
    ("attention", r"flash_?(fwd|bwd|attn|attention) flash:: fmha attentionkernel native_sdpa mha_v2"
                  r" flex_attention scaled_dot_product"),
    ("gemm", r"gemm gemv nvjet cutlass cublas cusparselt splitKreduce _mma_ mat_?mul matrix_?multiply"
             r" ^SparseFlowLinear24"
             r" fully_?connected fprop dgrad wgrad convolution (^|[^a-z])conv[123]d convolve winograd"
             r" triton_(tem|mm) aten::(mm|bmm|addmm|addbmm|baddbmm|linear|mv|addmv)\b"),
    # a fused kernel of Inductor's computes, whatever copies its name lists
    ("elementwise", r"^triton_(poi|red|per) rotary"),
    ("copy", r"copy_kernel _copy_ \bcopy\b CatArray concat transpose permute shuffle gather scatter slice"
             r" index_?select index_(elementwise|put) embedding FillFunctor im2col ^no_?op$"
             r" aten::(copy_|cat|clone|contiguous|embedding|fill_|zero_|gather|index)\b"),
    ("elementwise", r"element_?wise point_?wise ^PWN\( (layer|rms|batch|group|instance)_?norm"
                    r" normali[sz]ation soft_?max reduc(e|tion) silu gelu relu sigmoid tanh activation"
                    r" unary dropout cumsum __myl_ kgen"
                    r" aten::(add|sub|mul|div|neg|pow|exp|cos|sin|rsqrt|sqrt|mean|sum|where|native_)"),
)  # fmt: skip
_RULES = tuple((kind, re.compile("|".join(words.split()), re.IGNORECASE)) for kind, words in _WORDS)


class KernelTime(Record):
    """One kernel's, or one layer's, GPU time in one run.

    Attributes:
        name: As the profiler names it.
        ms: In one run, its launches added up.
        launches: How many of them one run has.
    """

    name: str
    kind: KernelClass
    sparse: bool
    ms: float = Field(ge=0)
    launches: float = Field(ge=0)


class KernelProfile(Record):
    """Where the GPU time of one run goes.

    Attributes:
        shapes: What was run, in words.
        runs: How many runs were averaged, or the median taken of.
        kernels: The slowest first.
        wall_ms: One run by the host's clock, where it was taken; no share is of it.
    """

    shapes: str
    runs: int
    kernels: tuple[KernelTime, ...]
    wall_ms: float | None = None

    @property
    def ms(self) -> float:
        """GPU time of one run: the kernels' sum."""
        return sum(kernel.ms for kernel in self.kernels)

    def ms_of(self, kind: KernelClass) -> float:
        """GPU time of one run in kernels of a class."""
        return sum(kernel.ms for kernel in self.kernels if kernel.kind == kind)

    @property
    def sparse_ms(self) -> float:
        """GPU time of one run in sparse products."""
        return sum(kernel.ms for kernel in self.kernels if kernel.kind == "gemm" and kernel.sparse)

    @property
    def gemm_share(self) -> float:
        """The products' share of the GPU time, from 0 to 1."""
        return self.ms_of("gemm") / self.ms if self.ms else 0.0


def classify_kernel(name: str) -> KernelClass:
    """What a kernel does, by its name."""
    return next((kind for kind, words in _RULES if words.search(name)), "other")


def make_profile(
    shapes: str,
    runs: int,
    times: Iterable[tuple[str, float, float]],
    told: Mapping[str, tuple[str, ...]] | None = None,
    wall_ms: float | None = None,
) -> KernelProfile:
    """Sorts times into a profile; times of one name are added up.

    Args:
        shapes: What was run, in words.
        runs: How many runs were timed.
        times: Name, milliseconds of one run and launches in one run.
        told: What tells more of a name than the name itself: of an engine's layer its tactic and type.
        wall_ms: One run by the host's clock.
    """
    added: dict[str, tuple[float, float]] = {}
    for name, ms, launches in times:
        before = added.get(name, (0.0, 0.0))
        added[name] = before[0] + ms, before[1] + launches
    kernels = []
    for name, (ms, launches) in added.items():
        texts = (*(told or {}).get(name, ()), name)
        kind: KernelClass = next((k for k in map(classify_kernel, texts) if k != "other"), "other")
        sparse = any(map(is_sparse_tactic, texts))
        kernels.append(KernelTime(name=name, kind=kind, sparse=sparse, ms=ms, launches=launches))
    slowest_first = sorted(kernels, key=lambda kernel: (-kernel.ms, kernel.name))
    return KernelProfile(shapes=shapes, runs=runs, kernels=tuple(slowest_first), wall_ms=wall_ms)
