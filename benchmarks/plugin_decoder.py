"""The 2:4 plugin in whole networks on TensorRT: dense, native sparse and plugin engines of the same weights.

    python benchmarks/plugin_decoder.py CASE --plugin LIB [--layers 22] [--sides dense plugin …] [--work DIR]
        [--level N] [--policy FILE] [--no-reference] [--stop-after SECONDS]

CASE: prefill (TinyLlama-shaped decoder, one sequence of 1024 tokens), decode (64 sequences of one token each,
256 in the cache). MLP blocks by themselves are tensorrt_mlp.py's.

The sides: "dense" has sparsity off, "sparse" TensorRT's own sparse kernels wherever it finds them faster,
"plugin" every product in the plugin, "joined" the same with products of one input (q, k and v; gate and up)
made one, and "policy" what a --policy chooses of these; one that is planned as an earlier one is not built
again. Engines have fixed shapes and are timed in turn as CUDA graphs. Errors are against FP32 on the CPU. The
ceiling is what a run would gain if each product took what it takes in the plugin and nothing else changed
(engine_layers.py).

Writes results/plugin_decoder_CASE.json after each step. With --work, what was built and computed is found
again: the same command goes on. --backend onnxruntime tries the script without a GPU, without a plugin.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from compare_engines import errors
from decoder_model import Arrays, Phase, Shape, feeds_of, write_decoder, write_weights
from engine_layers import PROFILED, ceilings, layer_ms, products_of
from engine_sides import OrtEngine, first_like, join
from measure import RESULTS, today, write_result

from sparseflow_trt._files import sha256_of, write_atomically, written_atomically
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.engines.backends.choose import backend_for
from sparseflow_trt.engines.plugin.library import load_library
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions, Progress
from sparseflow_trt.engines.running.benchmark import ratio, time_interleaved
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.errors import SparseflowError
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.fp32_reference import write_fp32_reference
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.policies.policy import Policy, find_policy
from sparseflow_trt.validation.runners import ort_runner

CASES: dict[str, tuple[Shape, tuple[Phase, ...]]] = {
    "prefill": (Shape(), (Phase(1, 1024),)),
    "decode": (Shape(), (Phase(64, 1, 256),)),
    # to try this script without a GPU: --backend onnxruntime
    "tiny": (Shape(2, 128, 256, 4, 2), (Phase(1, 16), Phase(4, 1, 8))),
}
SIDES = ("dense", "sparse", "plugin", "joined", "policy")
ROUNDS, LAUNCHES = 15, 20


@dataclass(frozen=True)
class Settings:
    """What a command asks for, and where things are kept.

    Attributes:
        ends: When no more builds are begun, by time.monotonic.
    """

    work: Path
    backend: Any
    plugin: Path | None
    policy: Policy | None
    level: int | None
    sides: tuple[str, ...]
    reference: bool
    ends: float


def main() -> None:
    """Reads the command line and runs a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--plugin", type=Path, help="the compiled library")
    parser.add_argument("--layers", type=int, help="of the decoder")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES[:4])
    parser.add_argument(
        "--policy", type=find_policy, help="a policy's file or name: for the side of that name"
    )
    parser.add_argument("--level", type=int, help="the builder's optimization level; by default its own")
    parser.add_argument("--no-reference", action="store_true", help="no errors against FP32")
    parser.add_argument("--work", type=Path, help="where models, engines and outputs are kept")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--backend", default="tensorrt")
    asked = parser.parse_args()
    if asked.backend == "tensorrt" and not asked.plugin:
        parser.error("give --plugin.")
    if "policy" in asked.sides and not asked.policy:
        parser.error("the policy's side needs --policy.")
    shape, phases = CASES[asked.case]
    shape = replace(shape, layers=asked.layers or shape.layers)
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            work, asked.backend, asked.plugin, asked.policy, asked.level, tuple(asked.sides),
            not asked.no_reference, time.monotonic() + asked.stop_after,
        )  # fmt: skip
        run_case(asked.case, shape, phases, settings)


