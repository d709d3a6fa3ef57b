"""What a policy says of one product, with the points behind it, as `policy ask` gives it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sparseflow_trt.cli import console
from sparseflow_trt.cli.policy_tables import nearest_points, points_table

if TYPE_CHECKING:
    from sparseflow_trt.policies.expected import Verdict
    from sparseflow_trt.policies.gemm import Gemm
    from sparseflow_trt.policies.policy import Library, Pair, Point, Policy

_HEAVIEST = 8  # products that a learned answer rests on
_LIMITED = {"torch": "cuSPARSELt"}  # the plugin runs its kernels, and takes the same sizes


@dataclass(frozen=True)
class Answer:
    """A policy's answer.

    Attributes:
        m: The rows that were asked for.
        kernel: "dense", "sparse" or "plugin".
        verdict: The same with its reason.
        heaviest: Where it is learned, the products that weigh most in it, with their shares.
        would_gain: Why the plugin, not asked for, would win at M or at the next multiple of 8; else "".
    """

    m: int
    kernel: str
    verdict: Verdict
    heaviest: tuple[tuple[float, Pair], ...]
    would_gain: str

    @property
    def points(self) -> tuple[Point, ...]:
        """What it rests on."""
        learned = tuple(point for _, pair in self.heaviest for point in (pair.dense, pair.sparse))
        return learned or self.verdict.points

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            **asdict(self.verdict),
            "kernel": self.kernel,
            "points": [point.model_dump(mode="json") for point in self.points],
            "shares": [round(share, 4) for share, _ in self.heaviest],
            "plugin_would_gain": self.would_gain,
        }


def answer_of(policy: Policy, gemm: Gemm, m: int, library: Library, plugin: bool) -> Answer:
    """Asks a policy about one product.

    Args:
        policy: Whom to ask.
        gemm: A layer's product.
        m: Its rows.
        library: Whose kernels.
        plugin: Whether the sparse kernel is the plugin, and not the library's own.
    """
    from sparseflow_trt.policies.expected import Verdict
    from sparseflow_trt.policies.lookup import known_of
    from sparseflow_trt.policies.plugin_lookup import plugin_known

    known = plugin_known(policy, gemm) if plugin else known_of(policy, gemm, library)
    if never := _why_never(gemm, "the plugin" if plugin else _LIMITED.get(known.own.library, "")):
        return Answer(m, "dense", Verdict(False, "none", never), (), "")
    verdict = known.judge(m)
    kernel = ("plugin" if plugin else "sparse") if verdict.sparse else "dense"
    heaviest = tuple(known.learned_from(m)[:_HEAVIEST])
    unasked = not plugin and library == "tensorrt" and not verdict.sparse
    return Answer(m, kernel, verdict, heaviest, _plugin_gain(policy, gemm, m) if unasked else "")


def print_answer(answer: Answer) -> None:
    """Prints an answer, its reason and the points behind it."""
    out = console.out()
    out.print(console.styled(answer.kernel, "bold"), answer.verdict.reason, sep=": ")
    shares = [share for share, _ in answer.heaviest]
    if shares:
        out.print(f"The products that weigh most in the trees' mean, together {sum(shares):.0%} of it:")
    if answer.points:
        shown, more = nearest_points(answer.points, answer.m)
        out.print(points_table(shown, shares))
        if more:
            out.print(f"and {more} more, further from M={answer.m} (--json has all)")
    elif answer.verdict.basis == "threshold":
        out.print("There are no points behind this threshold: it was given, and not derived from any.")
    if answer.would_gain:
        out.print(f"In its place: {answer.would_gain}. Ask with --plugin for the points behind it.")


def _plugin_gain(policy: Policy, gemm: Gemm, m: int) -> str:
    """Why the plugin would win at a product or, where it would not, at the next multiple of 8; else ""."""
    from sparseflow_trt.model.packing import why_not_in_plugin
    from sparseflow_trt.policies.plugin_lookup import PLUGIN_DTYPES, judge_with_plugin, plugin_known

    better = judge_with_plugin(policy, gemm, m)
    if better.sparse:
        return better.reason
    if gemm.dtype not in PLUGIN_DTYPES or why_not_in_plugin(*gemm.shape):
        return ""
    padded = plugin_known(policy, gemm).padded(m)
    return f"with M padded to a multiple of 8 {padded.reason}" if padded else ""


def _why_never(gemm: Gemm, limited: str) -> str:
    """Why no layer of these sizes can run sparse, whatever was measured; "" where one can.

    Args:
        gemm: The layer's product.
        limited: What runs it, where that takes not every size: the plugin, or cuSPARSELt; else "".
    """
    from sparseflow_trt.model.packing import why_not_in_plugin
    from sparseflow_trt.model.sites import why_not_2to4
    from sparseflow_trt.plans.decide import DENSE_IN_FP32

    if why := why_not_2to4(gemm.dtype, gemm.k):
        return f"cannot be 2:4: {why}"
    if gemm.dtype == "FP32":
        return DENSE_IN_FP32
    why = why_not_in_plugin(*gemm.shape) if limited else ""
    return f"cannot run in {limited}: {why}" if why else ""
