"""Makes the shipped policy of a GPU from the journals of `autotune` in results/, with no GPU.

    python benchmarks/ship_policy.py h200

reads the autotune_NAME_*.jsonl in results/ and the folders in it, each the journal of a run whose command
stands in it. Of each run the products count that have all M of autotune's grid. The plugin's points come from
the plugin_linear_*.json of that GPU. Thresholds for TensorRT's own kernels are given, not derived
(docs/TENSORRT.md: whole engines gained nothing); the plugin has none, since the layers that it was measured
at are large ones.

The margin is the least of MARGINS at which fewer than one measured M of a thousand is lost when it is asked
for by its neighbours alone (`gains_left_out`): between measured M times are not smooth. What is lost when a
shape is asked for by the others alone is printed, too.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseflow_trt.engines.autotune import incomplete_curves
from sparseflow_trt.engines.journal import read_journal
from sparseflow_trt.engines.measured_policy import extend_policy, policy_from_journal
from sparseflow_trt.lookup import known_of
from sparseflow_trt.policy import MARGIN, SHIPPED, Point, Policy, Threshold, json_from_policy
from sparseflow_trt.thresholds import derive_thresholds
from sparseflow_trt.tuning import GRID

RESULTS = Path(__file__).parent / "results"
LEAST = 0.98  # of dense over policy: what is slower than that is lost
MOST_LOST = 1e-3  # of all
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
        for what, gains in (("M", gains_left_out(policy, margin)), ("shapes", gains_apart(policy, margin))):
            lost = sum(gain < LEAST for gain in gains)
            print(
                f"margin {margin:.0%}, {what} left out: {lost} of {len(gains)} lost, worst {min(gains):.3f}"
            )
    print(f"{len(policy.points)} points, margin {policy.margin:.0%}")


def policy_to_ship(name: str) -> Policy:
    """The policy of all journals of that name."""
    journals = [read_journal(path) for path in sorted(RESULTS.rglob(f"autotune_{name}_*.jsonl"))]
    parts = [
        policy_from_journal(j, name, without=incomplete_curves({r.curve for r in j.pairs}, GRID, j.pairs))
        for j in journals
    ]
    policy = functools.reduce(extend_policy, [*parts, *plugin_parts(parts[0])])
    margin = next((m for m in MARGINS if share_lost(gains_left_out(policy, m)) < MOST_LOST), MARGINS[-1])
    return policy.model_copy(
        update={
            "provenance": "shipped",
            "margin": margin,
            "thresholds": (
                *(t for t in derive_thresholds(policy.points, margin, policy.wave) if t.library == "torch"),
                *given_for_tensorrt(),
            ),
            "source": f"{policy.source}. TensorRT's thresholds: given, not derived (docs/TENSORRT.md).",
        }
    )


def plugin_parts(policy: Policy) -> list[Policy]:
    """The plugin's points of a policy's GPU, each result's as a policy of its own."""
    parts = []
    for path in sorted(RESULTS.rglob("plugin_linear_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine, rounds = result["machine"], result["timing"]["rounds"]
        if machine["gpu"] != policy.device:
            continue
        update = {
            "libraries": {
                "tensorrt": result["versions"]["tensorrt"],
                "cusparselt": result["trial"]["version"],
            },
            "clocks": "",
            "source": f"the plugin: {result['command']}, {result['date']}, driver {machine['driver']}",
            "thresholds": (),
            "points": tuple(point for cell in result["cells"] for point in plugin_points(cell, rounds)),
        }
        parts.append(policy.model_copy(update=update))
    return parts


def plugin_points(cell: Mapping[str, Any], rounds: int) -> tuple[Point, Point]:
    """TensorRT's dense kernel and the plugin in one product."""
    shape = {"kind": cell["layer"], "n": cell["n"], "k": cell["k"], "m": cell["m"], "runs": rounds}
    dense, plugin = (
        Point.model_validate(
            {**shape, "dtype": "FP16", "library": "tensorrt", "kernel": kernel, "us": cell[f"{kernel}_us"]}
        )
        for kernel in ("dense", "plugin")
    )
    return dense, plugin


def given_for_tensorrt() -> tuple[Threshold, ...]:
    """TensorRT's own sparse kernels: nowhere."""
    return tuple(
        Threshold(kind=kind, library="tensorrt", dtype="FP16", min_m=None) for kind in ("down", "gate_up")
    )


def share_lost(gains: Sequence[float]) -> float:
    """The share of them that is slower than LEAST allows."""
    return sum(gain < LEAST for gain in gains) / max(len(gains), 1)


def gains_left_out(policy: Policy, margin: float) -> list[float]:
    """Dense over policy at each measured M, asked of its next smaller and larger M alone."""
    gains = []
    for (n, k, dtype), kind in shapes_of(policy).items():
        known = known_of(policy, kind, n, k, dtype, "torch")
        sizes = list(known.pairs)
        for low, m, high in zip(sizes, sizes[1:], sizes[2:], strict=False):
            around = {size: known.pairs[size] for size in (low, high)}
            taken = replace(known, pairs=around, margin=margin).judge(m).sparse
            gains.append(known.pairs[m].speedup if taken else 1.0)
    return gains


def gains_apart(policy: Policy, margin: float) -> list[float]:
    """Dense over policy at each measured M of each shape, asked of the other shapes alone."""
    gains = []
    for (n, k, dtype), kind in shapes_of(policy).items():
        measured = known_of(policy, kind, n, k, dtype, "torch").pairs
        others = tuple(p for p in policy.points if (p.n, p.k) != (n, k))
        apart = policy.model_copy(update={"points": others, "thresholds": (), "margin": margin})
        asked = known_of(apart, kind, n, k, dtype, "torch")
        gains += [pair.speedup if asked.judge(m).sparse else 1.0 for m, pair in measured.items()]
    return gains


def shapes_of(policy: Policy) -> dict[tuple[int, int, str], str]:
    """The kind of each (N, K) and type that cuSPARSELt was measured at."""
    return {(p.n, p.k, p.dtype): p.kind for p in policy.points if p.library == "torch"}


if __name__ == "__main__":
    main()
