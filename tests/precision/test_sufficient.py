"""The search for few things that are enough."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.precision.sufficient import find_sufficient


@given(st.integers(1, 200), st.sets(st.integers(0, 199), max_size=5))
def test_finds_exactly_what_is_needed_in_few_tries(count: int, needed: set[int]) -> None:
    needed = {item for item in needed if item < count}
    tried: list[tuple[int, ...]] = []

    def suffices(some: tuple[int, ...]) -> bool:
        tried.append(some)
        return needed <= set(some)

    found, sure = find_sufficient(range(count), suffices, lambda: True)
    assert (set(found), sure) == (needed, True)
    assert len(tried) == len(set(tried))
    assert len(tried) <= 1 + (len(needed) + 1) * (2 + math.ceil(math.log2(count + 1)))


@given(st.sets(st.integers(0, 63), max_size=40), st.integers(0, 30))
def test_what_is_found_when_the_tries_run_out_suffices(needed: set[int], most: int) -> None:
    tries = 0

    def suffices(some: tuple[int, ...]) -> bool:
        nonlocal tries
        tries += 1
        return needed <= set(some)

    found, sure = find_sufficient(range(64), suffices, lambda: tries < most)
    assert needed <= set(found)
    assert tries <= most
    assert not sure or set(found) == needed


def test_those_that_come_first_take_few_tries() -> None:
    tries = 0

    def suffices(some: tuple[int, ...]) -> bool:
        nonlocal tries
        tries += 1
        return {0, 1} <= set(some)

    assert find_sufficient(range(1000), suffices, lambda: True) == ((0, 1), True)
    assert tries <= 6


def test_where_not_even_all_suffice_that_is_known_soon() -> None:
    tries = 0

    def suffices(some: tuple[int, ...]) -> bool:
        nonlocal tries
        tries += 1
        return False

    assert find_sufficient(range(64), suffices, lambda: True) == (tuple(range(64)), False)
    assert tries <= 2 + 2 * 6
