"""sparseflow-trt policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Sparseflow


def test_list(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "list")
    assert (ended.code, ended.err) == (0, "")
    assert "a100-80gb" in ended.out
    listed = sparseflow("policy", "list", "--json").json
    assert "a100-80gb" in [policy["name"] for policy in listed]
    assert all("points" not in policy for policy in listed)


def test_show(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "show", "a100-80gb")
    assert ended.code == 0
    assert "gate_up: sparse from M=256" in ended.out
    shown = sparseflow("policy", "show", "a100-80gb", "--json").json
    assert shown["points"]
    assert shown["provenance"] == "shipped"


def test_an_unknown_one_names_those_that_are_there(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "show", "mine")
    assert ended.error == "there is no policy 'mine'."
    assert "a100-80gb" in ended.err
