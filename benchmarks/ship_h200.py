"""Puts the FP16 points of results/autotune_h200_fp16.jsonl into the shipped H200 policy.

That file is the FP16 part of a journal of `autotune` (the command stands in it). In that run a product's
algorithms were all timed only at M with nothing searched within a factor of four; elsewhere the eight fastest
of the nearest M were, which misses the best (4096→14336 at M=256: 65 us, where the best takes 36). So dense
times are sound at every M, sparse ones only at SOUND, and only those are shipped. What the policy has at
other M stays. Run again it changes nothing. It takes no GPU.
"""

from __future__ import annotations

from pathlib import Path

from sparseflow_trt.engines.journal import read_journal
from sparseflow_trt.engines.measured_policy import extend_policy, policy_from_journal
from sparseflow_trt.policy import SHIPPED, Policy, json_from_policy, read_policy

RUN = Path(__file__).parent / "results" / "autotune_h200_fp16.jsonl"
SOUND = (1, 8, 64, 512, 4096)


def with_sound_points(shipped: Policy, run: Policy) -> Policy:
    """The shipped policy with a run's points at SOUND, which take the place of its own at those M."""
    sound = run.model_copy(
        update={
            "points": tuple(point for point in run.points if point.m in SOUND),
            "source": f"FP16 with intervals, at M = {', '.join(map(str, SOUND))}: {run.source}",
        }
    )
    joined = extend_policy(sound, shipped)
    source = joined.source.replace("FP16: measured earlier", "FP16 without intervals: measured earlier")
    return joined.model_copy(update={"name": shipped.name, "provenance": "shipped", "source": source})


def main() -> None:
    file = SHIPPED / "h200.json"
    run = policy_from_journal(read_journal(RUN), "h200")
    file.write_text(json_from_policy(with_sound_points(read_policy(file), run)), encoding="utf-8")


if __name__ == "__main__":
    main()
