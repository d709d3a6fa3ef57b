"""What became of a plan, by the evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparseflow_trt.engines.evidence.inspector import layers_from_inspector
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.outcomes import (
    NOT_FOUND,
    LayerOutcome,
    join_outcomes,
    precision_mismatches,
    untold,
)
from sparseflow_trt.engines.evidence.timings import LayerTimings, Timing
from sparseflow_trt.engines.plugin.library import plugin_mismatches
from sparseflow_trt.plans.plan import Plan, PlannedLayer, Precision
from sparseflow_trt.plans.shapes import Profile
from sparseflow_trt.policies.policy import Kernel
from tests.engines.evidence.logs import read_timings

DATA = Path(__file__).parent.parent / "data"
SPARSE_KERNEL = "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn"
DENSE_KERNEL = "sm80_xmma_gemm_f16f16_f16f32_f32_tn"
GEMM = LayerEvidence("mm", "CaskGemmConvolution", "Half", DENSE_KERNEL, 0, ("mm",))
PLUGIN = LayerEvidence("a || b", "PluginV2", "Half", "", nodes=("a || b",))


def make_plan(profiles: int = 0, precision: Precision = "fp16", **kernels: Kernel | bool) -> Plan:
    return Plan(
        precision="keep",
        policy="none",
        profiles=tuple(Profile(name=f"p{number}", inputs={}) for number in range(profiles)),
        layers=tuple(
            PlannedLayer(
                name=name,
                kind="other",
                n=8,
                k=8,
                precision=precision,
                sparsity=("sparse" if kernel else "dense") if isinstance(kernel, bool) else kernel,
                reason="",
            )
            for name, kernel in kernels.items()
        ),
    )


def timed(sparse: float | None = None, dense: float | None = None, layer: str = "mm") -> LayerTimings:
    return LayerTimings(
        layer=layer,
        profile=0,
        tried_sparse=16 if sparse else 0,
        tried_dense=844 if dense else 0,
        best_sparse=Timing(SPARSE_KERNEL, sparse, "Half(8,1) -> Half(8,1)") if sparse else None,
        best_dense=Timing(DENSE_KERNEL, dense, "Half(1,8) -> Half(1,8)") if dense else None,
    )


def outcome(
    sparse: bool, layers: tuple[LayerEvidence, ...], timings: tuple[LayerTimings, ...] = ()
) -> LayerOutcome:
    (joined,) = join_outcomes(make_plan(mm=sparse), layers, timings)
    return joined


def test_real_int8_products() -> None:
    layers = layers_from_inspector((DATA / "trt86_int8.json").read_text(encoding="utf-8"))
    timings = read_timings((DATA / "trt86_int8.log").read_text(encoding="utf-8").splitlines())
    plan = make_plan(precision="int8", up_proj=True, down_proj=True)

    up, down = outcomes = join_outcomes(plan, layers, timings)

    assert up.engine_layer == "w1 + transpose_before_up_proj + up_proj + PWN(relu)"
    assert (up.sparse, up.precision) == (False, "Int8")
    assert (up.best_sparse_ms, up.best_dense_ms) == (0.0232085, 0.022042)
    assert up.why == (
        "eligible, but slower: best sparse 0.0232 ms, best dense 0.0220 ms "
        "(58 sparse and 9 dense tactics tried)"
    )
    assert down.why == (
        "planned sparse, but no sparse tactic was tried: "
        "its output is Float, and sparse INT8 kernels need one that stays INT8"
    )
    assert precision_mismatches(plan, outcomes) == ()


def test_real_products_that_ran_in_fp32() -> None:
    layers = layers_from_inspector((DATA / "trt86_two_profiles.json").read_text(encoding="utf-8"))
    timings = read_timings((DATA / "trt86_two_profiles.log").read_text(encoding="utf-8").splitlines())
    plan = make_plan(2, gate_proj=True, up_proj=True, down_proj=False)

    outcomes = join_outcomes(plan, layers, timings)

    assert [(o.layer, o.profile, o.best_dense_ms) for o in outcomes] == [
        ("gate_proj", 0, 0.0730795),
        ("gate_proj", 1, 0.955904),
        ("up_proj", 0, 0.0730795),
        ("up_proj", 1, 0.955904),
        ("down_proj", 0, 0.0456813),
        ("down_proj", 1, 0.461237),
    ]
    gate, _, up, _, down, _ = outcomes
    assert (gate.engine_layer, gate.merged_with) == ("gate_proj || up_proj", ("up_proj",))
    assert up.merged_with == ("gate_proj",)
    assert gate.why == (
        "planned sparse, but no sparse tactic was tried: "
        "it runs in FP32, and TensorRT has no FP32 sparse kernel"
    )
    assert (down.why, down.merged_with) == ("never tried: planned dense", ())
    said = precision_mismatches(plan, outcomes)
    assert said[0] == "'gate_proj' is planned fp16 and runs in Float (profile 'p0')."
    assert len(said) == 6


def test_it_runs_sparse() -> None:
    runs = outcome(True, (replace(GEMM, tactic=SPARSE_KERNEL),), (timed(0.1468, 0.1512),))

    assert runs.sparse
    assert (runs.best_sparse_tactic, runs.best_dense_tactic) == (SPARSE_KERNEL, DENSE_KERNEL)
    assert runs.accumulator == "Float"
    assert runs.why == "runs sparse: 0.147 ms against 0.151 ms dense (16 sparse and 844 dense tactics tried)"


@pytest.mark.parametrize(
    ("sparse", "timings", "why"),
    [
        (True, (timed(0.157, 0.15),), "eligible, but slower: best sparse 0.157 ms, best dense 0.150 ms ("),
        (
            True,
            (timed(0.15004, 0.15001),),
            "eligible, but slower: best sparse 0.15004 ms, best dense 0.15001 ",
        ),
        (
            True,
            (timed(0.14, 0.15),),
            "eligible and faster on its own, but dense was picked: best sparse 0.140 ms",
        ),
        (
            True,
            (timed(0.14),),
            "eligible, but dense was picked: best sparse 0.140 ms, best dense not measured",
        ),
        (True, (timed(None, 0.15),), "planned sparse, but no sparse tactic was tried"),
        (True, (), "planned sparse, but runs dense: the log has no times for it (TensorRT reuses"),
        (False, (timed(None, 0.15),), "never tried: planned dense"),
        (False, (timed(0.14, 0.15),), "runs dense, as planned, though sparse tactics were tried: best"),
        (False, (), "runs dense, as planned; the log has no times for it"),
    ],
)
def test_it_runs_dense(sparse: bool, timings: tuple[LayerTimings, ...], why: str) -> None:
    runs = outcome(sparse, (GEMM,), timings)

    assert not runs.sparse
    assert runs.why.startswith(why)


def test_formats_are_named_where_they_cost_the_sparse_tactic_its_place() -> None:
    why = outcome(True, (GEMM,), (timed(0.14, 0.15),)).why

    assert why.endswith("(Half(8,1) -> Half(8,1) against Half(1,8) -> Half(1,8))")


def test_it_runs_another_sparse_tactic_than_the_fastest() -> None:
    runs = outcome(True, (replace(GEMM, tactic="sm80_sparse_other"),), (timed(0.1, 0.2),))

    assert runs.why.startswith("runs sparse: best sparse 0.100 ms against 0.200 ms dense (")


@pytest.mark.parametrize(
    ("sparse", "timings", "why"),
    [
        (True, (), "runs sparse: the log has no times for it"),
        (True, (timed(0.1),), "runs sparse: 0.100 ms, and no dense tactic gave a time (16 sparse"),
        (False, (timed(0.1, 0.2),), "planned dense, but runs sparse: 0.100 ms against 0.200 ms"),
    ],
)
def test_other_ways_to_run_sparse(sparse: bool, timings: tuple[LayerTimings, ...], why: str) -> None:
    assert outcome(sparse, (replace(GEMM, tactic=SPARSE_KERNEL),), timings).why.startswith(why)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GEMM, sparse_weights=True), ""),
        (replace(GEMM, sparse_weights=False), ": TensorRT finds that its weights are not 2:4"),
        (replace(GEMM, precision="Float"), ": it runs in FP32, and TensorRT has no FP32 sparse kernel"),
        (
            replace(GEMM, precision="Int8->Half"),
            ": its output is Half, and sparse INT8 kernels need one that stays INT8",
        ),
    ],
)
def test_why_no_sparse_tactic_was_tried_where_that_is_known(evidence: LayerEvidence, reason: str) -> None:
    why = outcome(True, (evidence,), (timed(None, 0.2),)).why

    assert why == f"planned sparse, but no sparse tactic was tried{reason}"


def test_a_layer_merged_with_a_dense_one() -> None:
    evidence = replace(GEMM, name="gate || up", nodes=("gate", "up"), sparse_weights=False)

    gate, up = join_outcomes(make_plan(gate=True, up=False), (evidence,), (timed(None, 0.2, "gate || up"),))

    assert gate.why == (
        "planned sparse, but no sparse tactic was tried: merged with 'up', which is planned dense"
    )
    assert (up.why, up.merged_with) == ("never tried: planned dense", ("gate",))


def test_a_layer_that_is_not_in_the_engine() -> None:
    missing = outcome(True, (replace(GEMM, nodes=("another",)), replace(GEMM, profile=1)), (timed(0.1, 0.2),))

    assert (missing.why, missing.engine_layer, missing.best_sparse_ms) == (NOT_FOUND, "", None)


def test_copies_and_reshapes_of_a_product_are_not_the_product() -> None:
    kinds = ("NoOp", "Reformat", "Shuffle")
    copies = tuple(LayerEvidence(f"{kind} of mm", kind, "Half", "", 0, ("mm",)) for kind in kinds)
    fusion = LayerEvidence("__myl_Add_myl0_1", "kgen", "Half", "__myl_Add_0xab", 0, ("mm", "add"))

    assert outcome(True, copies).why == NOT_FOUND
    assert outcome(True, (*copies, fusion)).engine_layer == fusion.name
    assert outcome(True, (*copies, fusion, GEMM)).engine_layer == GEMM.name


def test_a_kernel_that_pads_channels_is_not_the_product() -> None:
    """As TensorRT-RTX 1.7 tells of a first convolution of three channels."""
    padding = LayerEvidence(
        "__myl_CastReplConc_myl0_1", "kgen", "", "__myl_CastReplConc_0x61", 0, ("cast", "mm")
    )
    fused = LayerEvidence("__myl_CorrMulAdd_myl0_2", "runtime_fusion", "Half", "", 0, ("mm", "act"))

    found = outcome(False, (padding, fused))

    assert (found.engine_layer, found.precision) == (fused.name, "Half")


@pytest.mark.parametrize("tactic", ["", "__myelin_CASK_STUB"])
def test_a_kernel_that_is_not_told(tactic: str) -> None:
    region = LayerEvidence("{ForeignNode[a...mm]}", "Myelin", "Half", tactic, 0, ("a", "mm"))

    why = outcome(True, (region,)).why

    assert (
        why == "planned sparse; the engine does not report which kernel it runs: it is part of "
        "'{ForeignNode[a...mm]}'"
    )


def test_a_dense_tactic_with_no_name() -> None:
    cublas = LayerEvidence("mm", "CublasConvolution", "", "", 0, ("mm",))
    timings = replace(timed(None, 0.2), precisions=("Half",))

    runs = outcome(False, (cublas,), (timings,))

    # All that was measured was FP16, so that is what runs.
    assert (runs.why, runs.precision) == ("never tried: planned dense", "Half")
    assert outcome(False, (cublas,), (replace(timings, precisions=("Half", "Float")),)).precision == ""


def test_an_engine_that_only_names_its_layers() -> None:
    gate, up = join_outcomes(make_plan(gate=True, up=True), (LayerEvidence("gate || up", "", "", ""),))

    assert gate.merged_with == ("up",)
    assert up.engine_layer == "gate || up"
    assert "the engine does not report which kernel it runs" in gate.why


@pytest.mark.parametrize("operator", ["mm", "mm_op"])
def test_an_operators_table_belongs_to_the_layer_of_its_region(operator: str) -> None:
    gemm = LayerEvidence("mm_op_myl0_3", "gemm", "Half", DENSE_KERNEL, 0, ("mm",))

    assert outcome(True, (gemm,), (timed(0.3, 0.2, operator),)).tried_sparse == 16


@pytest.mark.parametrize(
    ("planned", "precision", "matches"),
    [
        ("fp16", "Half", True),
        ("fp16", "Half->Float", True),
        ("fp16", "Float", False),
        ("fp16", "BFloat16", False),
        ("bf16", "BFloat16", True),
        ("fp32", "Float", True),
        ("fp32", "TF32", False),
        ("fp32", "Half", False),
        ("int8", "Int8", True),
        ("int8", "Int8->Half", True),
        ("int8", "Half", False),
        ("fp8", "FP8->Half", True),
    ],
)
def test_precision(planned: Precision, precision: str, matches: bool) -> None:
    plan = make_plan(precision=planned, mm=True)
    outcomes = join_outcomes(plan, (replace(GEMM, precision=precision),))

    said = precision_mismatches(plan, outcomes)

    assert said == (() if matches else (f"'mm' is planned {planned} and runs in {precision}.",))


@pytest.mark.parametrize(
    ("planned", "precision", "matches"),
    [("fp32", "TF32", True), ("fp32", "Float", True), ("fp16", "TF32", False)],
)
def test_tf32_is_a_match_where_it_was_asked_for(planned: Precision, precision: str, matches: bool) -> None:
    plan = make_plan(precision=planned, mm=True)
    outcomes = join_outcomes(plan, (replace(GEMM, precision=precision),))
    assert (precision_mismatches(plan, outcomes, tf32=True) == ()) == matches


def test_a_precision_that_is_not_known_is_never_a_match() -> None:
    plan = make_plan(mm=True, other=True)
    outcomes = join_outcomes(plan, (replace(GEMM, precision="", tactic=""),))

    assert precision_mismatches(plan, outcomes) == (
        "'mm' is planned fp16 and runs in a precision that the engine does not report.",
        "'other' is planned fp16 and was not found in the engine.",
    )


def test_a_layer_inside_a_compiled_region_is_said_to_be_there() -> None:
    made = make_plan(a=True, b=True)
    whole = LayerEvidence("{ForeignNode[cast...norm]}", "Myelin", "", "")
    outcomes = join_outcomes(made, (whole,))
    assert [o.engine_layer for o in outcomes] == [whole.name] * 2
    assert outcomes[0].why == (
        "in the compiled region '{ForeignNode[cast...norm]}', which reports neither its kernels "
        "nor their precision; no sparse tactic was timed for it"
    )
    assert untold(made, outcomes).startswith(
        "The engine does not report the precision of 2 of 2 planned layers, the first of them 'a': in the "
    )
    assert untold(made, ()) == ""


def test_layers_in_the_plugin_are_told_as_such() -> None:
    plan = make_plan(a="plugin", b="plugin", c="dense")
    a, b, c = outcomes = join_outcomes(plan, (PLUGIN, replace(GEMM, name="c", nodes=("c",))))
    assert (a.plugin, a.sparse, a.precision, a.merged_with) == (True, True, "Half", ("b",))
    assert b.merged_with == ("a",)
    assert a.why.startswith("runs in the plugin, as one product with 'b'")
    assert not c.plugin
    assert plugin_mismatches(plan, outcomes) == ()


def test_a_plugins_type_is_the_plans_where_the_inspector_does_not_tell_it() -> None:
    plan = make_plan(a="plugin")
    (found,) = join_outcomes(plan, (replace(PLUGIN, precision=""),))
    assert found.precision == "Half"
    (found,) = join_outcomes(plan, (replace(PLUGIN, precision="Float"),))
    assert precision_mismatches(plan, (found,)) == ("'a' is planned fp16 and runs in Float.",)


def test_a_dense_copy_is_told() -> None:
    plan = make_plan(a="plugin")
    layer = plan.layers[0].model_copy(update={"dense_below_m": 64})
    (found,) = join_outcomes(plan.model_copy(update={"layers": (layer,)}), (PLUGIN,))
    assert "; below M=64 its dense copy" in found.why


def test_each_profile_has_its_own_outcome() -> None:
    second = LayerEvidence("a", "PluginV2", "Half", "", profile=1, nodes=("a",))
    outcomes = join_outcomes(make_plan(2, a="plugin"), (PLUGIN, second))
    assert [(o.profile, o.plugin) for o in outcomes] == [(0, True), (1, True)]


def test_sentences_name_modules_and_fields_name_nodes() -> None:
    """torch's exporter numbers its nodes: 'node_MatMul_7' is no name that a reader could know."""

    def in_modules(plan: Plan) -> Plan:
        layers = tuple(p.model_copy(update={"module": f"layers.0.{p.name}"}) for p in plan.layers)
        return plan.model_copy(update={"layers": layers})

    plan = in_modules(make_plan(a="plugin", b="plugin"))
    a, _ = outcomes = join_outcomes(plan, (replace(PLUGIN, precision="Float"),))
    assert (a.layer, a.merged_with) == ("a", ("b",))
    assert "as one product with 'layers.0.b'" in a.why
    assert precision_mismatches(plan, outcomes)[0] == "'layers.0.a' is planned fp16 and runs in Float."
    assert plugin_mismatches(in_modules(make_plan(a=True, b="plugin")), outcomes) == (
        "'layers.0.a' is planned sparse and runs in the plugin.",
    )
    plan = in_modules(make_plan(a=True, b=False))
    merged = replace(GEMM, precision="", nodes=("a", "b"))
    a, b = outcomes = join_outcomes(plan, (merged,), (timed(None, 0.2),))
    assert (a.merged_with, b.merged_with) == (("b",), ("a",))
    assert a.why.endswith("merged with 'layers.0.b', which is planned dense")
    assert "the first of them 'layers.0.a': " in untold(plan, outcomes)


def test_what_runs_elsewhere_than_planned_is_named() -> None:
    plan = make_plan(a="dense", b="sparse", c="plugin")
    outcomes = join_outcomes(plan, (PLUGIN, replace(GEMM, name="c", nodes=("c",))))
    assert plugin_mismatches(plan, outcomes) == (
        "'a' is planned dense and runs in the plugin.",
        "'b' is planned sparse and runs in the plugin.",
        "'c' is planned plugin and runs outside of the plugin.",
    )
    untold = (LayerOutcome("c", 0, why="not found"),)
    assert plugin_mismatches(plan, untold) == ()
