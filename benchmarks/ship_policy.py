"""Makes the shipped policy of a GPU from the journals of `autotune` in results/, with no GPU.

    python benchmarks/ship_policy.py h200

reads the autotune_NAME_*.jsonl in results/ and the folders in it, each the journal of a run whose command
stands in it. Of cuSPARSELt the products count that have all M of autotune's grid; TensorRT's own kernels,
each M of which takes a build, were measured at fewer. The plugin's points come from the plugin_linear_*.json
of that GPU, where M is a multiple of eight: what others cost `uneven_rows` says. Thresholds for TensorRT's
own kernels are given, not derived (docs/TENSORRT.md: whole engines gained nothing); the plugin has none,
since the layers that it was measured at are large ones.

Times are not smooth, so what the policy says of an M or a shape that was not measured is tried on those that
were: the measured M in FOLDS parts, each asked of the others (`asked_between`), and each shape asked of the
other shapes (`asked_apart`). For either, that caution of SPREADS is taken which loses fewest, of equals the
least, and of MARGINS the least with which fewer than one of a thousand is lost so. The wave (in tiles for
each multiprocessor) counts where there are too few shapes to learn from, as for the plugin; of WAVES that is
taken which loses fewest and then gains most, each measured M asked of its neighbours alone (`gains_beside`).

What the policy says of the plugin is tried on the plugin's points likewise (`gains_in_plugin`): each without
what was measured in TensorRT at that M, without any of the plugin's points, and without any of TensorRT's. So
is what it says of TensorRT's own kernels (`gains_of_tensorrt`): each product without its shape, and each M
that lies between others without that M.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import write_result

from sparseflow_trt.engines.measuring.journal import read_journal
from sparseflow_trt.engines.measuring.measured_policy import extend_policy, policy_from_journal
from sparseflow_trt.engines.measuring.search import incomplete_curves
from sparseflow_trt.model.packing import ROWS
from sparseflow_trt.policies.between import MULTIPROCESSORS, wave_of
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.measurements import Measurements
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import SHIPPED, Dtype, Pair, Point, Policy, Threshold, json_from_policy
from sparseflow_trt.policies.thresholds import derive_thresholds
from sparseflow_trt.tuning import GRID

ALL = Path(__file__).parent / "results"
LEAST = 0.98  # of dense over policy: what is slower than that is lost
MOST_LOST = 1e-3  # of all
MARGINS = (0.05, 0.1, 0.15, 0.2)  # not less: it holds for machines of other clocks, too
WAVES = (1, 1.5, 2)
SPREADS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
FOLDS = 8

# Which points are left out when the policy is asked of the plugin in a measured one's product.
WITHOUT: dict[str, Callable[[Point, Point], bool]] = {
    "nothing": lambda point, asked: False,
    "TensorRT's points of that M": lambda point, asked: point.library == "tensorrt" and point.m == asked.m,
    "the plugin's points": lambda point, asked: point.kernel == "plugin",
    "TensorRT's points": lambda point, asked: point.library == "tensorrt",
}

Asked = Sequence[tuple[Measurements, Mapping[int, Pair]]]


def main() -> None:
    """Writes sparseflow_trt/policies/shipped/NAME.json, and what was lost how in results/ship_policy.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    name = parser.parse_args().name
    policy = policy_of_journals(name)
    between, apart = asked_between(policy), asked_apart(policy)
    margin, in_between, of_shapes = careful_enough(between, apart)
    care = {
        "margin": margin,
        "wave": best_wave(policy, margin),
        "spreads": of_shapes,
        "spreads_between": in_between,
    }
    policy = with_care(policy, care)
    (SHIPPED / f"{name}.json").write_text(json_from_policy(policy), encoding="utf-8")
    figures = {
        "policy": name,
        "points": len(policy.points),
        **care,
        "M left out, by spreads": {str(s): summary(gains_of(between, margin, s)) for s in SPREADS},
        "shapes left out, by spreads": {str(s): summary(gains_of(apart, margin, s)) for s in SPREADS},
        "M left out, by the wave alone": {
            str(tiles): summary(gains_beside(with_wave(policy, tiles), margin)) for tiles in (0, *WAVES)
        },
        "the plugin, without": {
            what: summary(gains_in_plugin(policy, left_out)) for what, left_out in WITHOUT.items()
        },
        "TensorRT's own kernels, without": {
            what: {**summary(gains), "best possible": round(statistics.geometric_mean(best), 4)}
            for what in ("that shape", "that M")
            for gains, best in [gains_of_tensorrt(policy, whole_shape=what == "that shape")]
            if gains  # an H100's were not measured
        },
    }
    write_result("ship_policy", figures, f"python benchmarks/ship_policy.py {name}")


