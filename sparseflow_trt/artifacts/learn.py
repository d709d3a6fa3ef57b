"""A policy from what TensorRT's builder measured while it built artifacts: points that cost nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest, OutcomeRecord
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.between import wave_of
from sparseflow_trt.policies.policy import MARGIN, Point, Policy, is_measured_on
from sparseflow_trt.policies.thresholds import derive_thresholds, with_given

_DEVICE = re.compile(r"(?P<name>.+), compute capability (?P<capability>\d+\.\d), driver (?P<driver>.+)")


def learn_policy(manifests: Mapping[str, Manifest], name: str, into: Policy | None = None) -> Policy:
    """A policy of the points that the builder's log gave for each artifact, with thresholds derived anew.

    Of a product that several artifacts hold, the last one counts, and before any that `into` holds. The wave
    is `into`'s, else of the multiprocessors that the artifacts tell, else not known. What else `into` says of
    how sure a win has to be stays, and so do its thresholds that were given and that no points give anew.

    Args:
        manifests: Of artifacts that TensorRT built with sparse weights, all for one GPU and one version, by
            what the artifacts are called.
        name: The policy's name.
        into: A policy to add the points to; its other points stay.

    Raises:
        PolicyError: An artifact is not TensorRT's, two are of different GPUs or versions, the policy is of
            another GPU, or no builder tried sparse tactics against dense ones.
    """
    found: dict[object, Point] = {}
    devices: dict[tuple[str, str, str, str], str] = {}  # and the first artifact of each
    counts: set[int] = set()
    for artifact, manifest in manifests.items():
        devices.setdefault(_built_for(artifact, manifest), artifact)
        if manifest.engine.multiprocessors:
            counts.add(manifest.engine.multiprocessors)
        found |= {point.key: point for point in points_from_manifest(manifest)}
    if len(devices) > 1:
        told = " and ".join(f"{' '.join(device)} ({first})" for device, first in devices.items())
        raise PolicyError(
            f"the artifacts were built for {told}.", "Learn from those of one GPU and one version."
        )
    if not found:
        raise PolicyError(
            "no builder's log holds a sparse and a dense time for the same layer.",
            "Build with sparse weights (--sparsity force) and without a timing cache, and learn from that.",
        )
    ((device, capability, driver, version),) = devices
    if into and not is_measured_on(into, device):
        raise PolicyError(
            f"policy '{into.name}' is for {into.device}, but the artifacts were built on {device}.",
            "Leave --into out.",
        )
    points = {point.key: point for point in (into.points if into else ())} | found
    wave = into.wave if into else None
    if wave is None and counts:
        wave = wave_of(max(counts))  # of two numbers for one name the larger is the careful one
    said = f"TensorRT {version}'s builder, while it built {len(found) // 2} products"
    margin = into.margin if into else MARGIN
    care = {"spreads": into.spreads, "spreads_between": into.spreads_between} if into else {}
    return Policy(
        schema_version=1,
        name=name,
        device=into.device if into else device,
        compute_capability=capability,
        libraries={**(into.libraries if into else {}), "tensorrt": version, "cuda driver": driver},
        clocks=into.clocks if into else "not recorded",
        provenance="measured",
        source=f"{into.source}; {said}" if into else said,
        margin=margin,
        wave=wave,
        **care,
        thresholds=with_given(
            derive_thresholds(points.values(), margin, wave), into.thresholds if into else ()
        ),
        points=tuple(points.values()),
    )


def points_from_manifest(manifest: Manifest) -> tuple[Point, ...]:
    """The dense and the sparse point of each product that the builder timed both ways, at each profile's opt.

    Layers that became one product (`gate || up`) give the points of that product: their N are added up.
    """
    layers = {layer.name: layer for layer in manifest.layers}
    seen: set[tuple[str, int]] = set()
    points: list[Point] = []
    for outcome in manifest.engine.outcomes:
        product = (outcome.engine_layer, outcome.profile)
        members = [layers[name] for name in (outcome.layer, *outcome.merged_with) if name in layers]
        if product in seen or len({layer.k for layer in members}) != 1:
            continue
        seen.add(product)
        points += _pair(members, outcome)
    return tuple(points)


def _pair(members: list[LayerRecord], outcome: OutcomeRecord) -> Iterator[Point]:
    first = members[0]
    opts = [m[1] for m in first.m.values()]
    m = opts[outcome.profile] if outcome.profile < len(opts) else None
    if not m or outcome.best_sparse_ms is None or outcome.best_dense_ms is None or first.batch != 1:
        return
    if outcome.timed_as:  # the measurement is another layer's, which gives its points
        return
    for kernel, ms, tactic in (
        ("dense", outcome.best_dense_ms, outcome.best_dense_tactic),
        ("sparse", outcome.best_sparse_ms, outcome.best_sparse_tactic),
    ):
        yield Point.model_validate(
            {
                "kind": first.kind, "n": sum(layer.n for layer in members), "k": first.k, "m": m,
                "dtype": first.precision.upper(), "library": "tensorrt", "kernel": kernel,
                "us": round(1000 * ms, 3), "tactic": tactic,
            }
        )  # fmt: skip


def _built_for(artifact: str, manifest: Manifest) -> tuple[str, str, str, str]:
    engine = manifest.engine
    known = _DEVICE.fullmatch(engine.device)
    if engine.backend != "tensorrt" or not known:
        raise PolicyError(
            f"the engine of {artifact} was built by {engine.backend}, which times no sparse tactics.",
            "Build it with --backend tensorrt, on the machine with the GPU.",
        )
    return known["name"], known["capability"], known["driver"], engine.versions.get("tensorrt", "unknown")
