"""The parent's side of a build in a child process: progress, results, crashes and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from sparseflow_trt.engines.backends.wire import Exchange, Job, Message, Outcome, Refusal
from sparseflow_trt.engines.protocol import BuildRequest, OnProgress
from sparseflow_trt.engines.tensorrt.api import title_of
from sparseflow_trt.errors import BuildError, NotInstalledError

COMMAND = (sys.executable, "-u", "-m", "sparseflow_trt.engines.backends.worker")
# TensorRT 8.6 takes memory for each tactic that it times, and gives it back. In pages of 4 KB that is three
# million page faults, 10 to 12 s of the kernel's time (docs/TENSORRT.md). glibc 2.35 and later read this.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_TAIL_LINES = 8
_TAIL_BYTES = 4096

_sharing: list[None] = []  # one for each `shared_child` that is open
_idle: list[_Child] = []  # they have built, and may build again
_building: list[_Child] = []
_may_begin = threading.Lock()  # held while builders are stopped: no thread begins a build then


def run_build(
    flavour: str,
    request: BuildRequest,
    engine: Path,
    on_progress: OnProgress,
    exchange: Exchange | None = None,
) -> Outcome:
    """Builds or refits an engine in a child process and waits for it; none is left but in `shared_child`.

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
        plugin_sha256=request.plugin_sha256,
    )
    child: _Child | None = None
    try:
        with _may_begin:
            child = _idle_child(flavour) or _Child(flavour)
            _building.append(child)
            child.give(job)
        last = child.answer(on_progress)
    except BaseException:
        if child:
            child.end()
        raise
    finally:
        if child in _building:  # a signal may have come before that
            _building.remove(child)
    if last.outcome is None:
        raise child.failed(last)
    if _sharing:
        _idle.append(child)
    else:
        child.end()
    return last.outcome


@contextlib.contextmanager
def shared_child() -> Iterator[None]:
    """Builds in this block, one after another, have one child process, in which TensorRT starts once.

    On an H200 that takes TensorRT 8.6 9 to 14 s, and a build of one product some 15 s more. Builds of several
    threads have one each. After a build that fails the next one has a new process.
    """
    _sharing.append(None)
    try:
        yield
    finally:
        _sharing.pop()
        if not _sharing:
            while _idle:
                _idle.pop().end()


@contextlib.contextmanager
def builders_stopped() -> Iterator[None]:
    """In this block no build of another thread goes on or begins: the GPU is free to be timed on.

    A builder that is stopped leaves nothing running but the kernel that it launched last.
    """
    with _may_begin:
        children = tuple(_building)
        try:
            for child in children:
                child.stop()
            yield
        finally:
            for child in children:
                child.go_on()


def abandon_builds() -> None:
    """Kills what other threads build at this moment: they raise BuildError."""
    for child in tuple(_building):
        child.kill()


def _idle_child(flavour: str) -> _Child | None:
    for child in [child for child in _idle if child.flavour == flavour]:
        _idle.remove(child)
        if child.is_alive():
            child.empty_log()
            return child
        child.end()
    return None


class _Child:
    """A process that builds one engine after another, with its log and a folder to run in."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self._keeps_log = False
        with contextlib.ExitStack() as stack:  # a signal may come at any line
            # `-m` puts the current folder first on the import path: one that holds nothing.
            prefix = f"sparseflow-trt-{flavour}-"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=".log")
            self._log = Path(name)
            stack.callback(self._remove_log)
            os.close(handle)
            reading, writing = os.pipe()
            self._messages = stack.enter_context(os.fdopen(reading, encoding="utf-8"))
            try:
                with self._log.open("ab") as log:  # to its end, also once it is emptied
                    self._process = subprocess.Popen(
                        (*COMMAND, str(writing)),
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        pass_fds=(writing,),
                        cwd=folder,
                        env=_LARGE_PAGES | os.environ,
                        # Ctrl-C goes to this process alone, which then ends the child in its own way.
                        start_new_session=True,
                    )
            finally:
                os.close(writing)
            stack.callback(self._stop)
            self._jobs = cast("IO[bytes]", self._process.stdin)
            self._ends = stack.pop_all()

    def is_alive(self) -> bool:
        """Whether it can build."""
        return self._process.poll() is None

    def empty_log(self) -> None:
        """Leaves what it said of an earlier job out of its log."""
        os.truncate(self._log, 0)

    def give(self, job: Job) -> None:
        """Hands it a job."""
        with contextlib.suppress(BrokenPipeError):  # it is gone: so is what it has to say
            self._jobs.write(job.model_dump_json().encode() + b"\n")
            self._jobs.flush()

    def answer(self, on_progress: OnProgress) -> Message:
        """Waits for its last message on the job, an empty one if it went without a word."""
        for line in self._messages:
            if not line.endswith("\n"):  # it died in the middle of a line
                break
            message = Message.model_validate_json(line)
            if message.progress is None:
                return message
            on_progress(message.progress)
        return Message()

    def stop(self) -> None:
        """Stops it where it is, and returns once it stands still; one that has ended is left."""
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # its end was waited for meanwhile
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """Lets it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process alone: whoever waits for its answer sees to the rest."""
        self._process.kill()

    def failed(self, last: Message) -> BuildError | NotInstalledError:
        """What went wrong, once it has ended; its log is kept but where TensorRT is missing."""
        status = self._process.wait()
        self._keeps_log = last.refusal is None or not last.refusal.not_installed
        self.end()
        if last.refusal is None:
            return _crashed(title_of(self.flavour), status, self._log)
        return _refused(last.refusal, self._log)

    def end(self) -> None:
        """Ends it, whatever it does, and removes what it leaves."""
        self._ends.close()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()

    def _remove_log(self) -> None:
        if not self._keeps_log:
            self._log.unlink()


def _refused(refusal: Refusal, log: Path) -> BuildError | NotInstalledError:
    if refusal.not_installed:
        return NotInstalledError(refusal.message, refusal.hint)
    return BuildError(refusal.message, f"{refusal.hint} The builder's whole log: {log}")


def _crashed(title: str, status: int, log: Path) -> BuildError:
    if status == -signal.SIGKILL:
        how = "was killed (SIGKILL), most likely because memory ran out"
    elif status < 0:
        how = f"crashed ({signal.Signals(-status).name})"
    else:
        how = f"ended with status {status} and no result"
    return BuildError(
        f"the {title} builder {how}. Its log ends with:\n{_tail(log)}",
        f"The given model is unchanged. The builder's whole log: {log}",
    )


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    lines = [f"    {line}" for line in text.splitlines()[-_TAIL_LINES:]]
    return "\n".join(lines) or "    (nothing)"