def summary(gains: Sequence[float]) -> dict[str, Any]:
    """How many of them are lost, and what they come to; those that gain just 1 are dense."""
    return {
        "asked": len(gains),
        "taken": sum(gain != 1 for gain in gains),
        "lost": sum(gain < LEAST for gain in gains),
        "worst": round(min(gains), 4),
        "mean": round(statistics.geometric_mean(gains), 4),
    }


def policy_of_journals(name: str) -> Policy:
    """What all journals of that name and the plugin's results hold."""
    journals = [read_journal(path) for path in sorted(ALL.rglob(f"autotune_{name}_*.jsonl"))]
    parts = []
    for journal in journals:
        gridded = {r.curve for r in journal.pairs if r.curve.library == "torch"}
        incomplete = incomplete_curves(gridded, GRID, journal.pairs)
        parts.append(policy_from_journal(journal, name, without=incomplete))
    # the plugin's results first: all M of a shape are of one run there, dense and plugin in turn
    return functools.reduce(extend_policy, [*plugin_parts(parts[0]), *parts])


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


def careful_enough(between: Asked, apart: Asked) -> tuple[float, float, float]:
    """The margin and the spreads between M and of shapes with which fewer than MOST_LOST are lost."""
    for margin in MARGINS:
        lost = [{s: share_lost(gains_of(a, margin, s)) for s in SPREADS} for a in (between, apart)]
        in_between, of_shapes = (min(SPREADS, key=shares.__getitem__) for shares in lost)
        if max(lost[0][in_between], lost[1][of_shapes]) < MOST_LOST:
            break
    return margin, in_between, of_shapes


def best_wave(policy: Policy, margin: float) -> int:
    """The wave with which fewest measured M are lost when the M beside them speak alone."""

    def cost(tiles: float) -> tuple[float, float]:
        gains = gains_beside(with_wave(policy, tiles), margin)
        return share_lost(gains), -sum(map(math.log, gains))

    return with_wave(policy, min(WAVES, key=cost)).wave or 0


def with_wave(policy: Policy, tiles: float) -> Policy:
    """The policy with a wave of that many tiles for each multiprocessor."""
    return policy.model_copy(update={"wave": round(tiles * wave_of(MULTIPROCESSORS))})


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
            "points": tuple(
                point
                for cell in result["cells"]
                if cell["m"] % ROWS == 0
                for point in plugin_points(cell, rounds)
            ),
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


def gains_beside(policy: Policy, margin: float) -> list[float]:
    """Dense over policy at each measured M, asked of its next smaller and larger M alone."""
    gains = []
    asked = policy.model_copy(update={"margin": margin})
    for (n, k, dtype), kind in shapes_of(policy).items():
        known = known_of(policy, Gemm(kind, n, k, dtype), "torch").own
        sizes = list(known.pairs)
        for low, m, high in zip(sizes, sizes[1:], sizes[2:], strict=False):
            around = {size: known.pairs[size] for size in (low, high)}
            taken = Known(replace(known, policy=asked, pairs=around, guess=None)).judge(m).sparse
            gains.append(known.pairs[m].speedup if taken else 1.0)
    return gains


def gains_in_plugin(policy: Policy, left_out: Callable[[Point, Point], bool]) -> list[float]:
    """Dense over policy in each product that the plugin was measured at, asked without those points."""
    gains = []
    for asked in policy.points:
        if asked.kernel != "plugin":
            continue
        gemm = Gemm(asked.kind, asked.n, asked.k, asked.dtype)
        rest = tuple(p for p in policy.points if (p.n, p.k) != (asked.n, asked.k) or not left_out(p, asked))
        less = policy.model_copy(update={"points": rest})
        taken = plugin_known(less, gemm).judge(asked.m).sparse
        measured = known_of(policy, gemm, "tensorrt", "plugin").own.pairs[asked.m]
        gains.append(measured.speedup if taken else 1.0)
    return gains


