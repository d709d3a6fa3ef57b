"""The plugin's products in FP16 and BF16 without TensorRT: cuSPARSELt against cuBLASLt, both searched.

    python benchmarks/plugin_layer.py [MODEL …] [--cuda DIR] [--cusparselt FILE] [--cublaslt FILE] [--m M…]

TensorRT 8.6 takes no BF16 plugin, so no engine shows what the plugin's BF16 is worth. Here the plugin's own
sources, but for those that speak with TensorRT, are compiled with plugin_layer.cpp and run by themselves: one
layer is searched as in an engine's build, sparse and dense, and both are timed in turn with cold weights and
held against sums in double precision. Needs a GPU, g++, CUDA's headers and runtime (CUDA_HOME or --cuda), and
the two libraries. Writes results/plugin_layer.json after each product; products that it has of this machine
and these libraries stand.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from measure import result_that_stands, write_result
from plugin_linear import MODELS, speedup_of

from sparseflow_trt.engines.machine.cuda_libraries import find_libraries
from sparseflow_trt.engines.plugin.build import SOURCES, cuda_includes, cudart_beside

SIZES = (16, 64, 256, 1024, 4096)
WITH_TENSORRT = {"fields.cpp", "log.cpp", "plugin.cpp", "format_tool.cpp"}


def main() -> None:
    """Reads the command line, compiles the program and runs it for each product."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["tinyllama", "llama-8b"])
    parser.add_argument("--cuda", type=Path, help="a CUDA installation")
    parser.add_argument("--cusparselt", help="cuSPARSELt's library or its folder")
    parser.add_argument("--cublaslt", help="cuBLASLt's library or its folder")
    parser.add_argument("--m", nargs="+", type=int, default=SIZES)
    asked = parser.parse_args()
    for variable, given in (("CUSPARSELT", asked.cusparselt), ("CUBLASLT", asked.cublaslt)):
        if given:
            os.environ[f"SPARSEFLOW_{variable}"] = given
    libraries = {found.name: found.version for found in find_libraries()}
    before = result_that_stands("plugin_layer")
    cells: list[dict[str, Any]] = before.get("cells", []) if before.get("libraries") == libraries else []
    with tempfile.TemporaryDirectory() as scratch:
        program = compile_program(Path(scratch), asked.cuda)
        for model in asked.models:
            for layer, (k, n) in MODELS[model].items():
                there = {(c["model"], c["layer"], c["m"]) for c in cells}
                if missing := [m for m in sorted(asked.m) if (model, layer, m) not in there]:
                    for row in run(program, k, n, missing):
                        cells.append({"model": model, "layer": layer, **row})
                        print(json.dumps(cells[-1]), flush=True)
                    write(cells, libraries)


def compile_program(folder: Path, cuda: Path | None) -> Path:
    """Compiles the plugin's sources that need no TensorRT with plugin_layer.cpp; gives the program's file."""
    program, includes = folder / "plugin_layer", cuda_includes(cuda)
    with importlib.resources.as_file(importlib.resources.files(SOURCES)) as sources:
        parts = sorted(
            file
            for file in sources.glob("*.cpp")
            if file.name not in WITH_TENSORRT and not file.name.startswith("check_")
        )
        subprocess.run(
            ["g++", "-std=c++17", "-O3", f"-I{sources}", *(f"-I{include}" for include in includes),
             Path(__file__).with_suffix(".cpp"), *parts, cudart_beside(includes),
             "-ldl", "-lrt", "-lpthread", "-o", program],
            check=True,
        )  # fmt: skip
    return program


def run(program: Path, k: int, n: int, sizes: list[int]) -> list[dict[str, Any]]:
    """Each type's and M's times, errors and gain."""
    done = subprocess.run([program, *map(str, (k, n, *sizes))], check=True, stdout=subprocess.PIPE, text=True)
    return [row_of(json.loads(line)) for line in done.stdout.splitlines()]


def row_of(measured: dict[str, Any]) -> dict[str, Any]:
    """A line of the program's, with the medians and the gain of each round."""
    sparse, dense = measured.pop("sparse_us"), measured.pop("dense_us")
    return {
        **measured,
        "sparse_us": round(statistics.median(sparse), 2),
        "dense_us": round(statistics.median(dense), 2),
        **speedup_of(dense, sparse),
    }


def write(cells: list[dict[str, Any]], libraries: dict[str, str]) -> None:
    """Writes what is there so far, with each type's mean and worst."""
    of_type = {kind: [cell for cell in cells if cell["type"] == kind] for kind in ("fp16", "bf16")}
    figures = {
        kind: {
            "geometric_mean": round(statistics.geometric_mean(cell["speedup"] for cell in found), 3),
            "worst": min(cell["speedup"] for cell in found),
            "largest_error": max(cell["sparse_error"] for cell in found),
            "largest_dense_error": max(cell["dense_error"] for cell in found),
        }
        for kind, found in of_type.items()
    }
    write_result("plugin_layer", {"libraries": libraries, **figures, "cells": cells}, show=False)


if __name__ == "__main__":
    main()
