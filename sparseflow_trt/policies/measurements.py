"""What a policy holds of one library's kernels that speaks for a layer, and the times that gives at an M."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparseflow_trt._same import Same
from sparseflow_trt.policies.between import around, lost_before, time_between, wins_at
from sparseflow_trt.policies.correction import Correction
from sparseflow_trt.policies.expected import At, DenseTime, Expected, rounded_down
from sparseflow_trt.policies.forest import Guess, guess_of
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.near import nearest_shape, points_near, witnesses_of
from sparseflow_trt.policies.policy import (
    WHOSE,
    Library,
    Pair,
    Point,
    Policy,
    SparseKernel,
    Threshold,
    dense_by_m,
    pairs_by_shape,
    points_of,
)

# By how much an estimate has to win, against TensorRT's dense kernel or cuBLAS's: the plugin took 0.93 to
# 1.17 times as long as cuSPARSELt in PyTorch, and its gain over TensorRT 8.6's dense kernel was 0.77 to 1.36
# times what cuBLAS's times say, in 50 products of LLaMA-8B, LLaMA-70B and TinyLlama on an H200
# (results/plugin_linear_*.json). With this margin none of those is lost, whatever is left out of what is
# known of it (results/ship_policy.json).
ESTIMATE_MARGIN = 0.15


@dataclass(frozen=True)
class Measurements:
    """What a policy holds of one library's kernels for a layer.

    Attributes:
        library: Whose kernels were timed.
        kernel: Which sparse kernel is held against dense: the library's own, or the plugin. The plugin by
            "torch" is an estimate: it runs cuSPARSELt's kernels, and it is those that were timed.
        shape: (N, K) of the measured shape that speaks for the layer, None where none is near enough.
        pairs: What was measured of that shape, by M, which grows.
        witnesses: The same of further shapes near by, which have to agree; none where the shape is its own.
        threshold: Of its kind.
        dense: What was measured of the dense kernel at this very shape, by M, which grows: with a sparse
            kernel or alone.
        guess: What all measured shapes say of this one; None where they are too few. Where it was measured
            it speaks between measured M and, where others were measured at larger ones and nothing is
            corrected, above its largest; not where times count as smooth.
        correction: How `pairs` were made of what was timed; None where they are that.
    """

    policy: Policy
    gemm: Gemm
    library: Library
    kernel: SparseKernel
    shape: tuple[int, int] | None
    pairs: dict[int, Pair]
    witnesses: dict[tuple[int, int], dict[int, Pair]]
    threshold: Threshold | None
    dense: dict[int, Point]
    guess: Guess | None
    correction: Correction | None = None

    @property
    def exact(self) -> bool:
        """Whether this very shape was measured."""
        return self.shape == self.gemm.shape

    @property
    def estimated(self) -> bool:
        """Whether it is not the plugin itself that was timed."""
        return self.kernel == "plugin" and self.library == "torch"

    @property
    def timed(self) -> Mapping[int, Pair]:
        """What `pairs` are, or were made of, as it was timed."""
        return self.correction.timed if self.correction else self.pairs

    @property
    def margin(self) -> float:
        """The share by which sparse has to be faster."""
        return max(self.policy.margin, ESTIMATE_MARGIN) if self.estimated else self.policy.margin

    @property
    def whose(self) -> str:
        """Whose kernels were timed, in words."""
        if self.kernel == "sparse":
            return WHOSE[self.library]
        if not self.estimated:
            return "the plugin against TensorRT's kernels"
        dense = "TensorRT's kernels" if self.correction else "cuBLAS"
        return f"estimated from cuSPARSELt against {dense}"

    def dense_at(self, m: int) -> DenseTime | None:
        """What the dense kernel takes at M, with the points around it; None where the shape was not measured.

        It grows with M above the largest measured M, and stays below the smallest.
        """
        if not self.dense:
            return None
        beside = around(list(self.dense), m)
        points = tuple(self.dense[size] for size in beside)
        return DenseTime(max(1.0, m / beside[-1]) * time_between(m, points), _place(m, beside), points)

    def expect(self, m: int) -> Expected | None:
        """The times to expect at M, or None where no shape near enough was measured."""
        if not self.shape:
            return None
        beside = around(list(self.pairs), m)
        at = _place(m, beside)
        where = {
            "measured": self._measured,
            "between": f"between M={beside[0]} and M={beside[-1]}",
            "above": f"as at M={beside[0]}, the largest {self._measured}",
            "below": f"as at M={beside[0]}, the smallest {self._measured}",
        }[at]
        pairs = [self.pairs[size] for size in beside]
        paired = time_between(m, [pair.dense for pair in pairs])
        points = self._behind(m, [*lost_before(self.pairs, m, self.margin), *beside])
        own = self.dense_at(m)
        scale = self.gemm.n * self.gemm.k / math.prod(self.shape) * max(1.0, m / beside[-1])
        dense_us = own.us if own else scale * paired
        # by their times: a policy may hold one measurement under the names of several kinds
        held = {(point.m, point.us) for point in points}
        lacks = own is not None and not {(point.m, point.us) for point in own.points} <= held
        alone = lacks and own is not None and own.at in ("measured", "between")
        # a correction is not known to hold so far beyond where both were timed
        others = self.guess is not None and self.guess.largest > beside[0] and not self.correction
        if self.guess and at != "below" and (not self.exact or (at == "above" and others)):
            return replace(self._learned(self.guess, m, dense_us, points), dense_alone=alone)
        wins_around = all(pair.wins(self.margin) for pair in pairs)
        doubt = self._doubt(m) if wins_around else ""
        return Expected(
            dense_us=dense_us,
            sparse_us=dense_us / paired * time_between(m, [pair.sparse for pair in pairs]),
            wins=wins_around and not doubt,
            doubt=doubt,
            basis="exact" if self.exact else "nearest",
            at=at,
            where=where,
            points=points,
            dense_alone=alone,
        )

    def where_sure(self, guess: Guess, sizes: Sequence[int]) -> list[bool]:
        """At which of many M all measured shapes are sure that sparse wins by the margin."""
        return [sure >= 1 + self.margin for sure in self.sure(guess, sizes)]

    def sure(self, guess: Guess, sizes: Sequence[int]) -> list[float]:
        """The speedups at many M that all measured shapes are sure of, corrected as the pairs are."""
        care = self.policy.spreads_between if self.exact else self.policy.spreads
        sure = [math.exp(mean - care * spread) for mean, spread in guess.gains(sizes)]
        made = self.correction
        return [made.gain(m) * each for m, each in zip(sizes, sure, strict=True)] if made else sure

    @property
    def _measured(self) -> str:
        """What is said of an M at which there is a pair: of an estimate it is not the plugin's."""
        return ("reckoned" if self.correction else "timed") if self.estimated else "measured"

    def _behind(self, m: int, beside: Sequence[int]) -> tuple[Point, ...]:
        """The measured points that the times at M rest on."""
        pairs = [self.timed[size] for size in beside]
        points = tuple(point for pair in pairs for point in (pair.dense, pair.sparse))
        return (*points, *self.correction.behind(m)) if self.correction else points

    def _learned(self, guess: Guess, m: int, dense_us: float, points: tuple[Point, ...]) -> Expected:
        mean, _ = guess.gain(m)
        (sure,) = self.sure(guess, [m])
        least = 1 + self.margin
        unsure = math.exp(mean) >= least > sure
        above = m > guess.largest
        where = f"as at M={guess.largest}, the largest {self._measured}, " if above else ""
        if self.exact:
            where = f"above M={max(self.pairs)}, its largest {self._measured}, {where}"
        return Expected(
            dense_us=dense_us,
            sparse_us=dense_us / math.exp(mean),
            wins=sure >= least,
            doubt=f"no more than {rounded_down(sure)} is sure" if unsure else "",
            basis="learned",
            at="above" if above or self.exact else "between",
            where=f"{where}learned from {guess.shapes} {self._measured} shapes",
            points=points,
        )

    def _doubt(self, m: int) -> str:
        """Why sparse is not sure to win at M, though it does at the measured M around it; else ""."""
        if before := lost_before(self.pairs, m, self.margin):
            return f"it does not win at M={before[0]}, the one before"
        if self.guess:  # this shape's own: between measured M
            alone = m in self.pairs or m > max(self.pairs)
            sure = math.inf if alone else self.sure(self.guess, [m])[0]
            return f"no more than {rounded_down(sure)} is sure there" if sure < 1 + self.margin else ""
        if not wins_at(self.pairs, m, self.margin, self.policy.wave):
            if self.policy.wave is None:
                return "how large a step times take between them is not known"
            return "one wave of tiles more would cost it"
        for (n, k), pairs in self.witnesses.items():  # of an M beyond those that it has, one says nothing
            if min(pairs) <= m <= max(pairs) and not wins_at(pairs, m, self.margin, self.policy.wave):
                words = "is not sure to either" if wins_at(pairs, m, self.margin, 0) else "does not win"
                return f"{k}→{n}, near it, {words}"
        return ""


