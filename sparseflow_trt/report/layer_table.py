"""The report's rows: each weighted layer with its decision, and with its times where some are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparseflow_trt.artifacts.manifest import LayerRecord, Manifest, OutcomeRecord
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import known_of, library_of
from sparseflow_trt.policies.policy import WHOSE, Policy

_WEIGHTS = {"sparse": "2:4", "not-sparse": "not 2:4", "not-eligible": "not eligible"}
_MOST_GROUPS = 24


@dataclass(frozen=True)
class Times:
    """A layer's times in one profile, in microseconds, and whose they are.

    Attributes:
        measured: Whether this build's own builder timed it; else they are expected by the policy.
        timed_as: The engine's layer that it timed for several that are alike; "" where it timed this one.
    """

    profile: str
    m: int | None
    dense: float
    sparse: float
    measured: bool
    timed_as: str = ""

    @property
    def speedup(self) -> float:
        """Dense over sparse."""
        return self.dense / self.sparse


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        weights: Type and 2:4 state.
        sizes: M at min, opt and max of each profile.
        m: At the first one's opt.
        runs: What the engine told: sparse, dense, or "" where it told nothing.
        times: In the profile where most is known; None where nothing is.
    """

    number: int
    layer: LayerRecord
    weights: str
    sizes: tuple[str, ...]
    m: int | None
    runs: str
    times: Times | None


@dataclass(frozen=True)
class TimeGroup:
    """Layers of one shape in one profile, their times the mean; `timed_as_others` have those of others."""

    kind: str
    k: int
    n: int
    precision: str
    layers: int
    times: Times
    timed_as_others: int = 0


def layer_rows(manifest: Manifest, policy: Policy | None) -> tuple[Row, ...]:
    """A row for each layer, in the graph's order."""
    times = layer_times(manifest, policy)
    told: dict[str, list[OutcomeRecord]] = {}
    for outcome in manifest.engine.outcomes:
        told.setdefault(outcome.layer, []).append(outcome)
    rows = []
    for number, layer in enumerate(manifest.layers, 1):
        outcomes, own = told.get(layer.name, []), times.get(layer.name, ())
        rows.append(
            Row(
                number=number,
                layer=layer,
                weights=f"{layer.dtype}, {_WEIGHTS.get(layer.state, layer.state)}",
                sizes=tuple(_sizes(name, sizes, len(layer.m)) for name, sizes in layer.m.items()),
                m=next(iter(layer.m.values()))[1] if layer.m else None,
                runs=_runs(outcomes),
                times=own[0] if own else None,
            )
        )
    return tuple(rows)


def time_groups(manifest: Manifest, policy: Policy | None) -> tuple[tuple[TimeGroup, ...], int]:
    """The layers with known times by shape and profile, the longest first; and how many are left out."""
    found: dict[tuple[str, int, int, str, str, int | None, bool], list[Times]] = {}
    times = layer_times(manifest, policy)
    for layer in manifest.layers:
        for one in times.get(layer.name, ()):
            key = (layer.kind, layer.k, layer.n, layer.precision, one.profile, one.m, one.measured)
            found.setdefault(key, []).append(one)
    groups = [
        TimeGroup(
            kind, k, n, precision, len(alike),
            Times(profile, m, _mean(t.dense for t in alike), _mean(t.sparse for t in alike), measured),
            sum(bool(t.timed_as) for t in alike),
        )
        for (kind, k, n, precision, profile, m, measured), alike in found.items()
    ]  # fmt: skip
    groups.sort(key=lambda group: -group.layers * group.times.dense)
    return tuple(groups[:_MOST_GROUPS]), max(0, len(groups) - _MOST_GROUPS)


def layer_times(manifest: Manifest, policy: Policy | None) -> dict[str, tuple[Times, ...]]:
    """Each layer's times, a profile each: the builder's where it tried both kernels, else the policy's."""
    outcomes = (
        *manifest.engine.outcomes, *(manifest.duel.sparse_outcomes if manifest.duel else ())
    )  # fmt: skip
    measured: dict[str, dict[int, OutcomeRecord]] = {}
    for outcome in outcomes:
        if outcome.best_sparse_ms and outcome.best_dense_ms:
            measured.setdefault(outcome.layer, {})[outcome.profile] = outcome
    known: dict[Gemm, Known] = {}
    found = {}
    for layer in manifest.layers:
        own = measured.get(layer.name, {})
        names = list(layer.m)
        if own:
            found[layer.name] = tuple(_measured(names, layer, o) for _, o in sorted(own.items()))
        elif policy is not None:
            if layer.gemm not in known:
                known[layer.gemm] = known_of(policy, layer.gemm)
            found[layer.name] = tuple(_expected(layer, known[layer.gemm]))
    return found


def whose_times(manifest: Manifest, policy: Policy | None) -> str:
    """Where the times come from, in words."""
    all_times = [one for times in layer_times(manifest, policy).values() for one in times]
    parts = []
    if any(one.measured for one in all_times):
        parts.append("TensorRT's builder, which times kernels one by one with warm caches while it builds")
    if any(one.timed_as for one in all_times):
        parts.append("of layers that are alike it times only one; the table of layers marks the others")
    if policy and any(not one.measured for one in all_times):
        library = library_of(policy, "tensorrt")
        parts.append(
            f"expected by policy '{policy.name}' ({WHOSE[library]}, {policy.device}), not timed here"
        )
    return "; ".join(parts)


def _measured(profiles: list[str], layer: LayerRecord, outcome: OutcomeRecord) -> Times:
    name = profiles[outcome.profile] if outcome.profile < len(profiles) else str(outcome.profile)
    m = layer.m[name][1] if name in layer.m else None
    dense, sparse = outcome.best_dense_ms or 0.0, outcome.best_sparse_ms or 0.0
    return Times(name, m, 1000 * dense, 1000 * sparse, measured=True, timed_as=outcome.timed_as)


def _expected(layer: LayerRecord, known: Known) -> Iterable[Times]:
    for profile, (_, m, _) in layer.m.items():
        expected = known.expect(m) if m else None
        if expected:
            yield Times(profile, m, expected.dense_us, expected.sparse_us, measured=False)


def _runs(outcomes: list[OutcomeRecord]) -> str:
    told = {"plugin" if o.plugin else "sparse" if o.sparse else "dense" for o in outcomes if o.is_told}
    return "mixed" if len(told) > 1 else "".join(told)


def _sizes(name: str, sizes: tuple[int | None, int | None, int | None], profiles: int) -> str:
    shown = ", ".join("?" if size is None else str(size) for size in sizes)
    return f"{name}: {shown}" if profiles > 1 else shown


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
