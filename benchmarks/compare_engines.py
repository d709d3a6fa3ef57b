"""A model's sides held against each other, profile by profile: times, errors against FP32, tactics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from at_once import at_once
from engine_layers import ceilings
from engine_sides import Arrays, Settings, build_side, feeds_at_opt, first_like, plans_of, run_sides
from measure import result_that_stands, today, write_result

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.pipeline import BuildResult
from sparseflow_trt.plans.profile_specs import ProfileSpec
from sparseflow_trt.plans.shapes import Profile
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.validation.runners import ort_runner

SLOWER = 1.02


def run_profiles(
    name: str,
    model: Path,
    specs: Sequence[ProfileSpec],
    settings: Settings,
    figures: dict[str, Any],
    command: str,
) -> None:
    """Compares the sides at each profile and writes results/NAME.json after each.

    Rows that the file has of other profiles stay, where they are of this machine and these figures.

    Args:
        name: The result file's name.
        model: An FP32 model with 2:4 weights.
        specs: The profiles; their names tell rows apart.
        settings: How to build.
        figures: What is said of the model, beside the rows.
        command: How to run it again, but for what the settings say.
    """
    figures = {
        **figures,
        "policy": named(settings.policy) if settings.policy else None,
        "plugin_sha256": sha256_of(settings.plugin) if settings.plugin else None,
    }
    command += f" --policy {settings.policy.name}" if settings.policy else ""
    command += " --plugin LIB" if settings.plugin else ""
    command += f" --backend {settings.backend}" if settings.backend != "tensorrt" else ""
    command += f" --builders {settings.builders}" if settings.builders > 1 else ""
    rows = {row["profile"]: row for row in rows_that_stand(name, figures)}
    if settings.builders > 1:
        sides = [side for spec in specs for side in sides_of(model, spec, settings).builds.values()]
        at_once(settings.builders, build_side, sides)  # they are found below
    for spec in specs:
        rows[spec.name] = {"date": today(), **compare_sides(model, spec, settings)}
        write_result(name, {**figures, "rows": list(rows.values())}, command, show=False)
        print(table([rows[spec.name]]), flush=True)


def named(policy: Policy) -> dict[str, str]:
    """A policy's name and what tells it from another of that name."""
    return {
        "name": policy.name,
        "device": policy.device,
        "sha256": hashlib.sha256(policy.model_dump_json().encode()).hexdigest(),
    }


