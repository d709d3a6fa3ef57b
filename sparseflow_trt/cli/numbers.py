"""Numbers on the command line: finite, positive and of a size that can be reckoned with."""

from __future__ import annotations

import math
from collections.abc import Callable

import click

_LARGEST = 1e15


def positive(most: float = _LARGEST, zero: bool = False) -> Callable[[str], float]:
    """The type of an option that takes a number above 0, or from 0 on, up to `most`."""
    least = 0.0 if zero else 1 / _LARGEST
    said = ("from 0 on" if zero else "above 0") + (f" and up to {most:g}" if most < _LARGEST else "")

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # NaN, too
            raise click.BadParameter(f"'{text}' is not a number {said}")
        return value

    return number
