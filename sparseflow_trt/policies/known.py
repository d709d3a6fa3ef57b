"""What a policy knows of one layer's products, whatever their M: its times, and whether sparse is taken."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparseflow_trt._same import Same
from sparseflow_trt.policies.between import around, lost_before, time_between, wins_at
from sparseflow_trt.policies.correction import Correction
from sparseflow_trt.policies.expected import At, DenseTime, Expected, Verdict
from sparseflow_trt.policies.forest import Guess
from sparseflow_trt.policies.policy import Library, Pair, Point, Policy, SparseKernel, Threshold


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
        dense: What was measured of the dense kernel at this very shape, by M, which grows: with a sparse
            kernel or alone.
        correction: How `pairs` were made of what was timed; None where they are that.
        guess: What all measured shapes say of this one; None where they are too few. Where it was measured
            it speaks between measured M and, where others were measured at larger ones and nothing is
            corrected, above its largest; not where times count as smooth.
        otherwise: What speaks where these pairs leave it open: below the smallest M, above the largest, and
            between two at both of which sparse wins and is not sure to win between them. It never promises
            more there than these pairs do: as at the nearest M beyond them, interpolated between two.
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
    dense: dict[int, Point]
    correction: Correction | None = None
    guess: Guess | None = None
    otherwise: Known | None = None

    @property
    def exact(self) -> bool:
        """Whether this very shape was measured."""
        return self.shape == (self.n, self.k)

    @property
    def timed(self) -> Mapping[int, Pair]:
        """What `pairs` are, or were made of, as it was timed."""
        return self.correction.timed if self.correction else self.pairs

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
        known = self.at(m)
        times = known._times(m)
        most = self._times(m) if known is not self else None
        return _held_to(most, times, self.margin) if most and times else times

    def judge(self, m: int) -> Verdict:
        """Whether the product at M should run sparse, see `judge`."""
        known = self.at(m)
        return known._verdict(m, self._times(m) if known is not self else None)

    def dense_at(self, m: int) -> DenseTime | None:
        """What the dense kernel takes at M, with the points around it; None where the shape was not measured.

        It grows with M above the largest measured M, and stays below the smallest.
        """
        if not self.dense:
            return None
        beside = around(list(self.dense), m)
        points = tuple(self.dense[size] for size in beside)
        return DenseTime(max(1.0, m / beside[-1]) * time_between(m, points), _place(m, beside), points)

    def of_multiples(self) -> Known:
        """What ranges of M are drawn from: this, where a kernel takes one M as well as another."""
        return self

    def padded(self, m: int) -> Verdict | None:
        """The verdict at a larger M that a kernel wins at and not at M; None where it takes any M."""
        return None

    def learned_from(self, m: int) -> list[tuple[float, Pair]]:
        """The products that a learned answer at M rests on, with their shares; none where it is not learned.

        The trees are asked for it anew, which takes a third of a second: it is for people who ask.
        """
        known = self.at(m)
        expected = known._times(m)
        if expected is None or expected.basis != "learned" or known.guess is None:
            return []
        return known.guess.weights(m)

    def _times(self, m: int) -> Expected | None:
        if not self.shape:
            return None
        beside = around(list(self.pairs), m)
        at = _place(m, beside)
        where = {
            "measured": "measured",
            "between": f"between M={beside[0]} and M={beside[-1]}",
            "above": f"as at M={beside[0]}, the largest measured",
            "below": f"as at M={beside[0]}, the smallest measured",
        }[at]
        pairs = [self.pairs[size] for size in beside]
        paired = time_between(m, [pair.dense for pair in pairs])
        points = self._behind(m, [*lost_before(self.pairs, m, self.margin), *beside])
        own = self.dense_at(m)
        scale = self.n * self.k / math.prod(self.shape) * max(1.0, m / beside[-1])
        dense_us = own.us if own else scale * paired
        alone = own is not None and own.at in ("measured", "between") and not set(own.points) <= set(points)
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

    def _behind(self, m: int, beside: Sequence[int]) -> tuple[Point, ...]:
        """The measured points that the times at M rest on."""
        pairs = [self.timed[size] for size in beside]
        points = tuple(point for pair in pairs for point in (pair.dense, pair.sparse))
        return (*points, *self.correction.behind(m)) if self.correction else points

    def _learned(self, guess: Guess, m: int, dense_us: float, points: tuple[Point, ...]) -> Expected:
        mean, _ = guess.gain(m)
        (sure,) = self._sure(guess, [m])
        least = 1 + self.margin
        unsure = math.exp(mean) >= least > sure
        above = m > guess.largest
        where = f"as at M={guess.largest}, the largest measured, " if above else ""
        if self.exact:
            where = f"above M={max(self.pairs)}, its largest measured, {where}"
        return Expected(
            dense_us=dense_us,
            sparse_us=dense_us / math.exp(mean),
            wins=sure >= least,
            doubt=f"no more than {rounded_down(sure)} is sure" if unsure else "",
            basis="learned",
            at="above" if above or self.exact else "between",
            where=f"{where}learned from {guess.shapes} measured shapes",
            points=points,
        )

    def where_sure(self, guess: Guess, sizes: Sequence[int]) -> list[bool]:
        """At which of many M all measured shapes are sure that sparse wins by the margin."""
        return [sure >= 1 + self.margin for sure in self._sure(guess, sizes)]

    def _sure(self, guess: Guess, sizes: Sequence[int]) -> list[float]:
        """The speedups at many M that all measured shapes are sure of, corrected as the pairs are."""
        care = self.policy.spreads_between if self.exact else self.policy.spreads
        sure = [math.exp(mean - care * spread) for mean, spread in guess.gains(sizes)]
        made = self.correction
        return [made.gain(m) * each for m, each in zip(sizes, sure, strict=True)] if made else sure

    def _doubt(self, m: int) -> str:
        """Why sparse is not sure to win at M, though it does at the measured M around it; else ""."""
        if before := lost_before(self.pairs, m, self.margin):
            return f"it does not win at M={before[0]}, the one before"
        if self.guess:  # this shape's own: between measured M
            alone = m in self.pairs or m > max(self.pairs)
            sure = math.inf if alone else self._sure(self.guess, [m])[0]
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

    def _verdict(self, m: int, most: Expected | None) -> Verdict:
        """What is said at M, of a gain of no more than `most`, where that is given."""
        origin = f"{self.whose}, {self.policy.device}"
        named = "the plugin" if self.kernel == "plugin" else "sparse"
        expected = self._times(m)
        if expected and self.shape and expected.at != "below":
            doubt = expected.doubt
            beside = expected.at == "between" and not expected.wins
            if beside and not doubt and expected.speedup >= 1 + self.margin:
                doubt = "it does not win at both"
            held = _held_to(most, expected, self.policy.margin) if most else expected
            margin = self.policy.margin if expected.wins else self.margin
            lost = "is not sure to win" if doubt else f"does not win by {margin:.0%}"
            words = "wins" if held.wins else lost
            if expected.basis != "learned":
                origin = f"{self.shape[1]}→{self.shape[0]}, {origin}"
            if expected.basis == "nearest":
                origin = f"nearest shape of its kind: {origin}"
            where = expected.where
            if self.kernel == "plugin" and self.library == "torch":
                # an estimate: it was not the plugin that was measured
                where = where.replace("measured", "reckoned" if self.correction else "timed")
            but = f", but {doubt}" if doubt else ""
            said = f"{expected.speedup:.2f}× {where}{but}"
            if most and held is not expected:
                said = f"{most.speedup:.2f}× at most by its own points {most.where}; {said}"
            reason = f"{named} {words} at M={m}: {said} ({origin})"
            return Verdict(held.wins, held.basis, reason, held.speedup, held.points)
        if limit := self.threshold:
            upper = "" if limit.max_m is None else f" and ≤ {limit.max_m}"
            said = (
                "dense at every M"
                if limit.min_m is None
                else f"{named} for M ≥ {limit.min_m}{upper}, and M={m}"
            )
            behind = _behind(Same(self.policy.points), limit)
            largest = max((p.m for p in behind), default=m)
            if limit.holds(m) and m > largest:
                said += f", beyond M={largest}, the largest measured"
            reason = f"threshold of kind '{self.kind}': {said} ({origin})"
            return Verdict(limit.holds(m), "threshold", reason, None, behind)
        return Verdict(False, "none", self._nothing(m))

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


def _place(m: int, beside: Sequence[int]) -> At:
    """Where M lies among those of which these are around it."""
    if len(beside) == 2:
        return "between"
    return "measured" if beside[0] == m else "above" if beside[0] < m else "below"


@functools.lru_cache(maxsize=64)
def _behind(points: Same[tuple[Point, ...]], limit: Threshold) -> tuple[Point, ...]:
    """The points that a threshold was derived from."""
    whose = (limit.kind, limit.library, limit.dtype)
    return tuple(
        p
        for p in points.value
        if (p.kind, p.library, p.dtype) == whose
        and p.kernel in ("dense", limit.kernel)
        and (p.n, p.k) in limit.shapes
    )


def _held_to(most: Expected, times: Expected, margin: float) -> Expected:
    """Times whose gain is no more than the one that points of the layer's own promise, by the margin, too."""
    if times.speedup <= most.speedup:
        return times
    return replace(
        times,
        sparse_us=times.dense_us / most.speedup,
        wins=times.wins and most.dense_us >= most.sparse_us * (1 + margin),
        points=tuple(dict.fromkeys((*most.points, *times.points))),
    )


def rounded_down(speedup: float) -> str:
    """A speedup rounded down: what falls short of a margin is not to read as if it met it."""
    return f"{math.floor(100 * speedup) / 100:.2f}×"
