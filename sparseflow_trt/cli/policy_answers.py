"""What a policy says of one product, with the points behind it, as `policy ask` gives it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sparseflow_trt.cli import console
from sparseflow_trt.cli.policy_tables import nearest_points, points_table

if TYPE_CHECKING:
    from sparseflow_trt.policies.expected import Verdict
    from sparseflow_trt.policies.known import Known
    from sparseflow_trt.policies.policy import Library, Pair, Point, Policy

_HEAVIEST = 8  # products that a learned answer rests on
_LIMITED = {"torch": "cuSPARSELt"}  # the plugin runs its kernels, and takes the same sizes


class Product(NamedTuple):
    """A layer's product: M×K by K×N of a type such as "FP16"."""

    kind: str
    n: int
    k: int
    m: int
    dtype: str


@dataclass(frozen=True)
class Answer:
    """A policy's answer.

    Attributes:
        product: What was asked.
        kernel: "dense", "sparse" or "plugin".
        verdict: The same with its reason.
        heaviest: Where it is learned, the products that weigh most in it, with their shares.
        would_gain: Why the plugin, not asked for, would win at M or at the next multiple of 8; else "".
    """

    product: Product
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


def answer_of(policy: Policy, product: Product, library: Library, plugin: bool) -> Answer:
    """Asks a policy about one product.

    Args:
        policy: Whom to ask.
        product: About what.
        library: Whose kernels.
        plugin: Whether the sparse kernel is the plugin, and not the library's own.
    """
    from sparseflow_trt.policies.expected import Verdict
    from sparseflow_trt.policies.lookup import known_of
    from sparseflow_trt.policies.plugin_lookup import plugin_known

    kind, n, k, m, dtype = product
    known = (
        plugin_known(policy, kind, n, k, dtype) if plugin else known_of(policy, kind, n, k, dtype, library)
    )
    if never := _why_never(known, "the plugin" if plugin else _LIMITED.get(known.library, "")):
        return Answer(product, "dense", Verdict(False, "none", never), (), "")
    verdict = known.judge(m)
    kernel = ("plugin" if plugin else "sparse") if verdict.sparse else "dense"
    heaviest = tuple(known.learned_from(m)[:_HEAVIEST])
    unasked = not plugin and library == "tensorrt" and not verdict.sparse
    return Answer(product, kernel, verdict, heaviest, _plugin_gain(policy, product) if unasked else "")


def print_answer(answer: Answer) -> None:
    """Prints an answer, its reason and the points behind it."""
    out = console.out()
    out.print(console.styled(answer.kernel, "bold"), answer.verdict.reason, sep=": ")
    shares = [share for share, _ in answer.heaviest]
    if shares:
        out.print(f"What weighs most in the trees' mean, {sum(shares):.0%} of it together:")
    if answer.points:
        shown, more = nearest_points(answer.points, answer.product.m)
        out.print(points_table(shown, shares))
        if more:
            out.print(f"and {more} more, further from M={answer.product.m} (--json has all)")
    elif answer.verdict.basis == "threshold":
        out.print("There are no points behind this threshold: it was given, and not derived from any.")
    if answer.would_gain:
        out.print(f"In its place: {answer.would_gain}. Ask with --plugin for the points behind it.")


def _plugin_gain(policy: Policy, product: Product) -> str:
    """Why the plugin would win at a product or, where it would not, at the next multiple of 8; else ""."""
    from sparseflow_trt.model.packing import why_not_in_plugin
    from sparseflow_trt.policies.plugin_lookup import PLUGIN_DTYPES, judge_with_plugin, plugin_known

    kind, n, k, m, dtype = product
    better = judge_with_plugin(policy, *product)
    if better.sparse:
        return better.reason
    if dtype not in PLUGIN_DTYPES or why_not_in_plugin(n, k):
        return ""
    padded = plugin_known(policy, kind, n, k, dtype).padded(m)
    return f"with M padded to a multiple of 8 {padded.reason}" if padded else ""


def _why_never(known: Known, limited: str) -> str:
    """Why no layer of these sizes can run sparse, whatever was measured; "" where one can.

    Args:
        known: What is known of the layer.
        limited: What runs it, where that takes not every size: the plugin, or cuSPARSELt; else "".
    """
    from sparseflow_trt.model.packing import why_not_in_plugin
    from sparseflow_trt.model.sites import why_not_2to4

    if why := why_not_2to4(known.dtype, known.k):
        return f"cannot be 2:4: {why}"
    why = why_not_in_plugin(known.n, known.k) if limited else ""
    return f"cannot run in {limited}: {why}" if why else ""
