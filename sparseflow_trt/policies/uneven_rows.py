"""What the plugin takes longer at an M that is no multiple of 8: cuSPARSELt takes multiples alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from sparseflow_trt.model.packing import ROWS, round_up
from sparseflow_trt.policies.expected import Expected, Verdict
from sparseflow_trt.policies.known import Known, rounded_down

# Upper bounds of what such an M took longer than the next multiple, of TinyLlama's products on an H200
# (M = 1, 100, 300 and 1003 in results/plugin_linear_tinyllama.json): copying few rows 4.0 to 4.8 µs, what is
# done of more 0.9 to 1.2 times what 8 rows take, which is mostly reading the weights.
FEW = 128
FEW_US = 5.0
READINGS = 1.2


@dataclass(frozen=True)
class KnownInPlugin(Known):
    """What a policy knows of one layer in the plugin; at an M that is no multiple of 8 with its cost."""

    def expect(self, m: int) -> Expected | None:
        """The times to expect at M, as of `Known`, with what its rows beyond a multiple of 8 take."""
        times = super().expect(m)
        more = self._more_us(m)
        if times is None or more == 0:
            return times
        wins = times.wins and self._margin_missed(m, times, more) is None
        return replace(times, sparse_us=times.sparse_us + more, wins=wins)

    def judge(self, m: int) -> Verdict:
        """Whether the product at M should run in the plugin, as of `Known`, with that cost."""
        verdict = super().judge(m)
        times = super().expect(m)
        more = self._more_us(m)
        if times is None or verdict.speedup is None or more == 0:
            return verdict
        speedup = min(times.dense_us / (times.sparse_us + more), verdict.speedup)
        missed = self._margin_missed(m, times, more)
        sparse = verdict.sparse and missed is None
        left = _said(speedup, sparse)
        reason = f"{verdict.reason}; M={m} is no multiple of {ROWS}, which leaves {left}"
        if verdict.sparse and missed is not None:
            lost = f"does not win by {missed:.0%} at M={m}, which is no multiple of {ROWS}"
            _, _, how = verdict.reason.partition(": ")
            reason = f"the plugin {lost}: {left}; of a multiple {how}"
        if not sparse and super().judge(round_up(m)).sparse:
            reason += f"; pad M to {round_up(m)}, where it wins"
        return replace(verdict, sparse=sparse, speedup=speedup, reason=reason)

    def padded(self, m: int) -> Verdict | None:
        """The verdict at the next multiple of 8, where the plugin wins there and not at M; else None."""
        verdict = self.judge(round_up(m))
        return verdict if m % ROWS and verdict.sparse and not self.judge(m).sparse else None

    def of_multiples(self) -> Known:
        """The same as if every M were a multiple of 8: ranges of M begin and end anywhere."""
        return Known(**_fields(self))

    def _margin_missed(self, m: int, times: Expected, more: float) -> float | None:
        """The margin by which it does not win any more with that cost, None where it does by each.

        What speaks at M is asked for its own: an estimate has to win by more than what was measured.
        """
        known = self.at(m)
        for each, margin in ((known._times(m), known.margin), (times, self.policy.margin)):
            if each and each.dense_us < (each.sparse_us + more) * (1 + margin):
                return margin
        return None

    def _more_us(self, m: int) -> float:
        if m % ROWS == 0 or (self.exact and self.library == "tensorrt" and m in self.pairs):
            return 0.0
        if m <= FEW:
            return FEW_US
        times = super().expect(ROWS)
        return READINGS * times.sparse_us if times else 0.0


def in_plugin(known: Known) -> KnownInPlugin:
    """The same of the plugin, with what an M that is no multiple of 8 costs there."""
    return KnownInPlugin(**_fields(known))


def _fields(known: Known) -> dict[str, Any]:
    return {each.name: getattr(known, each.name) for each in fields(Known)}


def _said(speedup: float, wins: bool) -> str:
    """A speedup; too small a gain is rounded down, so as not to read as if it met the margin."""
    return rounded_down(speedup) if speedup > 1 and not wins else f"{speedup:.2f}×"
