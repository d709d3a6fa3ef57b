"""What a policy answers of one layer's products: the times to expect at an M, and whether sparse is taken."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from sparseflow_trt._same import Same
from sparseflow_trt.model.packing import ROWS, round_up
from sparseflow_trt.policies.between import wins_at
from sparseflow_trt.policies.expected import Expected, Verdict, held_to
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.measurements import Measurements
from sparseflow_trt.policies.policy import Pair, Point, Threshold
from sparseflow_trt.policies.reasons import Answer, reason_of, reason_of_nothing, reason_of_threshold
from sparseflow_trt.policies.uneven_rows import more_us


@dataclass(frozen=True)
class Known:
    """All that a policy knows of the products of one layer, whatever their M.

    Attributes:
        own: What was measured that speaks for the layer.
        otherwise: What speaks where its pairs leave it open: below the smallest M, above the largest, and
            between two at both of which sparse wins and is not sure to win between them. It never promises
            more there than these pairs do: as at the nearest M beyond them, interpolated between two.
        uneven: Whether what an M that is no multiple of 8 costs is counted (`uneven_rows`).
    """

    own: Measurements
    otherwise: Measurements | None = None
    uneven: bool = False

    @property
    def gemm(self) -> Gemm:
        """The layer's product."""
        return self.own.gemm

    def at(self, m: int) -> Measurements:
        """What speaks at M: the layer's own, or what speaks otherwise where that leaves it open."""
        own = self.own
        if not self.otherwise:
            return own
        if min(own.pairs) <= m <= max(own.pairs):
            smooth, careful = (wins_at(own.pairs, m, own.margin, wave) for wave in (0, own.policy.wave))
            if careful or not smooth:
                return own
        return self.otherwise

    def expect(self, m: int) -> Expected | None:
        """The times to expect at M, or None where no shape near enough was measured.

        Between measured M times are interpolated, log over log. Above the largest they grow with M; below
        the smallest they stay (a product that small is bound by reading its weights). Times of the nearest
        shape are scaled by N·K. Where the dense kernel alone was measured, too, dense times are its own.
        """
        answer = self._answer(m)
        return answer.times if answer else None

    def judge(self, m: int) -> Verdict:
        """Whether the product at M should run sparse.

        In this order: the exact shape where it was measured, under whatever kind; else, where a shape of
        its kind within NEAREST_OCTAVES was measured, what all measured shapes say (`forest`), or that nearest
        one, if its WITNESSES agree, where they are too few to learn from; else the kind's threshold; else
        dense. Between two measured M sparse has to win at both and to be sure to win in between, by what all
        measured shapes say or, where they are too few, by `between.wins_between`; above the shape's largest
        measured M what all of them say, if others were measured at larger ones, else what holds at it; below
        the smallest a shape says nothing.
        """
        answer = self._answer(m)
        if answer is None or answer.said.at == "below":
            return _judge_without_times(self.at(m), m)
        times = answer.times
        padded = round_up(m) if answer.more_us and not times.wins and self.judge(round_up(m)).sparse else None
        return Verdict(times.wins, times.basis, reason_of(answer, padded), times.speedup, times.points)

    def of_multiples(self) -> Known:
        """The same as if every M were a multiple of 8: ranges of M begin and end anywhere."""
        return replace(self, uneven=False)

    def padded(self, m: int) -> Verdict | None:
        """The verdict at the next multiple of 8, where the plugin wins there and not at M; else None."""
        if not self.uneven or m % ROWS == 0 or self.judge(m).sparse:
            return None
        verdict = self.judge(round_up(m))
        return verdict if verdict.sparse else None

    def learned_from(self, m: int) -> list[tuple[float, Pair]]:
        """The products that a learned answer at M rests on, with their shares; none where it is not learned.

        The trees are asked for it anew, which takes a third of a second: it is for people who ask.
        """
        speaks = self.at(m)
        times = speaks.expect(m)
        return speaks.guess.weights(m) if speaks.guess and times and times.basis == "learned" else []

    def _answer(self, m: int) -> Answer | None:
        speaks = self.at(m)
        said = speaks.expect(m)
        if said is None:
            return None
        most = self.own.expect(m) if speaks is not self.own else None
        held = held_to(most, said, self.own.margin) if most else said
        answer = Answer(m, speaks, said, most, held)
        more = self._more_us(m)
        if more == 0:
            return answer
        # what speaks at M is asked for its own margin: an estimate has to win by more than what was measured
        margins = ((said, speaks.margin), (held, self.own.policy.margin))
        missed = (by for times, by in margins if times.dense_us < (times.sparse_us + more) * (1 + by))
        return replace(answer, more_us=more, missed=next(missed, None))

    def _more_us(self, m: int) -> float:
        if not self.uneven or (self.own.exact and self.own.library == "tensorrt" and m in self.own.pairs):
            return 0.0
        return more_us(m, self.of_multiples().expect)


def _judge_without_times(known: Measurements, m: int) -> Verdict:
    if limit := known.threshold:
        behind = _behind(Same(known.policy.points), limit)
        return Verdict(
            limit.holds(m), "threshold", reason_of_threshold(known, limit, m, behind), None, behind
        )
    return Verdict(False, "none", reason_of_nothing(known, m))


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
