"""Runs a TensorRT engine: NumPy arrays or GPU tensors in, the same out, or captured as a CUDA graph.

One path serves TensorRT 8.6, 10, 11 and RTX: named tensors and execute_async_v3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseflow_trt._paths import AnyPath
from sparseflow_trt.engines.running.captured import CapturedRun
from sparseflow_trt.engines.running.context import Bound, Context
from sparseflow_trt.engines.running.cuda import ClosedAtEnd, Cuda, Marker, stream_handle
from sparseflow_trt.engines.running.device_tensor import DeviceTensor
from sparseflow_trt.engines.running.engine_tensors import Array, shapes_of
from sparseflow_trt.engines.running.layer_times import LayerTime, layer_times
from sparseflow_trt.engines.running.placement import MemoryFor, Placement
from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.errors import InputError

_WARM_UP = 3  # runs that are not profiled: the first ones load kernels


class Engine(ClosedAtEnd):
    """A loaded engine with a context, a stream and device buffers. Use as a context manager.

    It runs on the GPU that was the thread's when it was loaded. Not for several threads at once: load one
    for each.

    Attributes:
        tensors: Its inputs and outputs.
        device: The number of its GPU.
        cuda, stream: CUDA's runtime, and the stream that it runs on where no other is given.
    """

    def __init__(
        self, flavour: Flavour, path: AnyPath, host_code: bool = False, weights: AnyPath | None = None
    ) -> None:
        """Loads an engine file.

        Args:
            flavour: The TensorRT to run it with.
            path: The engine's file.
            host_code: Whether the engine may bring code for the CPU, as a version-compatible one does.
            weights: The typed ONNX file whose weights a stripped engine gets; None for one that has its own.

        Raises:
            BuildError: This TensorRT or this GPU does not take it, or it does not take the weights.
            InputError: It has an input or output that cannot be given here.
            NotInstalledError: cuda-bindings is missing.
        """
        self.cuda = Cuda()
        self.cuda.call("cudaFree", 0)  # makes CUDA's own context, which is not to count as the engine's
        self.device = self.cuda.device()
        given = Path(weights) if weights else None
        self._context = Context(self.cuda, flavour, Path(path), host_code, given)
        self.tensors = self._context.tensors
        self.stream = self.cuda.new_stream()
        self._places = Placement(self.cuda, self.tensors, self.device)
        self._last: Marker | None = None
        self._closed = False

    def close(self) -> None:
        """Gives the device memory back, but for the tensors that somebody still holds."""
        if self._closed:
            return
        try:
            with self.using(self.stream):
                try:
                    self.settle(self.stream, {})
                finally:
                    self._places.clear()
                    self._context.close()
                self.cuda.call("cudaStreamDestroy", self.stream)
        finally:
            self._closed = True

    @property
    def profile(self) -> int:
        """The optimization profile in use; -1 where the next run sets one."""
        return self._context.profile

    @property
    def bound(self) -> Bound | None:
        """What its context is set to; another object after each change."""
        return self._context.bound

    @property
    def device_memory_bytes(self) -> int:
        """What a context of this engine needs besides its weights."""
        return self._context.memory_bytes

    @property
    def loaded_bytes(self) -> int:
        """By how much the GPU's free memory shrank while the engine was loaded: weights, context, kernels.

        What other programs took or gave back meanwhile counts too.
        """
        return self._context.loaded_bytes

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Computes the outputs of host arrays. Integers are converted to the engine's type where they fit.

        Raises:
            InputError: An input is missing, unknown, of another dtype or rank, or fits no profile.
            BuildError: The engine fails to run.
        """
        arrays = self._places.check_arrays(feeds)
        with self.using(self.stream):
            _, placed = self._place(arrays, {}, self.stream, self._places.own)
            self._context.enqueue(self.stream)
            outputs = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in placed.items()}
            for name, array in outputs.items():
                self.cuda.copy_to_host(array, placed[name].pointer, self.stream)
            self.settle(self.stream, {})
        return outputs

    def run_device(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, stream: Any = None
    ) -> dict[str, DeviceTensor]:
        """Computes the outputs of tensors in GPU memory, which are read where they lie.

        Args:
            feeds: A tensor for each input, of any library that exports DLPack: PyTorch, CuPy, this one.
            outputs: Tensors to write outputs to, by name. For the others memory is taken anew.
            stream: The CUDA stream to run on: its address, or an object of PyTorch, CuPy or cuda.core.
                Without one the outputs are written when this returns. With one the run is queued on it,
                and tensors must not be overwritten or freed before it is done: use them on that stream.
                Into a stream that is being captured the run is recorded; it must have run with these
                shapes just before, and each output must be given.

        Returns:
            Each output, for `torch.from_dlpack` and others like it to take with no copy.

        Raises:
            InputError: A tensor is missing, unknown, not contiguous, not aligned, of another dtype, shape or
                device, or the shapes fit no profile.
            BuildError: The engine fails to run.
        """
        handle = self.stream if stream is None else stream_handle(stream)
        with self.using(handle) as recording:
            given = self._places.check_tensors(feeds, handle)
            memory_for = self._places.none if recording else self._places.new
            _, made = self._place(given, outputs or {}, handle, memory_for, recording)
            self._context.enqueue(handle)
            self.settle(handle, made)
        return made

    def capture(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> CapturedRun:
        """Records a run as a CUDA graph, after running it once.

        Args:
            feeds: NumPy arrays, copied to GPU memory of the captured run's own, which it reads from then
                on; or tensors in GPU memory, which it reads where they lie.
            outputs: Tensors in GPU memory to write outputs to, by name; for the others memory is taken.

        Raises:
            InputError: As `run` and `run_device`.
            BuildError: As `run`; or the engine cannot be recorded.
        """
        with self.using(self.stream):
            given = self._places.check(feeds, self.stream)
            inputs, made = self._place(given, outputs or {}, self.stream, self._places.new)
            self._context.enqueue(self.stream)  # what is made lazily is made now
            self.cuda.synchronize(self.stream)
            graph = self.cuda.capture(self.stream, lambda: self._context.enqueue(self.stream))
            self.settle(self.stream, made)
        return CapturedRun(self, inputs, made, graph)

    def time(self, feeds: Mapping[str, Any], launches: int) -> list[float]:
        """Milliseconds of GPU time of each of `launches` launches of one run, captured as a CUDA graph.

        Raises:
            InputError: As `capture`.
            BuildError: As `capture`.
        """
        with self.capture(feeds) as captured:
            return captured.time(launches)

    def profile_layers(self, feeds: Mapping[str, Any], runs: int = 20) -> tuple[LayerTime, ...]:
        """Times each layer by TensorRT's profiler, in a context of its own; captured runs end with it.

        Args:
            feeds: As in `capture`.
            runs: How many runs count, after a few that do not.

        Raises:
            InputError: As `capture`.
            BuildError: As `run`.
        """
        reports: list[dict[str, float]] = []
        with self.using(self.stream):
            self.settle(self.stream, {})
            self._context.renew()  # a profiler changes how a context runs
            try:
                given = self._places.check(feeds, self.stream)
                self._place(given, {}, self.stream, self._places.own)
                self._context.report_layers(reports)
                for _ in range(_WARM_UP + runs):
                    reports.append({})
                    self._context.enqueue(self.stream)
                    self.cuda.synchronize(self.stream)
            finally:
                self._context.renew()
        return layer_times(reports[_WARM_UP:])

    @contextlib.contextmanager
    def using(self, stream: int) -> Iterator[bool]:
        """Goes to the engine's GPU, and puts what follows on `stream` behind the engine's last run.

        Yields:
            Whether the stream is being captured: then nothing is ordered.

        Raises:
            InputError: The engine is closed.
        """
        if self._closed:
            raise InputError("the engine is closed.", "Load it again.")
        with self.cuda.on(self.device):
            recording = stream != self.stream and self.cuda.is_capturing(stream)
            if self._last and not recording:
                self.cuda.wait(stream, self._last)
            yield recording

    def settle(self, stream: int, tensors: Mapping[str, DeviceTensor]) -> None:
        """Ends a run: waits on the engine's own stream; on another, marks the tensors as busy until then."""
        marker = None
        if stream == self.stream:
            self.cuda.synchronize(stream)
            self._last = None
        elif not self.cuda.is_capturing(stream):
            marker = self._last = self.cuda.mark(stream)
        for tensor in tensors.values():
            tensor.busy_until(marker)

    def _place(
        self,
        given: Mapping[str, Array | DeviceTensor],
        outputs: Mapping[str, Any],
        stream: int,
        memory_for: MemoryFor,
        recording: bool = False,
    ) -> tuple[dict[str, DeviceTensor], dict[str, DeviceTensor]]:
        """Sets the context's shapes and addresses, and gives the inputs and the outputs as placed."""
        shapes = shapes_of(given)
        self._context.set_shapes(shapes, stream, recording)
        made = self._places.place_outputs(outputs, self._context.output_shape, stream, memory_for)
        inputs = self._places.place_inputs(given, stream, memory_for)
        self._context.set_addresses(shapes, {n: t.pointer for n, t in (inputs | made).items()})
        return inputs, made
