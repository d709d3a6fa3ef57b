"""Numbers on the command line: finite, positive and of a size that can be reckoned with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

LARGEST_INT = 2**31 - 1  # of what others keep in 32 bits
_LARGEST = 1e15


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN and infinity, which click lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of an option's text."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def positive(most: float = _LARGEST, zero: bool = False) -> Callable[[str], float]:
    """The type of an option that takes a number above 0, or from 0 on, up to `most`."""
    least = 0.0 if zero else 1 / _LARGEST

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # NaN, too
            low = f"from {least:g} on" if zero or 0 < value < least else "above 0"
            raise click.BadParameter(f"'{text}' is not a number {low} and up to {most:g}")
        return value

    return number
