"""Decides which kernel a layer gets: dense, TensorRT's own sparse ones, or the plugin, and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.packing import ROWS, round_up
from sparseflow_trt.model.sites import why_too_small
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.shapes import Dims, Profile, dims_at, opts_of
from sparseflow_trt.policies.expected import Verdict
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import is_timed, judge
from sparseflow_trt.policies.plugin_lookup import PLUGIN_DTYPES, is_beaten, plugin_known
from sparseflow_trt.policies.policy import Kernel, Policy

SparsityMode = Literal["policy", "force", "off", "plugin"]

_LACKS = "with --plugin LIB, which `sparseflow-trt plugin build` makes"
_ELEMENT_BYTES = 2
_AS_ONE = "as the one product that TensorRT makes of it and the others that read its input"
DENSE_IN_FP32 = "FP32 runs dense: sparse TF32 instructions take one of two values, not two of four"


@dataclass(frozen=True)
class PluginLayer:
    """What the plugin could do with a layer, of which its graph decides.

    Attributes:
        reads: What value it multiplies, and in which graph: layers of one input may become one product.
        why_not: Why it cannot run in the plugin, "" where it can.
        relu: Whether a ReLU is all that reads its output: TensorRT runs such a layer by itself.
    """

    reads: str
    why_not: str = ""
    relu: bool = False


@dataclass(frozen=True)
class PluginUse:
    """Whether a plan may use the plugin, and for what.

    Attributes:
        given: Whether there is a library of it.
        layers: The model's layers that could be asked for; one that lacks cannot.
    """

    given: bool = False
    layers: Mapping[str, PluginLayer] = field(default_factory=dict)

    def why_not(self, name: str, precision: str) -> str:
        """Why a layer cannot run in the plugin in a precision, "" where it can."""
        if name not in self.layers:
            return "the graph was not checked for it"
        if reason := self.layers[name].why_not:
            return reason
        return (
            "" if precision.upper() in PLUGIN_DTYPES else f"the plugin takes FP16 and BF16, not {precision}"
        )


@dataclass(frozen=True)
class Together:
    """What TensorRT makes of a layer and the others that read its input.

    Attributes:
        whole: Their one product, for TensorRT's own kernels (`merges`); None where it was not timed.
        slower_apart: Why none of them is to be in the plugin (`apart`), "" where they may.
        not_2to4: Why its own sparse kernels must not be taken: the one product is not 2:4; "" where they may.
    """

    whole: Gemm | None = None
    slower_apart: str = ""
    not_2to4: str = ""


ALONE = Together()


@dataclass(frozen=True)
class Decision:
    """A layer's kernel and why; `dense_below_m` is the M below which the plugin runs its dense copy."""

    kernel: Kernel
    reason: str
    dense_below_m: int = 0


@dataclass(frozen=True)
class _Sizes:
    """A layer's M: at each profile's opt and max, by where that is, and over all profiles."""

    at: Mapping[str, int | None]
    most: Mapping[str, int]
    low: int
    high: int


def decide(
    layer: WeightedLayer,
    precision: str,
    profiles: tuple[Profile, ...],
    input_dims: dict[str, Dims],
    policy: Policy | None,
    mode: SparsityMode,
    plugin: PluginUse,
    together: Together = ALONE,
) -> Decision:
    """Decides the kernel of one layer.

    The plugin is taken where it wins at the largest opt and, among those where it does not, only at smaller
    ones: a graph has one node for all profiles, and below some M that node can run a dense copy.

    Args:
        layer: The layer.
        precision: What it is planned in.
        profiles: The optimization profiles.
        input_dims: Each input's dimensions, by name.
        policy: Where sparse wins; None plans everything dense.
        mode: "policy" asks the policy; "force" takes TensorRT's sparse kernels for every 2:4 layer, "plugin"
            the plugin for every one that it can run; "off" neither. (Where no layer is 2:4 a build refuses
            both, see `planning.check_forced`.) What is planned in FP32 is dense whatever is asked.
        plugin: Whether the plugin may be used.
        together: What TensorRT makes of it and the others that read its input.
    """
    if layer.state is SparsityState.NOT_ELIGIBLE:
        return Decision("dense", f"cannot be 2:4: {layer.reason}")
    if layer.state is SparsityState.NOT_SPARSE:
        return Decision("dense", f"weights are not 2:4: {layer.reason}")
    if why := why_too_small(precision.upper(), layer.k):  # it may be stored in another type
        return Decision("dense", why)
    if mode == "off":
        return Decision("dense", "sparsity is off")
    if precision == "fp32":
        return Decision("dense", DENSE_IN_FP32)
    if mode == "force" and together.not_2to4:
        return Decision("dense", together.not_2to4)
    if mode == "force":
        return Decision("sparse", "asked for: sparsity is forced")
    why_not = plugin.why_not(layer.name, precision)
    if mode == "plugin":
        if why_not:
            return Decision("dense", f"asked for the plugin, which cannot run it: {why_not}")
        return Decision("plugin", "asked for: the plugin wherever it can run")
    if policy is None:
        return Decision("dense", f"no policy for this device: {_what_gives_one(precision)}")
    sizes = _sizes(layer, profiles, input_dims)
    gemm = Gemm(layer.kind, layer.n, layer.k, precision.upper())
    own, known = _own_kernels(layer, gemm, policy, sizes, together), plugin_known(policy, gemm)
    if slower_apart := together.slower_apart:
        wins = any(known.judge(m).sparse for m in sizes.at.values() if m is not None)
        note = f"; not in the plugin: {slower_apart}" if wins else ""
        return Decision(own.decision.kernel, own.decision.reason + note)
    return _with_plugin(layer, own, known, sizes, plugin.given, why_not)


