"""Measures on one GPU with several builders: engines are built at once, and timed one after the other."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from sparseflow_trt.engines.backends.child import abandon_builds
from sparseflow_trt.engines.measuring.curves import Measured, Request
from sparseflow_trt.engines.measuring.measurers import Identify, InTurn, MakeMeasurers

_SECONDS_TO_END = 0.2


class Builders(InTurn):
    """A crew of several threads, each of which waits for a builder of its own. Use as a context manager.

    A builder of TensorRT 8.6 works on one processor for nearly all of its time (docs/AUTOTUNED_POLICY.md),
    and the GPU is idle meanwhile.

    Attributes:
        count: How many there are.
    """

    def __init__(self, make: MakeMeasurers, identify: Identify, count: int) -> None:
        """Makes the measurers, which all threads share.

        Raises:
            NotInstalledError: As `make`.
        """
        super().__init__(make(), identify)
        self.count = count
        self._pool = ThreadPoolExecutor(count)
        self._under_way: set[Future[Measured]] = set()

    def __enter__(self) -> Builders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends builds that nobody waits for any more."""
        self._pool.shutdown(wait=False)
        while wait(self._under_way, _SECONDS_TO_END).not_done:  # one may go on to the next engine
            abandon_builds()

    def submit(self, request: Request) -> None:
        """Begins with a request."""
        self._under_way.add(self._pool.submit(self.measure, request))

    def next_measured(self) -> Measured:
        """Waits for the first answer.

        Raises:
            BuildError: As the measurer.
            PolicyError: As the measurer.
        """
        done = next(iter(wait(self._under_way, return_when=FIRST_COMPLETED).done))
        self._under_way.remove(done)
        return done.result()
