"""What timing through PyTorch takes: calls queued behind a sleeping kernel, and CUDA graphs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from sparseflow_trt.engines.timing.turns import Work, times_in_turn
from sparseflow_trt.errors import PolicyError

_CYCLES_A_SECOND = 2e9  # at least as many as any GPU's clock has: what sleeps shall not wake early
_SPARE_SECONDS = 2e-4
_ATTEMPTS = 5


def new_event(torch: Any) -> Any:
    """An event of PyTorch's that tells times."""
    return torch.cuda.Event(enable_timing=True)


class Queue:
    """Times calls that take longer to make than to run: the GPU sleeps until all of them are queued.

    How long a call takes to make is learnt, and whether the sleep was long enough is checked each time.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._call_seconds = 3e-4

    def times(
        self, works: Sequence[Work], calls: int, samples: int = 1, meanwhile: Work = lambda: None
    ) -> list[list[float]]:
        """Milliseconds of each piece of work, as `times_in_turn`; each makes `calls` calls.

        Raises:
            PolicyError: The calls wait for the GPU, so that none can be queued behind another.
        """
        made = len(works) * calls * samples
        for attempt in range(_ATTEMPTS):
            seconds = _SPARE_SECONDS + made * self._call_seconds * 1.3 * 2**attempt
            cycles = int(seconds * _CYCLES_A_SECOND)
            sleep = functools.partial(self._torch.cuda._sleep, cycles)
            taken = times_in_turn(functools.partial(new_event, self._torch), works, samples, sleep, meanwhile)
            one = taken.host_seconds / made
            self._call_seconds = max(one, 0.8 * self._call_seconds + 0.2 * one)
            if taken.ahead:
                return taken.ms
        raise PolicyError(
            "the kernels cannot be timed: calling them waits for the GPU.",
            "Use a PyTorch whose cuSPARSELt calls can be recorded as CUDA graphs (2.11 is known to work).",
        )


def capture(torch: Any, work: Callable[[], Any]) -> tuple[Any, Any]:
    """Records what `work` queues as a CUDA graph, on the current stream, which is not the default one.

    Everything in it has to have run before: kernels are loaded at their first call.

    Returns:
        The graph, to be replayed, and what `work` returned, which each replay computes anew.

    Raises:
        RuntimeError: PyTorch's own, where the work cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.current_stream().synchronize()
    graph.capture_begin(capture_error_mode="relaxed")
    try:
        result = work()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it says again that the capture went wrong
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, result
