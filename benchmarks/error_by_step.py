"""The error of MiniLM's embeddings by step, for three plans, and what it costs to measure it.

python benchmarks/error_by_step.py [FOLDER]

FOLDER holds what `make demo` makes; default: demo/out. The errors are of the demo's real sentences.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import BIN, summary, write_result

DEMO = Path(__file__).parent.parent / "demo" / "out"
RUNS = 5
SHAPES = ("--dim", "batch=1,2,8", "--dim", "seq=8,128,128")
PLANS = {
    "every layer sparse": ("--sparsity", "force"),
    "as the a100-80gb policy says": ("--policy", "a100-80gb"),
    "every layer dense": ("--sparsity", "off"),
}


def main() -> None:
    """Builds each plan with the unpruned model beside, and writes results/error_by_step.json."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO
    pruned, dense, inputs = (folder / f for f in ("minilm.2to4.onnx", "minilm.onnx", "sentences.npz"))
    if not (pruned.exists() and dense.exists() and inputs.exists()):
        raise SystemExit(f"{pruned}, {dense} or {inputs} is missing: run `make demo` first.")
    given = ("--inputs", str(inputs))
    plans = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, options) in enumerate(PLANS.items()):
            target = f"{scratch}/{number}"
            asked = (*SHAPES, *options, "--dense-model", str(dense), *given)
            plans[name] = errors(run("build", str(pruned), "-o", target, *asked)[1]["manifest"])
        check = ("validate", f"{scratch}/0", "--reference", str(pruned), *given)
        ways: dict[str, list[str]] = {
            "validate": [],
            "with --dense-model": ["--dense-model", str(dense)],
            "with --dense-model --per-layer": ["--dense-model", str(dense), "--per-layer"],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(RUNS):
            for way, more in ways.items():
                seconds[way].append(run(*check, *more)[0])
        layers = run(*check, *ways["with --dense-model --per-layer"])[1]["attribution"]["layers"]
    write_result(
        "error_by_step",
        {
            "model": "MiniLM-L6, magnitude 2:4 without training, FP16, sentences of the demo",
            "error of the output, root mean square over its own, on the worst input set": plans,
            "largest own error of a layer": {step: worst(layers, step) for step in ("pruning", "precision")},
            "seconds": {way: summary(runs) for way, runs in seconds.items()},
        },
    )


def run(*arguments: str) -> tuple[float, Any]:
    """Seconds of wall time of a command, and its JSON."""
    started = time.perf_counter()
    command = [str(BIN / "sparseflow-trt"), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started, json.loads(done.stdout)


def errors(manifest: Any) -> dict[str, Any]:
    """Each step's largest error over the input sets, and pruning's as it would be with nothing restored."""
    attribution = manifest["validation"]["attribution"]
    found = {
        step["name"]: max((output["error"] for output in step["outputs"]), default=None)
        for step in attribution["steps"]
    }
    given = attribution["unrestored"]
    return {
        "layers sparse": sum(layer["sparsity"] == "sparse" for layer in manifest["layers"]),
        "layers restored": sum(record["route"] == "restored" for record in manifest["graph"]["restored"]),
        **found,
        "pruning, not restored": max(o["error"] for o in given["outputs"]) if given else found["pruning"],
        "blamed": attribution["blamed"],
    }


def worst(layers: Any, step: str) -> dict[str, Any]:
    """The layer that adds most in a step."""
    first = next(layer for layer in layers if layer["step"] == step)
    return {name: first[name] for name in ("layer", "module", "op_type", "own", "accumulated")}


if __name__ == "__main__":
    main()