def gains_of_tensorrt(
    policy: Policy, whole_shape: bool, shapes: Sequence[tuple[int, int]] = ()
) -> tuple[list[float], list[float]]:
    """Dense over policy, and over the faster kernel, in each product of TensorRT's own kernels.

    Args:
        policy: The policy; it is asked without the product.
        whole_shape: Whether it is asked without any of TensorRT's points of that shape, at all its M; else
            without those of one M, of M that lie between others.
        shapes: (N, K) of these alone; by default all.
    """
    gains, best = [], []
    for (n, k, dtype), kind in tensorrt_shapes_of(policy).items():
        gemm = Gemm(kind, n, k, dtype)
        pairs = known_of(policy, gemm, "tensorrt").own.pairs
        if shapes and (n, k) not in shapes:
            continue
        for out in [set(pairs)] if whole_shape else [{m} for m in sorted(pairs)[1:-1]]:
            rest = (p for p in policy.points
                    if p.library != "tensorrt" or (p.n, p.k) != (n, k) or p.m not in out)  # fmt: skip
            known = known_of(policy.model_copy(update={"points": tuple(rest)}), gemm, "tensorrt")
            gains += [pairs[m].speedup if known.judge(m).sparse else 1.0 for m in sorted(out)]
            best += [max(pairs[m].speedup, 1.0) for m in sorted(out)]
    return gains, best


def tensorrt_shapes_of(policy: Policy) -> dict[tuple[int, int, Dtype], str]:
    """(N, K, type) of TensorRT's own sparse kernels' products, with a kind of each."""
    points = (p for p in policy.points if p.library == "tensorrt" and p.kernel == "sparse")
    return {(p.n, p.k, p.dtype): p.kind for p in points}


def asked_between(policy: Policy, parts: int = FOLDS) -> list[tuple[Measurements, dict[int, Pair]]]:
    """What the rest says of those measured M that lie between others, for the first `parts` of FOLDS."""
    sizes = sorted({(p.n, p.k, p.m) for p in policy.points if p.library == "torch"})
    random.Random(0).shuffle(sizes)
    found = []
    for part in range(parts):
        out = set(sizes[part::FOLDS])
        rest = tuple(p for p in policy.points if (p.n, p.k, p.m) not in out)
        less = policy.model_copy(update={"points": rest, "thresholds": ()})
        for (n, k, dtype), kind in shapes_of(policy).items():
            known = known_of(less, Gemm(kind, n, k, dtype), "torch").own
            measured = known_of(policy, Gemm(kind, n, k, dtype), "torch").own.pairs
            inside = range(min(known.pairs), max(known.pairs))
            asked = {m: pair for m, pair in measured.items() if m in inside and (n, k, m) in out}
            if known.guess:
                known.guess.ask(asked)  # at once: its trees are not kept for long
            found.append((known, asked))
    return found


def asked_apart(
    policy: Policy, shapes: Iterable[tuple[int, int]] = ()
) -> list[tuple[Measurements, dict[int, Pair]]]:
    """What the other shapes alone say of each measured one (or of those given), and what was measured."""
    found = []
    for n, k in shapes or sorted({(n, k) for n, k, _ in shapes_of(policy)}):
        others = tuple(p for p in policy.points if (p.n, p.k) != (n, k))
        apart = policy.model_copy(update={"points": others, "thresholds": ()})
        for (*shape, dtype), kind in shapes_of(policy).items():
            if tuple(shape) == (n, k):
                measured = known_of(policy, Gemm(kind, n, k, dtype), "torch").own.pairs
                known = known_of(apart, Gemm(kind, n, k, dtype), "torch").own
                if known.guess:
                    known.guess.ask(measured)
                found.append((known, measured))
    return found


def gains_of(asked: Asked, margin: float, spreads: float) -> list[float]:
    """Dense over policy at each M that is asked for, with that much care."""
    gains = []
    for known, measured in asked:
        care = {"margin": margin, "spreads": spreads, "spreads_between": spreads}
        careful = Known(replace(known, policy=known.policy.model_copy(update=care)))
        gains += [pair.speedup if careful.judge(m).sparse else 1.0 for m, pair in measured.items()]
    return gains


def shapes_of(policy: Policy) -> dict[tuple[int, int, str], str]:
    """The kind of each (N, K) and type that cuSPARSELt was measured at."""
    return {(p.n, p.k, p.dtype): p.kind for p in policy.points if p.library == "torch"}


if __name__ == "__main__":
    main()
