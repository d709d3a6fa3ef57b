"""What several tests of policies share."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from sparseflow_trt.policies.policy import Pair, find_policy, pairs_by_shape
from tests.pages import ROOT


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes shipped policies."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("ship_policy")


def pairs_of(dtype: str, name: str = "h200") -> dict[tuple[int, int], dict[int, Pair]]:
    """cuSPARSELt's times in PyTorch, by shape and M."""
    points = find_policy(name).points
    return pairs_by_shape(p for p in points if p.dtype == dtype and p.library == "torch")
