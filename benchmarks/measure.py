"""What the benchmarks share: timed runs of commands, the machine, and the result file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# One folder holds one kind of GPU: another's results have a folder of their own (benchmarks/README.md).
_ELSEWHERE = os.environ.get("SPARSEFLOW_RESULTS", "")
RESULTS = Path(_ELSEWHERE or Path(__file__).parent / "results")
PACKAGES = ("sparseflow-trt", "numpy", "onnx", "onnx-ir", "onnxruntime", "polygraphy", "onnx-graphsurgeon",
            "tensorrt", "cuda-bindings", "tensorrt_rtx_cu13_libs", "torch", "onnxscript",
            "transformers", "nvidia-modelopt", "tritonclient", "scikit-learn")  # fmt: skip
BIN = Path(sys.executable).parent


def timed_command(command: Sequence[str], accept: tuple[int, ...] = (0,), **options: Any) -> float:
    """Seconds of wall time that a command takes; it has to exit with one of `accept`.

    `options` go to subprocess.run: a current folder, an environment.
    """
    return timed_output(command, accept, **options)[0]


def timed_output(command: Sequence[str], accept: tuple[int, ...] = (0,), **options: Any) -> tuple[float, str]:
    """The same, with what the command printed to stdout."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    seconds = time.perf_counter() - started
    if done.returncode not in accept:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr or done.stdout}")
    return seconds, done.stdout


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


def write_result(name: str, figures: dict[str, Any], command: str = "", show: bool = True) -> None:
    """Writes results/NAME.json, whole or not at all, and prints it.

    Args:
        name: The file's name.
        figures: What was measured, as plain data.
        command: How to run it again.
        show: Whether to print it: not where it is written once more later.
    """
    from sparseflow_trt._files import write_atomically

    result = {
        "benchmark": name,
        "command": _before_commands() + (command or f"python benchmarks/{name}.py"),
        "date": today(),
        **surroundings(),
        **figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    write_atomically(RESULTS / f"{name}.json", text + "\n")
    if show:
        print(text)


def command_line(words: Sequence[str], files: Sequence[str]) -> str:
    """This process's command, to run it again.

    Args:
        words: `sys.argv`.
        files: The options that name files and folders: where these lie is the machine's own affair.
    """
    script, *given = words
    said: list[str] = []
    for word in given:
        option, equals, _ = word.partition("=")
        if equals and option in files:
            said.append(f"{option}=FILE")
        else:
            said.append("FILE" if said and said[-1] in files else word)
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *said])


def _before_commands() -> str:
    """What a command has before it where its results do not lie in results/ itself."""
    return f"SPARSEFLOW_RESULTS=benchmarks/results/{RESULTS.name} " if _ELSEWHERE else ""


def result_that_stands(name: str) -> dict[str, Any]:
    """The earlier results/NAME.json where it is of this kind of GPU, driver and versions, else {}."""
    try:
        before: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}
    now = surroundings()
    same = before.get("versions") == now["versions"] and all(
        before.get("machine", {}).get(key) == now["machine"].get(key) for key in ("gpu", "driver")
    )
    return before if same else {}


def surroundings() -> dict[str, Any]:
    """The machine and the versions that figures hold for."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        **_gpu(versions.get("tensorrt", "")),
    }
    return {"machine": machine, "versions": versions}


def today() -> str:
    """The date, in UTC."""
    return datetime.now(timezone.utc).date().isoformat()


def _gpu(tensorrt: str) -> dict[str, Any]:
    """The first GPU that CUDA sees, with its driver; nothing where there is none."""
    from sparseflow_trt.engines.machine.hardware import find_gpus
    from sparseflow_trt.engines.tensorrt.timing_cache import this_machine

    gpus = find_gpus()
    if not gpus:
        return {}
    gpu = gpus[0]
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "gpu_memory_gb": round(gpu.memory_bytes / 1e9, 1),
        "driver": this_machine(tensorrt).driver,
        "cuda": gpu.driver_version,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
