"""The child process that TensorRT builds run in: `python -m …engines.backends.worker FD < JOBS`.

The library may print to stdout, crash, or take all memory; here it harms nobody. The parent gives
this process a log file as stdout and stderr, and a pipe, FD, for what it has to tell. Jobs are lines; one
that fails is the last.

A build waits for this process to start. So what few builds need is imported where they need it. After the
last job it leaves the libraries' own way out, which may crash, to the system.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from sparseflow_trt.engines.backends.wire import Job, Message, Outcome, Refusal
from sparseflow_trt.engines.evidence.inspector import layers_from_inspector
from sparseflow_trt.engines.evidence.tactics import layers_from_log
from sparseflow_trt.engines.plugin.library import load_library, versions_in_use
from sparseflow_trt.engines.protocol import Progress
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.engines.tensorrt.build_engine import build_engine
from sparseflow_trt.engines.tensorrt.inspect_engine import engine_information
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.errors import NotInstalledError, SparseflowError

_PR_SET_PDEATHSIG = 1

Send = Callable[[Message], None]


def main() -> None:
    """Reads jobs from stdin, does them, and sends messages to the pipe named in argv; ends the process."""
    send = _sender(int(sys.argv[1]))
    try:
        for line in sys.stdin:
            job = Job.model_validate_json(line)
            _die_with(job.parent)
            # each job's log has a stream of its own: TensorRT may keep the logger of an earlier one
            with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as stream:
                outcome = _build(job, stream, send)
            send(Message(outcome=outcome))
        os._exit(0)
    except SparseflowError as error:
        not_installed = isinstance(error, NotInstalledError)
        send(Message(refusal=Refusal(message=error.message, hint=error.hint, not_installed=not_installed)))
    except OSError as error:
        if error.strerror is None:
            raise
        message = f"the engine cannot be written: {error.strerror}."
        hint = "Free some space, or choose another place."
        send(Message(refusal=Refusal(message=message, hint=hint, not_installed=False)))


def _build(job: Job, stream: TextIO, send: Send) -> Outcome:
    def on_progress(progress: Progress) -> None:
        send(Message(progress=progress))

    flavour = load_flavour(job.flavour)
    if job.plugin:
        load_library(flavour, Path(job.plugin), job.plugin_sha256)
    log = BuildLog(stream)
    started = time.monotonic()
    model, engine, host_code = Path(job.model), Path(job.engine), job.options.version_compatible
    notes: tuple[str, ...] = ()
    if job.exchange:
        from sparseflow_trt.engines.tensorrt.refit_engine import refit_engine

        on_progress(Progress("Exchanging the weights"))
        before = (Path(job.exchange.engine), Path(job.exchange.model))
        refit_engine(flavour, *before, model, engine, job.options, log)
    else:
        notes = build_engine(flavour, model, engine, job.profiles, job.sparse, job.options, log, on_progress)
    seconds = time.monotonic() - started
    if job.options.refit and not job.exchange and flavour.key != "tensorrt-rtx":
        from sparseflow_trt.engines.tensorrt.refit_engine import check_refittable

        on_progress(Progress("Checking that the weights can be exchanged"))
        check_refittable(flavour, engine, model, job.options, log)
    if flavour.key == "tensorrt-rtx":  # no engine of it loads without a GPU that it runs on
        layers = layers_from_log(log.layers)
    else:
        on_progress(Progress("Asking the engine what it runs"))
        weights = model if job.options.strip_plan else None
        texts = engine_information(flavour, engine, job.profiles, log, host_code, weights)
        layers = layers_from_inspector(*texts)
    timings = log.timings.layers()
    return Outcome(
        version=flavour.version,
        seconds=seconds,
        layers=layers,
        timings=timings,
        notes=notes,
        plugin_versions=versions_in_use() if job.plugin else {},
    )


def _sender(descriptor: int) -> Send:
    pipe = os.fdopen(descriptor, "w", encoding="utf-8")
    lock = threading.Lock()  # TensorRT reports progress from whichever thread made it

    def send(message: Message) -> None:
        with lock:
            pipe.write(message.model_dump_json(exclude_none=True) + "\n")
            pipe.flush()

    return send


def _die_with(parent: int) -> None:
    """Asks Linux to kill this process when the parent goes, however it goes: no build is left orphaned."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the line above
        sys.exit("The process that asked for this build is gone.")


if __name__ == "__main__":
    main()
