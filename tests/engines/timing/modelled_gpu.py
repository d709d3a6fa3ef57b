"""A model of a GPU whose events and queues are timed."""

from __future__ import annotations

import types
from collections.abc import Callable


class Gpu:
    """A model of a GPU with one stream: work begins when it is queued and what came before is done."""

    def __init__(self) -> None:
        self.host = 0.0
        self.free = 0.0  # when the GPU has done all that was queued
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self) -> None:
                gpu.free = self.at = max(gpu.free, gpu.host)

            def query(self) -> bool:
                return gpu.host >= self.at

            def synchronize(self) -> None:
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1000

        self.cuda = types.SimpleNamespace(Event=Event, _sleep=lambda cycles: self.run(cycles / 1.9e9))

    def run(self, seconds: float, host: float = 0.0) -> None:
        """Queues a kernel, after `host` seconds of the host's work."""
        self.host += host
        self.free = max(self.free, self.host) + seconds


def call(gpu: Gpu, us: float, host_us: float) -> Callable[[], None]:
    return lambda: gpu.run(us * 1e-6, host_us * 1e-6)
