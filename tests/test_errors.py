from __future__ import annotations

from sparseflow_trt.errors import deepest, one_line


def test_the_first_cause_that_says_something_is_told() -> None:
    silent, said, outer = KeyError(), ValueError(" two\n lines. "), RuntimeError("pages of advice")
    outer.__cause__, said.__cause__ = said, AssertionError()
    assert one_line(deepest(outer)) == "two lines"
    assert one_line(deepest(silent)) == "KeyError", "its class, where there are no words at all"
