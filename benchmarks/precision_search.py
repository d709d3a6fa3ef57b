"""`--precision auto` on MiniLM and a BERT-base: runs, time, what stays out of FP16, and the error.

    python benchmarks/precision_search.py --autocast PYTHON

PYTHON is an interpreter of an environment that has nvidia-modelopt[onnx], for its AutoCast; without it that
side is left out. Each side's graph is compared with FP32 by the same comparison on the same inputs: MiniLM on
the demo's sentences, BERT-base (random weights) on random token ids, as it is and with three planted faults.
Polygraphy's `debug precision` is called, too: what it says is kept. Its strategy (the shortest beginning, or
end, of the graph in FP32 that passes, by bisection) is replayed on the same typed graphs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import write_result

from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read, settle
from sparseflow_trt.exporters.apply_plan import apply_plan, save_model
from sparseflow_trt.exporters.retyping.measured import MOVERS, OUTPUT, PRODUCTS, add_measurements, first_float
from sparseflow_trt.exporters.retyping.node_types import infer_types
from sparseflow_trt.exporters.retyping.precision_groups import find_groups
from sparseflow_trt.exporters.retyping.twin import needs_twin, write_twin
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.node_range import NodeRange
from sparseflow_trt.model.sites import name_of
from sparseflow_trt.precision.trials import Question, Trials
from sparseflow_trt.validation.compare import compare_one, reference_outputs
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.input_files import load_inputs
from sparseflow_trt.validation.ranges import measure_ranges
from sparseflow_trt.validation.tolerances import DEFAULTS, OutputTolerances
from sparseflow_trt.validation.trial import Candidate

DEMO = Path(__file__).parent.parent / "demo" / "out"
FP16 = OutputTolerances(DEFAULTS["fp16"])
PROFILE = PlanOptions(precision="auto", sparsity="off", axes={"batch": (1, 4, 8), "seq": (2, 64, 128)})
AUTOCAST = """
import json, sys, time
import onnx
from modelopt.onnx.autocast import convert_to_mixed_precision
model, data, output, options = sys.argv[1:]
started = time.perf_counter()
made = convert_to_mixed_precision(
    onnx_path=model, low_precision_type="fp16", calibration_data=data, keep_io_types=True, providers=["cpu"],
    **json.loads(options))
