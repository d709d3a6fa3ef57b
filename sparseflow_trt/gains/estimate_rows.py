"""One row of an estimate: the layers of one kind, shape and M, with what a policy says of each M."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sparseflow_trt.gains.estimate_record import Basis, EstimatedLayers
from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.decide import DENSE_IN_FP32
from sparseflow_trt.plans.merges import Merge, as_run
from sparseflow_trt.policies.expected import Expected, Verdict
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known


class Group(NamedTuple):
    """What layers of one row have in common.

    Attributes:
        kind, n, k: Of the layers.
        dtype: The type of their product, such as "FP16".
        m: Their rows, with named dimensions.
        state: The weights' 2:4 state.
        never: Why they cannot be 2:4, be pruned, or run in the plugin; "" where they can.
    """

    kind: str
    n: int
    k: int
    dtype: str
    m: SymbolicM
    state: str
    never: str

    @property
    def gemm(self) -> Gemm:
        """The layers' product, whatever its M."""
        return Gemm(self.kind, self.n, self.k, self.dtype)


def count_groups(
    layers: Iterable[WeightedLayer],
    precisions: Mapping[str, str],
    plugin: Mapping[str, str] | None,
    unprunable: Mapping[str, str],
    merges: Sequence[Merge] = (),
) -> Counter[Group]:
    """The layers that are alike for an estimate, each as often as its product is computed."""
    groups: Counter[Group] = Counter()
    for layer, n in as_run(layers, merges):
        if layer.weight and layer.n and layer.k:
            dtype = precisions.get(layer.name, layer.dtype).upper()
            never = _why_never(layer, dtype, plugin, unprunable)
            group = Group(layer.kind, n, layer.k, dtype, layer.m, layer.state.value, never)
            groups[group] += max(layer.batch, 1)
    return groups


def _why_never(
    layer: WeightedLayer, dtype: str, plugin: Mapping[str, str] | None, unprunable: Mapping[str, str]
) -> str:
    """Why a layer runs dense in a type whatever the policy says, "" where it may run sparse."""
    if layer.state is not SparsityState.SPARSE and layer.name in unprunable:
        return f"cannot be pruned: {unprunable[layer.name]}"
    if not layer.eligible:
        return f"cannot be 2:4: {layer.reason}"
    if dtype == "FP32":
        return DENSE_IN_FP32
    if plugin is not None and plugin.get(layer.name):
        return f"cannot run in the plugin: {plugin[layer.name]}"
    return ""


class Answer(NamedTuple):
    """What a policy says of a product at one M.

    Attributes:
        share: Of the runs, that have this M.
        times: What to expect, where M is not below the smallest measured one.
        alone: The dense time where it was measured and what to expect of sparse is not known.
        bound: The dense time at the smallest measured M where M is below it: it takes no longer.
        estimated: Whether the plugin's times are cuSPARSELt's.
    """

    m: int
    share: float
    verdict: Verdict
    times: Expected | None
    alone: float | None
    bound: float | None
    estimated: bool = False

    @property
    def dense_us(self) -> float | None:
        """The dense time as far as it is known."""
        return self.times.dense_us if self.times else self.alone

    @property
    def sparse_us(self) -> float | None:
        """The sparse time; where it is not known sparse counts as dense."""
        return self.times.sparse_us if self.times else self.alone

    @property
    def usual_us(self) -> float | None:
        """The dense time as far as it is known or bounded."""
        return self.bound if self.dense_us is None else self.dense_us


def ask(sizes: tuple[tuple[int, float], ...], known: Known) -> list[Answer]:
    """The answers for each M, the one with most arithmetic first.

    Args:
        sizes: Each M with its share of the runs.
        known: What a policy knows of the layers.
    """
    answers = []
    for m, share in sorted(sizes, key=lambda size: -size[0] * size[1]):
        times = known.expect(m)
        alone = bound = None
        if times is None or times.at == "below":
            dense = known.at(m).dense_at(m)
            if dense and dense.at in ("measured", "between"):
                alone = dense.us
            elif dense and dense.at == "below":
                bound = dense.us
            elif times:
                bound = times.dense_us
            times = None
        answers.append(Answer(m, share, known.judge(m), times, alone, bound, known.at(m).estimated))
    return answers


