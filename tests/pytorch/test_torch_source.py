"""PyTorch modules from configurations and functions, small ones with random weights."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.errors import InputError
from sparseflow_trt.pytorch.torch_source import check_source, load_torch_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "vocab_size": 99,
}  # fmt: skip
VIT = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 64, "image_size": 32,
    "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 16,
}  # fmt: skip
T5 = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_kv": 16,
    "d_ff": 128, "num_layers": 1, "num_heads": 4, "vocab_size": 99, "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


def _write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "made", "output", "shapes"),
    [
        (LLAMA, "LlamaForCausalLM", (2, 8, 99), "input_ids 2×8"),
        (BERT, "BertModel", (2, 8, 64), "input_ids 2×8"),
        (VIT, "ViTForImageClassification", (2, 2), "pixel_values 2×3×32×32"),
        (T5, "T5ForConditionalGeneration", (2, 8, 99), "input_ids 2×8, decoder_input_ids 2×8"),
    ],
)
def test_a_configuration_becomes_a_module_that_runs(
    config: dict[str, Any], made: str, output: tuple[int, ...], shapes: str, tmp_path: Path
) -> None:
    folder = _write(tmp_path, config)
    for source in (folder, folder / "config.json"):
        model = load_torch_model(str(source), 2, 8, "bf16", "cpu")
        assert type(model.module).__name__ == made
        assert not model.module.training
        assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
        assert model.shapes == shapes
        with torch.no_grad():
            assert tuple(model.run()[0].shape) == output
    assert torch.get_default_dtype() == torch.float32


def test_weights_beside_a_configuration_are_taken(tmp_path: Path) -> None:
    first = load_torch_model(str(_write(tmp_path, LLAMA)), device="cpu").module
    first.save_pretrained(tmp_path)
    second = load_torch_model(str(tmp_path), device="cpu").module
    state = second.state_dict()
    assert {p.dtype for p in second.parameters()} == {torch.float16}
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


FUNCTIONS = """
import torch
def positional(): return torch.nn.Linear(8, 4), (torch.zeros(3, 8),)
def single(): return torch.nn.Linear(8, 4), torch.zeros(3, 8)
def named(): return torch.nn.Linear(8, 4), {"input": torch.zeros(3, 8)}
def fails(): raise ValueError("no such\\nthing.")
def no_pair(): return torch.nn.Linear(8, 4)
def axes(): return torch.nn.Linear(8, 4), {"input": torch.zeros(3, 8)}, {"input": {0: "batch"}}
def long(): return torch.nn.Linear(8, 4), 1, 2, 3
def turned(): return torch.zeros(3, 8), torch.nn.Linear(8, 4)
"""


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("positional", "0 3×8"), ("single", "0 3×8"), ("named", "input 3×8"), ("axes", "input 3×8")],
)
def test_a_function_gives_a_module_and_inputs(name: str, shapes: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    model = load_torch_model(f"{tmp_path}/mine.py:{name}", device="cpu")
    assert (tuple(model.run().shape), model.shapes) == ((3, 4), shapes)
    assert not model.module.training


@pytest.mark.parametrize(("folder", "source"), [(".", "mine/model.py:make"), ("mine", "model:make")])
def test_a_function_imports_what_lies_beside_it(
    folder: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    for name, text in (
        ("sizes_beside", "WIDE = 8"),
        ("layers_beside", "import torch\ndef layer(): return torch.nn.Linear(8, 4)"),
        (
            "model",
            "import torch\nfrom sizes_beside import WIDE\n"
            "def make():\n    from layers_beside import layer\n    return layer(), torch.zeros(3, WIDE)",
        ),
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / "mine" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path / folder)
    before = list(sys.path)
    assert load_torch_model(source, device="cpu").shapes == "0 3×8"
    assert sys.path == before
    for name in ("sizes_beside", "layers_beside", "model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mine.py:fails", "mine.py:fails failed: ValueError: no such thing."),
        ("mine.py:no_pair", "mine.py:no_pair returned a Linear and not (module, inputs)."),
        ("mine.py:long", "mine.py:long returned a tuple of 4 and not (module, inputs)."),
        ("mine.py:turned", "mine.py:turned returned a tuple that begins with a Tensor and not (module, "),
        ("mine.py:gone", "mine.py has no function 'gone'."),
        ("other.py:named", "other.py does not exist."),
        ("no.such.module:named", "no.such.module:named failed: ModuleNotFoundError: "),
        ("mine.py", "mine.py is not a PyTorch module."),
        ("nothing", "nothing is not a PyTorch module."),
        (".", ".: transformers cannot make a model from it: "),
        ("broken/config.json", "broken/config.json: transformers cannot make a model from it: "),
        ("unknown", "unknown: transformers cannot make a model from it: "),
        ("speech", "WhisperModel takes 'input_features', for which no inputs are made here."),
    ],
)
def test_what_is_no_module(source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FUNCTIONS)
    for name, text in (
        ("broken", "{"),
        ("unknown", '{"model_type": "unheard-of"}'),
        ("speech", json.dumps(WHISPER)),
    ):
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        load_torch_model(source, device="cpu")
    if says.endswith(("does not exist.", "is not a PyTorch module.")):
        with pytest.raises(InputError, match=re.escape(says)):
            check_source(source)
    assert caught.value.message.startswith(says)
    assert "\n" not in caught.value.message
    assert caught.value.hint
