"""Policies made from the files of the system before this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.policy import Policy, find_policy
from sparseflow_trt.policies.policy_import import import_policy

HEADER = "op,M,pruned_dense_us,sparse_weight_us,speedup\n"
# The figures of the shipped A100 policy, as that system's CSV has them.
A100 = HEADER + (
    "gate_proj,256,185.58,139.91,1.326\ngate_proj,512,324.73,247.20,1.314\n"
    "gate_proj,1024,604.21,492.84,1.226\ngate_proj,2048,1147.99,1045.17,1.098\n"
    "gate_proj,4096,2275.50,2090.69,1.088\ndown_proj,256,165.21,169.20,0.976\n"
    "down_proj,512,323.19,269.83,1.198\ndown_proj,1024,580.14,465.64,1.246\n"
    "down_proj,2048,1097.17,880.63,1.246\ndown_proj,4096,2097.18,1784.59,1.175\n"
)
LLAMA = {"gate_proj": (14336, 4096), "down_proj": (4096, 14336)}


def _import(
    folder: Path, content: Any, suffix: str = ".json", shapes: dict[str, tuple[int, int]] | None = None
) -> Policy:
    path = folder / f"seed{suffix}"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return import_policy(path, "mine", "NVIDIA A100", "8.0", shapes or {})


def _refused(folder: Path, content: Any, *says: str, **options: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        _import(folder, content, **options)
    for words in ("seed.", *says):
        assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_of_a_product_that_was_measured_twice_the_fastest_times_count(tmp_path: Path) -> None:
    """`policy show --points` had put each sparse time beside the last dense one."""
    rows = "gate_proj,256,100,80,\nup_proj,256,90,95,\ngate_proj,256,110,70,\ngate_proj,512,200,150,\n"
    shapes = {"gate_proj": (14336, 4096), "up_proj": (14336, 4096)}
    policy = _import(tmp_path, HEADER + rows, ".csv", shapes)
    assert [(p.kind, p.m, p.kernel, p.us) for p in policy.points] == [
        ("gate_up", 256, "dense", 90.0),
        ("gate_up", 256, "sparse", 70.0),
        ("gate_up", 512, "dense", 200.0),
        ("gate_up", 512, "sparse", 150.0),
    ]


@pytest.mark.parametrize("wrapped", [True, False])
def test_limits(tmp_path: Path, wrapped: bool) -> None:
    limits = {"gate_proj": {"min_m": 256, "max_m": 2048}, "down_proj": {"min_m": 512}}
    policy = _import(tmp_path, {"ops": limits} if wrapped else limits)
    assert (policy.name, policy.device, policy.compute_capability) == ("mine", "NVIDIA A100", "8.0")
    assert (policy.provenance, policy.points) == ("imported", ())
    assert policy.source.startswith("imported from seed.json")
    assert [(t.kind, t.library, t.dtype, t.min_m, t.max_m) for t in policy.thresholds] == [
        ("down", "torch", "FP16", 512, None),
        ("gate_up", "torch", "FP16", 256, 2048),
    ]
    verdict = judge(policy, Gemm("down", 4096, 14336, "FP16"), 512)
    assert (verdict.sparse, verdict.basis) == (True, "threshold")


@given(st.lists(st.tuples(st.integers(1, 40), st.none() | st.integers(0, 20)), min_size=1, max_size=3))
def test_operations_of_one_kind_all_have_to_win(
    tmp_path_factory: pytest.TempPathFactory, limits: list[tuple[int, int | None]]
) -> None:
    given_ = {
        name: {"min_m": low, **({} if span is None else {"max_m": low + span})}
        for name, (low, span) in zip(("gate_proj", "up_proj", "gate_up_proj"), limits, strict=False)
    }
    (limit,) = _import(tmp_path_factory.getbasetemp(), given_).thresholds
    for m in range(1, 70):
        allowed = all(low <= m and (span is None or m <= low + span) for low, span in limits)
        assert limit.holds(m) == allowed


def test_kinds_are_read_from_names(tmp_path: Path) -> None:
    names = ("q_proj", "o_proj", "fc1", "down", "qkv", "lm_head")
    policy = _import(tmp_path, {name: {"min_m": 8} for name in names})
    assert {t.kind for t in policy.thresholds} == {"qkv", "o", "gate_up", "down", "classifier"}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_makes_the_points_of_the_shipped_policy(tmp_path: Path, mark: str) -> None:
    policy = _import(tmp_path, mark + A100, ".csv", LLAMA)
    shipped = find_policy("a100-80gb")
    assert policy.points == shipped.points
    limits = {t.kind: (t.min_m, t.max_m) for t in policy.thresholds}
    assert limits == {"gate_up": (256, None), "down": (512, None)}
    theirs = {t.kind: (t.min_m, t.max_m) for t in shipped.thresholds}
    assert limits.items() <= theirs.items()


def test_a_csv_may_have_spaces_and_other_columns(tmp_path: Path) -> None:
    text = "note, M, op, pruned_dense_us, sparse_weight_us\nx, 8, down_proj, 3.0, 2.0\r\n\n"
    points = _import(tmp_path, text, ".CSV", {"down_proj": (32, 64)}).points
    assert [(p.kind, p.n, p.k, p.m, p.kernel, p.us, p.library) for p in points] == [
        ("down", 32, 64, 8, "dense", 3.0, "torch"),
        ("down", 32, 64, 8, "sparse", 2.0, "torch"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        ("[" * 9999, "is not JSON"),
        ([], "holds no operations"),
        ({}, "holds no operations"),
        ({"ops": []}, "holds no operations"),
        ({"down_proj": 512}, "operation 'down_proj' holds no mapping"),
        ({"down_proj": {}}, "operation 'down_proj': min_m: Field required"),
        ({"down_proj": {"min_m": 0}}, "operation 'down_proj': min_m: "),
        ({"down_proj": {"min_m": 8, "max_m": 7}}, "operation 'down_proj': the whole: "),
        ({"down_proj": {"min_m": 8, "speed": 7}}, "operation 'down_proj': speed: Extra inputs"),
        ({"magic": {"min_m": 8}}, "names operation 'magic', which is of no known kind"),
        ({"other": {"min_m": 8}}, "names operation 'other', which is of no known kind"),
    ],
)
def test_a_json_that_is_wrong(tmp_path: Path, content: Any, says: str) -> None:
    _refused(tmp_path, content, says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("op;M;pruned_dense_us;sparse_weight_us\n", "has no column 'op'"),
        ("op,M,M,pruned_dense_us,sparse_weight_us\ndown_proj,8,9,2,1\n", "has two columns 'M'"),
        ("op,M,pruned_dense_us\n", "has no column 'sparse_weight_us'"),
        (HEADER, "holds no measurements"),
        (HEADER + "gate_proj,8,2,1,2\n", "line 2 names operation 'gate_proj', whose N and K are not given"),
        (HEADER + "down_proj,8,2,1,2\ndown_proj,8\n", "line 3 has 2 cells under 5 names"),
        (HEADER + "down_proj,8,2,5,1,2,\n", "line 2 has 7 cells under 5 names"),
        (HEADER.replace(",speedup", "") + "down_proj,8,10,5,7\n", "line 2 has 5 cells under 4 names"),
        (HEADER + "down_proj,many,2,1,2\n", "line 2: m: "),
        (HEADER + "down_proj,8,nan,1,2\n", "line 2: us: "),
        (HEADER + "down_proj,8,2,-1,2\n", "line 2: us: "),
        (HEADER + "magic,8,2,1,2\n", "line 2 names operation 'magic'"),
        (HEADER + "," * 4, "line 2 names operation ''"),
        (HEADER + 'down_proj,"' + "8" * 200_000 + '",2,1,2\n', "is not CSV: field larger than"),
    ],
)
def test_a_csv_that_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    _refused(tmp_path, content, says, suffix=".csv", shapes={"down_proj": (32, 64)})


def test_a_shape_of_nothing_in_the_file_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path, A100, "no operation 'gate'", suffix=".csv", shapes=LLAMA | {"gate": (1, 2)})
    with pytest.raises(PolicyError) as caught:
        _import(tmp_path, A100, ".csv", LLAMA | {"down_prj": (1, 2)})
    assert caught.value.hint.startswith("Did you mean down_proj?")
    _refused(tmp_path, {"down_proj": {"min_m": 8}}, "of no shape", shapes={"down_proj": (32, 64)})


def test_a_file_or_a_field_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="does not exist"):
        import_policy(tmp_path / "no.json", "mine", "GPU", "8.0", {})
    path = tmp_path / "seed.json"
    path.write_text('{"down_proj": {"min_m": 8}}')
    with pytest.raises(PolicyError, match=r"the policy from .*seed\.json: compute_capability: "):
        import_policy(path, "mine", "GPU", "eight", {})
    with pytest.raises(PolicyError, match="line 2: n: "):
        _import(tmp_path, HEADER + "down_proj,8,2,1,2\n", ".csv", {"down_proj": (0, 64)})
