"""The plugin for minutes: two contexts of one engine on two streams in turn, random M, every output checked.

    python benchmarks/plugin_soak.py --plugin FILE [--cusparselt FILE] [--minutes 10]

Needs a GPU, TensorRT, cuda-bindings and cuSPARSELt; with --dense-below M also cuBLASLt. The network is
y = relu(x·up + bias)·down; each context has a profile, a stream and a thread of its own, and all run at once.
Each run takes another M at random, is put on the stream before the one ahead of it is waited for, and has its
output held against FP32 and against the bits that the same M gave at first. Writes results/plugin_soak.json:
the largest error early and late, whether bits changed, the GPU's and the process's memory over time, and what
a run costs the host when its M is new and when it is known, and of which library all this is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import command_line, write_result
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.running.cuda import Cuda, DeviceMemory
from sparseflow_trt.engines.tensorrt.api import Flavour, load_flavour
from sparseflow_trt.engines.tensorrt.build_engine import build_engine
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.exporters.plugin.nodes import put_into_plugin
from sparseflow_trt.exporters.saving import save_plugin_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.shapes import Profile, ShapeRange

K, N, MOST = 1024, 4096, 2048
TOLERANCE = 4e-3  # of the largest output; FP16 rounds to half of 2^-10, the hidden layer too
SAMPLES = 40  # of memory
STREAMS = 2


@dataclass
class Record:
    """What one thread saw."""

    runs: int = 0
    early: float = 0.0
    late: float = 0.0
    changed: list[int] = field(default_factory=list)
    new_ms: list[float] = field(default_factory=list)
    known_ms: list[float] = field(default_factory=list)
    failed: str = ""


def main() -> None:
    """Reads the command line, builds the engine and runs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plugin", type=Path, required=True, help="the compiled library")
    parser.add_argument("--cusparselt", help="cuSPARSELt's library or its folder")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--dense-below", type=int, default=0, metavar="M")
    asked = parser.parse_args()
    if asked.cusparselt:
        os.environ["SPARSEFLOW_CUSPARSELT"] = asked.cusparselt
    flavour = load_flavour("tensorrt")
    load_plugin(flavour, asked.plugin)
    network = draw()
    with tempfile.TemporaryDirectory() as scratch:
        engine = build(flavour, Path(scratch), network, asked.dense_below)
        figures = soak(flavour, engine, network, asked.minutes)
    figures |= {"minutes": asked.minutes, "dense_below_m": asked.dense_below, "shape": [K, N, MOST]}
    figures |= {"plugin_sha256": sha256_of(asked.plugin)}
    write_result("plugin_soak", figures, command_line(sys.argv, ("--plugin", "--cusparselt")))
    if not figures["passed"]:
        raise SystemExit("not passed: see above.")


@dataclass(frozen=True)
class Network:
    """Two layers' constants, rows of x, and what comes of these in FP32 (the hidden rows rounded to FP16)."""

    tensors: dict[str, Any]
    x: Any
    exact: Any


def draw() -> Network:
    """The network, seeded."""
    rng = np.random.default_rng(0)
    up, down = (
        prune_2to4((rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float16), 0)
        for shape in ((K, N), (N, K))
    )
    bias = rng.standard_normal(N).astype(np.float16)
    x = rng.standard_normal((MOST, K)).astype(np.float16)
    hidden = np.maximum(x.astype(np.float32) @ up.astype(np.float32) + bias, 0).astype(np.float16)
    exact = hidden.astype(np.float32) @ down.astype(np.float32)
    return Network({"up": up, "bias": bias, "down": down}, x, exact)


