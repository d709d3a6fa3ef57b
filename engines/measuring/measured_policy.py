"""The policy that comes of a journal of measurements, and of two policies of one GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from sparseflow_trt.engines.machine.gpu_state import describe_clocks
from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.journal import Journal
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.policy import MARGIN, Pair, Point, Policy, fastest_points
from sparseflow_trt.policies.presets import Product
from sparseflow_trt.policies.thresholds import derive_thresholds, with_given


def policy_from_journal(
    journal: Journal, name: str, margin: float = MARGIN, without: Collection[Curve] = ()
) -> Policy:
    """The policy of what a journal holds; a shape stands under each kind that a run asked for it as.

    Args:
        journal: The measurements.
        name: The policy's name.
        margin: The share by which sparse has to be faster.
        without: Products that are left out: of some M alone no threshold can be told.

    Raises:
        PolicyError: Nothing is left.
    """
    pairs = {request: pair for request, pair in journal.pairs.items() if request.curve not in without}
    if not pairs:
        raise PolicyError(
            "no product has been measured at all of its M yet.",
            "Allow more time: the same command continues from here.",
        )
    points = points_from_pairs(pairs, journal.products)
    identity = journal.identity
    return Policy(
        schema_version=1,
        name=name,
        device=identity.device,
        compute_capability=identity.compute_capability,
        libraries=identity.libraries,
        clocks=describe_clocks(answer.clock for answer in journal.measured),
        provenance="measured",
        source=_source(journal),
        margin=margin,
        wave=identity.wave,
        thresholds=derive_thresholds(points, margin, identity.wave),
        points=points,
    )


def extend_policy(policy: Policy, other: Policy) -> Policy:
    """A policy with another's points added, those that it has itself excepted.

    TensorRT and PyTorch are often in two environments, and measured apart. Where a library's versions differ
    both are named, each with the types of its points. Thresholds are derived anew; those that were given
    stay where no points give one. Of the margin and of how sure a win has to be, the more careful of both
    counts. A kernel's gain stays what it was beside the dense kernel of its own run (`_beside`).

    Raises:
        PolicyError: The other is of another GPU.
    """
    check_gpu(other, policy.device, policy.compute_capability)
    added = _beside(policy.points, without_points_of(other.points, policy.points), other.points)
    points = tuple(sorted([*policy.points, *added], key=lambda point: point.key))
    wave = other.wave if policy.wave is None else policy.wave
    margin = max(policy.margin, other.margin)
    return policy.model_copy(
        update={
            "libraries": _libraries(policy, other, added),
            "clocks": _both(policy.clocks, other.clocks),
            "source": _both(policy.source, other.source),
            "thresholds": with_given(
                derive_thresholds(points, margin, wave), other.thresholds, policy.thresholds
            ),
            "points": points,
            "margin": margin,
            "wave": wave,
            "spreads": max(policy.spreads, other.spreads),
            "spreads_between": max(policy.spreads_between, other.spreads_between),
        }
    )


def check_gpu(policy: Policy, device: str, compute_capability: str) -> None:
    """Checks that a policy's points may go beside those of a GPU.

    Raises:
        PolicyError: It is of another GPU.
    """
    if (policy.device, policy.compute_capability) != (device, compute_capability):
        raise PolicyError(
            f"policy '{policy.name}' is for {policy.device} ({policy.compute_capability}), not "
            f"for {device} ({compute_capability}).",
            "Only measurements of one kind of GPU go into one policy.",
        )


def without_points_of(points: Iterable[Point], others: Iterable[Point]) -> list[Point]:
    """Those that others hold nothing of: no point of the same product, library and kernel."""
    keys = {point.key for point in others}
    return [point for point in points if point.key not in keys]


def _beside(own: Iterable[Point], added: Iterable[Point], others: Iterable[Point]) -> list[Point]:
    """The added points; where `own` has its dense kernel's time, as many times as fast as it as they were.

    Two runs differ in clocks and in the dense kernel that TensorRT picked: only what ran in turn compares.
    """
    here, there = ({p.key[:-1]: p.us for p in points if p.kernel == "dense"} for points in (own, others))
    scales = {product: here[product] / there[product] for product in here.keys() & there.keys()}
    return [_times(point, scales.get(point.key[:-1], 1.0)) for point in added]


def _times(point: Point, factor: float) -> Point:
    scaled = {
        name: round(us * factor, 3)
        for name in ("us", "low_us", "high_us")
        if (us := getattr(point, name)) is not None
    }
    return point if factor == 1 else point.model_copy(update=scaled)


def _libraries(policy: Policy, other: Policy, added: Iterable[Point]) -> dict[str, str]:
    """The versions of both; where they differ, which types' points each has."""
    joined = {**other.libraries, **policy.libraries}
    for name in policy.libraries.keys() & other.libraries.keys():
        own, others = policy.libraries[name], other.libraries[name]
        if own != others:
            joined[name] = _both(_of_types(own, policy.points), _of_types(others, added))
    return dict(sorted(joined.items()))


def _of_types(version: str, points: Iterable[Point]) -> str:
    types = ", ".join(sorted({point.dtype for point in points}))
    return version if "(" in version or not types else f"{version} ({types})"


def _both(own: str, other: str) -> str:
    """Two texts as one, each said once."""
    if own in other or other in own:
        return max(own, other, key=len)
    return f"{own}; {other}"


def _source(journal: Journal) -> str:
    """When, with which driver, how and by which commands, in one sentence."""
    dates = sorted({run.date for run in journal.runs})
    drivers = sorted({run.driver for run in journal.runs if run.driver})
    how = sorted({answer.how for answer in journal.measured if answer.how})
    commands = dict.fromkeys(run.command for run in journal.runs if run.command)
    parts = [
        f"measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else "measured",
        f"driver {', '.join(drivers)}" if drivers else "",
        f"timed as {', '.join(how)}" if how else "",
        f"by: {'; '.join(commands)}" if commands else "",
    ]
    return ", ".join(filter(None, parts))


def points_from_pairs(pairs: Mapping[Request, Pair], products: Sequence[Product]) -> tuple[Point, ...]:
    """The points of a journal's pairs, each shape under each kind that a run asked for it as."""
    kinds: dict[tuple[int, int], dict[str, None]] = {}
    for product in products:
        kinds.setdefault((product.n, product.k), {})[product.kind] = None
    points = fastest_points(  # beside two kernels a product is measured dense twice
        point.model_copy(update={"kind": kind})
        for pair in pairs.values()
        for point in (pair.dense, pair.sparse)
        for kind in kinds.get((point.n, point.k), {point.kind: None})
    )
    return tuple(sorted(points, key=lambda point: point.key))
