"""What the benchmarks share: timed runs of commands, the machine, and the result file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("sparseflow-trt", "numpy", "onnx", "onnx-ir", "onnxruntime", "polygraphy", "onnx-graphsurgeon",
            "tensorrt", "tensorrt_rtx_cu13_libs")  # fmt: skip
BIN = Path(sys.executable).parent


def timed_command(command: Sequence[str], accept: tuple[int, ...] = (0,)) -> float:
    """Seconds of wall time that a command takes; it has to exit with one of `accept`."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in accept:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return seconds


def peak_memory(command: Sequence[str]) -> tuple[float, int]:
    """Seconds of wall time and peak resident bytes of a command, as the system accounts for it."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def timed_call(function: Callable[[], Any]) -> float:
    """Seconds of wall time that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def summary(runs: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every run, in seconds."""
    return {
        "median": round(statistics.median(runs), 4),
        "min": round(min(runs), 4),
        "max": round(max(runs), 4),
        "runs": [round(run, 4) for run in runs],
    }


def write_result(name: str, figures: dict[str, Any], command: str = "") -> None:
    """Writes results/NAME.json and prints it; `command` is how to run it again."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    result = {
        "benchmark": name,
        "command": command or f"python benchmarks/{name}.py",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "python": platform.python_version(),
        },
        "versions": versions,
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