def build(flavour: Flavour, folder: Path, network: Network, dense_below: int) -> Path:
    """The engine, with a profile for each context."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up_proj"),
        helper.make_node("Add", ["a", "bias"], ["b"], "add"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("MatMul", ["c", "down"], ["y"], "down_proj"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["m", K]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(tensor, name) for name, tensor in network.tensors.items()]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "mlp.onnx")
    model = read_model(folder / "mlp.onnx")
    layers = ["up_proj", "down_proj"]
    put_into_plugin(model, layers, dense_below_m=dict.fromkeys(layers, dense_below))
    save_plugin_model(model.ir, folder / "plugin.onnx")
    shapes = ShapeRange(min=(1, K), opt=(256, K), max=(MOST, K))
    profiles = tuple(Profile(name=f"m{i}", inputs={"x": shapes}) for i in range(STREAMS))
    with (folder / "build.log").open("w") as stream:
        build_engine(
            flavour, folder / "plugin.onnx", folder / "mlp.engine", profiles, False, EngineOptions(),
            BuildLog(stream), lambda _: None,
        )  # fmt: skip
    return folder / "mlp.engine"


def soak(flavour: Flavour, engine_file: Path, network: Network, minutes: float) -> dict[str, Any]:
    """Runs both contexts until the time is over, and says what was seen."""
    trt = flavour.module
    cuda = Cuda()
    cuda.call("cudaFree", 0)
    logger = trt.Logger(trt.Logger.WARNING)
    engine = trt.Runtime(logger).deserialize_cuda_engine(engine_file.read_bytes())
    contexts = [engine.create_execution_context() for _ in range(STREAMS)]
    records = [Record() for _ in contexts]
    started = time.monotonic()
    ends = started + 60 * minutes
    work = [
        threading.Thread(
            target=guarded, args=(record, run, cuda, contexts[i], i, network, started, ends, record)
        )
        for i, record in enumerate(records)
    ]
    for thread in work:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in work):
        memory.append(
            {"s": round(time.monotonic() - started, 1), "gpu_free": cuda.free_memory(), "rss": rss()}
        )
        for thread in work:
            thread.join(60 * minutes / SAMPLES / len(work))
    for thread in work:
        thread.join()
    settled = memory[len(memory) // 4 :] or memory
    growth = settled[0]["gpu_free"] - settled[-1]["gpu_free"]
    early, late = (float(np.max([getattr(r, side) for r in records])) for side in ("early", "late"))
    limit = TOLERANCE * float(np.abs(network.exact).max())
    failed = [record.failed for record in records if record.failed]
    outputs_right = all(record.runs for record in records) and early < limit and late < limit
    return {
        "passed": not failed and outputs_right and growth <= 0,
        "outputs_right": outputs_right,
        "failed": failed,
        "runs": [record.runs for record in records],
        "max_error_first_half": early,
        "max_error_second_half": late,
        "allowed_error": limit,
        "m_whose_bits_changed": sorted({m for record in records for m in record.changed}),
        "gpu_bytes_grown_after_a_quarter": growth,
        "rss_bytes_grown_after_a_quarter": settled[-1]["rss"] - settled[0]["rss"],
        "host_ms_new_m": spread([ms for record in records for ms in record.new_ms]),
        "host_ms_known_m": spread([ms for record in records for ms in record.known_ms]),
        "memory": memory,
    }


def guarded(record: Record, function: Any, *arguments: Any) -> None:
    """Calls a function in a thread, and keeps what it dies of."""
    try:
        function(*arguments)
    except BaseException as error:  # noqa: BLE001 - told in the result
        record.failed = f"{type(error).__name__}: {error}"


def run(
    cuda: Cuda, context: Any, number: int, network: Network, started: float, ends: float, record: Record
) -> None:
    """One context's runs: two sets of buffers in turn, so that the stream is never empty."""
    chosen, x, exact = random.Random(number), network.x, network.exact
    stream = cuda.new_stream()
    context.set_optimization_profile_async(number, stream)
    cuda.synchronize(stream)
    buffers = [(DeviceMemory(cuda, x.nbytes), DeviceMemory(cuda, MOST * K * 2)) for _ in range(2)]
    outputs = [np.empty((MOST, K), np.float16) for _ in buffers]
    first: dict[int, bytes] = {}
    seen: set[int] = set()
    waiting: list[tuple[int, int, int, Any]] = []  # buffer, M, first row, marker
    half = (started + ends) / 2
    while time.monotonic() < ends or waiting:
        if time.monotonic() < ends:
            m, slot = chosen.randint(1, MOST), record.runs % 2
            at = chosen.randrange(MOST - m + 1) if m in first and chosen.random() < 0.5 else 0
            source, target = buffers[slot]
            cuda.copy_to_device(source.pointer, x[at : at + m], stream)
            began = time.perf_counter()
            context.set_input_shape("x", (m, K))
            context.set_tensor_address("x", source.pointer)
            context.set_tensor_address("y", target.pointer)
            if not context.execute_async_v3(stream):
                raise RuntimeError(f"M={m} does not run")
            took = (time.perf_counter() - began) * 1000
            (record.known_ms if m in seen else record.new_ms).append(took)
            seen.add(m)
            cuda.copy_to_host(outputs[slot][:m], target.pointer, stream)
            waiting.append((slot, m, at, cuda.mark(stream)))
            record.runs += 1
        if len(waiting) == 2 or time.monotonic() >= ends:
            slot, m, at, marker = waiting.pop(0)
            marker.synchronize()
            got = outputs[slot][:m]
            error = float(np.abs(got - exact[at : at + m]).max())
            if time.monotonic() < half:
                record.early = float(np.maximum(record.early, error))  # a NaN stays one
            else:
                record.late = float(np.maximum(record.late, error))
            if at == 0:
                digest = hashlib.sha256(got.tobytes()).digest()
                if first.setdefault(m, digest) != digest:
                    record.changed.append(m)


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, in milliseconds."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 4),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 4),
        "max": round(ordered[-1], 4),
        "count": len(ordered),
    }


def rss() -> int:
    """This process's resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
