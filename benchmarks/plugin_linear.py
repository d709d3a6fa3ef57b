"""The 2:4 plugin against TensorRT's own dense kernel and against cuSPARSELt alone, layer by layer.

    python benchmarks/plugin_linear.py MODEL --plugin FILE --cusparselt FILE [--layer NAME] [--m M…]
        [--dense-below M]

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
kept and found again, and --stop-after SECONDS begins no build later than that.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cusparselt_alone import Alone, Library, try_algorithms
from measure import result_that_stands, write_result
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import sha256_of, written_atomically
from sparseflow_trt.engines.machine.cuda_libraries import find_libraries
from sparseflow_trt.engines.plugin.build import PluginRequest, build_plugin
from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.running.cuda import Cuda
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import Flavour, load_flavour
from sparseflow_trt.engines.tensorrt.build_engine import build_engine
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.exporters.plugin.nodes import put_into_plugin
from sparseflow_trt.exporters.saving import save_plugin_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.packing import ROWS, round_up
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.shapes import Profile, ShapeRange

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
_SEARCHED = re.compile(r"SparseFlowLinear24: M=(\d+): (algorithm .*), ([0-9.]+) us")


@dataclass(frozen=True)
class Settings:
    """Where things are, and until when.

    Attributes:
        ends: When no more builds are begun, by time.monotonic.
        level: The builder's optimization level for dense engines; None for its own.
        cusparselt: cuSPARSELt's file, for products without TensorRT.
        limit: How many of its algorithms are used at most; 0 for all.
        trial: What trying them gave.
        plugin: The plugin library's SHA-256.
        dense_below: Below how many rows the plugin with dense copies runs dense; 0 for no such side.
    """

    flavour: Flavour
    work: Path
    ends: float
    level: int | None
    cusparselt: str
    limit: int
    trial: Mapping[str, Any]
    plugin: str
    dense_below: int


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
        flavour = load_flavour("tensorrt")
        load_plugin(flavour, plugin)
        ends = time.monotonic() + asked.stop_after
        settings = Settings(
            flavour, work, ends, asked.level, library, limit, trial, sha256_of(plugin), asked.dense_below
        )
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
        seconds, searched = build(settings, plugin_model, whole, k, count, min(missing), max(missing), None)
        if seconds is not None:
            builds.append(
                {"layer": layer, "k": k, "n": n, "products": count, "plugin_build_s": seconds,
                 "plugin_engine_mb": round(whole.stat().st_size / 1e6, 1), "searched": searched}
            )  # fmt: skip
        copies = None
        if settings.dense_below:
            write_plugin(dense_model, copies_model, count, settings.dense_below)
            copies = copies_model.with_suffix(".engine")
            build(settings, copies_model, copies, k, count, min(missing), max(missing), None)
        for m in missing:
            engine = settings.work / f"{k}x{n}.m{m}.dense.engine"
            if not engine.exists() and time.monotonic() > settings.ends:
                return
            seconds, _ = build(settings, dense_model, engine, k, count, m, m, settings.level)
            row = {
                "layer": layer,
                "k": k,
                "n": n,
                "m": m,
                **compare(settings, engine, whole, copies, alone, weights, m),
            }
            row |= {"dense_build_s": seconds, "dense_engine_mb": round(engine.stat().st_size / 1e6, 1)}
            cells.append(row)
            write(model, cells, builds, settings)
            print(
                *(row[key] for key in ("layer", "m", "dense_us", "plugin_us", "cusparselt_us", "speedup")),
                flush=True,
            )


def make_weights(k: int, n: int, count: int) -> list[Any]:
    """Random 2:4 weights [K, N] in FP16: one, and that one turned by some groups of four along K."""
    first = np.random.default_rng(0).standard_normal((k, n), np.float32) * np.float32(k**-0.5)
    pruned = prune_2to4(first.astype(np.float16), 0)
    return [np.roll(pruned, 4 * i, axis=0) for i in range(count)]


def write_models(dense: Path, plugin: Path, weights: Sequence[Any]) -> None:
    """Writes y_i = x_i · W_i as MatMul, and the same with the plugin's nodes."""
    k, n = weights[0].shape
    count = len(weights)
    if not dense.exists():
        nodes = [
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], f"product{i}") for i in range(count)
        ]
        inputs, outputs = (
            [
                helper.make_tensor_value_info(f"{what}{i}", TensorProto.FLOAT16, ["m", size])
                for i in range(count)
            ]
            for what, size in (("x", k), ("y", n))
        )
        tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
        graph = helper.make_graph(nodes, "products", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, dense, save_as_external_data=True, location=f"{dense.name}.data")
    write_plugin(dense, plugin, count, 0)


def write_plugin(dense: Path, plugin: Path, count: int, dense_below: int) -> None:
    """Puts the products into the plugin; below so many rows they run dense copies."""
    if not plugin.exists():
        typed = read_model(dense)
        names = [f"product{i}" for i in range(count)]
        put_into_plugin(typed, names, dense_below_m=dict.fromkeys(names, dense_below))
        save_plugin_model(typed.ir, plugin)


def build(
    settings: Settings, model: Path, engine: Path, k: int, count: int, low: int, high: int, level: int | None
) -> tuple[float | None, dict[str, Any]]:
    """Builds an engine, if it is not there; gives the seconds and what the plugin measured in them."""
    if engine.exists():
        return None, {}
    opt = min(max(1024, low), high)
    shapes = ShapeRange(min=(low, k), opt=(opt, k), max=(high, k))
    profile = Profile(name="m", inputs={f"x{i}": shapes for i in range(count)})
    started = time.monotonic()
    text = engine.with_suffix(".log")
    with text.open("w") as stream, written_atomically(engine) as path:
        build_engine(
            settings.flavour, model, path, (profile,), False, EngineOptions(optimization_level=level),
            BuildLog(stream), lambda _: None,
        )  # fmt: skip
    searched = {
        m: {"chosen": chosen, "us": float(us)} for m, chosen, us in _SEARCHED.findall(text.read_text())
    }
    return round(time.monotonic() - started, 1), searched


def compare(
    settings: Settings, dense: Path, plugin: Path, copies: Path | None, alone: Alone, weights: Sequence[Any],
    m: int,
) -> dict[str, Any]:  # fmt: skip
    """Times the engines and cuSPARSELt in turn, and holds the dense engine and the plugin's against FP32."""
    k, count = weights[0].shape[0], len(weights)
    block = np.random.default_rng(m).standard_normal((min(m, 256), k), np.float32).astype(np.float16)
    feeds = {f"x{i}": np.resize(block, (m, k)) for i in range(count)}
    graph, algorithm = alone.prepare(block, round_up(m), settings.limit)
    with ExitStack() as stack:
        first, second, *third = (
            stack.enter_context(Engine(settings.flavour, file)) for file in (dense, plugin, copies) if file
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
