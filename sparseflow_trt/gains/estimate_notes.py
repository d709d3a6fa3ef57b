"""What is said of an estimate beside its rows, each as a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from sparseflow_trt._listing import counted
from sparseflow_trt.gains.estimate_record import EstimatedLayers
from sparseflow_trt.gains.estimate_rows import Answer, Group
from sparseflow_trt.model.graph import WeightedLayer
from sparseflow_trt.model.layer_names import takes_if_named
from sparseflow_trt.model.sites import OPS
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.merges import Merge
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.policy import WHOSE, Library


def whose_plugin_times(known: Mapping[Group, Known], answers: Mapping[Group, list[Answer]]) -> Iterator[str]:
    """Whose kernels the plugin's times are of, each once, as a sentence; none where it has none."""
    asked = ((known[group], answers[group]) for group in known if known[group].own.pairs and not group.never)
    said = {of.at(answer.m).whose for of, its in asked for answer in its}
    whose = sorted(words.replace("the plugin against", "measured against") for words in said)
    if whose:
        yield f"Sparse is the plugin, which runs cuSPARSELt's kernels: {', or '.join(whose)}."


def notes_on(
    layers: Iterable[WeightedLayer],
    rows: list[EstimatedLayers],
    asked: Library,
    used: Library,
    main: SymbolicM | None,
    in_plugin: bool,
) -> Iterator[str]:
    """Whose times these are, which products have none, and what is not counted."""
    if asked != used:
        yield f"The policy holds nothing for {WHOSE[asked]}: these are times of {WHOSE[used]}."
    if main:
        yield f"The traffic counts M={main}; a layer with another M takes it from the given sizes."
    unpruned = (row.kind for row in rows if row.worth and row.state == "not-sparse")
    if only := takes_if_named(unpruned):
        yield f"`prune` {only}."
    if any(row.policy_us not in (row.dense_us, row.sparse_us) for row in rows):
        does = "artifacts of their own for" if in_plugin else "profiles split at"
        yield f"Where sparse wins only at some M, each M has its own kernel; that takes {does} those M."
    if any("dense measured" in row.basis for row in rows):
        yield (
            "Where only the dense kernel was measured, its time is that measurement. Sparse then has the "
            "speedup whose source its row names, and counts as dense if none is known."
        )
    if any(row.guessed_us for row in rows):
        yield (
            "Products with no time count as dense. Below the smallest measured M they take the time at that "
            "M; else as long per element or per multiplication as the others, whichever is longer."
        )
    unknown = sum(row.count for row in rows if not row.sizes)
    if unknown:
        yield f"Not included: {counted(unknown, 'product')} whose M is not known."
    if computed := sum(layer.computed for layer in layers):
        products = counted(computed, "product")
        yield f"Not included: {products} with weights computed from constants; `inspect` names them."
    others = Counter(layer.op_type for layer in layers if layer.op_type not in OPS)
    if others:
        said = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
        do = "multiplies by its weight" if sum(others.values()) == 1 else "multiply by their weights"
        yield f"Not included: {said}, which {do} in a way that has no 2:4 path."


def notes_on_merges(merges: Iterable[Merge]) -> Iterator[str]:
    """Which rows are of one product that TensorRT makes of several layers."""
    for (gemm, count), times in Counter((merge.gemm, len(merge.layers)) for merge in merges).items():
        each = f"each of its {times}" if times > 1 else "it"
        yield (
            f"{gemm.k}→{gemm.n} ({gemm.kind}) is no layer: {each} is the one product that TensorRT makes of "
            f"{count} layers that read one input."
        )
