"""Estimates: times from a policy alone, sums that hold together, and nothing gained from what is unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sparseflow_trt.errors import PolicyError, ShapeError
from sparseflow_trt.gains.estimate import USUAL_SHARES, estimate, estimate_model
from sparseflow_trt.gains.estimate_record import Estimate, end_to_end, read_estimate
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.runtimes_own import BEFORE_OPTIMISER
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.traffic import Traffic
from sparseflow_trt.policies.between import WAVE
from sparseflow_trt.policies.policy import Point, Policy
from tests.made_policies import make_points, make_policy

if TYPE_CHECKING:
    from tests.conftest import Models

BATCH_SEQ = SymbolicM(("batch", "seq"))
POLICY = make_policy(
    [
        *make_points("gate_up", 256, 64, {16: 0.5, 64: 1.0, 1024: 2.0}),
        *make_points("down", 64, 256, {16: 1.5, 1024: 1.5}),
    ],
    limits={"qkv": (32, None)},
)


def _layer(name: str, kind: str = "gate_up", n: int = 256, k: int = 64, **changes: Any) -> WeightedLayer:
    layer = WeightedLayer(
        name=name, module="", op_type="MatMul", kind=kind, side="right", weight="w", weight_shape=(k, n),
        dtype="FP16", m=BATCH_SEQ, n=n, k=k, batch=1, k_axes=(0,), state=SparsityState.NOT_SPARSE,
        reason="dense",
    )  # fmt: skip
    return replace(layer, **changes)


MLP = (_layer("up"), _layer("gate"), _layer("down", "down", 64, 256))


def _estimate(
    *layers: WeightedLayer, sizes: dict[str, int] | None = None, policy: Policy = POLICY, **options: Any
) -> Estimate:
    precisions = {layer.name: "fp16" for layer in layers}
    dims = {"batch": 8, "seq": 128} if sizes is None else sizes
    return estimate("model.onnx", layers, precisions, dims, policy, **options)


def test_layers_of_one_shape_are_one_row_with_measured_times() -> None:
    found = _estimate(*MLP)
    up, down = found.layers
    assert (up.kind, up.count, up.sizes, up.m) == ("gate_up", 2, ((1024, 1.0),), "batch*seq")
    assert (up.dense_us, up.sparse_us, up.policy_us, up.speedup) == (20.0, 10.0, 10.0, 2.0)
    assert (up.basis, up.worth, up.taken) == (("measured",), True, 1.0)
    assert up.why.startswith("sparse wins at M=1024: 2.00×")
    assert (down.dense_us, down.sparse_us) == (15.0, 10.0)
    assert (found.dense_us, found.policy_us, found.guessed_us) == (55.0, 30.0, 0.0)
    assert found.gemm_speedup == pytest.approx(55 / 30)
    assert [row.share for row in found.layers] == pytest.approx([40 / 55, 15 / 55])
    assert dict(found.ceilings) == {share: end_to_end(55 / 30, share) for share in USUAL_SHARES}
    assert found.ceiling is None
    assert (found.policy, found.device, found.library) == ("mine", "GPU X", "tensorrt")


def test_the_plugin_is_estimated_from_cusparselt() -> None:
    torch = make_points("gate_up", 256, 64, {16: 1.1, 64: 1.5, 1024: 2.0}, library="torch")
    policy = make_policy(torch, limits={"gate_up": (None, None)})
    able = {"up": "", "gate": "its weight is the left operand"}
    found = _estimate(*MLP[:2], policy=policy, plugin=able)
    assert (found.library, found.kernel) == ("tensorrt", "plugin")
    up, gate = (next(row for row in found.layers if (row.worth is True) is worth) for worth in (True, False))
    assert (up.dense_us, up.sparse_us, up.basis, up.taken) == (20.0, 10.0, ("estimated",), 1.0)
    assert (gate.sparse_us, gate.policy_us, gate.taken) == (None, 20.0, 0.0)
    assert gate.why == "cannot run in the plugin: its weight is the left operand"
    assert (
        "Sparse is the plugin, which runs cuSPARSELt's kernels: estimated from cuSPARSELt against cuBLAS."
        in found.notes
    )
    few = _estimate(MLP[0], sizes={"batch": 1, "seq": 16}, policy=policy, plugin=able)
    assert few.gemm_speedup == 1.0, "an estimate against cuBLAS has to win by 15 %"
    assert _estimate(MLP[0], policy=policy).gemm_speedup is None


def test_an_m_that_is_no_multiple_of_eight_is_to_be_padded_where_that_gains() -> None:
    policy = make_policy(make_points("gate_up", 256, 64, {64: 1.4, 1024: 1.4}, library="torch"))
    able = dict.fromkeys(("up", "gate"), "")

    def told(seq: int) -> list[str]:
        found = _estimate(*MLP[:2], sizes={"batch": 1, "seq": seq}, policy=policy, plugin=able)
        return [note for note in found.notes if "Pad M" in note]

    assert told(197) == [
        "Pad M to a multiple of 8, where the plugin wins in more layers: 197 to 200 (2 more)."
    ]
    assert told(200) == []
    assert "Pad M" not in "".join(_estimate(*MLP[:2], sizes={"batch": 1, "seq": 197}, policy=policy).notes)


def test_points_of_the_plugin_go_before_estimates() -> None:
    torch = make_points("gate_up", 256, 64, {1024: 2.0, 2048: 3.0}, library="torch")
    own = [
        p.model_copy(update={"kernel": "plugin"} if p.kernel == "sparse" else {})
        for p in make_points("gate_up", 256, 64, {1024: 1.2})
    ]
    found = _estimate(MLP[0], policy=make_policy([*torch, *own]), plugin={})
    assert found.notes[1].endswith("cuSPARSELt's kernels: measured against TensorRT's kernels.")
    (row,) = found.layers
    assert row.basis == ("measured",)
    assert row.speedup == pytest.approx(1.2)
    larger = {"batch": 1, "seq": 2048}
    (row,) = _estimate(MLP[0], sizes=larger, policy=make_policy([*torch, *own]), plugin={}).layers
    assert row.basis == ("estimated",), "no M of its own is as large"
    assert row.speedup == pytest.approx(1.2), "but an estimate promises no more than they do"
    notes = _estimate(MLP[0], sizes=larger, policy=make_policy([*torch, *own]), plugin={}).notes
    assert sum("Sparse is the plugin" in note for note in notes) == 1
    assert any("estimated from cuSPARSELt" in note for note in notes)


def test_the_ceiling_is_the_seed_analysis_one() -> None:
    """87 % of the time in products that get 1.3 times as fast: 1.25 for the whole."""
    assert end_to_end(1.3, 4.911 / 5.638) == pytest.approx(1.25, abs=0.005)
    found = _estimate(*MLP, gemm_share=0.87)
    assert found.ceiling == pytest.approx(1 / (0.13 + 0.87 * 30 / 55))


@given(st.floats(0.1, 10), st.floats(0, 1))
def test_no_ceiling_is_higher_than_the_part(speedup: float, share: float) -> None:
    whole = end_to_end(speedup, share)
    assert min(1, speedup) * (1 - 1e-9) <= whole <= max(1, speedup) * (1 + 1e-9)
    assert end_to_end(speedup, 1) == pytest.approx(speedup)
    assert end_to_end(speedup, 0) == 1


@pytest.mark.parametrize(
    ("layer", "m", "basis", "worth"),
    [
        (_layer("a"), 1024, "measured", True),
        (_layer("a"), 16, "measured", False),
        (_layer("a"), 100, "interpolated", False),
        (_layer("a", "down", 64, 256), 9999, "extrapolated", True),
        (_layer("a"), 9999, "extrapolated", None),  # of the two largest measured M it wins at one alone
        (_layer("a", n=200), 1024, "nearest shape", True),
        (_layer("a", "qkv", 8, 8), 1024, "class threshold (no time)", True),
        (_layer("a", "qkv", 8, 8), 8, "class threshold (no time)", False),
        (_layer("a", "conv", 8, 8), 1024, "unknown", None),
        (_layer("a"), 8, "unknown", None),  # below the smallest measured M, and no threshold
    ],
)
def test_how_it_is_known(layer: WeightedLayer, m: int, basis: str, worth: bool | None) -> None:
    (row,) = _estimate(layer, sizes={"batch": 1, "seq": m}).layers
    assert (row.basis, row.worth) == ((basis,), worth)
    timed = basis not in ("unknown", "class threshold (no time)")
    assert (row.dense_us is not None) == (row.sparse_us is not None) == (row.policy_us is not None) == timed
    if timed and not worth:
        assert row.policy_us == row.dense_us


def test_of_another_shape_too_it_is_said_that_m_is_above_all_measured() -> None:
    sizes = {"batch": 1, "seq": 9999}
    (row,) = _estimate(_layer("a", n=200), sizes=sizes).layers
    assert row.basis == ("nearest shape", "extrapolated")
    many = [p for n in range(64, 64 * 22, 64) for p in make_points("gate_up", n, 64, {16: 1.5, 1024: 1.5})]
    (row,) = _estimate(_layer("a", n=200), sizes=sizes, policy=make_policy(many)).layers
    assert row.basis == ("learned", "extrapolated")
    (row,) = _estimate(_layer("a", n=200), policy=make_policy(many)).layers
    assert row.basis == ("learned",)


def test_where_sparse_is_not_sure_to_win_it_is_not_said_that_pruning_is_not_worth_it() -> None:
    points = [
        p.model_copy(update={"us": p.us * p.m})
        for p in make_points("gate_up", 256, 64, {64: 1.3, 1024: 1.3}, library="torch")
    ]
    policy = make_policy(points).model_copy(update={"wave": WAVE})
    for m, worth in ((64, True), (512, None)):
        (row,) = _estimate(_layer("a"), sizes={"batch": 1, "seq": m}, policy=policy).layers
        assert row.worth is worth
    assert row.policy_us == row.dense_us
    assert "is not sure to win" in row.why


def test_a_layer_that_can_never_be_sparse_is_dense() -> None:
    never = _layer("a", state=SparsityState.NOT_ELIGIBLE, reason="K=63 is not a multiple of 4")
    found = _estimate(never)
    (row,) = found.layers
    assert (row.worth, row.why, row.taken) == (False, "cannot be 2:4: K=63 is not a multiple of 4", 0.0)
    assert (row.dense_us, row.sparse_us, row.policy_us, row.speedup) == (20.0, None, 20.0, None)
    assert found.gemm_speedup == 1


def test_pruned_and_unpruned_models_gain_alike() -> None:
    pruned = tuple(replace(layer, state=SparsityState.SPARSE, reason="") for layer in MLP)
    one, other = _estimate(*MLP), _estimate(*pruned)
    assert one.gemm_speedup == other.gemm_speedup
    assert {row.state for row in other.layers} == {"sparse"}


def test_products_that_are_none_of_ours_are_left_out_or_said() -> None:
    dynamic = _layer("a", weight="", n=0, k=0, state=SparsityState.NOT_ELIGIBLE)
    stacked = _layer("b", batch=4)
    lstm = _layer("c", op_type="LSTM", weight="", n=0, k=0)
    split = _layer("d", weight="", computed=True, state=SparsityState.NOT_ELIGIBLE)
    found = _estimate(dynamic, stacked, lstm, split)
    assert [row.count for row in found.layers] == [4]
    assert any("1 LSTM, which multiplies by its weight in a way" in note for note in found.notes)
    two = _estimate(stacked, lstm, replace(lstm, name="e"))
    assert any("2 LSTM, which multiply by their weights in a way" in note for note in two.notes)
    assert any("1 product with weights computed from constants" in note for note in found.notes)


def test_torch_speaks_where_the_policy_has_no_tensorrt() -> None:
    policy = make_policy(make_points("gate_up", 256, 64, {1024: 2.0}, library="torch"))
    found = _estimate(_layer("a"), policy=policy)
    assert found.library == "torch"
    assert any("cuSPARSELt" in note for note in found.notes)
    assert _estimate(_layer("a"), library="torch").gemm_speedup is None


# ---- what has no time


def test_without_any_time_nothing_is_claimed() -> None:
    found = _estimate(_layer("a", "qkv", 8, 8))
    assert (found.gemm_speedup, found.ceilings, found.ceiling) == (None, (), None)
    assert (found.dense_us, found.policy_us, found.guessed_us, found.guessed_share) == (None,) * 4
    (row,) = found.layers
    assert (row.dense_us, row.sparse_us, row.policy_us, row.guessed_us, row.share) == (None,) * 5


def test_where_all_that_is_known_is_a_bound_no_time_is_said_to_be_known() -> None:
    found = _estimate(_layer("a"), sizes={"batch": 1, "seq": 8})
    assert (found.dense_us, found.policy_us, found.gemm_speedup) == (None, None, None)
    assert (found.guessed_us, found.guessed_share, found.layers[0].share) == (5.0, 1.0, 1.0)


def test_products_with_no_time_count_as_dense() -> None:
    alone = _estimate(_layer("a"))
    mixed = _estimate(_layer("a"), _layer("b", "qkv", 128, 128))
    assert alone.gemm_speedup == 2
    # a weight of the same size takes as long as the other, and gains nothing
    assert (mixed.dense_us, mixed.guessed_us, mixed.guessed_share) == (20.0, 20.0, 0.5)
    assert (alone.guessed_us, alone.guessed_share) == (0.0, 0.0)
    assert mixed.gemm_speedup == pytest.approx(40 / 30)
    assert [row.share for row in mixed.layers] == pytest.approx([0.5, 0.5])
    assert any("count as dense" in note for note in mixed.notes)


def test_below_the_smallest_measured_m_dense_takes_no_less_time_than_there() -> None:
    traffic = Traffic(((8, 3.0), (1024, 1.0)))
    (row,) = (found := _estimate(_layer("a"), traffic=traffic)).layers
    assert row.dense_us == pytest.approx(20 / 4)  # of one run in four
    assert row.guessed_us == pytest.approx(5 * 3 / 4)
    assert found.gemm_speedup == pytest.approx((5 + 3.75) / (2.5 + 3.75))
    assert (row.basis, row.taken) == (("measured", "unknown"), 0.25)


@given(st.integers(1, 5000), st.integers(1, 600), st.sampled_from(["qkv", "conv", "o"]))
def test_more_unknown_products_never_raise_the_speedup(m: int, n: int, kind: str) -> None:
    sizes = {"batch": 1, "seq": m}
    before = _estimate(*MLP, sizes=sizes).gemm_speedup
    after = _estimate(*MLP, _layer("x", kind, n, 300), sizes=sizes).gemm_speedup
    assert (before is None) == (after is None)
    if before and after:
        assert 1 <= after <= before * (1 + 1e-12)


# ---- a dense time alone


def _dense(kind: str, n: int, k: int, times: dict[int, float]) -> list[Point]:
    points = make_points(kind, n, k, {m: us / 10 for m, us in times.items()})
    return [p for p in points if p.kernel == "dense"]


def test_dense_times_are_measured_ones_where_the_dense_kernel_was_measured_alone() -> None:
    alone = _dense("gate_up", 256, 64, {8: 4.0, 2048: 30.0})
    policy = make_policy([*alone, *make_points("gate_up", 256, 64, {64: 2.0})])
    (row,) = (found := _estimate(_layer("a"), sizes={"batch": 1, "seq": 2048}, policy=policy)).layers
    assert (row.dense_us, row.sparse_us, row.policy_us) == (30.0, 15.0, 15.0)
    assert (row.basis, row.speedup, row.worth) == (("extrapolated", "dense measured"), 2.0, True)
    assert sum("only the dense kernel was" in note for note in found.notes) == 1
    (row,) = _estimate(_layer("a"), sizes={"batch": 1, "seq": 8}, policy=policy).layers
    assert (row.dense_us, row.sparse_us, row.basis) == (4.0, None, ("unknown", "dense measured"))
    traffic = Traffic(((4, 1.0), (8, 1.0), (2048, 2.0)))
    (row,) = (found := _estimate(_layer("a"), policy=policy, traffic=traffic)).layers
    assert (row.dense_us, row.sparse_us) == (4 / 4 + 30 / 2, 4 / 4 + 15 / 2), "sparse counts as dense at M=8"
    assert row.guessed_us == 4 / 4, "below all M dense takes no longer than at the smallest"
    assert found.gemm_speedup == pytest.approx(17 / 9.5)
    assert all("only the dense kernel was" not in note for note in _estimate(*MLP).notes)


def test_a_measurement_that_is_held_for_several_kinds_is_not_of_the_dense_kernel_alone() -> None:
    same = [point for kind in ("qkv", "o") for point in make_points(kind, 128, 128, {1024: 2.0})]
    for kind in ("qkv", "o"):
        (row,) = _estimate(_layer("a", kind, 128, 128), policy=make_policy(same)).layers
        assert (row.dense_us, row.sparse_us, row.basis) == (20.0, 10.0, ("measured",))


def test_a_dense_time_alone_says_nothing_of_the_gain() -> None:
    qkv = _layer("q", "qkv", 128, 128)
    alone = _dense("qkv", 128, 128, {1024: 7.0})
    unknown = _estimate(qkv, policy=make_policy(alone))
    assert (unknown.dense_us, unknown.guessed_us, unknown.layers[0].worth) == (7.0, 0.0, None)
    assert (unknown.gemm_speedup, unknown.ceilings) == (None, ())
    taken = _estimate(qkv, policy=make_policy(alone, limits={"qkv": (32, None)}))
    assert (taken.policy_us, taken.gemm_speedup, taken.layers[0].worth) == (7.0, None, True)
    assert taken.layers[0].basis == ("class threshold (no time)", "dense measured")
    dense = _estimate(qkv, policy=make_policy(alone, limits={"qkv": (None, None)}))
    assert (dense.policy_us, dense.gemm_speedup) == (7.0, 1.0)
    mixed = _estimate(_layer("a"), qkv, policy=make_policy([*POLICY.points, *alone]))
    assert (mixed.dense_us, mixed.policy_us) == (27.0, 17.0)
    assert mixed.gemm_speedup == pytest.approx(27 / 17)


# ---- traffic


_traffics = st.dictionaries(st.integers(1, 3000), st.floats(0.01, 100), min_size=1, max_size=5).map(
    lambda sizes: Traffic(tuple(sorted(sizes.items())))
)


@given(_traffics)
def test_traffic_is_the_mean_of_its_sizes(traffic: Traffic) -> None:
    mixed = _estimate(*MLP, traffic=traffic)
    for what in ("dense_us", "policy_us"):
        single = [
            (weight, getattr(_estimate(*MLP, sizes={"batch": 1, "seq": m}), what))
            for m, weight in traffic.sizes
        ]
        mean = sum(weight * us for weight, us in single if us is not None) / traffic.total
        assert (getattr(mixed, what) or 0.0) == pytest.approx(mean)
        assert (getattr(mixed, what) is None) == all(us is None for _, us in single)


def test_traffic_speaks_of_the_layers_with_most_arithmetic() -> None:
    head = _layer("head", "down", 64, 256, m=SymbolicM(("batch",)))
    traffic = Traffic(((16, 1.0), (1024, 1.0)))
    rows = {row.m: row for row in _estimate(*MLP[:2], head, sizes={"batch": 16}, traffic=traffic).layers}
    assert rows["batch*seq"].sizes == ((16, 0.5), (1024, 0.5))
    assert rows["batch"].sizes == ((16, 1.0),)
    found = _estimate(*MLP[:2], head, sizes={}, traffic=traffic)
    rows = {row.m: row for row in found.layers}
    assert (rows["batch"].sizes, rows["batch"].basis, rows["batch"].worth) == ((), ("unknown",), None)
    assert (rows["batch"].guessed_us, rows["batch"].share) == (None, None)
    assert any("1 product whose M is not known" in note for note in found.notes)
    assert any("M=batch*seq" in note for note in found.notes)
    assert (rows["batch*seq"].taken, rows["batch*seq"].worth) == (0.5, True)
    assert any("profiles split at those M" in note for note in found.notes)
    torch = make_policy(make_points("gate_up", 256, 64, {16: 0.9, 1024: 2.0}, library="torch"))
    found = _estimate(*MLP[:2], policy=torch, traffic=traffic, plugin=dict.fromkeys(("up", "gate"), ""))
    assert any("artifacts of their own for those M" in note for note in found.notes), "one node for all"


def test_traffic_of_a_static_model_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"model\.onnx: no layer's M has a named axis"):
        _estimate(_layer("a", m=SymbolicM((8, 8))), traffic=Traffic(((8, 1.0),)))


def test_no_known_m_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"no layer's M is known \(batch\*seq\)") as caught:
        _estimate(*MLP, sizes={"batch": 8})
    assert caught.value.hint == "Give each axis a size: --dim batch=8."
    with pytest.raises(ShapeError, match=r"no layer's M is known \(8\*\?\)") as caught:
        _estimate(_layer("a", m=SymbolicM((8, None))), sizes={"batch": 8})
    assert "xport it with fixed shapes." in caught.value.hint, "every axis has a size"
    unknown = _layer("a", m=SymbolicM((8, None)))
    fused = replace(unknown, op_type="FusedConv", reason=f"fused: {BEFORE_OPTIMISER}", k_axes=())
    with pytest.raises(ShapeError, match=r"no layer's M is known \(8\*\?\)") as caught:
        _estimate(unknown, fused, sizes={"batch": 8})
    assert caught.value.hint == "Give the file from before ONNX Runtime's optimiser."
    with pytest.raises(ShapeError, match="no layer multiplies by a stored weight"):
        _estimate()


# ---- models and files


def _save(models: Models, dtype: Any = np.float32) -> Path:
    rng = np.random.default_rng(0)
    weights = {
        "up": rng.standard_normal((64, 256)).astype(dtype),
        "down": rng.standard_normal((256, 64)).astype(dtype),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up_proj"),
        helper.make_node("MatMul", ["a", "down"], ["y"], "down_proj"),
    ]
    onnx_type = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    return models.save(models.model(nodes, weights, {"x": ("batch", "seq", 64)}, dtype=onnx_type))


@pytest.mark.parametrize(("dtype", "precision", "asked"), [
    (np.float32, None, "FP16"), (np.float16, None, "FP16"), (np.float32, "bf16", "BF16"),
    (np.float32, "keep", "FP32"),
])  # fmt: skip
def test_a_model_is_estimated_at_its_opt(models: Models, dtype: Any, precision: Any, asked: str) -> None:
    model = read_model(_save(models, dtype))
    layers = read_layers(model)
    axes = {"batch": (1, 8, 16), "seq": (1, 128, 256)}
    found = estimate_model(model, layers, POLICY, axes, {}, precision)
    assert {row.dtype for row in found.layers} == {asked}
    assert {row.sizes for row in found.layers} == {((1024, 1.0),)}
    assert (found.gemm_speedup is None) == (asked != "FP16")
    traffic = Traffic(((64, 1.0), (1024, 1.0)))
    assert (
        estimate_model(model, layers, POLICY, {}, {}, precision, traffic=traffic).layers[0].m == "batch*seq"
    )
    with pytest.raises(ShapeError, match="no profile says their ranges"):
        estimate_model(model, layers, POLICY, {"batch": (1, 1, 1)}, {}, precision, traffic=traffic)


def test_an_estimate_goes_round(tmp_path: Path) -> None:
    found = _estimate(*MLP, _layer("x", "conv", 8, 8), gemm_share=0.87)
    path = tmp_path / "estimate.json"
    path.write_text(json.dumps(found.model_dump(mode="json")))
    assert read_estimate(path) == found


@pytest.mark.parametrize(
    ("text", "says"), [("", "is not JSON"), ("[]", "holds no mapping"), ("{}", "model: Field required")]
)
def test_a_file_that_is_no_estimate(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "estimate.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=says) as caught:
        read_estimate(path)
    assert "estimate MODEL --json" in caught.value.hint


def test_layers_that_tensorrt_runs_as_one_product_are_one_row_of_its_own_kernels(models: Models) -> None:
    rng = np.random.default_rng(0)
    shapes = {"gate": (64, 256), "up": (64, 256), "down": (256, 64)}
    weights = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["a"], "gate_proj"),
        helper.make_node("MatMul", ["x", "up"], ["b"], "up_proj"),
        helper.make_node("Mul", ["a", "b"], ["c"], "mul"),
        helper.make_node("MatMul", ["c", "down"], ["y"], "down_proj"),
    ]
    path = models.save(models.model(nodes, weights, {"x": ("batch", 64)}, dtype=TensorProto.FLOAT16))
    model = read_model(path)
    policy = make_policy([*POLICY.points, *make_points("gate_up", 512, 64, {16: 1.5, 1024: 3.0})])

    def estimated(policy: Policy, batch: int = 16, **options: Any) -> Estimate:
        return estimate_model(model, read_layers(model), policy, {"batch": (1, batch, 16)}, {}, **options)

    found = estimated(policy, library="tensorrt")
    whole, down = found.layers
    assert (whole.kind, whole.n, whole.count, whole.speedup, whole.worth) == ("gate_up", 512, 1, 1.5, True)
    assert (down.n, down.count, down.speedup) == (64, 1, 1.5)
    assert found.notes[-1].startswith("64→512 (gate_up) is no layer: it is the one product that TensorRT")
    in_plugin = estimated(policy, plugin=True)
    assert sorted((row.n, row.count) for row in in_plugin.layers) == [(64, 1), (512, 1)], "dense is the same"
    below = estimated(policy, 8, library="tensorrt")  # the one product was not timed there
    for other in (estimated(POLICY, library="tensorrt"), below):
        assert sorted((row.n, row.count) for row in other.layers) == [(64, 1), (256, 2)]
        assert not any("is no layer" in said for said in other.notes)
