"""Plots of policies: what is drawn and marked, and what is said where nothing can be."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sparseflow_trt.errors import ArtifactError, InputError, PolicyError
from sparseflow_trt.policy import Point, find_policy
from sparseflow_trt.report.policy_plot import plot_policy
from tests.policies import make_points, make_policy


def _texts(path: Path) -> list[str]:
    root = ET.parse(path).getroot()
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_shipped_policy_has_a_panel_for_each_shape_with_its_crossover(tmp_path: Path) -> None:
    path = tmp_path / "a100.svg"
    plot_policy(find_policy("a100-80gb"), path, "torch", "FP16")
    texts = _texts(path)
    assert "A100 · cuSPARSELt against cuBLAS · FP16" in texts
    assert [t for t in texts if "→" in t] == ["gate_up  4096 → 14336", "down  14336 → 4096"]
    # gate_up wins from its smallest measured M on, which is no crossover
    assert [t for t in texts if t.startswith("M=")] == ["M=512"]
    assert {"dense", "sparse", "dense / sparse", "sparse is taken", "µs", "speedup"} <= set(texts)


def test_a_shape_of_two_kinds_is_drawn_once(tmp_path: Path) -> None:
    points = [p for kind in ("o", "qkv") for p in make_points(kind, 64, 64, {1: 2.0, 8: 2.0})]
    plot_policy(make_policy(points), tmp_path / "both.svg", "tensorrt", "FP16")
    assert [t for t in _texts(tmp_path / "both.svg") if "→" in t] == ["qkv, o  64 → 64"]


def test_each_end_of_a_range_is_marked(tmp_path: Path) -> None:
    points = make_points("o", 64, 64, {1: 1.0, 8: 2.0, 64: 2.0, 512: 1.0, 4096: 2.0})
    plot_policy(make_policy(points), tmp_path / "o.svg", "tensorrt", "FP16")
    marks = {t for t in _texts(tmp_path / "o.svg") if t.startswith("M=")}
    assert marks == {"M=8", "M=64", "M=4096"}


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
    assert sorted(t for t in texts if t.startswith("M=")) == ["M=64", "M=64", "M=8"]
    legend = ["dense", "sparse", "plugin", "dense / sparse", "dense / plugin", "sparse is taken"]
    assert [t for t in texts if t in {*legend, "plugin is taken"}] == [*legend, "plugin is taken"]
    assert len([t for t in texts if "→" in t]) == 2


def test_a_shape_that_the_plugin_alone_was_measured_for_is_drawn(tmp_path: Path) -> None:
    plugin = _of_plugin(make_points("o", 64, 64, {1: 1.0, 8: 2.0}))
    plot_policy(make_policy(plugin), tmp_path / "o.svg", "tensorrt", "FP16")
    texts = _texts(tmp_path / "o.svg")
    assert {"o  64 → 64", "M=8", "plugin", "dense / plugin", "plugin is taken"} <= set(texts)
    assert not {"sparse", "dense / sparse", "sparse is taken"} & set(texts)


def test_estimates_of_the_plugin_are_not_drawn(tmp_path: Path) -> None:
    plot_policy(find_policy("h200"), tmp_path / "h200.svg", "torch", "FP16")
    assert not [t for t in _texts(tmp_path / "h200.svg") if "plugin" in t]


def test_the_same_points_make_the_same_file(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        one, other = tmp_path / f"one.{suffix}", tmp_path / f"other.{suffix}"
        for path in (one, other):
            plot_policy(find_policy("a100-80gb"), path, "torch", "FP16")
        assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shapes", [1, 2, 5, 9])
def test_any_number_of_shapes_and_a_single_m_are_drawn(tmp_path: Path, shapes: int) -> None:
    points = [
        p.model_copy(update={"low_us": p.us * 0.9, "high_us": p.us * 1.1})
        for i in range(shapes)
        for p in make_points(f"kind{i % 3}", 64 * (i + 1), 64, {8: 1.5} if i % 2 else {1: 1.5, 8: 1.1})
    ]
    plot_policy(make_policy(points), tmp_path / "many.svg", "tensorrt", "FP16")
    panels = [t for t in _texts(tmp_path / "many.svg") if "→" in t]
    assert len(panels) == shapes
    assert panels == sorted(panels, key=lambda t: (re.split(r"\s", t)[0], int(t.split("→")[1])))


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    policy = find_policy("a100-80gb")
    with pytest.raises(InputError, match=r"a100\.pdf is no name of a plot"):
        plot_policy(policy, tmp_path / "a100.pdf", "torch", "FP16")
    with pytest.raises(PolicyError, match="holds no BF16 points of cuSPARSELt"):
        plot_policy(policy, tmp_path / "a100.png", "torch", "BF16")
    with pytest.raises(ArtifactError, match="cannot be written"):
        plot_policy(policy, tmp_path / "no" / "a100.png", "torch", "FP16")
    assert not list(tmp_path.iterdir())
