"""Points from what a builder measured: which products, at which M, and whose engines are refused."""

from __future__ import annotations

from typing import Any

import pytest

from sparseflow_trt.artifacts.learn import learn_policy, points_from_manifest
from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.between import WAVE, wave_of
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.policy import Policy, json_from_policy
from tests.made_policies import make_points, make_policy

H200 = "NVIDIA H200, compute capability 9.0, driver 13.0"


def _layer(name: str, kind: str, n: int, k: int) -> dict[str, Any]:
    return {
        "name": name, "module": "", "kind": kind, "op_type": "MatMul", "weight": "w", "dtype": "FP32", "n": n,
        "k": k, "batch": 1, "m": {"small": (1, 64, 128), "large": (129, 1024, 2048)}, "state": "sparse",
        "state_reason": "", "mask_hash": "", "precision": "fp16", "sparsity": "sparse", "reason": "",
    }  # fmt: skip


def _outcome(
    layer: str, profile: int, times: tuple[float | None, float | None], merged: tuple[str, ...] = ()
) -> dict[str, Any]:
    sparse, dense = times
    return {
        "layer": layer, "profile": profile, "engine_layer": " || ".join(sorted((layer, *merged))),
        "merged_with": merged, "tactic": "t", "sparse": False, "precision": "Half", "best_sparse_ms": sparse,
        "best_sparse_tactic": "sparse kernel", "best_dense_ms": dense, "best_dense_tactic": "dense kernel",
        "tried_sparse": 16, "tried_dense": 766, "why": "",
    }  # fmt: skip


def _manifest(
    layers: list[dict[str, Any]],
    outcomes: list[dict[str, Any]],
    device: str = H200,
    backend: str = "tensorrt",
    multiprocessors: int | None = None,
) -> Manifest:
    return Manifest.model_validate(
        {
            "schema_version": 1, "status": "pass", "tool": "sparseflow-trt 1", "created": "now",
            "command": "", "build_key": "k", "policy": None, "plan_sha256": "", "layers": layers,
            "model": {"file": "m.onnx", "sha256": "s", "data": {}, "opset": 21, "bytes": 1},
            "graph": {"nodes_retyped": 0, "casts": 0, "islands": [], "clamped": []},
            "engine": {
                "file": "model.engine", "backend": backend, "chosen_because": "", "device": device,
                "multiprocessors": multiprocessors,
                "versions": {"tensorrt": "8.6.0"}, "build_seconds": 0.5, "runs_here": "",
                "sparse_tactics": "", "notes": [], "layers": [], "outcomes": outcomes,
            },
            "validation": {
                "verdict": "pass", "reason": "", "reference": "", "reference_runtime": "", "compared_by": "",
                "input_sets": [], "candidates": [],
            },
            "seconds": {}, "files": {},
        }
    )  # fmt: skip


DOWN = _manifest(
    [_layer("down", "down", 2048, 5632)],
    [_outcome("down", 0, (0.02, 0.03)), _outcome("down", 1, (0.06, 0.05))],
)


def _learn(manifests: list[Manifest], name: str, into: Policy | None = None) -> Policy:
    return learn_policy({f"{i}.artifact": manifest for i, manifest in enumerate(manifests)}, name, into)


def test_times_of_another_layer_give_no_points_twice() -> None:
    layers = [_layer(name, "down", 2048, 5632) for name in ("down", "down_2")]
    own = _outcome("down", 0, (0.02, 0.03))
    taken = {**_outcome("down_2", 0, (0.02, 0.03)), "timed_as": "down"}
    alone = points_from_manifest(_manifest(layers, [own]))
    assert points_from_manifest(_manifest(layers, [own, taken])) == alone
    assert len(points_from_manifest(_manifest(layers, [own, {**taken, "timed_as": ""}]))) == 2 * len(alone)


def test_each_profile_gives_a_point_of_either_kernel_at_its_opt() -> None:
    points = points_from_manifest(DOWN)
    assert [(p.m, p.kernel, p.us) for p in points] == [
        (64, "dense", 30), (64, "sparse", 20), (1024, "dense", 50), (1024, "sparse", 60),
    ]  # fmt: skip
    assert {(p.kind, p.n, p.k, p.dtype, p.library) for p in points} == {
        ("down", 2048, 5632, "FP16", "tensorrt")
    }
    assert points[0].tactic == "dense kernel"


def test_layers_that_became_one_product_are_one_wide_product() -> None:
    layers = [_layer("gate", "gate_up", 5632, 2048), _layer("up", "gate_up", 5632, 2048)]
    both = [_outcome("gate", 0, (0.02, 0.03), ("up",)), _outcome("up", 0, (0.02, 0.03), ("gate",))]
    points = points_from_manifest(_manifest(layers, both))
    assert [(p.n, p.k, p.kernel) for p in points] == [(11264, 2048, "dense"), (11264, 2048, "sparse")]


