"""Names in a sentence."""

from __future__ import annotations

import pytest

from sparseflow_trt._listing import counted, did_you_mean, listed, listed_apart


@pytest.mark.parametrize(
    ("names", "together", "apart"),
    [
        ([], "", ""),
        (["a"], "a", "a"),
        (["a", "b"], "a, b", "a; b"),
        (["a", "b", "c"], "a, b and 1 more", "a; b; and 1 more"),
        (list("abcdef"), "a, b and 4 more", "a; b; and 4 more"),
    ],
)
def test_the_first_are_named_and_the_others_counted(names: list[str], together: str, apart: str) -> None:
    assert (listed(names, 2), listed_apart(names, 2)) == (together, apart)


def test_what_comes_near_is_asked_for() -> None:
    assert did_you_mean("sqe", ("batch", "seq"), "Name an axis.") == "Name an axis."
    assert did_you_mean("sequ", ("batch", "seq"), "Name an axis.") == "Did you mean seq? Name an axis."
    assert did_you_mean("h.0.fcc", ("h.0.fc", "h.1.fc", "up")) == "Did you mean h.0.fc or h.1.fc?"


def test_one_thing_is_no_plural() -> None:
    told = [counted(n, "weight", "was", "were") for n in range(3)]
    assert told == ["0 weights were", "1 weight was", "2 weights were"]
    assert counted(1, "node") == "1 node"
