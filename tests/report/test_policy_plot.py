"""Plots of policies: what is drawn and marked, and what is said where nothing can be."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sparseflow_trt.errors import ArtifactError, InputError, PolicyError
from sparseflow_trt.model.kinds import KINDS
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import sparse_ranges, taken_ranges
from sparseflow_trt.policies.plugin_lookup import estimated_speedups, plugin_known
from sparseflow_trt.policies.policy import Point, digest_of, find_policy
from sparseflow_trt.report.policy_plot import plot_policy
from tests.made_policies import make_points, make_policy
from tests.pages import ROOT


def _texts(path: Path) -> list[str]:
    root = ET.parse(path).getroot()
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_shipped_policy_has_a_panel_for_each_shape_with_its_crossover(tmp_path: Path) -> None:
    path = tmp_path / "a100.svg"
    plot_policy(find_policy("a100-80gb"), path, "torch", "FP16")
    texts = _texts(path)
    assert "A100 · cuSPARSELt against cuBLAS · FP16" in texts
    assert [t for t in texts if "→" in t] == ["gate_up  4096 → 14336", "down  14336 → 4096"]
    assert [t for t in texts if t.startswith("sparse at")] == ["sparse at M 256–4096", "sparse at M 512–4096"]
    assert {"dense", "sparse", "dense / sparse", "sparse is taken", "µs", "speedup"} <= set(texts)


def test_a_shape_of_two_kinds_is_drawn_once(tmp_path: Path) -> None:
    points = [p for kind in ("o", "qkv") for p in make_points(kind, 64, 64, {1: 2.0, 8: 2.0})]
    plot_policy(make_policy(points), tmp_path / "both.svg", "tensorrt", "FP16")
    assert [t for t in _texts(tmp_path / "both.svg") if "→" in t] == ["qkv, o  64 → 64"]


def test_each_end_of_a_range_is_told(tmp_path: Path) -> None:
    points = make_points("o", 64, 64, {1: 1.0, 8: 2.0, 64: 2.0, 512: 1.0, 4096: 2.0})
    plot_policy(make_policy(points), tmp_path / "o.svg", "tensorrt", "FP16")
    assert "sparse at M 8–64, 4096" in _texts(tmp_path / "o.svg")


def test_of_many_ranges_the_widest_are_told_and_the_others_counted(tmp_path: Path) -> None:
    speedups = {2**i: 2.0 if i % 2 else 1.0 for i in range(24)} | {2**24: 2.0, 2**25: 2.0}
    plot_policy(make_policy(make_points("o", 64, 64, speedups)), tmp_path / "o.svg", "tensorrt", "FP16")
    texts = _texts(tmp_path / "o.svg")
    begin = next(i for i, t in enumerate(texts) if t.startswith("sparse at"))
    over = texts[begin : begin + 3]
    assert " ".join(over).startswith(
        "sparse at M 2, 8, 32, 128, 512, 2048, 8192, 8388608–33554432 and 4 narrower"
    )
    assert all(len(line) <= 48 for line in over)


def test_a_choice_of_points_is_drawn_by_the_whole_policys_lookup(tmp_path: Path) -> None:
    policy = find_policy("h100")
    few = [p for p in policy.points if (p.n, p.k, p.dtype) == (8192, 8192, "FP16")]
    plot_policy(policy, tmp_path / "few.svg", "torch", "FP16", few)
    texts = _texts(tmp_path / "few.svg")
    assert [t for t in texts if "→" in t] == ["qkv, o  8192 → 8192"]
    ranges = sparse_ranges(policy, Gemm("o", 8192, 8192, "FP16"), 1, 16384, "torch")  # by trees of all shapes
    begins = [begin for begin, _, taken in ranges if taken]
    assert len(begins) > 2
    assert f"{begins[-1]}–16384" in " ".join(texts)


def _described(path: Path) -> str:
    if path.suffix == ".png":
        from PIL import Image

        return str(Image.open(path).text["Description"])  # type: ignore[attr-defined]
    (found,) = ET.parse(path).getroot().iter("{http://purl.org/dc/elements/1.1/}description")
    return str(found.text)


def test_a_file_says_which_policy_it_shows(tmp_path: Path) -> None:
    policy = find_policy("a100-80gb")
    for suffix in ("svg", "png"):
        plot_policy(policy, tmp_path / f"a100.{suffix}", "torch", "FP16")
        assert _described(tmp_path / f"a100.{suffix}").splitlines() == [
            f"policy a100-80gb, sha256 {digest_of(policy)}, torch FP16",
            "gate_up  4096 → 14336: sparse at M 256–4096",
            "down  14336 → 4096: sparse at M 512–4096",
        ]
    other = policy.model_copy(update={"margin": 0.03})
    assert digest_of(other) != digest_of(policy)


IMAGES = sorted(
    re.findall(r"\(images/(.+?)\)", (ROOT / "docs" / "AUTOTUNED_POLICY.md").read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_the_docs_shows_the_shipped_policy_as_it_is(name: str) -> None:
    head, first, *_ = _described(ROOT / "docs" / "images" / name).splitlines()
    policy, library, dtype = re.fullmatch(r"policy (\S+), sha256 \w{64}, (\w+) (\w+)", head).groups()  # type: ignore[union-attr]
    shipped = find_policy(policy)
    assert head == f"policy {policy}, sha256 {digest_of(shipped)}, {library} {dtype}", "draw it anew"
    # and the lookup has not changed its mind since
    kind, k, n = re.match(r"(\w+).*?  (\d+) → (\d+): ", first).groups()  # type: ignore[union-attr]
    sizes = [p.m for p in shipped.points if (p.n, p.k, p.library) == (int(n), int(k), library)]
    gemm = Gemm(kind, int(n), int(k), dtype)
    if "plugin at M" in first:  # estimates decide from 8 to 16384, the plugin's own points from 16 to 8192
        spans = taken_ranges(plugin_known(shipped, gemm), 8, 16384)
    else:
        ranges = sparse_ranges(shipped, gemm, min(sizes), max(sizes), library)  # type: ignore[arg-type]
        spans = [(begin, end) for begin, end, taken in ranges if taken]
    widest = max(spans, key=lambda span: span[1] / span[0])
    assert f"{widest[0]}–{widest[1]}" in first


def test_every_image_of_a_policy_is_looked_at() -> None:
    assert len(IMAGES) == 5
    assert {name.partition("-")[0] for name in IMAGES} == {"a100", "h100", "h200"}


def _of_plugin(points: list[Point]) -> list[Point]:
    """The same with the plugin as the sparse kernel."""
    return [p.model_copy(update={"kernel": "plugin"}) if p.kernel == "sparse" else p for p in points]


def test_the_plugin_is_drawn_beside_the_librarys_sparse_kernels(tmp_path: Path) -> None:
    points = make_points("o", 64, 64, {1: 1.0, 8: 1.0, 64: 2.0, 512: 2.0})
    us = {1: 10.0, 8: 5.0, 64: 5.0, 512: 20.0}
    plugin = [p.model_copy(update={"us": us[p.m]}) for p in _of_plugin(points) if p.kernel == "plugin"]
    alone = make_points("down", 32, 64, {1: 2.0, 8: 2.0})
    path = tmp_path / "three.svg"
    plot_policy(make_policy([*alone, *points, *plugin]), path, "tensorrt", "FP16")
    texts = _texts(path)
    # each kernel's own crossovers: sparse from 64 on, the plugin from 8 to 64
    assert [t for t in texts if " at M " in t] == [
        "sparse at M 1–8", "sparse at M 64–512", "plugin at M 8–64",
    ]  # fmt: skip
    legend = ["dense", "sparse", "plugin", "dense / sparse", "dense / plugin", "margin of 2%"]
    legend += ["sparse is taken", "plugin is taken"]
    assert [t for t in texts if t in legend] == legend
    assert len([t for t in texts if "→" in t]) == 2


def test_a_shape_that_the_plugin_alone_was_measured_for_is_drawn(tmp_path: Path) -> None:
    plugin = _of_plugin(make_points("o", 64, 64, {1: 1.0, 8: 2.0}))
    plot_policy(make_policy(plugin), tmp_path / "o.svg", "tensorrt", "FP16")
    texts = _texts(tmp_path / "o.svg")
    assert {"o  64 → 64", "plugin at M 8", "plugin", "dense / plugin", "plugin is taken"} <= set(texts)
    assert not {"sparse", "dense / sparse", "sparse is taken"} & set(texts)


def test_what_estimates_say_of_the_plugin_is_drawn_where_they_decide(tmp_path: Path) -> None:
    h200 = find_policy("h200")
    shape = [p for p in h200.points if (p.n, p.k, p.dtype) == (14336, 4096, "FP16")]
    plot_policy(h200, path := tmp_path / "h200.svg", "tensorrt", "FP16", shape)
    texts = _texts(path)
    assert "dense / plugin, estimated" in texts
    assert any(t.endswith("estimated: from cuSPARSELt, corrected by TensorRT's times") for t in texts)
    assert "plugin at M 8–256, 512–16384" in texts  # between 256 and 512 nothing is sure
    known = plugin_known(h200, Gemm("gate_up", 14336, 4096, "FP16"))
    drawn = estimated_speedups(known)
    assert not known.judge(320).sparse
    assert sorted(drawn) == [8, 384, 12288, 16384]  # measured from 16 to 8192
    assert drawn[8] == known.judge(8).speedup
    assert known.judge(8).points[0].library == "torch"
    assert sorted(p.m for p in shape if p.kernel == "plugin")[3:5] == [256, 512]


def test_a_shape_that_estimates_alone_speak_for_is_drawn_dashed(tmp_path: Path) -> None:
    h200 = find_policy("h200")
    shape = [p for p in h200.points if (p.n, p.k, p.dtype) == (6144, 4096, "FP16")]
    plot_policy(h200, path := tmp_path / "h200.svg", "tensorrt", "FP16", shape)
    texts = _texts(path)
    assert {"dense / plugin, estimated", "plugin is taken"} <= set(texts)
    assert not {"plugin", "dense / plugin"} & set(texts)
    plot_policy(h200, path, "torch", "FP16", shape)
    assert not [t for t in _texts(path) if "plugin" in t]


def test_the_same_points_make_the_same_file(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        one, other = tmp_path / f"one.{suffix}", tmp_path / f"other.{suffix}"
        for path in (one, other):
            plot_policy(find_policy("a100-80gb"), path, "torch", "FP16")
        assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shapes", [1, 2, 5, 9, 17])
def test_any_number_of_shapes_and_a_single_m_are_drawn(tmp_path: Path, shapes: int) -> None:
    points = [
        p.model_copy(update={"low_us": p.us * 0.9, "high_us": p.us * 1.1})
        for i in range(shapes)
        for p in make_points(KINDS[i % 3], 64 * (i + 1), 64, {8: 1.5} if i % 2 else {1: 1.5, 8: 1.1})
    ]
    plot_policy(make_policy(points), tmp_path / "many.svg", "tensorrt", "FP16")
    panels = [t for t in _texts(tmp_path / "many.svg") if "→" in t]
    assert len(panels) == shapes
    assert panels == sorted(panels, key=lambda t: (KINDS.index(t.split()[0]), int(t.split("→")[1])))


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    policy = find_policy("a100-80gb")
    with pytest.raises(InputError, match=r"a100\.pdf is not a plot's file name"):
        plot_policy(policy, tmp_path / "a100.pdf", "torch", "FP16")
    with pytest.raises(PolicyError, match="holds no BF16 points of cuSPARSELt"):
        plot_policy(policy, tmp_path / "a100.png", "torch", "BF16")
    with pytest.raises(ArtifactError, match="cannot be written"):
        plot_policy(policy, tmp_path / "no" / "a100.png", "torch", "FP16")
    assert not list(tmp_path.iterdir())
