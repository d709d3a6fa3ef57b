"""One run of an engine as a CUDA graph: launched again and again, on the same memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparseflow_trt.engines.running.context import Bound
from sparseflow_trt.engines.running.cuda import ClosedAtEnd, Cuda, Graph, stream_handle
from sparseflow_trt.engines.running.device_tensor import DeviceTensor
from sparseflow_trt.errors import InputError

if TYPE_CHECKING:
    from sparseflow_trt.engines.running.runner import Engine


class CapturedRun(ClosedAtEnd):
    """A recorded run. Write to its inputs, launch it, read its outputs. Use as a context manager.

    A graph's memory and shapes are fixed, and what TensorRT needs in between lies in the engine's context:
    it can be launched as long as the engine runs nothing else.

    Attributes:
        inputs: The tensors that a launch reads.
        outputs: The tensors that a launch writes.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Mapping[str, DeviceTensor],
        outputs: Mapping[str, DeviceTensor],
        graph: Graph,
    ) -> None:
        """For `Engine.capture`."""
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)
        self._engine = engine
        self._bound = engine.bound
        self._graph = graph
        self._end = weakref.finalize(self, _destroy, engine.cuda, graph)
        self._end.atexit = False

    def close(self) -> None:
        """Gives the graph back; the tensors live as long as somebody holds them."""
        self._end()

    def launch(self, stream: Any = None) -> None:
        """Runs it once, on what its inputs hold by then.

        Args:
            stream: Without one the outputs are written when this returns. With one (see
                `Engine.run_device`) the launch is queued on it, behind whatever wrote the inputs there.

        Raises:
            InputError: The engine has since run with other shapes or tensors, or one of the two is closed.
            BuildError: CUDA fails.
        """
        self._check()
        handle = self._engine.stream if stream is None else stream_handle(stream)
        with self._engine.using(handle):
            self._launch(handle)
            self._engine.settle(handle, self.inputs | self.outputs)

    def time(self, launches: int) -> list[float]:
        """Milliseconds of GPU time of each of `launches` launches.

        Raises:
            InputError: As `launch`.
            BuildError: As `launch`.
        """
        self._check()
        stream = self._engine.stream
        with self._engine.using(stream):
            times = self._engine.cuda.time(stream, lambda: self._launch(stream), launches)
            self._engine.settle(stream, self.inputs | self.outputs)
        return times

    def _launch(self, stream: int) -> None:
        self._engine.cuda.call("cudaGraphLaunch", self._graph.executable, stream)

    def _check(self) -> None:
        if not self._end.alive:
            raise InputError("the captured run is closed.", "Capture it again.")
        if (now := self._engine.bound) is not self._bound or now is None:
            raise InputError(
                f"the captured run cannot be launched: its engine {_since(self._bound, now)}.",
                "Capture it again; for other runs beside it, load the engine once more.",
            )


def _since(then: Bound | None, now: Bound | None) -> str:
    if now is None or then is None:
        return "has been closed or profiled, or has failed"
    if now.shapes == then.shapes:
        return "has since run with other tensors"
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in now.shapes.items())
    return f"has since run with the shapes {shapes}"


def _destroy(cuda: Cuda, graph: Graph) -> None:
    cuda.call("cudaGraphExecDestroy", graph.executable)
    cuda.call("cudaGraphDestroy", graph.graph)
