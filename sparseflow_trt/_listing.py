"""What sentences list and count: the first few names, how many more there are, those near a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` of them, and the number of the others: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed_apart(phrases: Sequence[str], most: int) -> str:
    """The same of phrases that may hold commas: "a; b; and 3 more"."""
    more = [f"and {len(phrases) - most} more"] if len(phrases) > most else []
    return "; ".join([*phrases[:most], *more])


def counted(number: int, noun: str, one: str = "", more: str = "") -> str:
    """A number of things, and the verb that goes with it: "1 weight was", "2 weights were"."""
    things, verb = (noun, one) if number == 1 else (f"{noun}s", more)
    return f"{number} {things} {verb}".rstrip()


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that asks for what comes near a misspelt name, the nearest first, and then says `otherwise`."""
    near = get_close_matches(word, sorted(set(known)), cutoff=0.7)
    return f"Did you mean {' or '.join(near)}? {otherwise}".rstrip() if near else otherwise
