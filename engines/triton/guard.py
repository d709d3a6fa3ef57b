"""Stands between this tool and a tritonserver: nothing of the server outlives the tool, however that ends.

Run as a process of its own: python guard.py PREFIX LOG COMMAND…. It starts the server, says "started
PID" on standard output, and ends it when the tool says on standard input that it is done, or dies: then that
closes without a word. A server that was killed leaves stub processes, which ignore SIGTERM, and shared
memory: both are removed here, and LOG's folder where the tool was killed. The guard adopts orphans
(PR_SET_CHILD_SUBREAPER), so that it ends only what its own server started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 20.0  # seconds that stubs have to be gone


def main(prefix: str, log: str, *command: str) -> int:
    """Runs the server until it ends or the tool is done or dies; returns its status, as subprocess does."""
    tool, died = os.getppid(), False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the tool hears them, and closes the pipe

    def follow() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    try:
        with Path(log).open("wb") as stream:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=follow
            )
        print(f"started {server.pid}", flush=True)
        while server.poll() is None:
            if select.select([sys.stdin], [], [], 0.05)[0]:
                died = not os.read(sys.stdin.fileno(), 1)
                server.kill()  # nobody asks it any more; SIGTERM takes it three seconds, most of them asleep
                break
        return server.wait()
    finally:
        _end_orphans()
        for region in Path("/dev/shm").glob(f"{prefix}*"):
            region.unlink(missing_ok=True)
        if died or os.getppid() != tool:  # one that is dying is the parent for a while yet
            shutil.rmtree(Path(log).parent, ignore_errors=True)


def _end_orphans() -> None:
    """Kills what the server left: this process's children now, and theirs after them."""
    deadline = time.monotonic() + _PATIENCE
    while (children := _children()) and time.monotonic() < deadline:
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(OSError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    own = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    print(f"ended {code}", flush=True)
