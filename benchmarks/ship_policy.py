"""Makes the shipped policy of a GPU from the journals of `autotune` in results/, with no GPU.

    python benchmarks/ship_policy.py h200

reads the autotune_NAME_*.jsonl in results/ and the folders in it, each the journal of a run whose command
stands in it. Of each run the products count that have all M of autotune's grid. The plugin's points come from
the plugin_linear_*.json of that GPU. Thresholds for TensorRT's own kernels are given, not derived
(docs/TENSORRT.md: whole engines gained nothing); the plugin has none, since the layers that it was measured
at are large ones.

Between measured M times are not smooth, so each measured M is asked of its neighbours alone
(`gains_left_out`). The margin is the least of MARGINS at which fewer than one of a thousand is lost so, with
whichever wave of WAVES (in tiles for each multiprocessor) loses fewest and then gains most. Each shape is
asked of the others alone (`gains_apart`), and SPREADS gives the least caution that loses as few.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import write_result

from sparseflow_trt.engines.autotune import incomplete_curves
from sparseflow_trt.engines.journal import read_journal
from sparseflow_trt.engines.measured_policy import extend_policy, policy_from_journal
from sparseflow_trt.lookup import Known, known_of
from sparseflow_trt.policy import SHIPPED, Pair, Point, Policy, Threshold, json_from_policy
from sparseflow_trt.thresholds import derive_thresholds
from sparseflow_trt.tuning import GRID

ALL = Path(__file__).parent / "results"
LEAST = 0.98  # of dense over policy: what is slower than that is lost
MOST_LOST = 1e-3  # of all
MARGINS = (0.05, 0.1, 0.15, 0.2)  # not less: it holds for machines of other clocks, too
WAVES = (1, 1.5, 2)
SPREADS = (1.0, 1.25, 1.5, 2.0, 3.0)


def main() -> None:
    """Writes sparseflow_trt/policies/NAME.json, and what was lost how in results/ship_policy.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    name = parser.parse_args().name
    policy = policy_of_journals(name)
    apart = asked_apart(policy)
    policy = with_care(policy, careful_enough(policy, apart))
    (SHIPPED / f"{name}.json").write_text(json_from_policy(policy), encoding="utf-8")
    figures = {
        "policy": name,
        "points": len(policy.points),
        "margin": policy.margin,
        "wave": policy.wave,
        "spreads": policy.spreads,
        "M left out, by margin": {str(m): summary(gains_left_out(policy, m)) for m in MARGINS},
        "shapes left out, by spreads": {
            str(spreads): summary(gains_apart(apart, policy.margin, spreads)) for spreads in SPREADS
        },
    }
    write_result("ship_policy", figures, f"python benchmarks/ship_policy.py {name}")


def summary(gains: Sequence[float]) -> dict[str, Any]:
    """How many of them are lost, and what they come to."""
    return {
        "asked": len(gains),
        "lost": sum(gain < LEAST for gain in gains),
        "worst": round(min(gains), 4),
        "mean": round(statistics.geometric_mean(gains), 4),
    }


def policy_of_journals(name: str) -> Policy:
    """What all journals of that name and the plugin's results hold."""
    journals = [read_journal(path) for path in sorted(ALL.rglob(f"autotune_{name}_*.jsonl"))]
    parts = [
        policy_from_journal(j, name, without=incomplete_curves({r.curve for r in j.pairs}, GRID, j.pairs))
        for j in journals
    ]
    return functools.reduce(extend_policy, [*parts, *plugin_parts(parts[0])])


def with_care(policy: Policy, care: Mapping[str, Any]) -> Policy:
    """The policy to ship, with the margin, the wave and the spreads that it is to have."""
    limits = derive_thresholds(policy.points, care["margin"], care["wave"])
    return policy.model_copy(
        update={
            "provenance": "shipped",
            **care,
            "thresholds": (*(t for t in limits if t.library == "torch"), *given_for_tensorrt()),
            "source": f"{policy.source}. TensorRT's thresholds: given, not derived (docs/TENSORRT.md).",
        }
    )


def careful_enough(policy: Policy, apart: Sequence[tuple[Known, Mapping[int, Pair]]]) -> dict[str, Any]:
    """The margin, the wave and the spreads with which fewer than MOST_LOST are lost."""
    for margin in MARGINS:
        tried = []
        for tiles in WAVES:
            wave = round(policy.wave * tiles)
            gains = gains_left_out(policy.model_copy(update={"wave": wave}), margin)
            tried.append((share_lost(gains), -sum(map(math.log, gains)), wave))
        lost, _, wave = min(tried)
        if lost < MOST_LOST:
            break
    spreads = next((s for s in SPREADS if share_lost(gains_apart(apart, margin, s)) < MOST_LOST), SPREADS[-1])
    return {"margin": margin, "wave": wave, "spreads": spreads}


def plugin_parts(policy: Policy) -> list[Policy]:
    """The plugin's points of a policy's GPU, each result's as a policy of its own."""
    parts = []
    for path in sorted(ALL.rglob("plugin_linear_*.json")):
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


def asked_apart(
    policy: Policy, shapes: Iterable[tuple[int, int]] = ()
) -> list[tuple[Known, dict[int, Pair]]]:
    """What the other shapes alone say of each measured one (or of those given), and what was measured."""
    found = []
    for n, k in shapes or sorted({(n, k) for n, k, _ in shapes_of(policy)}):
        others = tuple(p for p in policy.points if (p.n, p.k) != (n, k))
        apart = policy.model_copy(update={"points": others, "thresholds": ()})
        for (*shape, dtype), kind in shapes_of(policy).items():
            if tuple(shape) == (n, k):
                measured = known_of(policy, kind, n, k, dtype, "torch").pairs
                found.append((known_of(apart, kind, n, k, dtype, "torch"), measured))
    return found


def gains_apart(
    apart: Sequence[tuple[Known, Mapping[int, Pair]]], margin: float, spreads: float
) -> list[float]:
    """Dense over policy at each measured M of each shape, asked of the other shapes alone."""
    gains = []
    for known, measured in apart:
        asked = replace(known, margin=margin, policy=known.policy.model_copy(update={"spreads": spreads}))
        gains += [pair.speedup if asked.judge(m).sparse else 1.0 for m, pair in measured.items()]
    return gains


def shapes_of(policy: Policy) -> dict[tuple[int, int, str], str]:
    """The kind of each (N, K) and type that cuSPARSELt was measured at."""
    return {(p.n, p.k, p.dtype): p.kind for p in policy.points if p.library == "torch"}


if __name__ == "__main__":
    main()
