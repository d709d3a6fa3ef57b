"""Those that measure: which libraries can be measured on this machine, and what their figures hold for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from sparseflow_trt.engines.machine.hardware import NO_GPU, find_gpus
from sparseflow_trt.engines.measuring.curves import Measured, Request, Workers
from sparseflow_trt.engines.measuring.journal import Identity
from sparseflow_trt.engines.measuring.medians import Effort
from sparseflow_trt.engines.measuring.turn import Turn
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.policies.policy import Dtype, Library


class Measurer(Protocol):
    """Measures products of one library on one GPU."""

    @property
    def library(self) -> Library:
        """Whose kernels it measures."""
        ...

    def versions(self) -> dict[str, str]:
        """The libraries whose kernels run, by name."""
        ...

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        """Why a product cannot be measured, "" where it can."""
        ...

    def measure(self, request: Request) -> Measured:
        """Times one product dense and by the curve's kernel, in turn.

        Raises:
            BuildError: An engine of it cannot be built or run.
            PolicyError: The sparse product is wrong, or cannot be computed or timed.
        """
        ...


MakeMeasurers = Callable[[], Sequence[Measurer]]
Identify = Callable[[Sequence[Measurer], tuple[Dtype, ...]], Identity]


class Crew(Workers, Protocol):
    """Workers that say what they measure, and on what."""

    def libraries(self) -> tuple[Library, ...]:
        """Whose kernels they measure."""
        ...

    def identify(self, dtypes: tuple[Dtype, ...]) -> Identity:
        """What their figures hold for."""
        ...

    def why_not(self, library: Library, n: int, k: int, dtype: Dtype) -> str:
        """Why a product cannot be measured, "" where it can."""
        ...


class InTurn:
    """Measures in this process, one request after another: a Crew of one."""

    count = 1

    def __init__(self, measurers: Sequence[Measurer], identify: Identify) -> None:
        """Takes a measurer for each library, and what says what their figures hold for."""
        self._measurers = {measurer.library: measurer for measurer in measurers}
        self._identify = identify
        self._waiting: deque[Request] = deque()

    def libraries(self) -> tuple[Library, ...]:
        """Whose kernels it measures."""
        return tuple(self._measurers)

    def identify(self, dtypes: tuple[Dtype, ...]) -> Identity:
        """What its figures hold for."""
        return self._identify(list(self._measurers.values()), dtypes)

    def why_not(self, library: Library, n: int, k: int, dtype: Dtype) -> str:
        """Why a product cannot be measured, "" where it can."""
        return self._measurers[library].why_not(n, k, dtype)

    def submit(self, request: Request) -> None:
        """Remembers a request."""
        self._waiting.append(request)

    def next_measured(self) -> Measured:
        """Measures the oldest request.

        Raises:
            BuildError: As the measurer.
            PolicyError: As the measurer.
        """
        return self.measure(self._waiting.popleft())

    def measure(self, request: Request) -> Measured:
        """Measures one product, in whatever thread it is called.

        Raises:
            BuildError: As the measurer.
            PolicyError: As the measurer.
        """
        return self._measurers[request.curve.library].measure(request)


def make_measurers(
    libraries: Iterable[Library], effort: Effort, plugin: Path | None = None
) -> tuple[Measurer, ...]:
    """A measurer for each library; none asked for means all that are here.

    Args:
        libraries: Whose kernels.
        effort: How long to time each product.
        plugin: The library of the plugin, to be measured in TensorRT, which then has to be here.

    Raises:
        NotInstalledError: One that was asked for is missing, or there is none; or there is no GPU.
    """
    asked = tuple(libraries)
    if not find_gpus():
        raise NotInstalledError(
            f"autotune measures on the GPU that the policy is for, and {NO_GPU}.",
            "Run it on that machine; `sparseflow-trt estimate` needs no GPU.",
        )
    made, missing, turn = [], [], Turn()
    for library in asked or ("tensorrt", "torch"):
        try:
            made.append(_make(library, effort, plugin, turn))
        except NotInstalledError as error:
            if asked or (plugin and library == "tensorrt"):
                raise
            missing.append(error)
    if not made:
        raise NotInstalledError(
            "neither TensorRT nor PyTorch can be measured here.",
            " ".join(f"{error.message} {error.hint}" for error in missing),
        )
    return tuple(made)


def identify(measurers: Sequence[Measurer], dtypes: tuple[Dtype, ...]) -> Identity:
    """What the figures of these measurers hold for: the first visible GPU, and their libraries' versions."""
    gpu = find_gpus()[0]
    libraries = {name: version for m in measurers for name, version in m.versions().items()}
    return Identity(
        device=gpu.name,
        compute_capability=gpu.compute_capability,
        multiprocessors=gpu.multiprocessors,
        libraries=dict(sorted(libraries.items())),
        dtypes=tuple(sorted(dtypes)),
    )


def _make(library: Library, effort: Effort, plugin: Path | None, turn: Turn) -> Measurer:
    if library == "torch":
        from sparseflow_trt.engines.measuring.time_torch import TorchMeasurer

        return TorchMeasurer(effort, turn)
    from sparseflow_trt.engines.measuring.time_tensorrt import TensorRtMeasurer

    return TensorRtMeasurer(effort, plugin, turn)
