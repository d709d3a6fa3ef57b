"""Makes the shipped policy of a GPU from the journals of `autotune` in results/, with no GPU.

    python benchmarks/ship_policy.py h200

reads results/autotune_NAME_*.jsonl, each the journal of a run whose command stands in it. Of each run the
products count that have all M of autotune's grid. Thresholds for TensorRT's own kernels are given, not
derived (docs/TENSORRT.md: whole engines gained nothing), where no point of theirs is there.

The margin is the least of MARGINS that is enough when each measured M is asked for by its neighbours alone
(`lost_when_left_out`): between measured M times are not smooth, since libraries change kernels.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path

from sparseflow_trt.engines.autotune import incomplete_curves
from sparseflow_trt.engines.journal import read_journal
from sparseflow_trt.engines.measured_policy import extend_policy, policy_from_journal
from sparseflow_trt.lookup import known_of
from sparseflow_trt.policy import MARGIN, SHIPPED, Policy, Threshold, json_from_policy
from sparseflow_trt.thresholds import derive_thresholds
from sparseflow_trt.tuning import GRID

RESULTS = Path(__file__).parent / "results"
LEAST = 0.98  # of dense over policy: what is slower than that is lost
MARGINS = (MARGIN, 0.05, 0.1, 0.15, 0.2)


def main() -> None:
    """Writes sparseflow_trt/policies/NAME.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    name = parser.parse_args().name
    policy = policy_to_ship(name)
    (SHIPPED / f"{name}.json").write_text(json_from_policy(policy), encoding="utf-8")
    for margin in MARGINS:
        lost = lost_when_left_out(policy, margin)
        print(f"margin {margin:.0%}: {sum(gain < LEAST for gain in lost)} of {len(lost)} lost when left out")
    print(f"{len(policy.points)} points, margin {policy.margin:.0%}")


def policy_to_ship(name: str) -> Policy:
    """The policy of all journals of that name."""
    journals = [read_journal(path) for path in sorted(RESULTS.glob(f"autotune_{name}_*.jsonl"))]
    parts = [
        policy_from_journal(j, name, without=incomplete_curves({r.curve for r in j.pairs}, GRID, j.pairs))
        for j in journals
    ]
    policy = functools.reduce(extend_policy, parts)
    margin = next((m for m in MARGINS if min(lost_when_left_out(policy, m), default=1) >= LEAST), MARGINS[-1])
    given = [t for t in given_for_tensorrt() if ("tensorrt", t.dtype) not in policy.held]
    return policy.model_copy(
        update={
            "provenance": "shipped",
            "margin": margin,
            "thresholds": (*derive_thresholds(policy.points, margin), *given),
            "source": f"{policy.source}. TensorRT's thresholds: given, not derived (docs/TENSORRT.md).",
        }
    )


def given_for_tensorrt() -> tuple[Threshold, ...]:
    """TensorRT's own sparse kernels: nowhere."""
    return tuple(
        Threshold(kind=kind, library="tensorrt", dtype="FP16", min_m=None) for kind in ("down", "gate_up")
    )


def lost_when_left_out(policy: Policy, margin: float) -> list[float]:
    """Dense over policy at each measured M of the grid, asked of its next smaller and larger M alone."""
    shapes = {(p.n, p.k, p.dtype): p.kind for p in policy.points if p.library == "torch"}
    gains = []
    for (n, k, dtype), kind in shapes.items():
        known = known_of(policy, kind, n, k, dtype, "torch")
        grid = [m for m in known.pairs if m in GRID]
        for low, m, high in zip(grid, grid[1:], grid[2:], strict=False):
            around = {size: known.pairs[size] for size in (low, high)}
            taken = replace(known, pairs=around, margin=margin).judge(m).sparse
            gains.append(known.pairs[m].speedup if taken else 1.0)
    return gains


if __name__ == "__main__":
    main()
