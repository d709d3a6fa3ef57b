"""What the report draws from a manifest: times, spine, speedups and errors, as values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sparseflow_trt.artifacts.graph_record import IslandsRecord
from sparseflow_trt.artifacts.manifest import DuelRecord
from sparseflow_trt.artifacts.verdict import cancelling
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.report.errors import draw_gauges, draw_steps, shipped_gauges
from sparseflow_trt.report.layer_table import layer_rows, layer_times, time_groups, whose_times
from sparseflow_trt.report.speedups import draw_speedups
from sparseflow_trt.report.spine import draw_spine
from tests.made_policies import make_points, make_policy

if TYPE_CHECKING:
    from tests.report.conftest import MakeManifest


def test_times_are_the_builders_where_it_told_them_else_the_policys(manifests: MakeManifest) -> None:
    manifest, policy = manifests(layers=4), find_policy("a100-80gb")
    measured = layer_times(manifest, policy)["model.layers.0.qkv_0"]
    assert [(t.profile, t.m, t.measured) for t in measured] == [("decode", 8, True), ("prefill", 512, True)]
    assert measured[0].speedup == pytest.approx(1.3)
    told_nothing = manifest.model_copy(update={"engine": manifest.engine.model_copy(update={"outcomes": ()})})
    expected = layer_times(told_nothing, policy)
    (gate_up,) = (t for t in expected["model.layers.0.gate_up_2"] if t.m == 512)
    assert (gate_up.measured, gate_up.dense, gate_up.sparse) == (False, 324.73, 247.2)
    assert expected["model.layers.0.qkv_0"] == (), "its kind has a threshold and no points"
    assert "expected by policy 'a100-80gb' (cuSPARSELt" in whose_times(told_nothing, policy)
    assert layer_times(told_nothing, None) == {}
    assert whose_times(told_nothing, None) == ""


def test_times_of_a_sparse_engine_that_does_not_ship_are_told(manifests: MakeManifest) -> None:
    manifest = manifests(layers=4)
    duel = DuelRecord(margin=0, ships="dense", why="", sparse_outcomes=manifest.engine.outcomes)
    dense = manifest.engine.model_copy(update={"outcomes": ()})
    found = layer_times(manifest.model_copy(update={"engine": dense, "duel": duel}), None)
    assert all(t.measured for times in found.values() for t in times)


def test_times_of_another_layer_are_said_to_be(manifests: MakeManifest) -> None:
    manifest = manifests(layers=16)
    assert "of layers that are alike" not in whose_times(manifest, None)
    names = [layer.name for layer in manifest.layers]
    outcomes = tuple(
        o.model_copy(update={"timed_as": f"{names[0]} fused"}) if o.layer == names[4] else o
        for o in manifest.engine.outcomes
    )
    told = manifest.model_copy(update={"engine": manifest.engine.model_copy(update={"outcomes": outcomes})})
    rows = [row.times.timed_as for row in layer_rows(told, None) if row.times]
    assert [i for i, timed_as in enumerate(rows) if timed_as] == [4]
    groups, _ = time_groups(told, None)
    assert {(g.kind, g.timed_as_others) for g in groups} == {
        ("qkv", 1), ("o", 0), ("gate_up", 0), ("down", 0),
    }  # fmt: skip
    assert "of layers that are alike it times only one" in whose_times(told, None)


def test_alike_layers_are_one_group_and_the_longest_comes_first(manifests: MakeManifest) -> None:
    groups, left_out = time_groups(manifests(layers=16), None)
    assert (len(groups), left_out) == (8, 0), "four shapes in two profiles"
    assert all(group.layers == 4 for group in groups)
    took = [group.layers * group.times.dense for group in groups]
    assert took == sorted(took, reverse=True)


def test_rows_say_what_runs(manifests: MakeManifest) -> None:
    rows = layer_rows(manifests(layers=4), None)
    assert [row.runs for row in rows] == ["dense", "dense", "sparse", "dense"]
    assert rows[0].sizes == ("decode: 1, 8, 32", "prefill: 64, 512, 4096")
    assert [row.weights for row in rows[:2]] == ["FP16, 2:4", "FP16, not 2:4"]


def test_islands_stand_on_the_spine_where_the_graph_has_them(manifests: MakeManifest) -> None:
    first, second = draw_spine(manifests(layers=12)).blocks
    assert [mark.role for mark in first.marks] == ["island"]
    assert (second.label, second.count) == ("model.layers.0 … 2", 3)
    assert [mark.role for mark in second.marks] == ["sparse", "island", "dense", "sparse", "sparse"]
    assert second.marks[1].text == "ReduceMean, Softmax"
    assert second.marks[1].title == "Kept in FP32: Pow, ReduceMean, Softmax"


def test_islands_stand_in_the_block_that_their_module_names(manifests: MakeManifest) -> None:
    manifest = manifests(layers=12)
    before, *_, last = ("", *(layer.name for layer in manifest.layers[3::4]))
    runs = [
        IslandsRecord(after=name, operators=("LayerNormalization",), module=f"model.layers.{i}.norm")
        for i, name in enumerate((before, manifest.layers[3].name, manifest.layers[7].name))
    ]
    runs += [
        IslandsRecord(after=manifest.layers[3].name, operators=("Softmax",), module="model.layers.0"),
        IslandsRecord(after=manifest.layers[1].name, operators=("Exp",), module="model.rotary"),
        IslandsRecord(after=manifest.layers[1].name, operators=("Sqrt",), module="model.layers.7"),
        IslandsRecord(after=last, operators=("ReduceMean",), module="model.norm"),
    ]
    graph = manifest.graph.model_copy(update={"spine": tuple(runs)})
    blocks = draw_spine(manifest.model_copy(update={"graph": graph})).blocks
    assert [(block.label, block.count) for block in blocks] == [
        ("model.layers.0", 1), ("model.layers.1 … 2", 2), ("", 1),
    ]  # fmt: skip
    first, second, third = ([mark.text for mark in block.marks] for block in blocks)
    assert first == ["LayerNormalization", "qkv_0", "o_1", "Exp, Sqrt", "gate_up_2", "down_3", "Softmax"]
    assert second == ["LayerNormalization", "qkv_4", "o_5", "gate_up_6", "down_7"]
    assert third == ["ReduceMean"]


def test_blocks_that_differ_are_not_joined(manifests: MakeManifest) -> None:
    manifest = manifests(layers=12)
    layers = [
        layer.model_copy(update={"sparsity": "dense"}) if i == 6 else layer
        for i, layer in enumerate(manifest.layers)
    ]
    blocks = draw_spine(manifest.model_copy(update={"layers": tuple(layers)})).blocks
    assert [block.count for block in blocks] == [1, 1, 1, 1]
    assert draw_spine(manifests(layers=0)).left_out == 0


def test_a_layer_in_the_plugin_is_drawn_as_sparse(manifests: MakeManifest) -> None:
    manifest = manifests(layers=4)
    layer = manifest.layers[0].model_copy(update={"sparsity": "plugin"})
    _, block = draw_spine(manifest.model_copy(update={"layers": (layer, *manifest.layers[1:])})).blocks
    assert block.marks[0].role == "sparse"
    assert "planned plugin" in block.marks[0].title


def test_a_panel_shows_where_sparse_is_taken(manifests: MakeManifest) -> None:
    panels, left_out = draw_speedups(manifests(layers=8), find_policy("a100-80gb"))
    assert left_out == 0
    down = next(panel for panel in panels if panel.title.startswith("down"))
    assert down.title == "down 14336 → 4096 · 2 layers"
    assert [tick.text for tick in down.crossings] == ["M=512"]
    ((begin, end),) = down.taken
    assert begin == down.crossings[0].at
    assert end == down.right
    assert down.says == (
        "down 14336 → 4096: sparse is taken from M=512 to M=4096. The largest speedup measured at "
        "14336 → 4096 is 1.25, at M=1024."
    )
    (line,) = down.curves
    assert line.own
    assert [x for x, _ in line.points] == sorted(x for x, _ in line.points)
    assert all(down.top <= y <= down.bottom for _, y in line.points)
    assert [low <= opt <= high for low, opt, high in down.ranges] == [True, True]
    assert draw_speedups(manifests(layers=8), None) == ((), 0)


def test_the_plugin_has_a_curve_where_it_was_measured(manifests: MakeManifest) -> None:
    own = make_points("down", 4096, 14336, {64: 1.5, 1024: 1.2, 2048: 1.1})
    plugin = [p.model_copy(update={"kernel": "plugin"} if p.kernel == "sparse" else {}) for p in own]
    torch = make_points("down", 4096, 14336, {4096: 1.5}, library="torch")
    (down,), _ = draw_speedups(manifests(layers=4), make_policy([*plugin, *torch]))
    (line,) = down.curves
    assert (line.plugin, line.own, len(line.points)) == (True, True, 3)
    assert down.taken == ()
    (first, then) = down.taken_in_plugin
    assert first == (line.points[0][0], line.points[2][0])
    assert then[1] == down.right, "an estimate speaks above its largest M"
    assert down.says == (
        "down 14336 → 4096: sparse is taken at no M shown. The plugin is taken from M=64 to M=2048 and at "
        "M=4096; its largest speedup measured is 1.50, at M=64."
    )
    assert down.subtitle == "this shape was measured only in the plugin; TensorRT's kernels, GPU X, FP16"


def test_the_plugins_curve_stands_beside_that_of_the_librarys_own_kernels(manifests: MakeManifest) -> None:
    own = make_points("down", 4096, 14336, {64: 0.9, 1024: 1.2})
    fast = [p.model_copy(update={"kernel": "plugin", "us": 8}) for p in own if p.kernel == "sparse"]
    near = [p.model_copy(update={"kind": "o", "k": 4000}) for p in (*own, *fast) if p.kernel != "sparse"]
    policy = make_policy([*own, *fast, *near])
    panels, _ = draw_speedups(manifests(layers=4), policy)
    (down,) = panels  # of 'o' a shape near by was measured, and that in the plugin alone
    assert [curve.plugin for curve in down.curves] == [False, True]
    assert down.subtitle == (
        "this shape was measured; TensorRT's kernels, GPU X, FP16; the plugin was measured in TensorRT"
    )
    assert down.taken_in_plugin == ((down.curves[1].points[0][0], down.right),)
    assert " The plugin is taken from M=64 to M=4096; its largest speedup measured is 1.50" in down.says


def test_errors_are_shares_of_what_is_allowed(manifests: MakeManifest) -> None:
    manifest = manifests()
    (gauge,) = draw_gauges(manifest)
    assert (gauge.used, gauge.passed) == (0.25, True)
    (bars,) = draw_steps(manifest)
    assert [(bar.step, bar.blamed, bar.found is None) for bar in bars.bars] == [
        ("pruning, not restored", False, False),
        ("pruning", True, False),
        ("precision", False, False),
        ("engine", False, True),
    ]
    assert bars.bars[0].width > bars.bars[1].width > bars.bars[2].width > 0
    assert {bar.found.input_set for bar in bars.bars if bar.found} == {"prefill:opt"}
    bare = manifest.validation.model_copy(update={"attribution": None})
    assert draw_steps(manifest.model_copy(update={"validation": bare})) == ()


def test_figures_at_the_top_are_of_what_ships(manifests: MakeManifest) -> None:
    manifest = manifests()
    (gauge,) = gauges = draw_gauges(manifest)
    assert shipped_gauges(manifest, gauges) == (gauges, "of the typed model on the CPU")
    engine = replace(gauge, candidate=f"engine ({manifest.engine.backend})", used=0.004)
    assert shipped_gauges(manifest, (gauge, engine)) == ((engine,), "of the engine")


def test_where_steps_cancel_is_found_with_what_is_left(manifests: MakeManifest) -> None:
    manifest = manifests()
    attribution = manifest.validation.attribution
    assert attribution is not None
    assert cancelling(attribution.steps) == {}
    last = attribution.steps[1].outputs[0].model_copy(update={"accumulated": 0.01, "share": 0.2})
    steps = (attribution.steps[0], attribution.steps[1].model_copy(update={"outputs": (last,)}))
    assert cancelling(steps) == {("logits", "prefill:opt"): 0.01}