def usual_rates(groups: Mapping[Group, int], answers: Mapping[Group, list[Answer]]) -> tuple[float, float]:
    """Dense microseconds for each element of a weight and for each multiplication, where times are known."""
    time = elements = work = 0.0
    for group, count in groups.items():
        known = [(a.share, a.m, a.usual_us) for a in answers[group] if a.usual_us is not None]
        size = count * group.n * group.k
        time += count * math.fsum(share * us for share, _, us in known)
        elements += size * math.fsum(share for share, _, _ in known)
        work += size * math.fsum(share * m for share, m, _ in known)
    return (time / elements, time / work) if work else (0.0, 0.0)


def estimate_layers(
    group: Group, count: int, answers: list[Answer], rates: tuple[float, float]
) -> EstimatedLayers:
    """The row of one group.

    Args:
        group: The layers.
        count: How many there are.
        answers: What `ask` said of them.
        rates: Of `usual_rates`, for an M without a time.
    """
    dense = sum_known((a.share, a.dense_us) for a in answers)
    sparse = chosen = None
    if any(a.times for a in answers) and not group.never:
        sparse = sum_known((a.share, a.sparse_us) for a in answers)
        chosen = sum_known((a.share, a.sparse_us if a.verdict.sparse else a.dense_us) for a in answers)
    size = group.n * group.k
    untimed = [a for a in answers if a.dense_us is None]
    guesses = [a.share * (a.bound or size * max(rates[0], a.m * rates[1])) for a in untimed]
    # what is guessed may be 0, of a share that is next to nothing: that is no lack of a guess
    able = any(rates) or all(a.bound for a in untimed)
    worth, why = _is_worth(group, answers)
    return EstimatedLayers(
        kind=group.kind,
        n=group.n,
        k=group.k,
        dtype=group.dtype,
        m=str(group.m),
        sizes=tuple(sorted((a.m, a.share) for a in answers)),
        count=count,
        state=group.state,
        basis=tuple(dict.fromkeys(basis for answer in answers for basis in _bases(answer))) or ("unknown",),
        dense_us=dense,
        sparse_us=sparse,
        policy_us=dense if chosen is None else chosen,
        guessed_us=math.fsum(guesses) if answers and able else None,
        speedup=dense / sparse if dense and sparse else None,
        taken=0.0 if group.never else sum(a.share for a in answers if a.verdict.sparse),
        worth=worth,
        why=why,
    )


def with_share(row: EstimatedLayers, total: float) -> EstimatedLayers:
    """The row with its share of all dense time, guesses among it; none where it has no time."""
    times = [us for us in (row.dense_us, row.guessed_us) if us is not None]
    return row.model_copy(update={"share": row.count * math.fsum(times) / total if times else None})


def sum_known(times: Iterable[tuple[float, float | None]]) -> float | None:
    """The sum of the times that are known, each by its share or its count; None where none is known."""
    known = [share * us for share, us in times if us is not None]
    return math.fsum(known) if known else None


def _is_worth(group: Group, answers: list[Answer]) -> tuple[bool | None, str]:
    if group.never:
        return False, group.never
    if not answers:
        return None, group.m.not_known
    taken = any(a.verdict.sparse for a in answers)
    unknown = all(a.verdict.basis == "none" for a in answers)
    in_doubt = not taken and any(a.times and a.times.doubt for a in answers)
    return None if unknown or in_doubt else taken, next(
        a.verdict.reason for a in answers if a.verdict.sparse == taken
    )


def _bases(answer: Answer) -> tuple[Basis, ...]:
    """How an answer is known; of another shape, too, that its M lies above the largest measured one.

    Last, that its dense time is of measurements of the dense kernel alone.
    """
    times = answer.times
    dense: tuple[Basis, ...] = ()
    if (times and times.dense_alone) or answer.alone is not None:
        dense = ("dense measured",)
    if times is None:
        return ("class threshold (no time)" if answer.verdict.basis == "threshold" else "unknown", *dense)
    above: tuple[Basis, ...] = ("extrapolated",) if times.at == "above" else ()
    if times.basis != "exact":
        return ("nearest shape" if times.basis == "nearest" else "learned", *above, *dense)
    if answer.estimated:
        return ("estimated", *above, *dense)
    own: Basis = "measured" if times.at == "measured" else "interpolated"
    return (*(above or (own,)), *dense)