seconds = time.perf_counter() - started
onnx.save(made, output)
import importlib.metadata
print(json.dumps([seconds, importlib.metadata.version("nvidia-modelopt")]))
"""
PLANTED = {
    "layer 3: attention scores of 1e5": (3, "scores", 320.0),
    "layer 6: 3e5 before the LayerNormalization": (6, "norm", 4e4),
    "layer 9: attention scores of 3e4, which FP16 holds in steps of 16": (9, "scores", 172.0),
}


def main() -> None:
    """Runs every side on every model and writes results/precision_search.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--autocast", type=Path, help="a Python that has nvidia-modelopt[onnx]")
    python = parser.parse_args().autocast
    if not (DEMO / "minilm.onnx").exists():
        raise SystemExit("demo/out/minilm.onnx is missing: run `make demo` first.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        minilm = load_inputs(DEMO / "sentences.npz", read_model(DEMO / "minilm.onnx"))
        found = {"minilm, real sentences": judge(DEMO / "minilm.onnx", minilm, folder, python)}
        for title, faults in {"bert-base": {}, "bert-base, three planted faults": PLANTED}.items():
            path = folder / "bert.onnx"
            export_bert(path, faults)
            tokens = np.random.default_rng(0).integers(5, 30000, (4, 64))
            feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
            given = [InputSet("tokens", feeds, 0, "random token ids, seed 0")]
            found[title] = judge(path, given, folder, python)
        write_result(
            "precision_search",
            {
                "held_to": {"tolerance": FP16.default.model_dump()},
                "planted": list(PLANTED),
                "polygraphy debug precision": polygraphy_says(DEMO / "minilm.onnx"),
                "models": found,
            },
            "python benchmarks/precision_search.py --autocast PYTHON",
        )


def judge(path: Path, inputs: Sequence[InputSet], folder: Path, python: Path | None) -> dict[str, Any]:
    """What each side leaves out of FP16 in one model, at what error and in what time."""
    model, layers = read(path)
    base = plan_for(model, layers, PROFILE, "")
    expected = reference_outputs(path, inputs)
    measured = read_model(path)
    infer_types(measured.ir)
    rows = add_measurements(measured.ir, narrower=True)
    save_model(measured.ir, folder / "measured.onnx")
    ranges = measure_ranges(folder / "measured.onnx", OUTPUT, rows, inputs)

    def weigh(graph: Path) -> dict[str, Any]:
        return weigh_graph(graph, ranges, inputs, expected, folder)

    sides: dict[str, Any] = {}
    apply_plan(read_model(path), base, folder / "fp16.onnx")
    sides["everything in FP16"] = weigh(folder / "fp16.onnx")

    started = time.perf_counter()
    plan = settle(model, layers, base, PROFILE, inputs, ValidationOptions(), True)
    seconds = time.perf_counter() - started
    assert plan.search is not None
    apply_plan(read_model(path), plan, folder / "auto.onnx")
    search = plan.search
    sides["--precision auto"] = {
        "seconds": round(seconds, 1),
        "runs": len(search.runs),
        "measuring runs": search.measuring_runs,
        "irreducible": search.irreducible,
        "not in FP16": [
            f"{s.node}: {s.precision}, {s.why}" for s in search.sensitivities if s.precision != "fp16"
        ],
        **weigh(folder / "auto.onnx"),
    }
    groups = find_groups(read_model(path), base, ranges, FP16.default.max_rel / 2)
    for end in ("beginning", "end"):
        question = Question(path, base, "fp16", FP16, inputs, True)
        sides[f"bisection from the {end}"] = bisect(question, groups, ranges, expected, folder, end, weigh)
    if python is not None:
        for options in ({}, {"data_max": 65504}):
            told = "AutoCast" + "".join(f", {name}={value}" for name, value in options.items())
            sides[told] = autocast(python, path, inputs[-1], folder, options, weigh)
    return {
        "weighted layers": len(base.layers),
        "groups": len(groups),
        "inputs": [{k: list(v.shape) for k, v in given.feeds.items()} for given in inputs],
        "sides": sides,
    }


def weigh_graph(
    graph: Path,
    ranges: dict[str, NodeRange],
    inputs: Sequence[InputSet],
    expected: Sequence[dict[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    """A typed graph's share in FP16, by M·N·K and by nodes, and its error against FP32."""
    typed = read_model(graph)
    infer_types(typed.ir)
    products: dict[str, float] = {}
    nodes: dict[str, int] = {}
    wide = []
    for node in typed.ir.graph:
        output = first_float(node)
        if output is None or output.dtype is None or node.op_type in MOVERS | {"Cast"}:
            continue
        kind = output.dtype.name
        nodes[kind] = nodes.get(kind, 0) + 1
        if node.op_type in PRODUCTS:
            known = ranges.get(name_of(node))
            products[kind] = products.get(kind, 0.0) + (known.work if known else 0.0)
            if kind == "FLOAT":
                wide.append(name_of(node))
    path = graph
    if needs_twin(typed):
        path = folder / "twin.onnx"
        write_twin(typed, path)
    verdict = compare_one(Candidate("candidate", path, "onnx", as_written=True), inputs, expected, FP16)
    outputs = [
        {
            "output": o.output,
            "set": o.input_set,
            "max_abs": o.max_abs,
            "bound": o.abs_bound,
            "cosine": o.cosine,
        }
        for o in verdict.outputs
    ]
    total = sum(products.values())
    return {
        "verdict": verdict.verdict,
        "share of M·N·K": {kind: round(work / total, 4) for kind, work in sorted(products.items())},
        "nodes": dict(sorted(nodes.items())),
        "products in FP32": {"count": len(wide), "first": wide[:12]},
        "outputs": outputs,
    }


def bisect(
    question: Question, groups: Any, ranges: Any, expected: Any, folder: Path, end: str, weigh: Any
) -> dict[str, Any]:
    """The shortest beginning (or end) of the graph that has to be in FP32, found by halving."""
    order = {name_of(node): i for i, node in enumerate(read_model(question.model).ir.graph)}
    atoms = sorted(
        (atom for group in groups for atom in group.atoms),
        key=lambda atom: order.get(atom.name, order.get((*atom.nodes, "")[0], 0)),
        reverse=end == "end",
    )
    trials = Trials(question, expected, folder, 1000, lambda _: None)
    started = time.perf_counter()
    low, high = -1, len(atoms)
    while high - low > 1:
        middle = (low + high) // 2 if low >= 0 else 0
        if trials.passes(atoms[:middle], str(middle)):
            high = middle
        else:
            low = middle
    trials.passes(atoms[:high], str(high))
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "runs": len(trials.runs),
        "parts in FP32": f"{high} of {len(atoms)}",
        **weigh(folder / "candidate.onnx" if not high else _again(question, atoms[:high], folder)),
    }


def _again(question: Question, atoms: Any, folder: Path) -> Path:
    from sparseflow_trt.precision.trials import assigned

    layers = {name: "fp32" for atom in atoms for name in atom.layers}
    plan = assigned(question.plan, layers, tuple(name for atom in atoms for name in atom.nodes))
    typed = folder / "again.onnx"
    apply_plan(read_model(question.model), plan, typed)
    return typed


def autocast(
    python: Path, model: Path, given: InputSet, folder: Path, options: dict[str, Any], weigh: Any
) -> dict[str, Any]:
    """ModelOpt's AutoCast with the same inputs to calibrate on, in an interpreter of its own."""
    data, output = folder / "calibration.npz", folder / "autocast.onnx"
    np.savez(data, **given.feeds)
    command = [str(python), "-c", AUTOCAST, str(model), str(data), str(output), json.dumps(options)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    seconds, version = json.loads(done.stdout.strip().splitlines()[-1])
    return {"modelopt": version, "seconds": round(seconds, 1), **weigh(output)}


def polygraphy_says(model: Path) -> dict[str, Any]:
    """What `polygraphy debug precision` ends with here."""
    command = [
        "debug",
        "precision",
        str(model),
        "--mode",
        "bisect",
        "--precision",
        "float32",
        "--check",
        "true",
    ]
    call = "import sys; from polygraphy.tools import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", call, *command], capture_output=True, text=True, check=False)
    lines = [
        line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("[!]", "    Note"))
    ]
    return {"exit code": done.returncode, "says": lines}


def export_bert(path: Path, faults: dict[str, tuple[int, str, float]]) -> None:
    """BERT-base's shape (12 layers of 768, 12 heads, 3072) with random weights, and planted faults."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    # wider than a fresh BERT's 0.02, so that attention is not uniform
    config = transformers.BertConfig(attn_implementation="eager", initializer_range=0.04)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for number, kind, size in faults.values():
            layer = bert.encoder.layer[number]
            if kind == "norm":
                layer.output.dense.weight *= size
            else:  # one element of each head's query and key is a constant: a score's large common part
                for linear in (layer.attention.self.query, layer.attention.self.key):
                    linear.weight[::64], linear.bias[::64] = 0.0, size

    class Encoder(torch.nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.encoder(input_ids, attention_mask).last_hidden_state

    ids = torch.randint(5, 1000, (2, 16))
    axes = {0: torch.export.Dim("batch", min=1, max=256), 1: torch.export.Dim("seq", min=2, max=512)}
    program = torch.onnx.export(
        Encoder(bert).eval(), (ids, torch.ones_like(ids)), dynamo=True, opset_version=20,
        input_names=["input_ids", "attention_mask"], output_names=["hidden"], dynamic_shapes=(axes, axes),
        verbose=False,
    )  # fmt: skip
    program.save(path)


if __name__ == "__main__":
    main()
