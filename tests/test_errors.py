from __future__ import annotations

import sys
import traceback

from sparseflow_trt.errors import InputError, deepest, one_line


def test_the_first_cause_that_says_something_is_told() -> None:
    silent, said, outer = KeyError(), ValueError(" two\n lines. "), RuntimeError("pages of advice")
    outer.__cause__, said.__cause__ = said, AssertionError()
    assert one_line(deepest(outer)) == "two lines"
    assert one_line(deepest(silent)) == "KeyError", "its class, where there are no words at all"


def test_a_traceback_says_what_to_do_too() -> None:
    told = "".join(traceback.format_exception(InputError("It is wrong.", "Mend it.")))
    hint = "hint: Mend it.\n" if sys.version_info >= (3, 11) else ""
    assert told.endswith(f"InputError: It is wrong.\n{hint}")
    assert "hint" not in "".join(traceback.format_exception(InputError("It is wrong.")))
