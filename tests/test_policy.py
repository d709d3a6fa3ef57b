"""Policies: what measured points say about a shape, in which order, and what is wrong with a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policy import (
    Point,
    Policy,
    Threshold,
    find_policy,
    judge,
    policy_for_device,
    read_policy,
    shipped_policies,
)

FIELDS: dict[str, Any] = {
    "schema_version": 1,
    "name": "mine",
    "device": "GPU X",
    "compute_capability": "9.0",
    "provenance": "measured",
    "source": "a test",
}


def _points(kind: str, n: int, k: int, speedups: dict[int, float], dtype: str = "FP16") -> list[Point]:
    points = []
    for m, speedup in speedups.items():
        shape = {"kind": kind, "n": n, "k": k, "m": m, "dtype": dtype}
        points.append(Point.model_validate({**shape, "kernel": "dense", "us": 10 * speedup}))
        points.append(Point.model_validate({**shape, "kernel": "tensorrt-sparse", "us": 10}))
        points.append(Point.model_validate({**shape, "kernel": "torch-sparse", "us": 99}))
    return points


def _policy(points: list[Point], **thresholds: tuple[int, int | None]) -> Policy:
    limits = {kind: Threshold(min_m=low, max_m=high) for kind, (low, high) in thresholds.items()}
    return Policy(**FIELDS, points=tuple(points), thresholds=limits)


GATE = _points("gate_up", 4096, 1024, {64: 0.5, 256: 1.0, 1024: 2.0})


def test_the_exact_shape_comes_first() -> None:
    other = _points("gate_up", 4096, 1152, {64: 3.0, 1024: 3.0})
    policy = _policy([*GATE, *other], gate_up=(1, None))
    wins = judge(policy, "gate_up", 4096, 1024, 1024, "FP16")
    assert (wins.sparse, wins.basis, wins.speedup) == (True, "exact", 2.0)
    assert wins.reason == "sparse wins at M=1024: 2.00× measured (measured 1024→4096, GPU X)"
    loses = judge(policy, "gate_up", 4096, 1024, 64, "FP16")
    assert (loses.sparse, loses.basis, loses.speedup) == (False, "exact", 0.5)
    assert loses.reason.startswith("sparse does not win by 2% at M=64: 0.50×")


def test_the_exact_shape_counts_whatever_its_kind() -> None:
    assert judge(_policy(GATE), "ffn", 4096, 1024, 1024, "FP16").basis == "exact"


def test_then_the_nearest_shape_of_the_same_kind() -> None:
    policy = _policy([*GATE, *_points("down", 4096, 2048, {1024: 5.0})])
    verdict = judge(policy, "gate_up", 4096, 2048 + 4, 1024, "FP16")
    assert (verdict.sparse, verdict.basis, verdict.speedup) == (True, "nearest", 2.0)
    assert "(measured 1024→4096, the nearest shape of its kind, GPU X)" in verdict.reason


def test_shapes_farther_than_two_octaves_are_left_to_the_threshold() -> None:
    policy = _policy(GATE, gate_up=(512, 2048))
    assert judge(policy, "gate_up", 8192, 2048, 1024, "FP16").basis == "nearest"
    for m, sparse in ((511, False), (512, True), (2048, True), (2049, False)):
        verdict = judge(policy, "gate_up", 8192, 2048 + 4, m, "FP16")
        assert (verdict.sparse, verdict.basis, verdict.speedup) == (sparse, "threshold", None)
        assert "sparse for M ≥ 512 and ≤ 2048, and M=" in verdict.reason


def test_below_the_smallest_measured_m_a_shape_says_nothing() -> None:
    assert judge(_policy(GATE), "gate_up", 4096, 1024, 63, "FP16").basis == "none"
    assert judge(_policy(GATE, gate_up=(1, None)), "gate_up", 4096, 1024, 63, "FP16").basis == "threshold"


def test_above_the_largest_measured_m_the_largest_speaks() -> None:
    verdict = judge(_policy(GATE), "gate_up", 4096, 1024, 9999, "FP16")
    assert (verdict.sparse, verdict.speedup) == (True, 2.0)
    assert "at M=1024, the largest measured" in verdict.reason


@given(st.integers(64, 1024))
def test_between_measured_m_the_speedup_is_interpolated(m: int) -> None:
    verdict = judge(_policy(GATE), "gate_up", 4096, 1024, m, "FP16")
    assert verdict.speedup is not None
    low, high, begin = (0.5, 1.0, 64) if m <= 256 else (1.0, 2.0, 256)
    expected = low + (high - low) * math.log(m / begin) / math.log(4)
    assert verdict.speedup == pytest.approx(expected)
    assert verdict.sparse == (verdict.speedup >= 1.02)


def test_else_dense_with_the_reason() -> None:
    policy = _policy(GATE, qkv=(1, None))
    verdict = judge(policy, "conv", 64, 64, 8, "FP16")
    assert (verdict.sparse, verdict.basis) == (False, "none")
    assert verdict.reason == "no measurement for kind 'conv' in policy 'mine'"
    for dtype in ("INT8", "FP32", "FP8"):  # thresholds are of half precision
        verdict = judge(policy, "qkv", 64, 64, 8, dtype)
        assert (verdict.sparse, verdict.reason) == (False, f"no measurement of {dtype} in policy 'mine'")


def test_bf16_is_judged_by_fp16_where_it_has_no_points() -> None:
    assert judge(_policy(GATE), "gate_up", 4096, 1024, 1024, "BF16").sparse
    both = [*GATE, *_points("gate_up", 4096, 1024, {64: 0.1}, "BF16")]
    assert not judge(_policy(both), "gate_up", 4096, 1024, 1024, "BF16").sparse
    assert not judge(_policy(_points("qkv", 8, 8, {1: 9.0}, "BF16")), "qkv", 8, 8, 1, "FP16").sparse


def test_a_shape_without_both_times_says_nothing() -> None:
    dense = [p for p in GATE if p.kernel == "dense"]
    assert judge(_policy(dense), "gate_up", 4096, 1024, 1024, "FP16").basis == "none"


# ---- files


def _file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def _refused(path: Path, *says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_policy(path)
    for words in (str(path), *says):
        assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


POINT = GATE[0].model_dump()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version: "),
        ({"nam": "typo"}, "nam: Extra inputs are not permitted"),
        ({"compute_capability": "ninety"}, "compute_capability: "),
        ({"provenance": "guessed"}, "provenance: "),
        ({"margin": 1}, "margin: "),
        ({"margin": -0.1}, "margin: "),
        ({"points": 3}, "points: "),
        ({"points": [{**POINT, "us": 0}]}, "points.0.us: "),
        ({"points": [{**POINT, "n": 0}]}, "points.0.n: "),
        ({"points": [{**POINT, "us": math.inf}]}, "points.0.us: "),
        ({"points": [{**POINT, "us": math.nan}]}, "points.0.us: "),
        ({"points": [{**POINT, "kernel": "magic"}]}, "points.0.kernel: "),
        ({"points": [{**POINT, "dtype": "fp16"}]}, "points.0.dtype: "),
        ({"thresholds": {"qkv": {"min_m": 0}}}, "thresholds.qkv.min_m: "),
        ({"thresholds": {"qkv": {"min_m": 9, "max_m": 8}}}, "max_m=8 is below min_m=9"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    _refused(_file(tmp_path, {**FIELDS, **change}), says)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    _refused(_file(tmp_path, {k: v for k, v in FIELDS.items() if k != "device"}), "device: Field required")
    _refused(_file(tmp_path, {}), "; and 1 more")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "holds no mapping"),
        ("3", "holds no mapping"),
        ("[" * 99999, "is not JSON"),
    ],
)
def test_a_file_that_is_no_policy(tmp_path: Path, content: str, says: str) -> None:
    _refused(_file(tmp_path, content), says)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    _refused(tmp_path / "none.json", "does not exist")
    _refused(tmp_path, "cannot be read as a policy")
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xff\xfe\x00")
    _refused(path, "cannot be read as a policy")


def test_a_policy_is_found_by_name_or_path(tmp_path: Path) -> None:
    for name, path in shipped_policies().items():
        assert find_policy(name) == read_policy(path)
        assert (
            find_policy(name).provenance == "shipped"
            or find_policy(name).points
            or find_policy(name).thresholds
        )
    path = _file(tmp_path, FIELDS)
    assert find_policy(str(path)).name == "mine"
    with pytest.raises(PolicyError, match="there is no policy 'nothing'") as caught:
        find_policy("nothing")
    assert all(name in caught.value.hint for name in shipped_policies())


def test_a_policy_is_found_by_device() -> None:
    for path in shipped_policies().values():
        policy = read_policy(path)
        assert policy_for_device(f"NVIDIA {policy.device}".upper()) == policy
    assert policy_for_device("GeForce 256") is None
    assert policy_for_device("") is None


def test_a_policy_goes_round(tmp_path: Path) -> None:
    policy = _policy(GATE, qkv=(1, None))
    assert read_policy(_file(tmp_path, policy.model_dump_json())) == policy