def _what_gives_one(precision: str) -> str:
    """The command that measures a policy for layers of a precision, or that there is none, and what else."""
    # FP16 is what autotune measures of most models
    asked = {"fp16": "", "bf16": " --dtype bf16"}.get(precision)
    otherwise = "name one with --policy, or --sparsity force"
    if asked is None:
        return f"{otherwise}; `autotune` measures no {precision.upper()}"
    return f"`sparseflow-trt autotune MODEL{asked}` measures one; or {otherwise}"


def _sizes(layer: WeightedLayer, profiles: tuple[Profile, ...], dims: dict[str, Dims]) -> _Sizes:
    at: dict[str, int | None] = {}
    most: dict[str, int] = {}
    ends: list[int] = []
    for profile, m in zip(profiles or (None,), opts_of(layer.m, profiles, dims), strict=True):
        where = f"profile '{profile.name}'" if profile else "static shapes"
        at[where] = m
        if m is not None:
            low = layer.m.evaluate(dims_at(dims, profile, "min")) if profile else m
            high = layer.m.evaluate(dims_at(dims, profile, "max")) if profile else m
            most[where] = high or m
            ends += [m, low or m, high or m]
    return _Sizes(at, most, min(ends, default=0), max(ends, default=0))


@dataclass(frozen=True)
class _Own:
    """What is decided between TensorRT's own kernels, and the verdict at each M.

    Attributes:
        as_one: Where that is of one product with others. It is held against the plugin with these
            together (`apart`), and not by what each gains.
    """

    decision: Decision
    verdicts: Mapping[str, Verdict]
    as_one: frozenset[str]


def _own_kernels(layer: WeightedLayer, gemm: Gemm, policy: Policy, sizes: _Sizes, together: Together) -> _Own:
    sparse_in: dict[str, str] = {}
    dense_in: dict[str, str] = {}
    verdicts = {}
    as_one: set[str] = set()
    for where, m in sizes.at.items():
        if m is None:
            dense_in[where] = layer.m.not_known
            continue
        whole = together.whole if together.whole and is_timed(policy, together.whole, m) else None
        as_one |= {where} if whole else set()
        verdict = judge(policy, whole or gemm, m)
        reason = f"{_AS_ONE}: {verdict.reason}" if whole else verdict.reason
        if verdict.sparse and together.not_2to4:
            verdict = replace(verdict, sparse=False, speedup=None)
            reason = f"{together.not_2to4} (by itself {reason})"
        elif verdict.sparse and (most := sizes.most[where]) > m:
            reason += _at_most(judge(policy, whole or gemm, most), most, policy)
        verdicts[where] = verdict
        (sparse_in if verdict.sparse else dense_in)[where] = reason
    if not sparse_in:
        said = "; ".join(f"{where}: {reason}" for where, reason in dense_in.items())
        return _Own(Decision("dense", said), verdicts, frozenset(as_one))
    (first, reason), *others = sparse_in.items()
    also = f"; sparse also in {', '.join(where for where, _ in others)}" if others else ""
    said = f"{first}: {reason}{also}" + (f"; dense in {', '.join(dense_in)}" if dense_in else "")
    return _Own(Decision("sparse", said), verdicts, frozenset(as_one))


def _at_most(verdict: Verdict, m: int, policy: Policy) -> str:
    """What is said where sparse does not win at a profile's largest M: its tactic is that of its opt."""
    if verdict.sparse or (verdict.speedup or 0) >= 1 + policy.margin:  # or is only not sure to
        return ""
    return f"; not at M={m}, the profile's largest, which has the same tactic (--split)"


