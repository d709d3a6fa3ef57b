"""What a policy answers of one product: the times to expect, and whether sparse is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sparseflow_trt.policies.policy import Point

VerdictBasis = Literal["exact", "learned", "nearest", "threshold", "none"]
At = Literal["measured", "between", "above", "below"]


@dataclass(frozen=True)
class Expected:
    """The times to expect of one product, in microseconds of GPU time.

    Attributes:
        dense_us: Of the dense kernel on the same weights: as it was measured of this very shape, wherever it
            was, with a sparse kernel or alone.
        sparse_us: Of the sparse kernel that was asked for: the dense time over the speedup.
        wins: Whether sparse is faster by the policy's margin: at M, or at both measured M around it and all
            the way between them, for sure by what all measured shapes say (`forest`), or where they are too
            few by what times may do there (`between.wins_between`). Of a shape that was not measured: for
            sure by what all of them say, or at the nearest one and its witnesses.
        doubt: Why it does not, where it wins at all measured M that speak, or on average by what was learned;
            else "".
        basis: Whether this very shape was measured, around M, or what speaks for it: all measured shapes,
            from which the speedup was learned, or the nearest one of its kind.
        at: Where M lies among the measured M: on one, between two, above all or below all. What was learned
            lies between those of all shapes, or above them; of a measured shape above its own.
        where: The same in words.
        points: The measured points behind it; of a learned speedup those of the nearest shape, of which its
            dense time is scaled. What the speedup itself rests on `Known.learned_from` tells.
        dense_alone: Whether the dense time is of measurements around M that these points lack.
    """

    dense_us: float
    sparse_us: float
    wins: bool
    doubt: str
    basis: Literal["exact", "learned", "nearest"]
    at: At
    where: str
    points: tuple[Point, ...]
    dense_alone: bool = False

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense_us / self.sparse_us


@dataclass(frozen=True)
class DenseTime:
    """What the dense kernel takes by measurements of this very shape, in microseconds of GPU time.

    Attributes:
        at: Where M lies among the measured M.
        points: Those around it.
    """

    us: float
    at: At
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether sparse is expected to win, how that is known, what it gains, and points as of `Expected`."""

    sparse: bool
    basis: VerdictBasis
    reason: str
    speedup: float | None = None
    points: tuple[Point, ...] = ()


def held_to(most: Expected, times: Expected, margin: float) -> Expected:
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
