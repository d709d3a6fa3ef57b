"""What differs between TensorRT's versions, asked with none of them."""

from __future__ import annotations

import re

import pytest

from sparseflow_trt.engines.tensorrt.api import graph_needs_of, is_strongly_typed
from sparseflow_trt.model.target import ANYTHING, GraphNeeds
from tests.pages import ROOT

OLD = GraphNeeds(17, spells_out=True, opts_out_dense=True, takes_plugin=True, takes_bf16=False)
NEW = GraphNeeds(opts_out_dense=True, takes_plugin=True)


@pytest.mark.parametrize(
    ("key", "version", "strongly_typed", "needs"),
    [
        ("tensorrt", "8.6.0", False, OLD),
        ("tensorrt", "8.6.1.post1", False, OLD),
        ("tensorrt", "10.3.0", False, NEW),
        ("tensorrt", "10.11.0.33", False, NEW),
        ("tensorrt", "10.12.0.36", True, NEW),
        ("tensorrt", "11.0.0", True, NEW),
        ("tensorrt-rtx", "1.7.1.116", True, ANYTHING),
    ],
)
def test_a_versions_types_and_needs(key: str, version: str, strongly_typed: bool, needs: GraphNeeds) -> None:
    assert is_strongly_typed(key, version) == strongly_typed
    assert graph_needs_of(key, version) == needs


def test_one_that_is_not_installed_has_the_needs_of_the_newest() -> None:
    assert graph_needs_of("tensorrt", None) == NEW


def test_nothing_else_asks_for_a_version() -> None:
    asks = re.compile(
        r"version\w*\)?\.(?:split|partition)\(|hasattr\([^()]*(?:module|engine|context|runtime|network|config)\b"
    )
    others = ("tensorrt", "doctor.py")  # doctor.py compares cuSPARSELt's
    files = [file for file in (ROOT / "engines").rglob("*.py") if not {*others} & {*file.parts}]
    assert len(files) > 50
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if asks.search(line) and "torch" not in line
    ]
    assert found == []