def _with_plugin(
    layer: WeightedLayer, own: _Own, known: Known, sizes: _Sizes, given: bool, why_not: str
) -> Decision:
    judged = {where: known.judge(m) for where, m in sizes.at.items() if m is not None}
    wins = {
        where: v
        for where, v in judged.items()
        if v.sparse and (where in own.as_one or not is_beaten(v, own.verdicts[where]))
    }
    if None in sizes.at.values():
        return own.decision
    top = max(judged, key=lambda where: sizes.at[where] or 0)
    if not wins and why_not:
        return own.decision
    if not wins and given:
        nor = _nor_the_plugin(judged[top], own.verdicts[top])
        return Decision(own.decision.kernel, own.decision.reason + nor)
    if not wins:
        padded = _when_padded(own.verdicts[top], known, sizes.at[top] or 0, given)
        return Decision(own.decision.kernel, own.decision.reason + padded)
    best = top if top in wins else max(wins, key=lambda where: wins[where].speedup or 0)
    told = f"{best}: {wins[best].reason}"
    kept = own.decision
    if why_not:
        return Decision(kept.kernel, f"{kept.reason}; the plugin cannot run it: {why_not}")
    if top not in wins:
        lost = f"in {top}, and a graph has one node for all profiles"
        padded = _when_padded(own.verdicts[top], known, sizes.at[top] or 0, given)
        return Decision(
            kept.kernel,
            f"{kept.reason}; not in the plugin, which does not win for sure {lost} ({told}){padded}",
        )
    if not given:
        gain = told if len(sizes.at) > 1 else wins[best].reason
        return Decision(kept.kernel, f"{kept.reason}; {_LACKS}, {gain}")
    below = _dense_below(known, sizes.low, sizes.at[top] or 0)
    said = told + ("" if best in own.as_one else _beside(own.verdicts[best], wins[best]))
    if others := [where for where in wins if where != best]:
        said += f"; also in {', '.join(others)}"
    if below:
        memory = layer.n * layer.k * _ELEMENT_BYTES / 2**20
        said += f"; below M={below} its dense copy, which takes {memory:.3g} MiB more GPU memory"
    said += _beside_multiples(layer.m, known, sizes, sizes.at[top] or 0, below)
    return Decision("plugin", said, below)


def _beside(own: Verdict, plugin: Verdict) -> str:
    """What TensorRT's own sparse kernels would gain in its place, where that was measured."""
    if own.speedup is None or own.points == plugin.points or any(p.library == "torch" for p in own.points):
        return ""
    return f"; TensorRT's own sparse kernels {own.speedup:.2f}×"


def _nor_the_plugin(plugin: Verdict, own: Verdict) -> str:
    """Why a layer that the plugin can run is not in it, where it may be used."""
    if plugin.sparse and plugin.speedup is not None:
        return f"; the plugin would gain no more: {plugin.speedup:.2f}×"
    return "" if plugin.reason in own.reason else f"; {plugin.reason}"


def _when_padded(own: Verdict, known: Known, m: int, given: bool) -> str:
    """What the plugin would gain at the next multiple of 8, where it does not at M."""
    padded = known.padded(m)
    if padded is None or is_beaten(padded, own):
        return ""
    gain = f" ({padded.speedup:.2f}×)" if padded.speedup else ""
    return f"; padded to M={round_up(m)} the plugin would win{gain}" + ("" if given else f", {_LACKS}")


def _beside_multiples(m: SymbolicM, known: Known, sizes: _Sizes, top: int, dense_below: int) -> str:
    """What is lost at M that are no multiples of 8, where such come and are not left to the dense copy."""
    if sizes.low == sizes.high or m.is_multiple_of(ROWS) or top % ROWS:
        return ""
    beside = top - 1 if max(sizes.low, dense_below) < top else top + 1
    verdict = known.judge(beside)
    if beside > sizes.high or verdict.sparse or verdict.speedup is None:
        return ""
    return f"; but at M={beside} {verdict.speedup:.2f}×: pad M to a multiple of {ROWS}"


def _dense_below(known: Known, low: int, top: int) -> int:
    """The M below which the plugin's dense copy is faster: up to the first measured M after one where it was.

    That copy runs cuBLASLt, so no margin is asked for: an estimate is of those very two. What was not
    measured is no reason to hold a second copy.
    """
    sizes = [m for m in known.own.timed if m < top]
    slower = [m for m in sizes if known.own.timed[m].speedup < 1]
    if not slower:
        return 0
    begin = min((m for m in sizes if m > slower[-1]), default=top)
    return begin if low < begin else 0
