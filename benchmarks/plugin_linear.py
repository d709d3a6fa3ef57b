"""The 2:4 plugin against TensorRT's own dense kernel and against cuSPARSELt alone, layer by layer.

    python benchmarks/plugin_linear.py MODEL --plugin FILE --cusparselt FILE [--layer NAME] [--m M…]
        [--dense-below M] [--builders N]

MODEL: llama-8b, llama-70b or tinyllama, whose MLP's products are measured (gate or up, and down).

Needs a GPU, TensorRT, cuda-bindings and cuSPARSELt; with --tensorrt-include DIR in place of --plugin the
library is compiled here.

Each shape is a network of a few products of random 2:4 weights, each with an input of its own: so many that
the weights do not stay in the GPU's cache, as in a real network they do not. The plugin's engine covers every
M; the dense one is built for each; cuSPARSELt alone runs the same products from Python, with the fastest
algorithm of a search of its own, whose finalists are timed in turn, as the plugin's are. All are timed in
turn as CUDA graphs; a time is a graph's, divided by its products. cuSPARSELt takes M that are multiples of
eight: for another M it runs the next one, and the plugin, which copies rows then, is held against that.
Before, cuSPARSELt's algorithms are tried in a process that may die of one: then only those before it are
used, by both sides, and neither splits K.
With --dense-below there is one more side, the plugin with dense copies (cuBLASLt) for fewer rows than these,
and the file is plugin_dense_below_MODEL.json.
Writes results/plugin_linear_MODEL.json after each cell, with what the other M come to by itself; cells that
it has of this kind of GPU, driver and versions stand and are not measured again. With --work DIR engines are
kept and found again, and --stop-after SECONDS begins no build later than that. With --builders N the dense
engines of N values of M are built at once and timed once all of these are built; the plugin's, which times
cuSPARSELt's algorithms, is built alone.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from at_once import at_once
from cusparselt_alone import Alone, Library, try_algorithms
from measure import result_that_stands, write_result
from product_networks import Build, build, make_weights, write_models, write_plugin

from sparseflow_trt._files import sha256_of
from sparseflow_trt.engines.machine.cuda_libraries import find_libraries
from sparseflow_trt.engines.plugin.build import PluginRequest, build_plugin
from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.running.cuda import Cuda
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.model.packing import ROWS, round_up

Arrays = Mapping[str, Any]

MODELS = {  # by name each layer's K, N
    "llama-8b": {"gate_up": (4096, 14336), "down": (14336, 4096)},
    "llama-70b": {"gate_up": (8192, 28672), "down": (28672, 8192)},
    "tinyllama": {"gate_up": (2048, 5632), "down": (5632, 2048)},
}
SIZES = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
ROUNDS, LAUNCHES = 9, 10
CHECKED_M = 1024  # larger products take the CPU too long
BEYOND_CACHE = 160e6  # bytes of packed weights in a network: an H200's L2 is 50 MB


@dataclass(frozen=True)
class Settings:
    """Where things are, and until when.

    Attributes:
        library: The plugin's.
        ends: When no more builds are begun, by time.monotonic.
        level: The builder's optimization level for dense engines; None for its own.
        cusparselt: cuSPARSELt's file, for products without TensorRT.
        limit: How many of its algorithms are used at most; 0 for all.
        trial: What trying them gave.
        plugin: The plugin library's SHA-256.
        dense_below: Below how many rows the plugin with dense copies runs dense; 0 for no such side.
        builders: How many dense engines are built at once.
    """

    library: Path
    work: Path
    ends: float
    level: int | None
    cusparselt: str
    limit: int
    trial: Mapping[str, Any]
    plugin: str
    dense_below: int
    builders: int


def main() -> None:
    """Reads the command line and runs the cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--plugin", type=Path, help="the compiled library")
    parser.add_argument("--tensorrt-include", type=Path, help="TensorRT's headers, to compile it")
    parser.add_argument("--cusparselt", help="cuSPARSELt's library or its folder")
    parser.add_argument("--layer", choices=("gate_up", "down"), help="this one alone")
    parser.add_argument("--m", nargs="+", type=int, default=SIZES)
    parser.add_argument("--level", type=int, help="the builder's optimization level for dense engines")
    parser.add_argument("--dense-below", type=int, default=0, metavar="M", help="also dense copies below M")
    parser.add_argument("--work", type=Path, help="where models and engines are kept")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--builders", type=int, default=1, metavar="N", help="dense engines built at once")
    asked = parser.parse_args()
    if not asked.plugin and not asked.tensorrt_include:
        parser.error("give --plugin, or --tensorrt-include to compile it.")
    library = asked.cusparselt or next(
        (found.file for found in find_libraries() if found.name == "cusparseLt"), ""
    )
    if not library:
        parser.error("cuSPARSELt is not found: give --cusparselt.")
    if Path(library).is_dir():
        library = str(Path(library) / "libcusparseLt.so.0")
    os.environ["SPARSEFLOW_CUSPARSELT"] = library
    trial = try_algorithms(library)
    limit = limit_from(trial)
    if limit:  # for both sides: neither splits K then
        os.environ["SPARSEFLOW_ALGORITHMS"] = str(limit)
    print("trial:", trial, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        plugin = (
            asked.plugin
            or build_plugin(
                PluginRequest(
                    tensorrt_include=asked.tensorrt_include, output=work / "libsparseflow_linear24.so"
                )
            ).library
        )
        load_plugin(load_flavour("tensorrt"), plugin)
        ends = time.monotonic() + asked.stop_after
        settings = Settings(
            plugin, work, ends, asked.level, library, limit, trial, sha256_of(plugin), asked.dense_below,
            asked.builders,
        )  # fmt: skip
        run(asked.model, asked.layer, sorted(asked.m), settings)


def limit_from(trial: Mapping[str, Any]) -> int:
    """How many algorithms may be used where one ended the process that tried it; 0 for all.

    Raises:
        SystemExit: None may.
    """
    last = str(trial["died_of"])
    if not last:
        return 0
    number = last.removeprefix("algorithm ")
    if last == "loading it" or number == "0":
        raise SystemExit(f"cuSPARSELt cannot be used: {last}: {trial['error']}")
    return int(number if number.isdigit() else trial["claimed"])  # else its own search, or K split


def earlier(model: str, settings: Settings) -> dict[str, Any]:
    """The earlier result where it is of this machine, these libraries and this way of timing, else {}."""
    before = result_that_stands(name_of(model, settings))
    there = (before.get("trial", {}).get("version"), before.get("timing"), before.get("plugin_sha256"))
    return before if there == (settings.trial["version"], timing_of(settings), settings.plugin) else {}


def name_of(model: str, settings: Settings) -> str:
    """The result's."""
    return f"plugin_{'dense_below' if settings.dense_below else 'linear'}_{model}"


def timing_of(settings: Settings) -> dict[str, Any]:
    """How times are taken."""
    below = {"dense_below_m": settings.dense_below} if settings.dense_below else {}
    return {"rounds": ROUNDS, "launches": LAUNCHES, "dense_level": settings.level, **below}


def run(model: str, only: str | None, sizes: Sequence[int], settings: Settings) -> None:
    """Builds and times each layer at each M; what is measured is written at once."""
    before = earlier(model, settings)
    cells: list[dict[str, Any]] = before.get("cells", [])
    builds: list[dict[str, Any]] = before.get("builds", [])
    for layer, (k, n) in MODELS[model].items():
        there = {(cell["layer"], cell["m"]) for cell in cells}
        missing = [m for m in sizes if only in (None, layer) and (layer, m) not in there]
        if not missing:
            continue
        count = min(12, max(2, math.ceil(BEYOND_CACHE / (n * k * 2 * 9 / 16))))
        weights = make_weights(k, n, count)
        dense_model = settings.work / f"{k}x{n}.onnx"
        plugin_model = settings.work / f"{k}x{n}.plugin.onnx"
        write_models(dense_model, plugin_model, weights)
        copies_model = settings.work / f"{k}x{n}.below{settings.dense_below}.onnx"
        cuda = Cuda()
        alone = Alone(cuda, Library(settings.cusparselt), weights)
        whole = settings.work / f"{k}x{n}.m{min(missing)}-{max(missing)}.plugin.engine"
        if not whole.exists() and time.monotonic() > settings.ends:
            return
        built = Build(settings.library, plugin_model, whole, k, count, min(missing), max(missing))
        seconds, searched = build(built)
        if seconds is not None:
            builds.append(
                {"layer": layer, "k": k, "n": n, "products": count, "plugin_build_s": seconds,
                 "plugin_engine_mb": round(whole.stat().st_size / 1e6, 1), "searched": searched}
            )  # fmt: skip
        copies = None
        if settings.dense_below:
            write_plugin(dense_model, copies_model, count, settings.dense_below)
            copies = copies_model.with_suffix(".engine")
            build(replace(built, model=copies_model, engine=copies))
        for first in range(0, len(missing), settings.builders):
            dense = [
                replace(
                    built, model=dense_model, engine=settings.work / f"{k}x{n}.m{m}.dense.engine",
                    low=m, high=m, level=settings.level,
                )
                for m in missing[first : first + settings.builders]
            ]  # fmt: skip
            if not all(one.engine.exists() for one in dense) and time.monotonic() > settings.ends:
                return
            done = at_once(settings.builders, build, [(one,) for one in dense])
            for one, (seconds, _) in zip(dense, done, strict=True):
                compared = compare(settings, one.engine, whole, copies, alone, weights, one.low)
                row = {"layer": layer, "k": k, "n": n, "m": one.low, **compared}
                row |= {
                    "dense_build_s": seconds,
                    "dense_engine_mb": round(one.engine.stat().st_size / 1e6, 1),
                }
                if seconds is not None:
                    row["dense_engines_built_at_once"] = len(dense)
                cells.append(row)
                write(model, cells, builds, settings)
                said = ("layer", "m", "dense_us", "plugin_us", "cusparselt_us", "speedup")
                print(*(row[key] for key in said), flush=True)


def compare(
    settings: Settings, dense: Path, plugin: Path, copies: Path | None, alone: Alone, weights: Sequence[Any],
    m: int,
) -> dict[str, Any]:  # fmt: skip
    """Times the engines and cuSPARSELt in turn, and holds the dense engine and the plugin's against FP32."""
    flavour, k, count = load_flavour("tensorrt"), weights[0].shape[0], len(weights)
    block = np.random.default_rng(m).standard_normal((min(m, 256), k), np.float32).astype(np.float16)
    feeds = {f"x{i}": np.resize(block, (m, k)) for i in range(count)}
    graph, algorithm = alone.prepare(block, round_up(m), settings.limit)
    with ExitStack() as stack:
        first, second, *third = (
            stack.enter_context(Engine(flavour, file)) for file in (dense, plugin, copies) if file
        )
        with ExitStack() as captured:
            sides = [captured.enter_context(e.capture(feeds)).time for e in (first, second, *third)]
            times = in_turn([*sides[:2], lambda launches: alone.time(graph, launches), *sides[2:]])
        alone.free(graph)
        outputs = [engine.run(feeds) for engine in (first, second)]
        memory = {side: e.device_memory_bytes for side, e in (("dense", first), ("plugin", second))}
    each = [statistics.median(rounds) * 1000 / count for rounds in times]
    row: dict[str, Any] = {
        "dense_us": round(each[0], 2),
        "plugin_us": round(each[1], 2),
        "cusparselt_us": round(each[2], 2),
        **speedup_of(times[0], times[1]),
        "plugin_over_cusparselt": round(
            statistics.median(o / a for o, a in zip(times[1], times[2], strict=True)), 3
        ),
        "cusparselt_algorithm": algorithm,
        "context_bytes": memory,
    }
    if third:
        row["with_copies_us"] = round(each[3], 2)
        row |= speedup_of(times[0], times[3], "with_copies_")
    different = max(float(np.abs(outputs[0][y].astype(np.float32) - outputs[1][y]).max()) for y in outputs[0])
    row["max_difference"] = different
    if m <= CHECKED_M:
        exact = feeds["x1"].astype(np.float32) @ weights[1].astype(np.float32)
        for side, output in zip(("dense", "plugin"), outputs, strict=True):
            row[f"{side}_error"] = relative_l2(output["y1"], exact)
            row[f"{side}_max_error"] = float(np.abs(output["y1"] - exact).max())
        row["error_over_dense"] = round(row["plugin_error"] / row["dense_error"], 3)
    return row


def speedup_of(dense: Sequence[float], other: Sequence[float], prefix: str = "") -> dict[str, float]:
    """How many times as fast as dense another is, round by round: the median and the extremes."""
    gains = [d / o for d, o in zip(dense, other, strict=True)]
    return {
        f"{prefix}speedup": round(statistics.median(gains), 3),
        f"{prefix}speedup_low": round(min(gains), 3),
        f"{prefix}speedup_high": round(max(gains), 3),
    }


def in_turn(sides: Sequence[Callable[[int], list[float]]]) -> list[list[float]]:
    """Each side's median milliseconds in each of ROUNDS rounds, after one that does not count."""
    rounds = [[statistics.median(side(LAUNCHES)) for side in sides] for _ in range(ROUNDS + 1)]
    return [list(times) for times in zip(*rounds[1:], strict=True)]


def relative_l2(output: Any, exact: Any) -> float:
    """The length of the difference over that of what is exact."""
    off = output.astype(np.float64) - exact
    return float(np.linalg.norm(off) / np.linalg.norm(exact.astype(np.float64)))


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean gain of some cells, and the worst of them; nothing of none."""
    if not cells:
        return {}
    worst = min(cells, key=lambda cell: cell["speedup"])
    return {
        "geometric_mean": round(statistics.geometric_mean(cell["speedup"] for cell in cells), 3),
        "worst": {key: worst[key] for key in ("layer", "m", "speedup")},
        "worst_over_cusparselt": max(cell["plugin_over_cusparselt"] for cell in cells),
    }


def write(model: str, cells: list[dict[str, Any]], builds: list[dict[str, Any]], settings: Settings) -> None:
    """Writes what is there so far."""
    figures = {
        **summary([cell for cell in cells if cell["m"] % ROWS == 0]),
        "other_m": summary([cell for cell in cells if cell["m"] % ROWS]),
        "timing": timing_of(settings),
        "plugin_sha256": settings.plugin,
        "trial": settings.trial,
        "builds": builds,
        "cells": cells,
    }
    command = f"python benchmarks/plugin_linear.py {model} --plugin FILE --cusparselt FILE"
    if settings.dense_below:
        command += f" --dense-below {settings.dense_below} --m " + " ".join(
            str(m) for m in sorted({cell["m"] for cell in cells})
        )
    write_result(name_of(model, settings), figures, command, show=False)


if __name__ == "__main__":
    main()
