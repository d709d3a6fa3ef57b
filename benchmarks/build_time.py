"""The time of `build` against `polygraphy convert`, for TinyLlama's MLP with 2:4 weights at M=256.

    python benchmarks/build_time.py [--runs 2] [--free-runs N] [--fixed-tactics]

Three commands, in turn, each run beginning with another one of them:

- ours: `build --sparsity force`: plan, typed graph, build, inspector, validation against FP32;
- the same engine: `polygraphy convert` of our typed model with the same types, sparse weights and verbosity;
- types left to TensorRT: `polygraphy convert --fp16 --tf32 --sparse-weights` of the model as given, in the
  first --free-runs runs alone, if that is given: it takes as long as both others.

Of ours, the backend's step is what convert does (a process, the import, parsing, building), and besides it
reads a verbose log along and asks the inspector. Writes results/build_time.json after each run.

Most of a build is TensorRT timing tactics, which takes now longer, now shorter. With --fixed-tactics each
side first builds once and then gives TensorRT the tactics of that engine (`--like`, `--load-tactics`): what
is left to differ is what the two do besides. Writes results/build_time_fixed_tactics.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import command_line, summary, timed_command, timed_output, write_result
from tensorrt_mlp import CASES, write_fp32

from sparseflow_trt.engines.tensorrt.api import load_flavour

M = 256
LIMIT = 1.02
POLYGRAPHY = (sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())")
SPARSEFLOW = (sys.executable, "-m", "sparseflow_trt.cli.main")
STEP, WHOLE = "ours, the backend's step", "ours, whole command"
SAME, FREE = "polygraphy, the same engine", "polygraphy, types left to TensorRT"
THEIR_OWN = "polygraphy, TensorRT's own build"
_BUILT = re.compile(r"Finished engine building in ([0-9.]+) seconds")  # what Polygraphy prints
PIN = Path(__file__).with_name("pin_network.py")

Times = dict[str, list[float]]


def main() -> None:
    """Times the commands and writes results/build_time.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--free-runs", type=int, help="how many of them with types left to TensorRT")
    parser.add_argument("--case", choices=CASES, default="tinyllama")
    parser.add_argument("--fixed-tactics", action="store_true", help="time builds whose tactics are given")
    parser.add_argument("--backend", default="tensorrt", help="tensorrt-rtx, to try this script")
    asked = parser.parse_args()
    hidden, intermediate, _ = CASES[asked.case]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_fp32(folder / "model.onnx", hidden, intermediate)
        flags = shared_flags(hidden)
        warm_up(asked.backend)
        like, replay, name = (), (), "build_time"
        if asked.fixed_tactics:
            like, replay, name = *fix_tactics(folder, flags, asked.backend), "build_time_fixed_tactics"
            asked.free_runs = 0  # TensorRT's own choice of types is not of those tactics
        commands: list[Callable[[], dict[str, float]]] = [
            lambda: time_ours(folder, asked.backend, like),
            lambda: time_same(folder, [*flags, *replay], asked.backend),
            lambda: {FREE: time_free(folder, flags)},
        ]
        free_runs = asked.runs if asked.free_runs is None else asked.free_runs
        times: Times = {}
        for run in range(asked.runs):
            now = commands if run < free_runs else commands[:2]
            for i in range(len(now)):
                for what, seconds in now[(run + i) % len(now)]().items():
                    times.setdefault(what, []).append(seconds)
            figures = {
                "model": {"case": asked.case, "hidden": hidden, "intermediate": intermediate, "m": M},
                **compared(times),
                "engine bytes": engine_sizes(folder),
                "polygraphy's flags": {
                    "the same engine": [*same_flags(asked.backend), *flags, *replay],
                    "types left to TensorRT": ["--fp16", "--tf32", *flags],
                },
            }
            write_result(name, figures, command_line(sys.argv, ()), show=run + 1 == asked.runs)


def fix_tactics(folder: Path, flags: list[str], backend: str) -> tuple[Sequence[str], Sequence[str]]:
    """Builds once on either side, and gives the flags with which each takes its own tactics again."""
    time_ours(folder, backend)
    (folder / "ours").rename(folder / "first")
    time_same(folder, [*flags, "--save-tactics", "tactics.json"], backend, typed="first/model.onnx")
    return ("--like", "first"), ("--load-tactics", "tactics.json")


