"""Joins a plan with the evidence: what became of each planned layer in each profile, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.outcome_reasons import why_it_runs
from sparseflow_trt.engines.evidence.tactics import accumulator_of_tactic, is_sparse_tactic
from sparseflow_trt.engines.evidence.timings import LayerTimings
from sparseflow_trt.engines.evidence.twins import Twins, find_twins
from sparseflow_trt.errors import EvidenceError
from sparseflow_trt.model.layer_names import shown_name, shown_names
from sparseflow_trt.model.target import PLUGIN_OP
from sparseflow_trt.plans.plan import Plan, PlannedLayer

NOT_FOUND = "not found in the engine"

_MULTIPLIES = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected|correlation", re.IGNORECASE)
_COMPILED = "{ForeignNode["  # how TensorRT 8.6 names what its compiler, Myelin, took whole
_MOVES = re.compile(r"^(noop|reformat|shuffle|slice|cast|constant)$", re.IGNORECASE)
_GENERATED = "kgen"
_REGION = re.compile(r"_myl\d+_\d+$")
_JOINED = re.compile(r" \+ | \|\| ")
_TENSORRT_TYPES = {
    "fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8", "fp8": "FP8",
    "fp64": "Float",  # what its parser makes of FP64
    "int32": "Int32", "int64": "Int64", "uint32": "UInt32", "uint64": "UInt64",
}  # fmt: skip
_AS = "; timed as '{}', which is like it: TensorRT times only one of such layers"


@dataclass(frozen=True)
class LayerOutcome:
    """What became of one planned layer in one profile.

    Attributes:
        layer: The planned layer's name.
        profile: The optimization profile's number.
        engine_layer: TensorRT's name of what it became, "" where it was not found.
        merged_with: The other planned layers that became the same one.
        tactic: The kernel that runs, "" where it is not told.
        sparse: Whether that is a sparse kernel; False where it is not told.
        precision: What it computes in, in TensorRT's words; "" where it is not told.
        best_sparse_ms: The fastest sparse tactic's time, None where none was measured.
        best_sparse_tactic: Its name.
        best_dense_ms: The fastest dense tactic's time.
        best_dense_tactic: Its name, "" also for a tactic that has none.
        tried_sparse: How many measurements of sparse tactics there were.
        tried_dense: The same of dense ones.
        why: In words, which name layers as people are told: what runs, and why sparse was or was not taken.
        plugin: Whether it runs in the plugin, whose kernels are sparse; `sparse` is True then.
        timed_as: TensorRT's name of the layer that these times and counts are of, where the builder timed
            one for several that are alike; "" where they are its own.
        accumulator: The type that the kernel adds up products in, in TensorRT's words; "" where its name does
            not tell.
    """

    layer: str
    profile: int
    engine_layer: str = ""
    merged_with: tuple[str, ...] = ()
    tactic: str = ""
    sparse: bool = False
    precision: str = ""
    best_sparse_ms: float | None = None
    best_sparse_tactic: str = ""
    best_dense_ms: float | None = None
    best_dense_tactic: str = ""
    tried_sparse: int = 0
    tried_dense: int = 0
    why: str = ""
    plugin: bool = False
    timed_as: str = ""
    accumulator: str = ""


def join_outcomes(
    plan: Plan,
    layers: tuple[LayerEvidence, ...],
    timings: tuple[LayerTimings, ...] = (),
    earlier_times: bool = False,
) -> tuple[LayerOutcome, ...]:
    """What became of each planned layer: plan order, each with its profiles in theirs.

    Args:
        plan: What was asked for.
        layers: What the engine says of itself.
        timings: What the builder's log says it measured; none where there is no such log.
        earlier_times: Whether the builder was given times of earlier builds. Then a layer that its log has
            none of may have those, and is given no other layer's.
    """
    profiles = range(max(1, len(plan.profiles)))
    measured = {(t.layer, t.profile): t for t in timings}
    twins = {} if earlier_times else find_twins(layers, timings)
    in_plan = {layer.name: layer for layer in plan.layers}
    made = _by_node(layers)
    regions = [(e.profile, e.name) for e in layers if e.name.startswith(_COMPILED)]
    return tuple(
        _outcome(planned, in_plan, number, _product(made.get((planned.name, number), ())), measured, twins)
        or _hidden(planned, number, [name for profile, name in regions if profile == number])
        for planned in plan.layers
        for number in profiles
    )


def precision_mismatches(
    plan: Plan, outcomes: tuple[LayerOutcome, ...], tf32: bool = False
) -> tuple[str, ...]:
    """The layers that do not run as precisely as planned, one sentence each: expected and got.

    INT8 and FP8 layers may write another type ("Int8->Half"), and so may the others: what is multiplied
    counts. A layer whose precision is not told is named as unknown, never taken for a match. With `tf32` a
    layer planned fp32 may run in TF32.
    """
    planned = {layer.name: layer.precision for layer in plan.layers}
    shown = shown_names(plan.layers)
    sentences = []
    for outcome in outcomes:
        expected = planned[outcome.layer]
        multiplied = outcome.precision.partition("->")[0]
        if multiplied == _TENSORRT_TYPES[expected] or (tf32 and (expected, multiplied) == ("fp32", "TF32")):
            continue
        if outcome.precision:
            got = f"runs in {outcome.precision}"
        elif outcome.engine_layer:
            got = "runs in a precision that the engine does not report"
        else:
            got = f"was {NOT_FOUND}"
        where = f" (profile '{plan.profiles[outcome.profile].name}')" if len(plan.profiles) > 1 else ""
        sentences.append(f"'{shown[outcome.layer]}' is planned {expected} and {got}{where}.")
    return tuple(sentences)


def check_precisions(plan: Plan, outcomes: tuple[LayerOutcome, ...], tf32: bool, hint: str) -> None:
    """Checks that each layer whose precision the engine tells runs as precisely as planned.

    Raises:
        EvidenceError: The layers that do not, as `precision_mismatches` names them; with the hint.
    """
    told = tuple(outcome for outcome in outcomes if outcome.precision)
    if differing := precision_mismatches(plan, told, tf32):
        raise EvidenceError(f"the engine does not run as planned: {' '.join(differing)}", hint)


def _by_node(layers: Iterable[LayerEvidence]) -> dict[tuple[str, int], list[LayerEvidence]]:
    """The engine's layers by node and profile, but for the copies and reshapes that were made from it."""
    made: dict[tuple[str, int], list[LayerEvidence]] = {}
    for layer in layers:
        for node in _nodes(layer) if not _MOVES.match(layer.type) else ():
            made.setdefault((node, layer.profile), []).append(layer)
    return made


