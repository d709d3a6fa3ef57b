"""The parent's side of a build in a child process: progress, results, crashes and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from sparseflow_trt.engines.protocol import BuildRequest, OnProgress
from sparseflow_trt.engines.tensorrt_api import title_of
from sparseflow_trt.engines.wire import Exchange, Job, Message, Outcome, Refusal
from sparseflow_trt.errors import BuildError, NotInstalledError

COMMAND = (sys.executable, "-u", "-m", "sparseflow_trt.engines.worker")
_TAIL_LINES = 8
_TAIL_BYTES = 4096


def run_build(
    flavour: str,
    request: BuildRequest,
    engine: Path,
    on_progress: OnProgress,
    exchange: Exchange | None = None,
) -> Outcome:
    """Builds or refits an engine in a child process and waits for it; none is left when this ends.

    Args:
        flavour: The key of a TensorRT flavour.
        request: What to build.
        engine: The file to write.
        on_progress: Called here, in the parent, for each step.
        exchange: An engine to refit with the request's model, in place of a build; absolute paths.

    Raises:
        BuildError: The build was refused, or the child crashed; the log is kept and named in the hint.
        NotInstalledError: The child could not import that TensorRT.
    """
    cache, like = request.options.timing_cache, request.options.like
    job = Job(
        flavour=flavour,
        model=str(request.model.resolve()),
        engine=str(engine.resolve()),
        profiles=request.plan.profiles,
        sparse=request.sparse,
        options=replace(
            request.options, timing_cache=cache and cache.resolve(), like=like and like.resolve()
        ),
        parent=os.getpid(),
        exchange=exchange,
        plugin=str(request.plugin.resolve()) if request.plugin else "",
    )
    handle, name = tempfile.mkstemp(prefix=f"sparseflow-trt-{flavour}-", suffix=".log")
    log = Path(name)
    try:
        with os.fdopen(handle, "wb") as log_stream:
            last, status = _run(job, log_stream.fileno(), request.folder, on_progress)
    except BaseException:
        log.unlink()
        raise
    if last.outcome is not None and status == 0:
        log.unlink()
        return last.outcome
    if last.refusal is not None:
        raise _refused(last.refusal, log)
    raise _crashed(title_of(flavour), status, log)


def _run(job: Job, log: int, folder: Path, on_progress: OnProgress) -> tuple[Message, int]:
    """Runs the child to its end; returns its last message and its exit status."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as stdin, os.fdopen(reading, encoding="utf-8") as pipe:
        stdin.write(job.model_dump_json().encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                (*COMMAND, str(writing)),
                stdin=stdin,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                # `-m` puts the current folder first on the import path: one that holds only our own files.
                cwd=folder,
                # Ctrl-C goes to this process alone, which then ends the child in its own way.
                start_new_session=True,
            )
        finally:
            os.close(writing)
        last = Message()
        try:
            for line in pipe:
                if not line.endswith("\n"):  # the child died in the middle of a line
                    break
                last = Message.model_validate_json(line)
                if last.progress is not None:
                    on_progress(last.progress)
            return last, process.wait()
        finally:
            process.kill()
            process.wait()


def _refused(refusal: Refusal, log: Path) -> BuildError | NotInstalledError:
    if refusal.not_installed:
        log.unlink()
        return NotInstalledError(refusal.message, refusal.hint)
    return BuildError(refusal.message, f"{refusal.hint} The builder's whole log: {log}")


def _crashed(title: str, status: int, log: Path) -> BuildError:
    if status == -signal.SIGKILL:
        how = "was killed (SIGKILL), most likely for want of memory"
    elif status < 0:
        how = f"crashed ({signal.Signals(-status).name})"
    else:
        how = f"ended with status {status} and no result"
    return BuildError(
        f"the {title} builder {how}. Its log ends with:\n{_tail(log)}",
        f"The model given is unchanged. The builder's whole log: {log}",
    )


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    lines = [f"    {line}" for line in text.splitlines()[-_TAIL_LINES:]]
    return "\n".join(lines) or "    (nothing)"