def rows_that_stand(name: str, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier result of the same figures, on the same kind of GPU and the same versions."""
    before = result_that_stands(name)
    if any(before.get(key) != value for key, value in figures.items()):
        return []
    return list(before.get("rows", []))


@dataclass(frozen=True)
class Sides:
    """What is compared at one profile.

    Attributes:
        profile: The profile.
        builds: By each side's name what `build_side` is given; of sides with the same engine the first alone.
        same_as: The other sides, with the first that has the same engine.
    """

    profile: Profile
    builds: dict[str, tuple[Any, ...]]
    same_as: dict[str, str]


def sides_of(model: Path, spec: ProfileSpec, settings: Settings) -> Sides:
    """The sides of a model at one profile, planned."""
    plans = plans_of(model, spec, settings)
    same_as = {side: other for side in plans if (other := first_like(side, plans)) != side}
    builds = {
        side: (model, plan, settings.work / f"{model.stem}.{spec.name}.{side}", settings)
        for side, plan in plans.items()
        if side not in same_as
    }
    return Sides(plans["dense"].profiles[0], builds, same_as)


def compare_sides(model: Path, spec: ProfileSpec, settings: Settings) -> dict[str, Any]:
    """One profile's row: every side built, their engines timed in turn at its opt, and their errors.

    Raises:
        SystemExit: The time is up; what was built is kept.
        SparseflowError: A build failed.
    """
    sides = sides_of(model, spec, settings)
    same_as = sides.same_as
    results = {side: build_side(*given) for side, given in sides.builds.items()}
    feeds = feeds_at_opt(model, sides.profile)
    ran = run_sides(results, feeds)
    expected = reference_outputs(model, feeds) if ran.outputs else {}
    return {
        "profile": spec.name,
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
        "the same engine": same_as,
        "times": ran.times,
        "dense over it": ran.gains,
        "ceiling": ceilings(ran.layers, {side: times["p50_ms"] for side, times in ran.times.items()}),
        "slower than dense by more than 2 %": slower_than_dense(ran.gains, same_as),
        "error against FP32": {side: errors(got, expected) for side, got in ran.outputs.items()},
        "where the time goes": ran.layers,
        "artifacts built at once": settings.builders,
        "built": {side: facts(result) for side, result in results.items()},
        "layers": {side: layer_rows(r.manifest) for side, r in results.items() if side != "dense"},
    }


def slower_than_dense(gains: Mapping[str, Any], same_as: Mapping[str, str]) -> dict[str, bool]:
    """For each side whether it is, by the median of the rounds' ratios; the dense engine itself is not."""
    found = {side: gain["median"] * SLOWER < 1 for side, gain in gains.items()}
    return found | {side: found.get(other, False) for side, other in same_as.items() if gains}


def reference_outputs(model: Path, feeds: Arrays) -> Arrays:
    """What the model as given computes, in FP32 on the CPU."""
    with ort_runner(model, "reference") as runner:
        return {name: np.array(array) for name, array in runner.infer(feeds).items()}


def errors(got: Arrays, expected: Arrays) -> dict[str, dict[str, float]]:
    """For each output its relative L2 error, cosine and largest error."""
    rows = {}
    for name, reference in expected.items():
        r, y = (array.astype(np.float64).ravel() for array in (reference, got[name]))
        rows[name] = {
            "relative_l2": float(np.sqrt(((y - r) ** 2).sum() / (r**2).sum())),
            "cosine": float((y @ r) / (np.linalg.norm(y) * np.linalg.norm(r))),
            "max_abs": float(np.abs(y - r).max()),
        }
    return rows


def facts(result: BuildResult) -> dict[str, Any]:
    """What building it took, what was tried, and what was said of it."""
    manifest = result.manifest
    outcomes, layers = manifest.engine.outcomes, manifest.layers
    (engine,) = (c for c in manifest.validation.candidates if c.name.startswith("engine"))
    return {
        "build seconds": manifest.engine.build_seconds,
        "command seconds": round(sum(manifest.seconds.values()), 3),
        "engine bytes": (result.artifact / manifest.engine.file).stat().st_size,
        "validation": f"{engine.verdict}: {engine.reason}",
        "timing cache": timing_cache_use(manifest),
        "layers": len(layers),
        "layers planned sparse": sum(layer.sparsity == "sparse" for layer in layers),
        "layers tried sparse": len({o.layer for o in outcomes if o.tried_sparse and not o.timed_as}),
        "layers that run sparse": len({o.layer for o in outcomes if o.sparse and not o.plugin}),
        "layers in the plugin": len({o.layer for o in outcomes if o.plugin}),
        "layers whose kernel is not told": len({o.layer for o in outcomes if not o.tactic}),
        # TensorRT takes the times of a layer like it, a timing cache's, or a compiled region's
        "layers with no times of their own": len(
            {o.layer for o in outcomes if not o.tried_dense or o.timed_as}
        ),
        "opted out": {o.layer: o.reason for o in manifest.graph.opted_out},
        "notes": list(manifest.engine.notes),
    }


def timing_cache_use(manifest: Manifest) -> str:
    """Whether the build was given a timing cache, and whether TensorRT took it."""
    if "timing_cache" not in manifest.engine.options:
        return "none"
    said = [note for note in manifest.engine.notes if "timing cache" in note]
    return said[0] if said else "given, and not refused"


def layer_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """What became of each layer: its tactic, and the best of both kinds."""
    keys = ("layer", "engine_layer", "merged_with", "tactic", "sparse", "precision", "best_sparse_ms",
            "best_dense_ms", "tried_sparse", "tried_dense", "timed_as", "why")  # fmt: skip
    planned = {layer.name: layer.reason for layer in manifest.layers}
    return [
        {**{key: outcome.model_dump(mode="json")[key] for key in keys}, "plan": planned[outcome.layer]}
        for outcome in manifest.engine.outcomes
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a person: p50 of each side, and how many times faster than dense it is."""
    lines = []
    for row in rows:
        cells = [f"{row['profile']:>10}"]
        for side, times in row["times"].items():
            gain = row["dense over it"].get(side)
            spread = f" ({gain['median']:.3f}: {gain['low']:.3f}–{gain['high']:.3f})" if gain else ""
            cells.append(f"{side} {times['p50_ms']:.4f} ms{spread}")
        cells += [f"{side} as {other}" for side, other in row["the same engine"].items()]
        for side, outputs in row["error against FP32"].items():
            worst = max(outputs.values(), key=lambda output: output["relative_l2"])
            cells.append(f"{side} L2 {worst['relative_l2']:.2e} cos {worst['cosine']:.6f}")
        lines.append("  ".join(cells))
    return "\n".join(lines)
