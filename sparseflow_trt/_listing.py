"""Names or phrases in a sentence: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` of them, and the number of the others: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed_apart(phrases: Sequence[str], most: int) -> str:
    """The same of phrases that may hold commas: "a; b; and 3 more"."""
    more = [f"and {len(phrases) - most} more"] if len(phrases) > most else []
    return "; ".join([*phrases[:most], *more])
