"""What a search for precisions says of itself."""

from __future__ import annotations

from sparseflow_trt.exporters.retyping.precision_groups import Atom
from sparseflow_trt.model.node_range import NodeRange
from sparseflow_trt.precision.summary import notes


def test_products_whose_sums_may_overflow_are_named_by_their_modules() -> None:
    wide = NodeRange(
        size=64,
        largest=1.0,
        fills=0,
        above=0,
        tiny=0.0,
        fp16_error=None,
        bf16_error=None,
        k=64,
        sum_bound=1e5,
    )
    atoms = [Atom((), ("node_MatMul_7",), "MatMul", wide), Atom(("scores",), (), "MatMul", wide)]
    _, said = notes(atoms, {}, (), {"node_MatMul_7": "h.0.up"})
    assert said.endswith("an engine that accumulates in FP16 could overflow there: h.0.up, scores.")