def run_case(case: str, shape: Shape, phases: Sequence[Phase], settings: Settings) -> None:
    """Builds and times each phase; what is known is written after each step."""
    rows: list[dict[str, Any]] = []
    for phase in phases:
        model = write_model(case, shape, phase, settings)
        row: dict[str, Any] = {"date": today(), "m": phase.m, **asdict(phase), "built": {}}
        rows.append(row)
        built: dict[str, dict[str, Any]] = {}
        plans = plans_of(model, settings)
        row["the same engine"] = {s: other for s in plans if (other := first_like(s, plans)) != s}
        for side, plan in plans.items():
            if side in row["the same engine"]:
                continue
            if built_facts(model, side, settings) is None and time.monotonic() > settings.ends:
                say(f"the time is up before {side}, M={phase.m}; the same command goes on")
                break
            try:
                built[side] = row["built"][side] = build_side(model, side, plan, settings)
            except SparseflowError as error:  # the other sides say something all the same
                row["built"][side] = {"failed": f"{error.message} {error.hint}"}
                say(f"{model.stem} {side}: {error.message}")
            write(case, shape, rows, settings)
        if not built:
            return
        compare(model, built, row, settings, lambda: write(case, shape, rows, settings))
        print(json.dumps({key: row.get(key) for key in ("m", "times", "dense over it", "ceiling", "errors")}))


def write_model(case: str, shape: Shape, phase: Phase, settings: Settings) -> Path:
    """The phase's ONNX file, and the weights that all phases share."""
    folder = settings.work / f"{case}-{shape.layers}"
    folder.mkdir(exist_ok=True)
    weights, listed = folder / "weights.bin", folder / "weights.json"
    if not listed.exists():
        say("drawing weights")
        write_atomically(listed, json.dumps(write_weights(weights, shape)))
    places = json.loads(listed.read_text())
    model = folder / f"m{phase.m}.onnx"
    if not model.exists():
        write_decoder(model, weights, places, shape, phase)
    return model


def plans_of(model: Path, settings: Settings) -> dict[str, Plan]:
    """Each side's plan."""
    modes: dict[str, Any] = {"dense": "off", "sparse": "force", "plugin": "plugin", "joined": "plugin"}
    read_once = read(model)
    plans = {}
    for side in settings.sides:
        policy = settings.policy if side == "policy" else None
        options = PlanOptions(policy, precision="keep", sparsity=modes.get(side, "policy"), plugin=True)
        plan = plan_for(*read_once, options, "")
        plans[side] = join(model, plan) if side == "joined" else plan
    return plans


def folder_of(model: Path, side: str) -> Path:
    """Where a side's engine lies."""
    return model.with_name(f"{model.stem}.{side}")


def built_facts(model: Path, side: str, settings: Settings) -> dict[str, Any] | None:
    """What was written of a side's engine that stands, None where there is none of this library and level."""
    file = folder_of(model, side) / "built.json"
    if not file.exists():
        return None
    facts: dict[str, Any] = json.loads(file.read_text())
    same = facts["level"] == settings.level and facts["plugin"]["given"] == sha256_of_plugin(settings)
    return facts if same else None


def sha256_of_plugin(settings: Settings) -> str:
    """The given library's hash, "" where none is given."""
    return sha256_of(settings.plugin) if settings.plugin else ""


def build_side(model: Path, side: str, plan: Plan, settings: Settings) -> dict[str, Any]:
    """One engine with its typed graph; the one that stands there if nothing has changed."""
    if facts := built_facts(model, side, settings):
        say(f"{model.stem} {side}: was built before")
        return facts
    folder = folder_of(model, side)
    folder.mkdir(exist_ok=True)
    backend, _ = backend_for(settings.backend)
    started = time.monotonic()
    typed = folder / "model.onnx"
    graph = apply_plan(read_model(model), plan, typed, backend.graph_needs())
    options = EngineOptions(optimization_level=settings.level)
    request = BuildRequest(typed, plan, folder, plan.wants_sparse, options, settings.plugin)
    last = [""]

    def tell(progress: Progress) -> None:
        if progress.step != last[0]:
            last[0] = progress.step
            say(f"{model.stem} {side}: {progress.step}")

    engine = backend.build(request, tell)
    for file in folder.glob("model.onnx*"):  # of no use from here on, and as large as the engine
        file.unlink()
    kernels = [layer.sparsity for layer in plan.layers]
    facts = {
        "level": settings.level,
        "plugin": {
            "given": sha256_of_plugin(settings),
            **(engine.plugin.model_dump() if engine.plugin else {}),
        },
        "file": engine.file.name,
        "build_s": round(engine.seconds, 1),
        "command_s": round(time.monotonic() - started, 1),
        "engine_mb": round(engine.file.stat().st_size / 1e6, 1),
        "layers": len(kernels),
        "planned": {kernel: kernels.count(kernel) for kernel in sorted(set(kernels))},
        "runs_sparse": len({o.layer for o in engine.outcomes if o.sparse and not o.plugin}),
        "runs_in_plugin": len({o.layer for o in engine.outcomes if o.plugin}),
        "plugin_nodes": len(graph.plugin),
        "engine_layers": {o.layer: o.engine_layer for o in engine.outcomes},
        "notes": engine.notes,
    }
    write_atomically(folder / "built.json", json.dumps(facts))
    return facts


