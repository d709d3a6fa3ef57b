"""Polygraphy runners on ONNX Runtime's CPU: the reference, and candidates that are ONNX files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._deps import require
from sparseflow_trt.errors import BuildError, InputError, ModelError, one_line
from sparseflow_trt.validation.feeds import Array, InputSet
from sparseflow_trt.validation.messages import lacks_memory, why_refused
from sparseflow_trt.validation.narrow import WidenedSession, is_narrow, widen

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.backend.onnxrt import OnnxrtRunner

Outputs = dict[str, Array]

_FIXED = (
    "If a sequence is longer than the model has positions for, plan a shorter one; if the "
    "model has a size fixed inside, export it with that axis dynamic, or plan with the one size "
    "that it takes; if it refuses values, give others with --inputs."
)

_OTHER_TYPE = "Give inputs of the type that the module computes in, or the module in the type of its inputs."

_SMALLER = "Plan smaller sizes, give smaller inputs with --inputs, or use a machine with more memory."

_FATAL = 4  # ONNX Runtime's severity; what is below it goes to stderr, and all of it is in the exception too


class UnsupportedError(BuildError):
    """ONNX Runtime's CPU has no kernel for a node: it cannot say whether the model is right."""


def ort_runner(path: Path, name: str, optimized: bool = False) -> OnnxrtRunner:
    """A runner of an ONNX file on the CPU.

    Args:
        path: The file.
        name: The runner's.
        optimized: Whether ONNX Runtime optimizes the graph, as where it serves it; else it runs as written.

    Raises:
        ModelError: ONNX Runtime does not take the model.
        UnsupportedError: It has no CPU kernel for a node.
        NotInstalledError: ONNX Runtime or Polygraphy.
    """
    require("polygraphy", "comparing outputs")
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(open_session(path, optimized), name)


def ort_runtime() -> str:
    """What these runners run on, in words."""
    onnxruntime = require("onnxruntime", "running the reference")
    return f"ONNX Runtime {onnxruntime.__version__} on the CPU (FP16 is computed in FP32 there, and rounded)"


def ort_errors() -> tuple[type[Exception], ...]:
    """The classes that ONNX Runtime raises, which have no common base."""
    require("onnxruntime", "running the reference")
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)]
    return (*own, RuntimeError, ValueError)


def open_session(path: Path, optimized: bool = False) -> Any:
    """An inference session on the CPU whose BF16 and FP8 ends, if any, look like FP32 ones.

    Raises:
        ModelError: ONNX Runtime does not take the model.
        UnsupportedError: It has no CPU kernel for a node.
        NotInstalledError: ONNX Runtime.
    """
    session = _session(path, optimized)
    ends = (*session.get_inputs(), *session.get_outputs())
    odd = [end for end in ends if not end.type.startswith("tensor(")]
    if odd:
        raise ModelError(
            f"{path}: '{odd[0].name}' is a {odd[0].type}, but only tensors can be compared.",
            "Export the model with tensors as inputs and outputs.",
        )
    narrow = any(is_narrow(end.type) for end in ends)
    return WidenedSession(session) if narrow else session


def _session(path: Path, optimized: bool) -> Any:
    onnxruntime = require("onnxruntime", "running the reference")
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # By default a thread is bound to each core of the machine, which fails noisily in a container that
    # has only some of them.
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    # By default they spin between nodes: of a small model that is half of the work, and it is taken from
    # whatever else runs here; MiniLM runs no slower without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = onnxruntime.GraphOptimizationLevel
    # Not ORT_ENABLE_ALL: ONNX Runtime 1.31 crashes there on Transpose, MatMul by a 2-D weight, Add in FP16.
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if optimized else levels.ORT_DISABLE_ALL
    if optimized:
        # The build fused what it could of INT8. Loading would fuse more, blind to FP16 scales, and refuse it.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    else:
        _leave_weights_in_their_file(options, onnxruntime)
    if not path.is_file():
        raise ModelError(f"{path} does not exist.", "Check the path.")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except NoKernel as error:
        raise UnsupportedError(
            f"ONNX Runtime's CPU cannot run {path}: {one_line(error)}.",
            "Compare a twin of it in types that the CPU has kernels for, or run it on its own device.",
        ) from error
    except ort_errors() as error:
        raise ModelError(
            f"ONNX Runtime does not take {path}: {one_line(error)}.",
            "Check the model with onnx.checker, and its operators' domains.",
        ) from error
    if not optimized:
        _give_back_after_runs(session, onnxruntime)
    return session


def _leave_weights_in_their_file(options: Any, onnxruntime: Any) -> None:
    """Has a graph that runs as it is written hold little more than its mapped file, whatever its size."""
    # Planning which tensor takes over whose memory takes the square of the nodes: 20 s for 14,000 of them.
    # Without, each has memory of its own and gives it back after its last reader.
    options.enable_mem_reuse = False
    # A packed copy of each weight is made in longer than the few runs of a comparison gain by it.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # The file's order. By default a twin's weights may all be widened before the first product reads one.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED


def _give_back_after_runs(session: Any, onnxruntime: Any) -> None:
    """Has a session keep no memory between its runs, since others are held beside it; its arena would."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run = partial(session.run, run_options=options)
    session.run_with_ort_values = partial(session.run_with_ort_values, run_options=options)


def run_once(runner: Any, given: InputSet) -> Outputs:
    """What a runner makes of one input set, by the outputs' names."""
    from polygraphy.comparator import Comparator

    feeds = {name: widen(array) for name, array in given.feeds.items()}
    results = Comparator.run([runner], data_loader=[feeds])
    return dict(results[0][1][0].items())


def run_errors() -> tuple[type[Exception], ...]:
    """What a run that fails raises."""
    from polygraphy.exception import PolygraphyException

    return (PolygraphyException, InputError, *ort_errors())


def cannot_run(what: str, runner: BaseRunner, given: InputSet, error: BaseException) -> InputError:
    """The error of a model that has to run on an input set and does not, with the sizes asked of it.

    Args:
        what: The model, in words.
        runner: The one that failed.
        given: The set.
        error: What the run raised.
    """
    with runner:
        described = runner.get_input_metadata(use_numpy_dtypes=False)
    sizes = dict.fromkeys(  # an axis that several inputs have, once
        f"{dim or f'{name}.{i}'}={size}"
        for name, end in described.items()
        if name in given.feeds
        for i, (dim, size) in enumerate(zip(end.shape, given.feeds[name].shape, strict=False))
        if not isinstance(dim, int)
    )
    where = f"'{given.name}'" + (f" ({', '.join(sizes)})" if sizes else "")
    hint = _FIXED if sizes else "Check the set's values and shapes against what the model takes."
    if lacks_memory(error):
        hint = _SMALLER
    elif "same dtype" in str(error):  # PyTorch's words
        hint = _OTHER_TYPE
    return InputError(f"{what} cannot run on input set {where}: {why_refused(error)}.", hint)
