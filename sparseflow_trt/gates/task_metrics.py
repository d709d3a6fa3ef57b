"""Scores outputs by a user's own metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparseflow_trt._user_code import import_function, user_errors
from sparseflow_trt.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Runs = Sequence[Mapping[str, "np.ndarray[Any, Any]"]]  # for each input set the arrays, by name
TaskMetric = Callable[[Runs, Runs], float]

_HINT = (
    "Give FILE.py:FUNCTION or MODULE:FUNCTION: it takes a list of output dicts and the list of input dicts, "
    "one for each input set, and returns a number; higher is better."
)


def load_metric(source: str) -> TaskMetric:
    """Imports a metric, and gives it with its errors worded.

    Args:
        source: `file.py:function` or `module:function`. It is called with the outputs and the inputs, each a
            list of `{name: array}` with an entry for each input set, and gives a finite number; more is
            better. The arrays are its own: it may work in place.

    Raises:
        InputError: There is no such function, or (when called) it fails or gives no finite number.
    """
    target, colon, name = source.rpartition(":")
    if not colon or not target or not name.isidentifier():
        raise InputError(f"'{source}' is not a metric.", _HINT, usage=True)
    with user_errors(source, _HINT):  # while it is imported
        function = import_function(target, name, "metric", _HINT)

    def score(outputs: Runs, inputs: Runs) -> float:
        with user_errors(source, _HINT):  # or while it runs
            value = float(function(_copies(outputs), _copies(inputs)))
        if not math.isfinite(value):
            raise InputError(f"{source} gave {value}, but a metric has to be a finite number.", _HINT)
        return value

    return score


def score_reference(source: str, score: TaskMetric, outputs: Runs, inputs: Runs, max_drop: float) -> float:
    """What a metric gives on the reference outputs, where it gives it twice.

    Args:
        source: As `load_metric` took it.
        score: What that gave.
        outputs: The reference outputs.
        inputs: What gave them.
        max_drop: By how much less a build may score.

    Raises:
        InputError: The metric fails, or differs from call to call by more than that.
    """
    first, again = score(outputs, inputs), score(outputs, inputs)
    if abs(first - again) > max_drop:
        raise InputError(
            f"{source} gave {first:.6g} and then {again:.6g} for the same outputs: builds would pass "
            "and fail by chance.",
            "Seed its random numbers, or allow for its variation with --max-drop.",
        )
    return first


def _copies(runs: Runs) -> Runs:
    return [{name: array.copy() for name, array in one.items()} for one in runs]
