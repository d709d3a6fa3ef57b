"""Builds at once, each in a process: TensorRT 8.6's works on one processor (docs/AUTOTUNED_POLICY.md)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def at_once(count: int, build: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> list[Result]:
    """What a function of a module gives for each tuple of arguments, `count` of them at a time.

    Each process is a new one, since one that was forked cannot use CUDA. One build alone has none of its own.

    Raises:
        Exception: As the first that fails; those under way are waited for, and no other is begun.
    """
    if count == 1 or len(arguments) < 2:
        return [build(*given) for given in arguments]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(count, len(arguments)), mp_context=context) as pool:
        try:
            return [future.result() for future in [pool.submit(build, *given) for given in arguments]]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
