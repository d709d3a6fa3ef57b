"""The search for few things that are enough, where each try is dear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def find_sufficient(
    items: Sequence[_Item], suffices: Callable[[tuple[_Item, ...]], bool], may_try: Callable[[], bool]
) -> tuple[tuple[_Item, ...], bool]:
    """Some of the items that suffice, none of which can be left out.

    In each round the shortest beginning of the remaining items that suffices, with what was kept, is
    found by halving (the first by doubling its length, and then halving the gap); its last item is needed,
    and is kept. So n items of which t are needed take about t·log2(n) tries, and few where the needed ones
    come first. This is
    QuickXplain's preferred explanation (Junker, AAAI 2004), found as Marques-Silva's progression does (CAV
    2013). It takes for granted that more items suffice where fewer do.

    Args:
        items: All together they should suffice. Those that are likely needed, or cheap to keep, come first.
        suffices: Whether some of them do, given in the order of `items`.
        may_try: Whether there may be another try.

    Returns:
        The items, and whether none can be left out: where the tries were used up, that is not known. All of
        them where not even all suffice.
    """
    order = {item: i for i, item in enumerate(items)}
    known: dict[tuple[_Item, ...], bool] = {}

    def test(some: Sequence[_Item]) -> bool | None:
        key = tuple(sorted(some, key=order.__getitem__))
        if key not in known:
            if not may_try():
                return None
            known[key] = suffices(key)
        return known[key]

    kept: list[_Item] = []
    pool = list(items)
    while True:
        enough = test(kept)
        if enough or enough is None:
            chosen, sure = (kept, True) if enough else (kept + pool, False)
            return tuple(sorted(chosen, key=order.__getitem__)), sure
        low, high = 0, len(pool)
        step = len(items) if kept else 1
        while high - low > 1:
            middle = low + step if low + step < high else (low + high) // 2
            enough = test(kept + pool[:middle])
            if enough is None:
                return tuple(sorted(kept + pool[:high], key=order.__getitem__)), False
            if enough:
                high, step = middle, len(items)  # from here on the gap is halved
            else:
                low, step = middle, 2 * step
        if high == len(items) and not test(pool):  # nothing shorter did, so it is time to ask
            return tuple(items), False
        kept.append(pool[high - 1])
        pool = pool[: high - 1]
