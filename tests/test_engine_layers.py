"""The ceiling that a benchmark gives beside what an engine gains."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pages import ROOT

RAN_AS = {"up": "up || gate", "gate": "up || gate", "down": "down"}


@pytest.fixture(scope="module")
def layers() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("engine_layers")


def test_products_are_told_from_the_rest(layers: ModuleType) -> None:
    found = layers.products_of({"up || gate": 2.0, "down": 1.0, "silu": 0.5, "reshape": 0.0}, RAN_AS)
    assert (found["all_ms"], found["products_ms"]) == (3.5, 3.0)
    assert (found["layers that run"], found["products that run"]) == (3, 2)
    assert found["others"] == {"silu": 0.5, "reshape": 0.0}
    assert found["planned layers not told"] == 0
    assert layers.products_of({"{ForeignNode[a...b]}": 1.0}, RAN_AS)["planned layers not told"] == 3


def test_what_timing_one_by_one_adds_is_taken_from_each_layer(layers: ModuleType) -> None:
    dense = layers.products_of({"up || gate": 2.1, "down": 1.1, "silu": 1.1}, RAN_AS)  # 0.1 too long each
    plugin = layers.products_of({"up || gate": 1.1, "down": 0.6, "silu": 1.1}, RAN_AS)
    found = layers.ceilings({"dense": dense, "plugin": plugin}, {"dense": 4.0, "plugin": 2.5})
    assert found == {"tensor cores": pytest.approx(4 / 2.5), "plugin": pytest.approx(4 / 2.5)}


def test_there_is_none_where_a_product_is_not_told(layers: ModuleType) -> None:
    region = layers.products_of({"{ForeignNode[a...b]}": 1.0}, RAN_AS)
    assert layers.ceilings({"dense": region}, {"dense": 1.0}) == {}
    assert layers.ceilings({}, {}) == {}


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.floats(0.3, 1))
def test_products_alone_never_double_a_run(layers: ModuleType, times: list[float], share: float) -> None:
    dense = layers.products_of(dict(zip(("up || gate", "down", "silu"), times, strict=True)), RAN_AS)
    found = layers.ceilings({"dense": dense}, {"dense": sum(times) * share})
    assert 1 <= found["tensor cores"] <= 2
