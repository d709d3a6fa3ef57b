"""What a policy says of one product: the times to expect, and whether sparse is to be taken."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from sparseflow_trt.between import time_between, wins_at
from sparseflow_trt.forest import Guess, guess_of
from sparseflow_trt.near import nearest_shape, points_near, witnesses_of
from sparseflow_trt.policy import (
    WHOSE,
    Library,
    Pair,
    Point,
    Policy,
    SparseKernel,
    Threshold,
    pairs_by_m,
    pairs_by_shape,
)

VerdictBasis = Literal["exact", "learned", "nearest", "threshold", "none"]
FAR = 1 << 20  # an M that nothing reaches


@dataclass(frozen=True)
class Expected:
    """The times to expect of one product, in microseconds of GPU time.

    Attributes:
        dense_us: Of the dense kernel on the same weights.
        sparse_us: Of the sparse kernel that was asked for.
        wins: Whether sparse is faster by the policy's margin: at M, or between the measured M around it
            (`between.wins_between`); where other shapes speak, at the nearest one's witnesses, too, or for
            sure by what all of them say (`forest`).
        doubt: Why it does not, where the times by themselves would win; else "".
        basis: Whether this very shape was measured, or what speaks for it: all measured shapes, from which
            the speedup was learned, or the nearest one of its kind.
        at: Where M lies among the measured M: on one, between two, above all or below all.
        where: The same in words.
        points: The measured points behind it.
    """

    dense_us: float
    sparse_us: float
    wins: bool
    doubt: str
    basis: Literal["exact", "learned", "nearest"]
    at: Literal["measured", "between", "above", "below"]
    where: str
    points: tuple[Point, ...]

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense_us / self.sparse_us


@dataclass(frozen=True)
class Verdict:
    """Whether sparse is expected to win, how that is known, what it gains, and the points behind it."""

    sparse: bool
    basis: VerdictBasis
    reason: str
    speedup: float | None = None
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Known:
    """All that a policy knows of the products of one layer, whatever their M.

    Attributes:
        n: The layer's outputs.
        k: Its inputs.
        dtype: The type of its product, and of the points and the threshold.
        shape: (N, K) of the measured shape that speaks for it, None where none is near enough.
        pairs: What was measured of that shape, by M, which grows.
        witnesses: The same of further shapes near by, which have to agree; none where the shape is its own.
        threshold: Of its kind.
        kernel: Which sparse kernel is held against dense: the library's own, or the plugin.
        whose: Whose kernels were timed, in words.
        margin: The share by which sparse has to be faster.
        guess: What all measured shapes say of this one; None where it was measured or they are too few.
        otherwise: What speaks where these pairs leave it open: below the smallest M, above the largest, and
            between two at both of which sparse wins and is not sure to win between them.
    """

    policy: Policy
    kind: str
    n: int
    k: int
    library: Library
    dtype: str
    shape: tuple[int, int] | None
    pairs: dict[int, Pair]
    witnesses: dict[tuple[int, int], dict[int, Pair]]
    threshold: Threshold | None
    kernel: SparseKernel
    whose: str
    margin: float
    guess: Guess | None = None
    otherwise: Known | None = None

    def at(self, m: int) -> Known:
        """What speaks at M: this, or what speaks otherwise where these pairs leave it open."""
        if not self.otherwise:
            return self
        if min(self.pairs) <= m <= max(self.pairs):
            smooth, careful = (wins_at(self.pairs, m, self.margin, wave) for wave in (0, self.policy.wave))
            if careful or not smooth:
                return self
        return self.otherwise

    def expect(self, m: int) -> Expected | None:
        """The times to expect at M, see `expect`."""
        return self.at(m)._times(m)

    def judge(self, m: int) -> Verdict:
        """Whether the product at M should run sparse, see `judge`."""
        return self.at(m)._verdict(m)

    def _times(self, m: int) -> Expected | None:
        if not self.shape:
            return None
        sizes = list(self.pairs)
        i = bisect_left(sizes, m)
        at: Literal["measured", "between", "above", "below"]
        if i == len(sizes):
            around, at, where = sizes[-1:], "above", f"as at M={sizes[-1]}, the largest measured"
        elif sizes[i] == m:
            around, at, where = [m], "measured", "measured"
        elif i == 0:
            around, at, where = sizes[:1], "below", f"as at M={sizes[0]}, the smallest measured"
        else:
            around, at, where = sizes[i - 1 : i + 1], "between", f"between M={sizes[i - 1]} and M={sizes[i]}"
        pairs = [self.pairs[size] for size in around]
        scale = self.n * self.k / math.prod(self.shape) * max(1.0, m / sizes[-1])
        dense_us = scale * time_between(m, [pair.dense for pair in pairs])
        points = tuple(point for pair in pairs for point in (pair.dense, pair.sparse))
        if self.guess and at != "below":
            return self._learned(self.guess, m, dense_us, points)
        wins_around = all(pair.wins(self.margin) for pair in pairs)
        doubt = self._doubt(m) if wins_around else ""
        return Expected(
            dense_us=dense_us,
            sparse_us=scale * time_between(m, [pair.sparse for pair in pairs]),
            wins=wins_around and not doubt,
            doubt=doubt,
            basis="exact" if self.shape == (self.n, self.k) else "nearest",
            at=at,
            where=where,
            points=points,
        )

    def _learned(self, guess: Guess, m: int, dense_us: float, points: tuple[Point, ...]) -> Expected:
        mean, spread = guess.gain(m)
        least = math.log1p(self.margin)
        sure = mean - self.policy.spreads * spread
        unsure = mean >= least > sure
        return Expected(
            dense_us=dense_us,
            sparse_us=dense_us / math.exp(mean),
            wins=sure >= least,
            doubt=f"no more than {math.exp(sure):.2f}× is sure" if unsure else "",
            basis="learned",
            at="between",
            where=f"learned from {guess.shapes} measured shapes",
            points=points,
        )

    def _doubt(self, m: int) -> str:
        if not wins_at(self.pairs, m, self.margin, self.policy.wave):
            if self.policy.wave is None:
                return "how large a step times take between them is not known"
            return "one wave of tiles more would cost it"
        for (n, k), pairs in self.witnesses.items():  # of an M beyond those that it has, one says nothing
            if min(pairs) <= m <= max(pairs) and not wins_at(pairs, m, self.margin, self.policy.wave):
                words = "is not sure to either" if wins_at(pairs, m, self.margin, 0) else "does not win"
                return f"{k}→{n}, near it, {words}"
        return ""

    def _verdict(self, m: int) -> Verdict:
        origin = f"{self.whose}, {self.policy.device}"
        named = "the plugin" if self.kernel == "plugin" else "sparse"
        expected = self._times(m)
        if expected and self.shape and expected.at != "below":
            lost = "is not sure to win" if expected.doubt else f"does not win by {self.margin:.0%}"
            words = "wins" if expected.wins else lost
            if expected.basis != "learned":
                origin = f"{self.shape[1]}→{self.shape[0]}, {origin}"
            if expected.basis == "nearest":
                origin = f"nearest shape of its kind: {origin}"
            where = expected.where
            if self.kernel == "plugin" and self.library == "torch":
                where = where.replace("measured", "timed")  # an estimate: it was not the plugin that was
            but = f", but {expected.doubt}" if expected.doubt else ""
            reason = f"{named} {words} at M={m}: {expected.speedup:.2f}× {where}{but} ({origin})"
            return Verdict(expected.wins, expected.basis, reason, expected.speedup, expected.points)
        if limit := self.threshold:
            upper = "" if limit.max_m is None else f" and ≤ {limit.max_m}"
            said = (
                "dense at every M"
                if limit.min_m is None
                else f"{named} for M ≥ {limit.min_m}{upper}, and M={m}"
            )
            reason = f"threshold of kind '{self.kind}': {said} ({origin})"
            return Verdict(limit.holds(m), "threshold", reason, None, self._behind(limit))
        return Verdict(False, "none", self._nothing(m))

    def _behind(self, limit: Threshold) -> tuple[Point, ...]:
        whose = (limit.kind, limit.library, limit.dtype)
        return tuple(
            p
            for p in self.policy.points
            if (p.kind, p.library, p.dtype) == whose
            and p.kernel in ("dense", limit.kernel)
            and (p.n, p.k) in limit.shapes
        )

    def _nothing(self, m: int) -> str:
        here = f"in policy '{self.policy.name}'"
        if len({library for library, _ in self.policy.held}) > 1:
            here += f" ({self.whose})"  # it may well hold the product of another library
        if (self.library, self.dtype) not in self.policy.held:
            return f"no measurement of {self.dtype} {here}"
        if self.kernel == "plugin" and not self.shape:
            return f"no measurement of the plugin near {self.k}→{self.n} of kind '{self.kind}' {here}"
        if self.shape:
            return f"no measurement at or below M={m} of {self.shape[1]}→{self.shape[0]} {here}"
        return f"no measurement near {self.k}→{self.n} of kind '{self.kind}' {here}"


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
        guess=guess_of(policy, library, n, k, dtype)
        if kernel == "sparse" and shape and shape != (n, k) else None,
    )  # fmt: skip


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
    measured M sparse has to win all the way (`between.wins_between`); above the largest measured M what holds
    there holds; below the smallest a shape says nothing.

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
    shape are scaled by N·K.

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
    """As `sparse_ranges`, of what is known of one layer, and of what speaks where that leaves it open."""
    after: set[int] = set()  # a verdict changes nowhere else
    for each in (known, known.otherwise) if known.otherwise else (known,):
        limit = each.threshold
        measured = {m for pairs in (each.pairs, *each.witnesses.values()) for m in pairs}
        edges = {*measured, *((limit.min_m, limit.max_m) if limit else ())}
        after |= {m + step for m in edges if m is not None for step in (0, 1)}
        if each.guess:
            learned = each.guess.sizes(low, high)
            each.guess.ask([low, high, *learned])
            after |= {*range(low, min(high, learned.start) + 1), *(m + 1 for m in learned)}
    starts = sorted({low, *(m for m in after if low < m <= high)})
    ranges: list[tuple[int, int, bool]] = []
    for begin, following in zip(starts, [*starts[1:], high + 1], strict=True):
        sparse = known.judge(begin).sparse
        if ranges and ranges[-1][2] == sparse:
            begin = ranges.pop()[0]
        ranges.append((begin, following - 1, sparse))
    return tuple(ranges)