def _product(made: Iterable[LayerEvidence]) -> LayerEvidence | None:
    """Of the engine's layers of one node the one that does its product.

    A kernel that Myelin generates (to pad a Conv's channels, say) is not it, where there is another.
    """
    return min(made, key=lambda e: (_MULTIPLIES.search(e.type) is None, e.type == _GENERATED), default=None)


def _hidden(planned: PlannedLayer, profile: int, regions: list[str]) -> LayerOutcome:
    """A layer that the engine does not name: most likely in a region that TensorRT's compiler made."""
    if not regions:
        return LayerOutcome(planned.name, profile, why=NOT_FOUND)
    where = (
        f"the compiled region '{regions[0]}'"
        if len(regions) == 1
        else f"one of {len(regions)} compiled regions"
    )
    why = (
        f"in {where}, which reports neither its kernels nor their precision; no sparse tactic was timed for "
        "it"
    )
    return LayerOutcome(planned.name, profile, engine_layer=regions[0] if len(regions) == 1 else "", why=why)


def untold(plan: Plan, outcomes: tuple[LayerOutcome, ...]) -> str:
    """One sentence on the layers whose precision the engine does not tell, "" where it tells them all."""
    names = dict.fromkeys(o.layer for o in outcomes if not o.precision)
    if not names:
        return ""
    first = next(o for o in outcomes if not o.precision)
    return (
        f"The engine does not report the precision of {len(names)} of {len(plan.layers)} planned layers, the "
        f"first of them '{shown_names(plan.layers)[first.layer]}': {first.why}."
    )


