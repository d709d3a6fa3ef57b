"""What a policy says of one product: the times to expect, and whether sparse is to be taken."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from itertools import pairwise

from sparseflow_trt._same import Same
from sparseflow_trt.policies.expected import Expected, Verdict
from sparseflow_trt.policies.forest import Guess, guess_of
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.near import nearest_shape, points_near, witnesses_of
from sparseflow_trt.policies.policy import (
    WHOSE,
    Library,
    Pair,
    Policy,
    SparseKernel,
    dense_by_m,
    pairs_by_m,
    pairs_by_shape,
)

FAR = 1 << 20  # an M that nothing reaches


def known_of(
    policy: Policy,
    kind: str,
    n: int,
    k: int,
    dtype: str,
    library: Library = "tensorrt",
    kernel: SparseKernel = "sparse",
) -> Known:
    """All that a policy knows of one layer's products; for one M there are `judge` and `expect`.

    Args:
        policy: What was measured.
        kind: The layer's kind.
        n: Its outputs.
        k: Its inputs.
        dtype: The type of its product, such as "FP16".
        library: Whose kernels will run.
        kernel: Which sparse kernel. For the plugin `plugin_known` also takes estimates.
    """
    return _known_of(Same(policy), kind, n, k, dtype, library, kernel)


@functools.lru_cache(maxsize=256)  # the layers of a model are alike, and are asked of each profile
def _known_of(
    same: Same[Policy], kind: str, n: int, k: int, dtype: str, library: Library, kernel: SparseKernel
) -> Known:
    policy = same.value
    library = library_of(policy, library)
    near = [p for p in points_near(policy, kind, n, k, dtype) if p.library == library]
    by_shape = pairs_by_shape(near, kernel)
    shape = nearest_shape(by_shape, n, k)
    wanted = (kind, library, dtype, kernel)
    limits = [t for t in policy.thresholds if (t.kind, t.library, t.dtype, t.kernel) == wanted]
    return Known(
        policy, kind, n, k, library, dtype, shape,
        pairs=by_shape[shape] if shape else {},
        witnesses=witnesses_of(
            shape, n, k, (p for p in policy.points if (p.dtype, p.library) == (dtype, library)),
            lambda points: pairs_by_m(points, kernel),
        ),
        threshold=limits[0] if limits else None, kernel=kernel,
        whose="the plugin against TensorRT's kernels" if kernel == "plugin" else WHOSE[library],
        margin=policy.margin,
        dense=dense_by_m(p for p in near if (p.n, p.k) == (n, k)),
        guess=guess_for(policy, library, n, k, dtype, shape) if kernel == "sparse" else None,
    )  # fmt: skip


def guess_for(
    policy: Policy, library: Library, n: int, k: int, dtype: str, shape: tuple[int, int] | None
) -> Guess | None:
    """What all measured shapes say of a layer for which `shape` speaks, where they are asked at all.

    Where no shape speaks they are not, and of a measured one not if the policy's times count as smooth.
    """
    if shape is None or (shape == (n, k) and policy.wave == 0):
        return None
    return guess_of(policy, library, n, k, dtype)


def library_of(policy: Policy, asked: Library) -> Library:
    """Whose kernels a policy is asked for: torch's where it holds nothing of TensorRT's, else as asked."""
    held = {library for library, _ in policy.held}
    return "torch" if asked not in held and "torch" in held else asked


def judge(
    policy: Policy, kind: str, n: int, k: int, m: int, dtype: str, library: Library = "tensorrt"
) -> Verdict:
    """Says whether a product of M×K by K×N should run sparse.

    In this order: the exact shape where it was measured, under whatever kind; else, where a shape of its kind
    within NEAREST_OCTAVES was measured, what all measured shapes say (`forest`), or that nearest one, if its
    WITNESSES agree, where they are too few to learn from; else the kind's threshold; else dense. Between two
    measured M sparse has to win at both and to be sure to win in between, by what all measured shapes say or,
    where they are too few, by `between.wins_between`; above the shape's largest measured M what all of
    them say, if others were measured at larger ones, else what holds at it; below the smallest a shape says
    nothing.

    Args:
        policy: What was measured.
        kind: The layer's kind.
        n: Its outputs.
        k: Its inputs.
        m: Its rows.
        dtype: The type of its product, such as "FP16". Another type says nothing of it: on an H200
            cuSPARSELt is 1.31 times as fast as dense at 4096→6144 and M=64 in FP16, and 0.69 in BF16.
        library: Whose kernels will run. A policy that holds nothing of TensorRT's is asked for
            cuSPARSELt's, and the reason says so.
    """
    return known_of(policy, kind, n, k, dtype, library).judge(m)


def expect(
    policy: Policy, kind: str, n: int, k: int, m: int, dtype: str, library: Library = "tensorrt"
) -> Expected | None:
    """The times to expect, or None where no shape near enough was measured.

    Between measured M times are interpolated, log over log. Above the largest they grow with M; below
    the smallest they stay (a product that small is bound by reading its weights). Times of the nearest
    shape are scaled by N·K. Where the dense kernel alone was measured, too, dense times are its own.

    Args:
        policy: What was measured.
        kind: The layer's kind.
        n: Its outputs.
        k: Its inputs.
        m: Its rows.
        dtype: The type of its product, as in `judge`.
        library: Whose kernels, as in `judge`.
    """
    return known_of(policy, kind, n, k, dtype, library).expect(m)


def sparse_ranges(
    policy: Policy, kind: str, n: int, k: int, dtype: str, low: int, high: int,
    library: Library = "tensorrt", kernel: SparseKernel = "sparse",
) -> tuple[tuple[int, int, bool], ...]:  # fmt: skip
    """The ranges of M from `low` to `high`, with whether the kernel is taken in each; neighbours differ."""
    return ranges_of(known_of(policy, kind, n, k, dtype, library, kernel), low, high)


def ranges_of(known: Known, low: int, high: int) -> tuple[tuple[int, int, bool], ...]:
    """As `sparse_ranges`, of what is known of one layer, and of what speaks where that leaves it open.

    Of the plugin they are those of the multiples of 8 in them.
    """
    known = known.of_multiples()
    after: set[int] = set()  # a verdict changes nowhere else
    for each in (known, known.otherwise) if known.otherwise else (known,):
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
    known = known_of(policy, kind, one.n, one.k, one.dtype, one.library, kernel)
    return taken_ranges(known, min(pairs), max(pairs))


def widest(ranges: Iterable[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Of ranges of M those that span most octaves, at most so many, in the order of M."""
    return sorted(sorted(ranges, key=lambda span: -(span[1] + 1) / span[0])[:most])


def _learned_edges(known: Known, guess: Guess, low: int, high: int) -> set[int]:
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
