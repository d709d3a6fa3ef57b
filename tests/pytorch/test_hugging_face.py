"""Modules from Hugging Face folders: weights that are there, random ones, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.errors import InputError
from sparseflow_trt.pytorch.hugging_face import load_hugging_face

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
}  # fmt: skip


def _write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_random_weights_are_the_same_for_a_seed(tmp_path: Path) -> None:
    folder = _write(tmp_path, LLAMA)
    first, again, other = (load_hugging_face(folder, weights="random", seed=seed) for seed in (1, 1, 2))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert not first.training


def test_a_checkpoint_keeps_its_type_unless_asked(tmp_path: Path) -> None:
    folder = _write(tmp_path, LLAMA)
    saved = load_hugging_face(folder, weights="random", dtype="bf16")
    saved.save_pretrained(folder)
    assert {p.dtype for p in load_hugging_face(folder).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_hugging_face(folder, dtype="fp32").parameters()} == {torch.float32}


def test_a_configuration_alone_is_refused_unless_random_weights_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a configuration and no weights") as raised:
        load_hugging_face(_write(tmp_path, LLAMA))
    assert "--random-weights" in raised.value.hint


def test_a_checkpoint_that_lacks_weights_is_refused_with_their_names(tmp_path: Path) -> None:
    folder = _write(tmp_path, LLAMA)
    module = load_hugging_face(folder, weights="random")
    state = {name: value for name, value in module.state_dict().items() if "up_proj" not in name}
    module.save_pretrained(folder, state_dict=state)
    with pytest.raises(InputError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight, which a Llama"):
        load_hugging_face(folder)


def test_a_folders_own_code_is_never_run_unasked(tmp_path: Path) -> None:
    folder = _write(tmp_path, {**LLAMA, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(InputError, match=r"needs its own Python code \(AutoModelForCausalLM\)") as raised:
        load_hugging_face(folder, weights="random")
    assert "--trust-remote-code" in raised.value.hint


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config\.json"):
        load_hugging_face(tmp_path)