def _nodes(layer: LayerEvidence) -> tuple[str, ...]:
    # Without detailed verbosity there is only "gate_proj || up_proj" or "up_proj + relu" to go by.
    if layer.nodes and _is_plugin(layer):  # one node may stand for several layers
        return tuple(dict.fromkeys(name for node in layer.nodes for name in (node, *_JOINED.split(node))))
    return layer.nodes or tuple(_JOINED.split(_REGION.sub("", layer.name)))


def _is_plugin(layer: LayerEvidence) -> bool:
    return "plugin" in layer.type.lower()


def _outcome(
    planned: PlannedLayer,
    in_plan: Mapping[str, PlannedLayer],
    profile: int,
    found: LayerEvidence | None,
    measured: dict[tuple[str, int], LayerTimings],
    twins: Twins,
) -> LayerOutcome | None:
    if found is None:
        return None
    own = _timings_of(planned.name, found, profile, measured)
    twin = twins.get((found.name, profile), "")
    timings = measured[twin, profile] if twin else own
    merged = [in_plan[node] for node in _nodes(found) if node in in_plan and node != planned.name]
    if _is_plugin(found):
        return _plugin_outcome(planned, profile, found, merged)
    # One type in all that was measured is what runs, whichever tactic was picked.
    precision = found.precision or (own.precisions[0] if len(own.precisions) == 1 else "")
    return LayerOutcome(
        layer=planned.name,
        profile=profile,
        engine_layer=found.name,
        merged_with=tuple(other.name for other in merged),
        tactic=found.tactic,
        sparse=is_sparse_tactic(found.tactic),
        precision=precision,
        best_sparse_ms=timings.best_sparse.ms if timings.best_sparse else None,
        best_sparse_tactic=timings.best_sparse.tactic if timings.best_sparse else "",
        best_dense_ms=timings.best_dense.ms if timings.best_dense else None,
        best_dense_tactic=timings.best_dense.tactic if timings.best_dense else "",
        tried_sparse=timings.tried_sparse,
        tried_dense=timings.tried_dense,
        why=why_it_runs(planned, found, timings, merged, precision) + (_AS.format(twin) if twin else ""),
        timed_as=twin,
        accumulator=accumulator_of_tactic(found.tactic),
    )


def _plugin_outcome(
    planned: PlannedLayer, profile: int, found: LayerEvidence, merged: list[PlannedLayer]
) -> LayerOutcome:
    """A layer in the plugin: TensorRT times no tactics of it, as the plugin chooses by itself."""
    others = tuple(other.name for other in merged)
    joined = f", as one product with '{', '.join(map(shown_name, merged))}'" if others else ""
    dense = f"; below M={planned.dense_below_m} its dense copy runs" if planned.dense_below_m else ""
    # It takes and gives no type but its weights', which is the plan's; an inspector need not tell it.
    precision = found.precision or _TENSORRT_TYPES[planned.precision]
    return LayerOutcome(
        planned.name, profile, found.name, others, found.tactic or PLUGIN_OP, True, precision,
        why=f"runs in the plugin{joined}{dense}; the engine holds the choice of cuSPARSELt's algorithm",
        plugin=True,
    )  # fmt: skip


def _timings_of(
    name: str, found: LayerEvidence, profile: int, measured: dict[tuple[str, int], LayerTimings]
) -> LayerTimings:
    # The compiler's log names an operator after its node, its engine the layer after that and a region.
    for known_as in (found.name, _REGION.sub("", found.name), name):
        if (known_as, profile) in measured:
            return measured[known_as, profile]
    return LayerTimings(found.name, profile)
