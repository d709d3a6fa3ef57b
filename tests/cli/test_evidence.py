"""What the engine runs, on the console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.artifacts.manifest import Manifest, OutcomeRecord
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.cli.evidence import print_evidence
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build

if TYPE_CHECKING:
    from tests.conftest import Models

SPARSE = "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x128_execute_segment_k_off_kernel"
DENSE = "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_kernel"
NAMES = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def manifest(models: Models, tmp_path: Path) -> Manifest:
    """Of a build of three layers by ONNX Runtime, which tells no outcomes."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "gate_proj"], ["g"], name="gate_proj"),
        helper.make_node("MatMul", ["x", "up_proj"], ["u"], name="up_proj"),
        helper.make_node("Mul", ["g", "u"], ["h"], name="product"),
        helper.make_node("MatMul", ["h", "down_proj"], ["y"], name="down_proj"),
    ]
    weights = {
        name: np.asarray(prune_2to4(rng.standard_normal((64, 64)).astype(np.float32), 0)) for name in NAMES
    }
    path = models.save(models.model(nodes, weights))
    plan = PlanOptions(axes={"batch": (1, 8, 16)}, sparsity="force")
    return build(path, BuildOptions(tmp_path / "out", plan, "onnxruntime")).manifest


def outcome(layer: str, **changes: object) -> OutcomeRecord:
    told = {
        "layer": layer, "profile": 0, "engine_layer": layer, "merged_with": (), "tactic": DENSE,
        "sparse": False, "precision": "Half", "best_sparse_ms": 0.0302, "best_sparse_tactic": SPARSE,
        "best_dense_ms": 0.0257,
        "best_dense_tactic": DENSE, "tried_sparse": 28, "tried_dense": 896, "why": "eligible, but slower",
    }  # fmt: skip
    return OutcomeRecord.model_validate({**told, **changes})


def told(manifest: Manifest, *outcomes: OutcomeRecord) -> Manifest:
    return manifest.model_copy(update={"engine": manifest.engine.model_copy(update={"outcomes": outcomes})})


def test_tactics_counts_and_merged_layers_stand_below_a_table_that_fits(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    merged = "planned sparse, and runs sparse: 0.0132 ms (28 sparse and 896 dense tactics tried)"
    gate, up = (
        outcome(name, tactic=SPARSE, sparse=True, merged_with=(other,), why=merged)
        for name, other in (("gate_proj", "up_proj"), ("up_proj", "gate_proj"))
    )
    print_evidence(told(manifest, gate, up, outcome("down_proj")))
    printed = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(printed) if line.split()[:2] == ["#", "Layers"])
    header, *rows = (line.rstrip() for line in printed[head : head + 3])
    assert max(map(len, (header, *rows))) <= 80
    assert [row.split() for row in rows] == [
        ["[1]", "2", "gate_up", "64", "64", "default", "sparse", "sparse", "0.0302", "0.0257"],
        ["[2]", "1", "down", "64", "64", "default", "sparse", "dense", "0.0302", "0.0257"],
    ]
    assert printed[head + 3 : -1] == [
        f"[1] {merged}; tactic {SPARSE}; best dense {DENSE}; merged with 'up_proj' (the first of 2)",
        f"[2] eligible, but slower; tactic {DENSE}; best sparse {SPARSE}; 28 sparse and 896 dense tactics "
        "tried",
    ]
    assert printed[-1] == "2 of 3 layers and profiles run a sparse kernel."


def test_times_of_another_layer_are_marked(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    why = (
        "eligible, but slower; timed as 'gate_proj', which is like it: TensorRT times only one of such layers"
    )
    up = outcome("up_proj", timed_as="gate_proj", why=why, best_sparse_ms=None)
    print_evidence(told(manifest, outcome("gate_proj"), up))
    printed = capsys.readouterr().out.splitlines()
    first, second = (
        line.split() for line in printed if line.startswith(("[1]", "[2]")) and "gate_up" in line
    )
    assert (first[-2:], second[-2:]) == (["0.0302", "0.0257"], ["-", "0.0257*"])
    assert "* The times of another layer, which is like it and is named below." in printed
    assert any(line.startswith(f"[2] {why};") for line in printed)
    print_evidence(told(manifest, outcome("gate_proj")))
    assert "*" not in capsys.readouterr().out


def test_many_merged_layers_are_counted(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    print_evidence(told(manifest, outcome("gate_proj", merged_with=("a", "b", "c", "d", "e"))))
    assert "merged with 'a', 'b', 'c' and 2 more" in capsys.readouterr().out


def test_merged_layers_are_named_by_their_modules(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tuple(
        layer.model_copy(update={"module": f"layers.0.mlp.{layer.name}"}) for layer in manifest.layers
    )
    named = manifest.model_copy(update={"layers": layers})
    print_evidence(told(named, outcome("gate_proj", merged_with=("up_proj",))))
    assert "merged with 'layers.0.mlp.up_proj'" in capsys.readouterr().out


def test_layers_that_add_up_in_fp16_are_counted(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    half = [outcome(name, accumulator="Half") for name in ("gate_proj", "up_proj")]
    print_evidence(told(manifest, *half, outcome("down_proj", accumulator="Float")))
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 accumulate in FP16, by their tactics' names" in said
    print_evidence(told(manifest, outcome("down_proj", accumulator="Float")))
    assert "add up" not in capsys.readouterr().out


def test_where_nothing_was_timed_nothing_is_printed(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    print_evidence(told(manifest, outcome("gate_proj", tried_sparse=0, tried_dense=0)))
    assert capsys.readouterr().out == ""