def compare(
    model: Path, built: Mapping[str, dict[str, Any]], row: dict[str, Any], settings: Settings, write_row: Any
) -> None:
    """Times the engines in turn, then layer by layer, then holds their outputs against FP32."""
    feeds = feeds_of(model)
    with ExitStack() as stack:
        engines = {side: stack.enter_context(open_side(model, side, built[side], settings)) for side in built}
        outputs = {side: engine.run(feeds) for side, engine in engines.items()}
        timed = dict(
            zip(engines, time_interleaved(list(engines.values()), feeds, ROUNDS, LAUNCHES), strict=True)
        )
        row["times"] = {
            side: {"p50_ms": t.p50, "p90_ms": t.p90, "low_ms": min(t.rounds), "high_ms": max(t.rounds)}
            for side, t in timed.items()
        }
        row["memory"] = {side: asdict(t.memory) for side, t in timed.items() if t.memory}
        if "dense" in timed:
            row["dense over it"] = {
                s: asdict(ratio(timed["dense"], t)) for s, t in timed.items() if s != "dense"
            }
        write_row()
        if settings.backend == "tensorrt":
            layers = {side: layer_ms(engine, feeds) for side, engine in engines.items()}
            row["layers"] = {
                side: products_of(layers[side], built[side]["engine_layers"]) for side in engines
            }
            row["ceiling"] = ceilings(row["layers"], {side: t.p50 for side, t in timed.items()})
            write_row()
    if settings.reference:
        say(f"{model.stem}: FP32 on the CPU")
        expected = reference_outputs(model, feeds)
        row["errors"] = {side: errors(got, expected)["y"] for side, got in outputs.items()}
        if "dense" in row["errors"]:
            base = row["errors"]["dense"]["relative_l2"]
            row["error over dense's"] = {
                s: round(e["relative_l2"] / base, 4) for s, e in row["errors"].items() if base
            }
        write_row()


def open_side(model: Path, side: str, facts: Mapping[str, Any], settings: Settings) -> Any:
    """A side's engine, loaded."""
    folder = folder_of(model, side)
    file = folder / facts["file"]
    if settings.backend == "onnxruntime":
        return OrtEngine(file)
    flavour = load_flavour("tensorrt")
    if "file" in facts["plugin"]:
        load_library(flavour, folder / facts["plugin"]["file"])
    return Engine(flavour, file)


def reference_outputs(model: Path, feeds: Arrays) -> Arrays:
    """What the model computes in FP32 on the CPU; kept beside the model."""
    kept = model.with_suffix(".fp32.npz")
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
            reference = Path(scratch) / "fp32.onnx"
            write_fp32_reference(read_model(model), reference)
            with ort_runner(reference, "reference") as runner:
                got = {name: np.array(array) for name, array in runner.infer(feeds).items()}
        with written_atomically(kept) as path, path.open("wb") as stream:
            np.savez(stream, **got)
    with np.load(kept) as arrays:
        return {name: arrays[name] for name in arrays}


def say(text: str) -> None:
    """A line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


def write(case: str, shape: Shape, rows: Sequence[dict[str, Any]], settings: Settings) -> None:
    """Writes what is there so far."""
    name = f"plugin_decoder_{case}"
    shown = [{**row, "built": {s: without_layers(f) for s, f in row["built"].items()}} for row in rows]
    figures = {
        "shape": asdict(shape),
        "timing": {"rounds": ROUNDS, "launches": LAUNCHES, "profiled": PROFILED, "level": settings.level},
        "rows": shown,
    }
    command = f"python benchmarks/plugin_decoder.py {case} --plugin LIB --layers {shape.layers}"
    command += f" --policy {settings.policy.name}" if settings.policy else ""
    command += f" --sides {' '.join(settings.sides)}"
    write_result(name, figures, command, show=False)


def without_layers(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was built, without the long list of the engine's layers."""
    return {key: value for key, value in facts.items() if key != "engine_layers"}


if __name__ == "__main__":
    main()
    print(RESULTS)
