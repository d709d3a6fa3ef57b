"""Measures on several GPUs: a worker for each GPU of a Ray cluster, one product at a time on each."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt.engines.backends.child import shared_child
from sparseflow_trt.engines.measuring.curves import Measured, Request
from sparseflow_trt.engines.measuring.journal import Identity
from sparseflow_trt.engines.measuring.measurers import Identify, InTurn, MakeMeasurers, identify
from sparseflow_trt.engines.measuring.ray_cluster import Tell, connect, release, reserve
from sparseflow_trt.errors import PolicyError, SparseflowError
from sparseflow_trt.policies.policy import Dtype, Library


class RayWorkers:
    """Workers of a Ray cluster: the one that runs, else one of this machine's own. Use as a context manager.

    Ray gives each worker one GPU, which is the only one that it sees, and none to a second one. GPUs that are
    in use by others are left to them; where all are, it waits for the first, and says so now and then.

    Attributes:
        count: How many there are.
    """

    def __init__(
        self,
        make: MakeMeasurers,
        count: int | None = None,
        gpus: float = 1,
        identity: Identify = identify,
        tell: Tell = lambda sentence: None,
    ) -> None:
        """Starts them.

        Args:
            make: Makes what measures, in each worker.
            count: How many at most; by default as many as the cluster has GPUs.
            gpus: GPUs of each; 0 for workers that measure on the CPU.
            identity: Says in a worker what its figures hold for.
            tell: Called with a sentence on what is waited for, and on GPUs that are left out.

        Raises:
            NotInstalledError: Ray is missing.
            PolicyError: There is no such cluster, or it has no GPU or too few.
            SparseflowError: As `make`, from a worker.
        """
        self._ray: Any = require("ray", "measuring on several GPUs")
        self._ours = not self._ray.is_initialized()
        started = self._ours and connect(self._ray)
        self._groups: list[Any] = []
        self._actors: list[Any] = []
        try:
            self._groups = reserve(self._ray, count, gpus, started, tell)
            self.count = len(self._groups)
            self._actors = [self._start(group, gpus, make, identity) for group in self._groups]
            self._get([actor.begin.remote() for actor in self._actors])
        except BaseException:
            self.close()
            raise
        self._idle = list(self._actors)
        self._under_way: dict[Any, Any] = {}

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and the cluster where it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        release(self._ray, self._groups)
        if self._ours:
            self._ray.shutdown()

    def libraries(self) -> tuple[Library, ...]:
        """Whose kernels they measure."""
        found: tuple[Library, ...] = self._get(self._actors[0].libraries.remote())
        return found

    def why_not(self, library: Library, n: int, k: int, dtype: Dtype) -> str:
        """Why a product cannot be measured, "" where it can."""
        return str(self._get(self._actors[0].why_not.remote(library, n, k, dtype)))

    def identify(self, dtypes: tuple[Dtype, ...]) -> Identity:
        """What the figures hold for.

        Raises:
            PolicyError: Two workers differ in it.
        """
        found: list[Identity] = self._get([actor.identify.remote(dtypes) for actor in self._actors])
        for other in found[1:]:
            if other != found[0]:
                raise PolicyError(
                    f"the cluster's GPUs differ: {found[0].device} with {found[0].libraries}, and "
                    f"{other.device} with {other.libraries}.",
                    "A policy holds for one GPU and one set of libraries: tune them separately.",
                )
        return found[0]

    def submit(self, request: Request) -> None:
        """Gives an idle worker a request."""
        actor = self._idle.pop()
        self._under_way[actor.measure.remote(request)] = actor

    def next_measured(self) -> Measured:
        """Waits for the first answer.

        Raises:
            SparseflowError: As the measurer, from a worker.
            PolicyError: A worker died.
        """
        done, _ = self._ray.wait(list(self._under_way), num_returns=1)
        self._idle.append(self._under_way.pop(done[0]))
        answer: Measured = self._get(done[0])
        return answer

    def _start(self, group: Any, gpus: float, make: MakeMeasurers, identity: Identify) -> Any:
        place = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(placement_group=group)
        worker = self._ray.remote(_Worker).options(num_gpus=gpus, num_cpus=1, scheduling_strategy=place)
        return worker.remote(make, identity)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SparseflowError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise PolicyError(
                f"a Ray worker died: {str(error).strip().splitlines()[-1].strip()}",
                "What was measured before is kept: the same command continues.",
            ) from error


class _Worker:
    """Lives in a process of its own, with one GPU."""

    def __init__(self, make: MakeMeasurers, identity: Identify) -> None:
        self._make = make
        self._identity = identity
        self._crew = InTurn((), identity)
        self._shared = contextlib.ExitStack()  # ends with the process

    def begin(self) -> None:
        """Makes the measurers; here and not at once, so that what goes wrong is said as it is."""
        self._shared.enter_context(shared_child())
        self._crew = InTurn(self._make(), self._identity)

    def libraries(self) -> tuple[Library, ...]:
        return self._crew.libraries()

    def identify(self, dtypes: tuple[Dtype, ...]) -> Identity:
        return self._crew.identify(dtypes)

    def why_not(self, library: Library, n: int, k: int, dtype: Dtype) -> str:
        return self._crew.why_not(library, n, k, dtype)

    def measure(self, request: Request) -> Measured:
        self._crew.submit(request)
        return self._crew.next_measured()
