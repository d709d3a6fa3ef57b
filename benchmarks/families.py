"""Families of models, from small configurations: exported, pruned, built and validated on a CPU.

python benchmarks/families.py [FAMILY …]

Writes results/families.json and docs/FAMILIES.md (with all families only). Weights are random, 2:4 along K,
and saved as checkpoints; nothing is downloaded. Needs PyTorch, transformers, ONNX Runtime and TensorRT-RTX.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from measure import RESULTS, write_result

from sparseflow_trt._files import write_atomically
from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.errors import SparseflowError
from sparseflow_trt.export import ExportOptions, ExportReport, export_model
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.pytorch.hf_tasks import Task
from sparseflow_trt.pytorch.hugging_face import load_hugging_face

PAGE = Path(__file__).parent.parent / "docs" / "FAMILIES.md"
BACKENDS = ("onnxruntime", "tensorrt-rtx")
AXES = {
    "batch": (1, 2, 4), "seq": (1, 8, 16), "images": (1, 2, 4), "past": (0, 8, 16),
}  # fmt: skip

_HEAD = """
# Families of models

Written by `python benchmarks/families.py`: do not edit. Each family from its configuration with small sizes
and random weights that are 2:4 along K, saved as a checkpoint, and then as a user would: `export` (compared
with PyTorch at three shapes), `prune` (of what is not 2:4 yet: routers of experts), and `build` with
`--sparsity force` in FP16 for ONNX Runtime and for TensorRT-RTX, validated at the profile's min, opt and max.
No GPU: ONNX Runtime's engine and the typed graph were run, TensorRT-RTX's engines were built and not run.
Small sizes show that a graph is taken, not how fast it is.

| family | task | exported (error) | layers | can be 2:4 | are 2:4 | ONNX Runtime | TensorRT-RTX | fails |
|---|---|---|---|---|---|---|---|---|
"""
_EXPERTS = """
A mixture of experts is exported with every expert run on every token and weighed by its route
(`sparseflow_trt/pytorch/experts.py`): its weights are constants that can be 2:4, and it costs as many
products as there are experts. The profile of a KV cache begins at `past=0`: an empty cache.
"""

_SMALL = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 16}
_VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


class Family(NamedTuple):
    """A family: its configuration's class and values, the model's class, and what it is exported for."""

    name: str
    config: str
    values: dict[str, Any]
    model: str
    tasks: tuple[Task, ...]


_DECODER: tuple[Task, ...] = ("decoder", "decoder-with-cache")
FAMILIES = (
    Family("BERT", "BertConfig", _SMALL, "BertModel", ("encoder",)),
    Family("RoBERTa", "RobertaConfig", {**_SMALL, "type_vocab_size": 1}, "RobertaModel", ("encoder",)),
    Family(
        "DistilBERT", "DistilBertConfig",
        {"vocab_size": 256, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4}, "DistilBertModel",
        ("encoder",),
    ),
    Family(
        "T5 encoder", "T5Config",
        {"vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        "T5EncoderModel", ("encoder",),
    ),
    Family(
        "GPT-2", "GPT2Config",
        {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
         "eos_token_id": 2},
        "GPT2LMHeadModel", _DECODER,
    ),
    Family("Llama", "LlamaConfig", _GROUPED, "LlamaForCausalLM", _DECODER),
    Family("Mistral", "MistralConfig", _GROUPED, "MistralForCausalLM", _DECODER),
    Family("Qwen3", "Qwen3Config", _GROUPED, "Qwen3ForCausalLM", _DECODER),
    Family("Gemma", "GemmaConfig", _GROUPED, "GemmaForCausalLM", _DECODER),
    Family("Phi", "PhiConfig", {**_SMALL, "num_key_value_heads": 4}, "PhiForCausalLM", _DECODER),
    Family(
        "Mixtral (MoE)", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}, "MixtralForCausalLM", _DECODER
    ),
    Family("ViT", "ViTConfig", _VISION, "ViTForImageClassification", ("image",)),
    Family(
        "CLIP", "CLIPConfig",
        {"text_config": {**_SMALL, "max_position_embeddings": 77}, "vision_config": _VISION,
         "projection_dim": 64},
        "CLIPModel", ("text-image",),
    ),
    Family(
        "Whisper encoder", "WhisperConfig",
        {"vocab_size": 256, "d_model": 64, "encoder_layers": 2, "decoder_layers": 1,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
         "decoder_ffn_dim": 128, "num_mel_bins": 16, "max_source_positions": 32, "pad_token_id": 0,
         "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
        "WhisperForConditionalGeneration", ("audio",),
    ),
    Family(
        "ResNet", "ResNetConfig",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 1], "layer_type": "bottleneck"},
        "ResNetForImageClassification", ("image",),
    ),
    Family(
        "ConvNeXt", "ConvNextConfig",
        {"hidden_sizes": [32, 64], "depths": [1, 1], "image_size": 32, "patch_size": 4, "num_stages": 2},
        "ConvNextForImageClassification", ("image",),
    ),
)  # fmt: skip


def main(wanted: tuple[str, ...]) -> None:
    """Runs the families one by one, and writes the result."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _quiet()
    chosen = [family for family in FAMILIES if not wanted or family.name in wanted]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for index, family in enumerate(chosen):
            folder = Path(name) / str(index)
            save_checkpoint(family, folder)
            for task in family.tasks:
                rows.append(run(family, task, folder))
                print(json.dumps(rows[-1]), flush=True)
    if not wanted:
        write_result("families", {"axes": AXES, "rows": rows}, show=False)
        write_page()