def warm_up(backend: str) -> None:
    """Reads the libraries once, so that the first command does not pay for the disk."""
    if backend == "tensorrt":
        timed_command([sys.executable, "-c", "import tensorrt as t; t.Builder(t.Logger(t.Logger.ERROR))"])


def shared_flags(hidden: int) -> list[str]:
    """What both conversions are given."""
    low, high = f"x:[1,{hidden}]", f"x:[{M},{hidden}]"
    shapes = ["--trt-min-shapes", low, "--trt-opt-shapes", high, "--trt-max-shapes", high]
    return ["--sparse-weights", "--profiling-verbosity", "detailed", *shapes]


def same_flags(backend: str) -> list[str]:
    """What makes the network's types those of the typed graph."""
    if load_flavour(backend).strongly_typed:
        return ["--strongly-typed"]
    return ["--fp16", "--precision-constraints", "obey", "--trt-network-postprocess-script", PIN.name]


def time_ours(folder: Path, backend: str, more: Sequence[str] = ()) -> dict[str, float]:
    """A whole `build`, and the steps of it that its manifest tells."""
    command = [*SPARSEFLOW, "build", "model.onnx", "-o", "ours", "--force", "--backend", backend,
               "--precision", "fp16", "--sparsity", "force", "--dim", f"m=1,{M},{M}", *more]  # fmt: skip
    # 1: on a machine that cannot run the engine, nothing was validated
    seconds = timed_command(command, (0,) if backend == "tensorrt" else (0, 1), cwd=folder)
    manifest = json.loads((folder / "ours" / "manifest.json").read_text())
    return {
        WHOLE: seconds,
        STEP: manifest["seconds"]["backend"],
        "ours, TensorRT's own build": manifest["engine"]["build_seconds"],
    }


def time_same(
    folder: Path, flags: Sequence[str], backend: str, typed: str = "ours/model.onnx"
) -> dict[str, float]:
    """`polygraphy convert` of the typed model that `build` has written, and the builder's part of it."""
    own = [str(PIN) if flag == PIN.name else flag for flag in same_flags(backend)]
    command = [*POLYGRAPHY, "convert", typed, *own, *flags, "-o", "same.engine"]
    typed_model = {"TYPED_MODEL": str(folder / typed)}
    seconds, printed = timed_output(command, cwd=folder, env={**os.environ, **typed_model})
    built = _BUILT.search(printed)
    if built is None:
        raise SystemExit(f"polygraphy does not say how long it built:\n{printed}")
    return {SAME: seconds, THEIR_OWN: float(built[1])}


def time_free(folder: Path, flags: list[str]) -> float:
    """`polygraphy convert` of the model as given, FP16 and TF32 allowed."""
    command = [*POLYGRAPHY, "convert", "model.onnx", "--fp16", "--tf32", *flags, "-o", "free.engine"]
    return timed_command(command, cwd=folder)


def compared(times: Times) -> dict[str, Any]:
    """Every time, and the ratios run by run, where both were run."""
    ratios = {
        f"{ours} over {theirs}": [a / b for a, b in zip(times[ours], times[theirs], strict=False)]
        for ours in (STEP, WHOLE)
        for theirs in (SAME, FREE)
        if theirs in times
    }
    summed = {what: summary(values) for what, values in ratios.items()}
    return {
        "seconds": {what: summary(values) for what, values in times.items()},
        "ratios": summed,
        f"at most {LIMIT}": {what: ratio["median"] <= LIMIT for what, ratio in summed.items()},
    }


def engine_sizes(folder: Path) -> dict[str, int]:
    """The engines' sizes: ours and Polygraphy's are to be alike."""
    files = {"ours": "ours/model.engine", "the same engine": "same.engine", "free": "free.engine"}
    return {what: (folder / file).stat().st_size for what, file in files.items() if (folder / file).exists()}


if __name__ == "__main__":
    main()
