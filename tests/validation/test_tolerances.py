from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from sparseflow_trt.errors import InputError
from sparseflow_trt.plans.plan import Plan, Precision
from sparseflow_trt.validation.tolerances import (
    DEFAULTS,
    Tolerances,
    output_tolerances,
    parse_tolerance,
    parse_tolerances,
    plan_precision,
)


def plan(precision: str, *layers: str) -> Plan:
    common = {"kind": "ffn", "n": 8, "k": 8, "sparsity": "dense", "reason": "r"}
    planned = [{"name": str(i), "precision": own, **common} for i, own in enumerate(layers)]
    return Plan.model_validate({"precision": precision, "policy": "none", "profiles": (), "layers": planned})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (plan("fp16"), "fp16"),
        (plan("fp32", "fp32", "fp16"), "fp16"),
        (plan("fp16", "fp16", "int8"), "int8"),
        (plan("keep", "bf16", "fp32"), "bf16"),
        (plan("keep"), "fp32"),
    ],
)
def test_the_coarsest_precision_counts(found: Plan, expected: Precision) -> None:
    assert plan_precision(found) == expected
    assert Tolerances().for_plan(found).of("y") == DEFAULTS[expected]


def test_tf32_is_held_to_fp16s_tolerance_where_fp32_is_planned() -> None:
    assert Tolerances().for_plan(plan("fp32"), tf32=True).of("y") == DEFAULTS["fp16"]
    assert Tolerances().for_plan(plan("bf16"), tf32=True).of("y") == DEFAULTS["bf16"]


def test_an_output_is_allowed_the_rounding_to_its_own_type() -> None:
    outputs = {"half": "FLOAT16", "brain": "BFLOAT16", "single": "FLOAT", "ids": "INT64", "unknown": ""}
    found = Tolerances().for_plan(plan("fp32"), outputs)
    fp32 = DEFAULTS["fp32"]
    assert {name for name in outputs if found.of(name) == fp32} == {"single", "ids", "unknown"}
    assert found.of("brain").max_rel == fp32.max_rel + 2**-8
    assert found.of("half").max_rel == fp32.max_rel + 2**-11
    assert found.of("half").reason.endswith("The output is FP16: it is rounded once, u = 2^-11.")
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    for name, dtype in (("half", np.float16), ("brain", ml_dtypes.bfloat16)):
        off = np.abs(values - values.astype(dtype).astype(np.float32))
        assert fp32.max_rel * 0.4 < np.max(off / np.abs(values)) < found.of(name).max_rel
        rounded = values.astype(dtype).astype(np.float64)
        cosine = rounded @ values / np.linalg.norm(rounded) / np.linalg.norm(values)
        assert cosine > found.of(name).min_cosine


def test_a_plan_that_is_as_coarse_allows_for_that_rounding() -> None:
    outputs = {"y": "FLOAT16"}
    assert Tolerances().for_plan(plan("fp16"), outputs).of("y") == DEFAULTS["fp16"]
    assert Tolerances().for_plan(plan("bf16"), outputs).of("y") == DEFAULTS["bf16"]
    asked = parse_tolerances(["y:rtol=1e-5", "cosine=0.5"]).for_plan(plan("fp32"), outputs).of("y")
    assert (asked.max_rel, asked.min_cosine) == (1e-5, 0.5)


def test_a_coarser_precision_is_allowed_more() -> None:
    ordered = [DEFAULTS[p] for p in ("fp32", "fp16", "bf16", "int8", "fp8")]
    for fine, coarse in itertools.pairwise(ordered):
        assert fine.max_abs_rms < coarse.max_abs_rms
        assert fine.max_rel <= coarse.max_rel
        assert fine.min_cosine > coarse.min_cosine
    assert all(t.min_cosine > 0.9 and t.max_abs_rms < 1 and t.min_equal == 1 and t.reason for t in ordered)


def test_one_output_and_all() -> None:
    asked = parse_tolerances(["embedding:atol=1e-2,rtol=2e-2,cosine=0.5", "equal=0.9"])
    found = asked.for_plan(plan("fp16"))
    own, other = found.of("embedding"), found.of("y")
    assert (own.max_abs, own.max_rel, own.min_cosine, own.min_equal) == (1e-2, 2e-2, 0.5, 0.9)
    assert own.max_abs_rms == 0.0  # the absolute bound is the one that was named
    assert (other.max_rel, other.min_equal) == (DEFAULTS["fp16"].max_rel, 0.9)
    assert other.max_abs_rms == DEFAULTS["fp16"].max_abs_rms  # nobody named one of it
    assert "asked for: max_abs = 0.01" in own.reason


def test_scaled_bounds_and_names_with_colons() -> None:
    asked = parse_tolerance("scope/out:0: atol=1, rms_atol=2")
    assert asked.output == "scope/out:0"
    assert asked.values == {"max_abs": 1.0, "max_abs_rms": 2.0}
    assert output_tolerances(DEFAULTS["fp32"]).of("y") == DEFAULTS["fp32"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["y"], "'y' in the tolerance 'y' is not a known NAME=NUMBER"),
        (["y:"], "is not a known NAME=NUMBER"),
        (["y:tol=1"], "'tol=1' in the tolerance"),
        (["atol=x"], "'x' for atol in the tolerance 'atol=x' is not a number"),
        (["atol="], "is not a number"),
        (["atol=-1"], "it has to be finite and not negative"),
        (["atol=inf"], "it has to be finite and not negative"),
        (["rtol=nan"], "it has to be finite and not negative"),
        (["cosine=1.1"], "it has to be from -1 to 1"),
        (["equal=-0.1"], "it has to be from 0 to 1"),
        (["atol=1,atol=2"], "gives atol twice"),
        (["y:atol=1", "y:rtol=1"], "output 'y' is given two tolerances"),
        (["atol=1", "rtol=1"], "all outputs are given two tolerances"),
    ],
)
def test_what_reads_otherwise(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_tolerances(texts)