def save_checkpoint(family: Family, folder: Path) -> None:
    """Saves a model of random weights that are 2:4 along K wherever they can be."""
    import torch
    import transformers

    folder.mkdir()
    config = getattr(transformers, family.config)(**family.values)
    config.architectures = [family.model]
    config.save_pretrained(folder)
    module = load_hugging_face(folder, weights="random", dtype="fp32")
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                axis = _k_axis(type(owner).__name__, name, parameter.dim())
                if axis is not None and parameter.shape[axis] % 4 == 0:
                    parameter.copy_(torch.from_numpy(prune_2to4(parameter.numpy(), axis)))
    module.save_pretrained(folder)


def _k_axis(owner: str, name: str, rank: int) -> int | None:
    """Which axis of a parameter is K, where a product is made of it."""
    if owner == "Conv1D" and name == "weight":  # GPT-2's, stored [K, N]
        return 0
    if owner in ("Conv1d", "Conv2d", "Linear") and name == "weight":
        return 1
    return 2 if rank == 3 and "Experts" in owner else None


def run(family: Family, task: Task, folder: Path) -> dict[str, Any]:
    """One family and task through every step; a step that fails says why, and later ones are not run."""
    row: dict[str, Any] = {"family": family.name, "model": family.model, "task": task}
    model = folder / f"{task}.onnx"
    pruned = folder / f"{task}.2to4.onnx"
    started = time.perf_counter()
    try:
        report = export_model(str(folder), model, ExportOptions(task=task))
        row |= _of_export(report)
        row["pruned"] = sum(weight.zeroed > 0 for weight in prune_model(read_model(model), pruned).pruned)
        row["builds"] = {backend: _build(pruned, report, backend, folder) for backend in BACKENDS}
        row["failed"] = "; ".join(filter(None, (made["failed"] for made in row["builds"].values())))
    except SparseflowError as error:
        row["failed"] = error.message
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def _of_export(report: ExportReport) -> dict[str, Any]:
    weighted = [layer for layer in report.layers if layer.weight]
    validation = report.validation
    assert validation is not None
    outputs = [output for candidate in validation.candidates for output in candidate.outputs]
    kinds: dict[str, int] = {}
    for layer in weighted:
        kinds[layer.kind] = kinds.get(layer.kind, 0) + 1
    return {
        "exported": validation.verdict,
        "worst_error_against_pytorch": max(output.max_abs or 0.0 for output in outputs),
        "layers": len(weighted),
        "eligible": sum(layer.eligible for layer in weighted),
        "sparse": report.masks.sparse,
        "not_eligible_because": sorted({layer.reason for layer in weighted if not layer.eligible}),
        "kinds": kinds,
    }


def _build(model: Path, report: ExportReport, backend: Any, folder: Path) -> dict[str, Any]:
    used = {dim for dims in report.inputs.values() for dim in dims if isinstance(dim, str)}
    plan = PlanOptions(
        axes={axis: sizes for axis, sizes in AXES.items() if any(axis in dim.split(" + ") for dim in used)},
        sparsity="force",
    )
    options = BuildOptions(folder / f"{model.stem}.{backend}", plan, backend)
    try:
        manifest = build(model, options).manifest
    except SparseflowError as error:
        return {"built": False, "validated": "not run", "failed": f"{backend}: {error.message}"}
    return {"built": True, **_validated(manifest)}


def _validated(manifest: Manifest) -> dict[str, Any]:
    verdicts = {candidate.name: candidate.verdict for candidate in manifest.validation.candidates}
    failed = "" if manifest.validation.verdict == "pass" else manifest.validation.reason
    planned = sum(layer.sparsity == "sparse" for layer in manifest.layers)
    return {"validated": verdicts, "planned_sparse": planned, "failed": failed}


def write_page() -> None:
    """Writes docs/FAMILIES.md from the committed result."""
    result = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    write_atomically(PAGE, page_from_result(result))


def page_from_result(result: dict[str, Any]) -> str:
    """The page for a result."""
    versions = result["versions"]
    why = sorted({reason for row in result["rows"] for reason in row.get("not_eligible_because", ())})
    sizes = ", ".join(f"{axis} {'/'.join(map(str, size))}" for axis, size in result["axes"].items())
    machine = result["machine"]
    lines = [
        *_HEAD.strip().splitlines(),
        *(_line(row) for row in result["rows"]),
        "",
        "Layers that cannot be 2:4, and why:",
        "",
        *(f"- {reason}" for reason in why),
        "",
        *_EXPERTS.strip().splitlines(),
        "",
        f"Sizes of the profiles (min/opt/max): {sizes}.",
        "",
        f"On {machine['cores']} cores of an {machine['cpu']}, {result['date']}: "
        + ", ".join(f"{name} {versions[name]}" for name in sorted(versions)) + ".",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    def built(backend: str) -> str:
        made = row.get("builds", {}).get(backend)
        if made is None:
            return "not run"
        if not made["built"]:
            return "**not built**"
        engine = made["validated"].get(f"engine ({backend})", "not run")
        typed = next((v for name, v in made["validated"].items() if not name.startswith("engine")), "not run")
        return f"built; graph {typed}, engine {engine}"

    exported = (
        f"{row['exported']} ({row['worst_error_against_pytorch']:.1e})" if "exported" in row else "**no**"
    )
    cells = (
        row["family"], row["task"], exported, str(row.get("layers", "-")), str(row.get("eligible", "-")),
        str(row.get("sparse", "-")), *map(built, BACKENDS), row["failed"] or "nothing",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _quiet() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
