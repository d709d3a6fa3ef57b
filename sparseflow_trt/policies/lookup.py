"""What a policy says of one product: the times to expect, and whether sparse is to be taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from sparseflow_trt._same import Same
from sparseflow_trt.policies.expected import Expected, Verdict
from sparseflow_trt.policies.forest import Guess
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.measurements import Measurements, gather
from sparseflow_trt.policies.policy import Library, Pair, Policy, SparseKernel

FAR = 1 << 20  # an M that nothing reaches


def known_of(
    policy: Policy, gemm: Gemm, library: Library = "tensorrt", kernel: SparseKernel = "sparse"
) -> Known:
    """All that a policy knows of one layer's products; for one M there are `judge` and `expect`.

    Args:
        policy: What was measured.
        gemm: The layer's product.
        library: Whose kernels will run. A policy that holds nothing of TensorRT's is asked for
            cuSPARSELt's, and reasons say so.
        kernel: Which sparse kernel. For the plugin `plugin_known` also takes estimates.
    """
    used = library_of(policy, library) if kernel == "sparse" else library
    return Known(gather(Same(policy), gemm, used, kernel))


def library_of(policy: Policy, asked: Library) -> Library:
    """Whose kernels a policy is asked for: torch's where it holds nothing of TensorRT's, else as asked."""
    held = {library for library, _ in policy.held}
    return "torch" if asked not in held and "torch" in held else asked


def is_timed(policy: Policy, gemm: Gemm, m: int | None = None) -> bool:
    """Whether TensorRT's own sparse kernels were timed for this very product, at M or below it."""
    known = known_of(policy, gemm).own
    return known.exact and known.library == "tensorrt" and (m is None or m >= min(known.pairs))


def judge(policy: Policy, gemm: Gemm, m: int, library: Library = "tensorrt") -> Verdict:
    """Whether a product should run sparse, see `Known.judge`."""
    return known_of(policy, gemm, library).judge(m)


def expect(policy: Policy, gemm: Gemm, m: int, library: Library = "tensorrt") -> Expected | None:
    """The times to expect of a product, see `Known.expect`."""
    return known_of(policy, gemm, library).expect(m)


def sparse_ranges(
    policy: Policy, gemm: Gemm, low: int, high: int, library: Library = "tensorrt"
) -> tuple[tuple[int, int, bool], ...]:
    """The ranges of M from `low` to `high`, with whether sparse is taken in each; neighbours differ."""
    return ranges_of(known_of(policy, gemm, library), low, high)


def ranges_of(known: Known, low: int, high: int) -> tuple[tuple[int, int, bool], ...]:
    """As `sparse_ranges`, of what is known of one layer, and of what speaks where that leaves it open.

    Of the plugin they are those of the multiples of 8 in them.
    """
    known = known.of_multiples()
    after: set[int] = set()  # a verdict changes nowhere else
    for each in filter(None, (known.own, known.otherwise)):
        limit = each.threshold
        measured = {m for pairs in (each.pairs, *each.witnesses.values()) for m in pairs}
        edges = {*measured, *((limit.min_m, limit.max_m) if limit else ())}
        after |= {m + step for m in edges if m is not None for step in (0, 1)}
        if each.guess:
            after |= _learned_edges(each, each.guess, low, high)
    starts = sorted({low, *(m for m in after if low < m <= high)})
    ranges: list[tuple[int, int, bool]] = []
    for begin, following in zip(starts, [*starts[1:], high + 1], strict=True):
        sparse = known.judge(begin).sparse
        if ranges and ranges[-1][2] == sparse:
            begin = ranges.pop()[0]
        ranges.append((begin, following - 1, sparse))
    return tuple(ranges)


def taken_ranges(known: Known, low: int, high: int) -> list[tuple[int, int]]:
    """The ranges of M from `low` to `high` in which the kernel is taken."""
    return [(begin, end) for begin, end, taken in ranges_of(known, low, high) if taken]


def taken_where_measured(
    policy: Policy, kind: str, pairs: Mapping[int, Pair], kernel: SparseKernel
) -> list[tuple[int, int]]:
    """The same of one measured shape, from the smallest to the largest M of its pairs, those between too."""
    one = next(iter(pairs.values())).dense
    known = known_of(policy, Gemm(kind, one.n, one.k, one.dtype), one.library, kernel)
    return taken_ranges(known, min(pairs), max(pairs))


def widest(ranges: Iterable[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Of ranges of M those that span most octaves, at most so many, in the order of M."""
    return sorted(sorted(ranges, key=lambda span: -(span[1] + 1) / span[0])[:most])


def _learned_edges(known: Measurements, guess: Guess, low: int, high: int) -> set[int]:
    """The M at which what was learned changes its mind; it is asked of all of them at once."""
    spans = [(low, high)]
    if known.exact:
        spans = [
            (before + 1, after - 1)
            for (before, first), (after, second) in pairwise(known.pairs.items())
            if first.wins(known.margin) and second.wins(known.margin)
        ]
        spans.append((max(known.pairs) + 1, high))
    within = [(max(low, begin), min(high, end)) for begin, end in spans]
    asked = [sorted({begin, end, *guess.sizes(begin, end)}) for begin, end in within if begin <= end]
    guess.ask(m for sizes in asked for m in sizes)
    found: set[int] = set()
    for sizes in asked:
        sure = known.where_sure(guess, sizes)
        found |= {m + 1 for m, (now, then) in zip(sizes, pairwise(sure), strict=False) if now != then}
    return found