@functools.lru_cache(maxsize=256)  # the layers of a model are alike, and are asked of each profile
def gather(same: Same[Policy], gemm: Gemm, library: Library, kernel: SparseKernel) -> Measurements:
    """What a policy holds of a library's kernels for a layer; of the plugin by "torch" cuSPARSELt's times."""
    policy = same.value
    timed: SparseKernel = "sparse" if library == "torch" else kernel
    near = points_near(policy, gemm, library)
    by_shape = pairs_by_shape(near, timed)
    shape = nearest_shape(by_shape, gemm)
    wanted = (gemm.kind, library, gemm.dtype, kernel)
    points = points_of(Same(policy.points)).get((library, gemm.dtype), ())
    # where no shape speaks all measured ones are not asked, and of a measured one not if times are smooth
    learned = timed == "sparse" and shape and not (shape == gemm.shape and policy.wave == 0)
    return Measurements(
        policy,
        gemm,
        library,
        kernel,
        shape,
        pairs=by_shape[shape] if shape else {},
        witnesses=witnesses_of(shape, gemm, points, timed),
        threshold=next(
            (t for t in policy.thresholds if (t.kind, t.library, t.dtype, t.kernel) == wanted), None
        ),
        dense=dense_by_m(p for p in near if (p.n, p.k) == gemm.shape),
        guess=guess_of(policy, library, gemm) if learned else None,
    )


def _place(m: int, beside: Sequence[int]) -> At:
    """Where M lies among those of which these are around it."""
    if len(beside) == 2:
        return "between"
    return "measured" if beside[0] == m else "above" if beside[0] < m else "below"
