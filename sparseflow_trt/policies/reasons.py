"""The words beside a verdict: what is expected of a product at one M and why, or what else speaks for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparseflow_trt.model.packing import ROWS
from sparseflow_trt.policies.expected import Expected, rounded_down
from sparseflow_trt.policies.measurements import Measurements
from sparseflow_trt.policies.policy import Point, Threshold

WINS_PADDED = ", where it wins"  # a reason's end, where M is no multiple of 8 and the next one wins


@dataclass(frozen=True)
class Answer:
    """What is expected at one M.

    Attributes:
        speaks: The measurements that it rests on.
        said: The times that they give.
        most: Those of the layer's own points, which promise no more; None where it is they that speak.
        held: `said`, held to them.
        more_us: What the plugin takes longer at this M, since it is no multiple of 8.
        missed: The margin by which it does not win any more with that; None where it does by each.
    """

    m: int
    speaks: Measurements
    said: Expected
    most: Expected | None
    held: Expected
    more_us: float = 0.0
    missed: float | None = None

    @property
    def times(self) -> Expected:
        """The times to expect."""
        if not self.more_us:
            return self.held
        wins = self.held.wins and self.missed is None
        return replace(self.held, sparse_us=self.held.sparse_us + self.more_us, wins=wins)


def reason_of(answer: Answer, pad_to: int | None = None) -> str:
    """What is expected, and of which measurements.

    Args:
        answer: What is expected.
        pad_to: The next multiple of 8, where the plugin wins there and not at M.
    """
    m, said = answer.m, answer.said
    doubt = _doubt(answer)
    how = f"{said.speedup:.2f}× {said.where}" + (f", but {doubt}" if doubt else "")
    if answer.most and answer.held is not said:
        how = f"{answer.most.speedup:.2f}× at most by its own points {answer.most.where}; {how}"
    how = f"{how} ({_origin(answer)})"
    named, uneven, left = _named(answer.speaks), f"is no multiple of {ROWS}", _left(answer.times)
    if answer.held.wins and answer.missed is not None:
        lost = f"does not win by {answer.missed:.0%} at M={m}, which {uneven}"
        reason = f"{named} {lost}: {left}; of a multiple {how}"
    else:
        margin = (answer.speaks.policy if said.wins else answer.speaks).margin
        lost = "is not sure to win" if doubt else f"does not win by {margin:.0%}"
        reason = f"{named} {'wins' if answer.held.wins else lost} at M={m}: {how}"
        reason += f"; M={m} {uneven}, which leaves {left}" if answer.more_us else ""
    return reason + (f"; pad M to {pad_to}{WINS_PADDED}" if pad_to else "")


def reason_of_threshold(known: Measurements, limit: Threshold, m: int, behind: tuple[Point, ...]) -> str:
    """What the threshold of a layer's kind says at M, with the points that it was derived from."""
    said = "dense at every M"
    if limit.min_m is not None:
        upper = "" if limit.max_m is None else f" and ≤ {limit.max_m}"
        only = limit.min_m == limit.max_m
        said = f"{_named(known)} for M {'=' if only else '≥'} {limit.min_m}{'' if only else upper}, and M={m}"
    largest = max((p.m for p in behind), default=m)
    if limit.holds(m) and m > largest:
        said += f", beyond M={largest}, the largest measured"
    return f"threshold of kind '{known.gemm.kind}': {said} ({known.whose}, {known.policy.device})"


def reason_of_nothing(known: Measurements, m: int) -> str:
    """What a policy lacks that would speak for a product."""
    policy, gemm = known.policy, known.gemm
    here = f"in policy '{policy.name}'"
    if len({library for library, _ in policy.held}) > 1:
        here += f" ({known.whose})"  # it may well hold the product of another library
    if (known.library, gemm.dtype) not in policy.held:
        return f"no measurement of {gemm.dtype} {here}"
    if known.shape:
        return f"no measurement at or below M={m} of {known.shape[1]}→{known.shape[0]} {here}"
    near = "no measurement of the plugin near" if known.kernel == "plugin" else "no measurement near"
    return f"{near} {gemm.k}→{gemm.n} of kind '{gemm.kind}' {here}"


def _named(known: Measurements) -> str:
    return "the plugin" if known.kernel == "plugin" else "sparse"


def _doubt(answer: Answer) -> str:
    said = answer.said
    misses = said.at == "between" and not said.wins and said.speedup >= 1 + answer.speaks.margin
    return said.doubt or ("it does not win at both" if misses else "")


def _origin(answer: Answer) -> str:
    known, basis = answer.speaks, answer.said.basis
    origin = f"{known.whose}, {known.policy.device}"
    if basis != "learned" and known.shape:
        origin = f"{known.shape[1]}→{known.shape[0]}, {origin}"
    return f"nearest shape of its kind: {origin}" if basis == "nearest" else origin


def _left(times: Expected) -> str:
    """A speedup; too small a gain is rounded down, so as not to read as if it met the margin."""
    rounded = times.speedup > 1 and not times.wins
    return rounded_down(times.speedup) if rounded else f"{times.speedup:.2f}×"
