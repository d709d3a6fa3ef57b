"""An engine that is loaded, with its execution context: what it is set to, and one run of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt.engines.running.cuda import Cuda
from sparseflow_trt.engines.running.engine_tensors import (
    EngineTensor,
    Shape,
    fitting_profile,
    read_ranges,
    read_tensors,
)
from sparseflow_trt.engines.running.layer_times import make_recorder
from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.engines.tensorrt.load_engine import context_memory_of, load_engine
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.errors import BuildError, InputError


@dataclass(frozen=True, eq=False)
class Bound:
    """What a context is set to: the inputs' shapes, and the addresses of all its tensors."""

    shapes: Mapping[str, Shape]
    addresses: Mapping[str, int]


class Context:
    """TensorRT's engine and its execution context, on the thread's GPU.

    Attributes:
        tensors: The engine's inputs and outputs.
        profile: The optimization profile in use; -1 where one has still to be set.
        bound: What it is set to; another object after each change, None where that is not known.
        loaded_bytes: By how much the GPU's free memory shrank meanwhile, whoever took it.
    """

    bound: Bound | None

    def __init__(
        self, cuda: Cuda, flavour: Flavour, path: Path, host_code: bool, weights: Path | None
    ) -> None:
        """Loads an engine file (see `load_engine`).

        Raises:
            BuildError: This TensorRT or this GPU does not take it, or it does not take the weights.
            InputError: It has an input or output that cannot be given here.
        """
        self._cuda = cuda
        self._path = path
        self._module = flavour.module
        free = cuda.free_memory()
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - until close; only errors are kept
        self._log = BuildLog(self._nowhere)
        self._held = load_engine(flavour, path, self._log, host_code, weights)
        self._engine = self._held.engine
        self._context: Any = None
        self._create()
        self.profile = 0  # which an engine's first context has from the start
        self.loaded_bytes = max(0, free - cuda.free_memory())
        self.tensors: tuple[EngineTensor, ...] = read_tensors(self._engine)
        self._ranges = read_ranges(self._engine, self.tensors)

    def close(self) -> None:
        """Gives its memory back."""
        self.bound = None
        del self._context, self._engine, self._held
        self._nowhere.close()

    def renew(self) -> None:
        """Takes a new execution context in place of this one, which nothing may be running on."""
        self._context = None  # first, since two contexts may not use one profile
        self._create()
        self.profile = -1  # only an engine's first context has one from the start

    @property
    def memory_bytes(self) -> int:
        """What an execution context needs besides the weights."""
        return context_memory_of(self._engine)

    def set_shapes(self, shapes: Mapping[str, Shape], stream: int, recording: bool) -> None:
        """Chooses the first profile that takes these shapes and sets them.

        Args:
            shapes: Of all inputs.
            stream: For what a change of the profile has to copy.
            recording: Whether the stream is being captured: nothing can be changed then.

        Raises:
            InputError: No profile takes them, or they are new and `recording`.
            BuildError: TensorRT does not take them.
        """
        if self.bound and self.bound.shapes == shapes:
            return
        profile = fitting_profile(self._ranges, shapes)
        if recording:
            raise InputError(
                "the engine was not run with these shapes right before the capture.",
                "Run it once with them, then capture.",
            )
        self.bound = None
        if profile != self.profile:
            self._check(self._context.set_optimization_profile_async(profile, stream))
            self._cuda.synchronize(stream)
            self.profile = profile
        for name, shape in shapes.items():
            self._check(self._context.set_input_shape(name, shape))

    def output_shape(self, tensor: EngineTensor) -> Shape:
        """An output's shape for the shapes that are set.

        Raises:
            InputError: It depends on more than those.
        """
        shape = tuple(self._context.get_tensor_shape(tensor.name))
        if -1 in shape:
            raise InputError(
                f"{tensor} has a shape that depends on the values of the inputs: {list(shape)}.",
                "Only outputs whose shape follows from the inputs' shapes are supported.",
            )
        return shape

    def set_addresses(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Sets where inputs and outputs lie; `shapes` are those that are set."""
        if self.bound and self.bound.addresses == addresses:
            return
        self.bound = None
        for name, address in addresses.items():
            self._check(self._context.set_tensor_address(name, address))
        self.bound = Bound(dict(shapes), dict(addresses))

    def enqueue(self, stream: int) -> None:
        """Puts one run on a stream.

        Raises:
            BuildError: TensorRT refuses.
        """
        self._check(self._context.execute_async_v3(stream))

    def report_layers(self, runs: list[dict[str, float]]) -> None:
        """From now on adds each layer's milliseconds to the last of `runs`; each run then waits."""
        self._context.profiler = make_recorder(self._module, runs)

    def _create(self) -> None:
        self.bound = None
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BuildError(
                f"there is no memory for a context of {self._path}: {self._log.take_errors()}",
                "Free some GPU memory.",
            )

    def _check(self, done: bool) -> None:
        if not done:
            raise BuildError(f"the engine failed to run: {self._log.take_errors()}", "Build it again.")
