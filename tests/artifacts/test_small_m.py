"""From which batch on the sparse layers of an artifact win."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.artifacts.manifest import EngineRecord, LayerRecord, Manifest, OutcomeRecord
from sparseflow_trt.artifacts.small_m import sparse_from
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from sparseflow_trt.policies.between import WAVE
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import find_policy
from tests.made_policies import make_points, make_policy


def layer(name: str, m: int | None, **changes: Any) -> LayerRecord:
    known: dict[str, Any] = {
        "name": name, "module": "", "kind": "gate_up", "op_type": "MatMul", "weight": "w", "dtype": "FP16",
        "n": 14336, "k": 4096, "batch": 1, "m": {"p": (1, m, m)}, "state": "sparse", "state_reason": "",
        "mask_hash": "", "precision": "fp16", "sparsity": "sparse", "reason": "",
    }  # fmt: skip
    return LayerRecord(**{**known, **changes})


def profile(batch: int) -> Profile:
    return Profile(name="p", inputs={"x": ShapeRange(min=(1, 8), opt=(batch, 8), max=(batch, 8))})


def manifest(*layers: LayerRecord, merged: bool = False) -> Manifest:
    """Of an engine that runs the layers as one product, or each by itself."""
    names = [layer.name for layer in layers]
    outcomes = [
        OutcomeRecord.model_construct(
            layer=name, merged_with=tuple(other for other in names if other != name)
        )
        for name in names
    ]
    engine = EngineRecord.model_construct(outcomes=tuple(outcomes) if merged else ())
    return Manifest.model_construct(layers=layers, engine=engine)


@given(st.integers(1, 64), st.integers(1, 512), st.integers(1, 4096))
def test_at_that_batch_m_reaches_the_threshold_and_below_it_does_not(
    batch: int, rows: int, least: int
) -> None:
    (found,) = sparse_from(manifest(layer("a", batch * rows)), [profile(batch)], None, least)
    assert found.batch is not None
    assert found.batch * rows >= least
    assert found.batch == 1 or (found.batch - 1) * rows < least


def test_the_layer_that_needs_most_decides() -> None:
    layers = (layer("wide", 1024), layer("pooled", 8), layer("dense", 8, sparsity="dense"))
    (found,) = sparse_from(manifest(*layers), [profile(8)], None, 256)
    assert (found.batch, found.layer, found.m) == (256, "pooled", 256)


def test_the_policy_says_it_where_nobody_does() -> None:
    policy = find_policy("a100-80gb")
    (found,) = sparse_from(manifest(layer("a", 1024)), [profile(8)], policy, None)
    assert (found.batch, found.m) == (2, 256)  # 128 rows an item
    (never,) = sparse_from(manifest(layer("a", 1024)), [profile(8)], find_policy("h200"), None)
    assert (never.batch, never.m, never.layer) == (None, None, "a")


def test_a_range_that_ends_before_the_first_batch_is_in_it_is_none() -> None:
    h200 = find_policy("h200")  # by itself a gate of this shape wins at M=1 alone
    (one,) = sparse_from(manifest(layer("a", 8)), [profile(8)], h200, None)
    assert (one.batch, one.m) == (1, 1)
    (two,) = sparse_from(manifest(layer("a", 16)), [profile(8)], h200, None)
    assert (two.batch, two.m) == (None, None)


def test_layers_that_tensorrt_merged_win_as_their_one_product_does() -> None:
    h200 = find_policy("h200")
    gate, up = layer("gate", 16), layer("up", 16)
    (found,) = sparse_from(manifest(gate, up, merged=True), [profile(8)], h200, None)
    assert (found.batch, found.m) == (1, 1)
    (apart,) = sparse_from(manifest(gate, up), [profile(8)], h200, None)
    assert apart.batch is None
    (many,) = sparse_from(
        manifest(layer("gate", 2048), layer("up", 2048), merged=True), [profile(8)], h200, None
    )
    assert many.batch is None, "256 rows an item, and sparse wins up to 128"


def test_in_the_plugin_it_is_the_plugin_that_has_to_win() -> None:
    h200 = find_policy("h200")
    small = layer("a", 1024, n=2048, k=5632, kind="down", sparsity="plugin")
    (found,) = sparse_from(manifest(small), [profile(8)], h200, None)
    assert found.batch is not None and found.m is not None
    known = plugin_known(h200.model_copy(update={"wave": 0}), Gemm("down", 2048, 5632, "FP16"))
    assert known.judge(found.m).sparse and not known.judge(found.m - 8).sparse
    assert (found.batch - 1) * 128 < found.m <= found.batch * 128


def test_where_sparse_is_not_sure_to_win_it_need_not_lose() -> None:
    points = [
        p.model_copy(update={"us": p.us * p.m})
        for p in make_points("gate_up", 4096, 4096, {1: 1.3, 128: 1.3, 1024: 1.3})
    ]
    policy = make_policy(points).model_copy(update={"wave": WAVE})
    assert not judge(policy, Gemm("gate_up", 4096, 4096, "FP16"), 200).sparse
    (found,) = sparse_from(manifest(layer("a", 1024, n=4096)), [profile(8)], policy, None)
    assert (found.batch, found.m) == (1, 1)


def test_nothing_is_known_without_sparse_layers_or_a_threshold() -> None:
    assert sparse_from(manifest(layer("a", 1024)), [profile(8)], None, None) == ()
    assert sparse_from(manifest(layer("a", 1024, sparsity="dense")), [profile(8)], None, 256) == ()
