"""Policy files: what they hold, how they are found, and what is wrong with one."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import PolicyError
from sparseflow_trt.model.kinds import KINDS
from sparseflow_trt.policies import policy as policy_module
from sparseflow_trt.policies.policy import (
    Point,
    Policy,
    Threshold,
    find_policy,
    json_from_policy,
    pairs_by_shape,
    policy_for_device,
    read_policy,
    shipped_policies,
)
from sparseflow_trt.policies.policy_import import import_policy
from tests.made_policies import FIELDS, make_points, make_policy

_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_kinds = st.sampled_from(KINDS)
_sizes = st.integers(1, 2**31)
_times = st.floats(1e-3, 1e9)


@st.composite
def points(draw: st.DrawFn) -> Point:
    low, us, high = sorted(draw(st.tuples(_times, _times, _times)))
    interval = draw(st.booleans())
    return Point(
        kind=draw(_kinds), n=draw(_sizes), k=draw(_sizes), m=draw(_sizes),
        dtype=draw(st.sampled_from(["FP32", "FP16", "BF16", "INT8", "FP8"])),
        library=draw(st.sampled_from(["tensorrt", "torch"])),
        kernel=draw(st.sampled_from(["dense", "sparse", "plugin"])),
        us=us, low_us=low if interval else None, high_us=high if interval else None,
        runs=draw(st.none() | _sizes), tactic=draw(_names),
    )  # fmt: skip


@st.composite
def thresholds(draw: st.DrawFn) -> Threshold:
    low = draw(st.none() | _sizes)
    return Threshold(
        kind=draw(_kinds),
        library=draw(st.sampled_from(["tensorrt", "torch"])),
        dtype=draw(st.sampled_from(["FP16", "BF16"])),
        min_m=low,
        max_m=draw(st.none() | st.integers(low, 2**32)) if low else None,
    )


policies = st.builds(
    Policy,
    schema_version=st.just(1),
    name=_names,
    device=_names,
    compute_capability=st.just("9.0"),
    libraries=st.dictionaries(_names, _names, max_size=2),
    clocks=_names,
    provenance=st.sampled_from(["measured", "imported", "shipped"]),
    source=_names,
    margin=st.floats(0, 0.5),
    thresholds=st.lists(thresholds(), max_size=3, unique_by=lambda t: (t.kind, t.library, t.dtype)).map(
        tuple
    ),
    points=st.lists(points(), max_size=4).map(tuple),
)


def _file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@given(policies)
def test_a_policy_goes_round(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> None:
    path = tmp_path_factory.getbasetemp() / "policy.json"
    path.write_bytes(json_from_policy(policy).encode())
    assert read_policy(path) == policy


def test_a_file_has_a_line_for_each_point_and_threshold() -> None:
    policy = make_policy(
        make_points("o", 64, 64, {1: 2.0, 2: 2.0}), limits={"o": (1, None), "down": (None, None)}
    )
    lines = json_from_policy(policy).splitlines()
    assert sum('"us":' in line for line in lines) == len(policy.points)
    assert '    {"kind": "down", "library": "tensorrt", "dtype": "FP16", "min_m": null}' in lines
    assert json_from_policy(make_policy([])).endswith('"thresholds": [],\n  "points": []\n}\n')


@pytest.mark.parametrize("path", shipped_policies().values(), ids=lambda path: path.stem)
def test_a_shipped_file_is_as_it_would_be_written(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    policy = read_policy(path)
    assert json_from_policy(policy) == text
    assert policy.name == path.stem
    assert policy.points


# ---- pairs


def test_a_pair_is_the_fastest_of_each_and_needs_both() -> None:
    both = make_points("o", 64, 32, {8: 2.0, 4: 3.0})
    slow = [p.model_copy(update={"us": p.us * 9}) for p in both]
    plugin = both[1].model_copy(update={"kernel": "plugin", "us": 5.0})
    alone = [p for p in make_points("o", 128, 32, {8: 2.0}) if p.kernel == "dense"]
    pairs = pairs_by_shape([*slow, *both, plugin, *alone])
    assert list(pairs) == [(64, 32)]
    assert list(pairs[64, 32]) == [4, 8]
    assert pairs[64, 32][8].sparse == both[1]
    assert pairs[64, 32][4].dense == both[2]
    assert (pairs[64, 32][4].speedup, pairs[64, 32][8].speedup) == (3.0, 2.0)
    of_plugin = pairs_by_shape([*slow, *both, plugin, *alone], "plugin")
    assert {m: pair.sparse for m, pair in of_plugin[64, 32].items()} == {8: plugin}


@given(_times, st.floats(0, 0.5))
def test_to_win_is_to_reach_the_margin(sparse: float, margin: float) -> None:
    product: dict[str, Any] = {"kind": "o", "n": 1, "k": 1, "m": 1, "dtype": "FP16", "library": "torch"}
    limit = sparse * (1 + margin)
    for us, wins in ((limit, True), (math.nextafter(limit, 0), False)):
        pair = pairs_by_shape(
            [Point(**product, kernel="sparse", us=sparse), Point(**product, kernel="dense", us=us)]
        )[1, 1][1]
        assert pair.wins(margin) == wins


@given(st.integers(1, 50), st.none() | st.integers(0, 50), st.integers(1, 200))
def test_a_threshold_holds_between_its_ends(low: int, span: int | None, m: int) -> None:
    high = None if span is None else low + span
    limit = Threshold(kind="o", library="torch", dtype="FP16", min_m=low, max_m=high)
    assert limit.holds(m) == (m in range(low, 201 if high is None else high + 1))
    assert not Threshold(kind="o", library="torch", dtype="FP16", min_m=None).holds(m)


# ---- what is wrong with a file


def _refused(path: Path, *says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_policy(path)
    for words in (str(path), *says):
        assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


POINT = make_points("gate_up", 4096, 1024, {64: 2.0})[0].model_dump()
LIMIT = {"kind": "qkv", "library": "torch", "dtype": "FP16", "min_m": 8}


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
        ({"points": [{**POINT, "library": "cublas"}]}, "points.0.library: "),
        ({"points": [{**POINT, "dtype": "fp16"}]}, "points.0.dtype: "),
        ({"points": [{**POINT, "low_us": 1}]}, "points.0: "),
        ({"points": [{**POINT, "low_us": 21, "high_us": 30}]}, "us=20.0 lies outside low_us=21.0"),
        ({"points": [{**POINT, "runs": 0}]}, "points.0.runs: "),
        ({"thresholds": {"qkv": {"min_m": 1}}}, "thresholds: "),
        ({"thresholds": [{**LIMIT, "min_m": 0}]}, "thresholds.0.min_m: "),
        ({"thresholds": [{**LIMIT, "max_m": 7}]}, "max_m=7 is below min_m=8"),
        ({"thresholds": [{**LIMIT, "min_m": None, "max_m": 7}]}, "max_m=7 is below min_m=None"),
        ({"thresholds": [{k: v for k, v in LIMIT.items() if k != "min_m"}]}, "thresholds.0.min_m: Field req"),
        ({"thresholds": [LIMIT, {**LIMIT, "min_m": 9}]}, "two thresholds for qkv torch FP16"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    _refused(_file(tmp_path, {**FIELDS, **change}), says)


def test_a_mistyped_kind_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    point = make_points("o", 64, 32, {8: 1.0})[0].model_dump() | {"kind": "qkvo"}
    limit = {"kind": "gateup", "library": "torch", "dtype": "FP16", "min_m": 1}
    known = f"Known: {', '.join(KINDS)}"
    path = _file(tmp_path, {**FIELDS, "thresholds": [limit], "points": [point]})
    _refused(
        path,
        f"thresholds.0.kind: Value error, 'gateup' is not a kind of layer. Did you mean gate_up? {known}",
    )
    _refused(path, f"points.0.kind: Value error, 'qkvo' is not a kind of layer. Did you mean qkv? {known}")


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
        ("9" * 5000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_policy(tmp_path: Path, content: str, says: str) -> None:
    _refused(_file(tmp_path, content), says)


def test_a_file_of_the_older_form_is_to_be_imported(tmp_path: Path) -> None:
    limits = {"gate_proj": {"min_m": 256, "max_m": 2048}, "o_proj": {"min_m": 1}}
    for content in ({"ops": limits}, limits):
        path = _file(tmp_path, content)
        with pytest.raises(PolicyError, match="is no policy: it holds limits by operation") as error:
            find_policy(path)
        assert f"`sparseflow-trt policy import {path} --name NAME" in error.value.hint
        assert import_policy(path, "old", "GPU X", "8.0", {}).thresholds
    _refused(_file(tmp_path, {**FIELDS, "ops": limits}), "ops: Extra inputs are not permitted")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    _refused(tmp_path / "none.json", "does not exist")
    _refused(tmp_path, "cannot be read: Is a directory")
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xff\xfe\x00")
    _refused(path, "is no policy: it holds no text")


def test_the_docs_explain_each_field_on_a_shipped_policy() -> None:
    page = (Path(__file__).parents[2] / "docs" / "AUTOTUNED_POLICY.md").read_text(encoding="utf-8")
    excerpt = json.loads(page.split("```json\n")[1].split("```")[0])
    shipped = find_policy(excerpt["name"])
    shown = Policy.model_validate(excerpt)
    assert set(excerpt) == set(Policy.model_fields)
    assert set(shown.points) < set(shipped.points)
    assert set(shown.thresholds) < set(shipped.thresholds)
    named = {*re.findall(r"`\"?(\w+)", page)} | {"points", "thresholds"}
    for record in (Policy, Point, Threshold):
        assert set(record.model_fields) <= named


# ---- how one is found


def test_a_policy_is_found_by_name_device_or_path(tmp_path: Path) -> None:
    for name, path in shipped_policies().items():
        assert find_policy(name) == find_policy(name.upper()) == read_policy(path)
    assert find_policy("A100").name == find_policy("nvidia a100-sxm4-80gb").name == "a100-80gb"
    path = _file(tmp_path, FIELDS)
    assert find_policy(str(path)).name == find_policy(path).name == "mine"
    for nothing in ("nothing", "NVIDIA", "A10", "80gb"):
        with pytest.raises(PolicyError, match=f"there is no policy '{nothing}'") as caught:
            find_policy(nothing)
        assert all(name in caught.value.hint for name in shipped_policies())


def test_a_device_is_matched_by_whole_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "SHIPPED", tmp_path)
    for name, device in (("a10", "NVIDIA A10"), ("h200", "NVIDIA H200"), ("any", "NVIDIA")):
        fields = {**FIELDS, "name": name, "device": device}
        (tmp_path / f"{name}.json").write_text(json.dumps(fields), encoding="utf-8")
    devices: tuple[tuple[str, str | None], ...] = (
        ("NVIDIA A10", "a10"), ("NVIDIA A100-SXM4-80GB", None), ("NVIDIA H200", "h200"),
        ("nvidia h200 nvl", "h200"),
        ("NVIDIA GH200 480GB", None), ("NVIDIA GeForce RTX 4090", None), ("", None),
    )  # fmt: skip
    for asked, named in devices:
        found = policy_for_device(asked)
        assert (found.name if found else None) == named, asked


def test_a_threshold_follows_from_the_points_that_it_names(tmp_path: Path) -> None:
    points = [*make_points("qkv", 64, 32, {8: 1.0, 16: 1.5}), *make_points("qkv", 64, 64, {16: 1.5})]
    limit = {"kind": "qkv", "library": "tensorrt", "dtype": "FP16", "min_m": 16, "shapes": [(64, 32)]}

    def file_of(**changes: Any) -> Path:
        plain = [point.model_dump() for point in points]
        return _file(tmp_path, {**FIELDS, "points": plain, "thresholds": [{**limit, **changes}]})

    assert read_policy(file_of()).thresholds[0].holds(16)
    assert read_policy(file_of(min_m=None)).thresholds
    assert read_policy(file_of(min_m=8, shapes=[])).thresholds  # given, and not derived
    _refused(file_of(min_m=8), "32→64 has 1.00× at M=8, which is not a win by 2%")
    _refused(
        file_of(shapes=[(64, 32), (128, 32)]),
        "qkv (tensorrt FP16, sparse)",
        "it holds no dense and sparse points for 32→128",
    )
    _refused(file_of(kernel="plugin"), "it holds no dense and plugin points for 32→64")
    path = file_of()
    changed = {**json.loads(path.read_text(encoding="utf-8")), "margin": 0.6}
    path.write_text(json.dumps(changed), encoding="utf-8")
    _refused(path, "32→64 has 1.50× at M=16, which is not a win by 60%")


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps({**FIELDS, "margin": 0.02}).replace('"margin"', '"margin": 0.9, "margin"')
    _refused(_file(tmp_path, text), "'margin' stands twice in one object")