@pytest.mark.parametrize("times", [(None, 0.03), (0.02, None), (None, None)])
def test_a_product_that_was_not_timed_both_ways_gives_nothing(
    times: tuple[float | None, float | None],
) -> None:
    layers = [_layer("down", "down", 2048, 5632)]
    untold = _manifest(layers, [_outcome("down", 0, times)])
    assert points_from_manifest(untold) == ()
    with pytest.raises(PolicyError, match="no builder's log holds a sparse and a dense time"):
        _learn([untold], "mine")


def test_the_policy_says_what_the_builder_found() -> None:
    policy = _learn([DOWN], "mine")
    assert (policy.device, policy.compute_capability, policy.provenance) == ("NVIDIA H200", "9.0", "measured")
    assert policy.libraries == {"tensorrt": "8.6.0", "cuda driver": "13.0"}
    assert "TensorRT 8.6.0's builder" in policy.source
    assert judge(policy, Gemm("down", 2048, 5632, "FP16"), 64).sparse
    assert not judge(policy, Gemm("down", 2048, 5632, "FP16"), 1024).sparse
    (limit,) = policy.thresholds
    assert (limit.kind, limit.min_m, limit.max_m) == ("down", 64, 64)


def test_of_two_artifacts_the_later_counts_and_a_policy_keeps_its_other_points() -> None:
    again = _manifest([_layer("down", "down", 2048, 5632)], [_outcome("down", 0, (0.04, 0.03))])
    assert not judge(_learn([DOWN, again], "mine"), Gemm("down", 2048, 5632, "FP16"), 64).sparse
    torch = make_policy(make_points("down", 2048, 5632, {64: 1.5}, library="torch"))
    into = torch.model_copy(update={"device": "H200", "source": "a day of tuning", "clocks": "1980 MHz"})
    policy = _learn([DOWN], "both", into)
    assert set(into.points) < set(policy.points)
    assert (policy.device, policy.clocks) == ("H200", "1980 MHz")
    assert policy.source.startswith("a day of tuning; TensorRT 8.6.0's builder")
    assert policy.held == {("torch", "FP16"), ("tensorrt", "FP16")}
    assert [_learn([DOWN], "x", into.model_copy(update={"wave": w})).wave for w in (0, 7)] == [0, 7]


def test_how_sure_a_win_has_to_be_and_thresholds_that_were_given_stay() -> None:
    limits = {"down": (None, None), "qkv": (256, None)}
    fields = {"device": "H200", "margin": 0.05, "spreads": 2.0, "spreads_between": 1.25}
    policy = _learn([DOWN], "both", make_policy([], limits=limits).model_copy(update=fields))
    assert (policy.margin, policy.spreads, policy.spreads_between) == (0.05, 2.0, 1.25)
    assert [(t.kind, t.min_m, t.max_m) for t in policy.thresholds] == [("down", 64, 64), ("qkv", 256, None)]
    plain = _learn([DOWN], "alone")
    assert (plain.spreads, plain.spreads_between) == (1.5, 1.5)


def test_the_wave_is_of_the_gpu_that_built_or_not_known() -> None:
    layers = [_layer("down", "down", 2048, 5632)]
    wins = [_outcome("down", 0, (0.02, 0.03)), _outcome("down", 1, (0.04, 0.05))]
    known = _manifest(
        layers, wins, "NVIDIA A100-SXM4-80GB, compute capability 8.0, driver 13.0", "tensorrt", 108
    )
    assert _learn([known], "x").wave == wave_of(108)
    untold = _manifest(layers, wins)
    told = _manifest(layers, wins, multiprocessors=132)
    assert _learn([untold, told], "x").wave == WAVE
    policy = _learn([untold], "x")
    assert policy.wave is None
    assert '"wave": null' in json_from_policy(policy)
    assert Policy.model_validate_json(json_from_policy(policy)) == policy
    assert _learn([told], "x", policy).wave == WAVE
    assert judge(policy, Gemm("down", 2048, 5632, "FP16"), 64).sparse
    verdict = judge(policy, Gemm("down", 2048, 5632, "FP16"), 512)
    assert not verdict.sparse
    assert "but how large a step times take between them is not known (" in verdict.reason
    assert judge(policy.model_copy(update={"wave": 0}), Gemm("down", 2048, 5632, "FP16"), 512).sparse


def test_what_does_not_belong_together_is_refused() -> None:
    other = DOWN.model_copy(
        update={"engine": DOWN.engine.model_copy(update={"versions": {"tensorrt": "10.1.0"}})}
    )
    with pytest.raises(
        PolicyError, match=r"8[.]6[.]0 [(]0[.]artifact[)] and NVIDIA H200 .* 10[.]1[.]0 [(]1[.]artifact[)]"
    ):
        _learn([DOWN, other], "mine")
    with pytest.raises(
        PolicyError, match="policy 'mine' is for GPU X, but the artifacts were built on NVIDIA H200"
    ):
        _learn([DOWN], "both", make_policy([]))
    for engine in ({"backend": "onnxruntime"}, {"device": "any CPU"}):
        stranger = DOWN.model_copy(update={"engine": DOWN.engine.model_copy(update=engine)})
        with pytest.raises(PolicyError, match=r"engine of 1\.artifact was .* times no sparse tactics"):
            _learn([DOWN, stranger], "mine")
