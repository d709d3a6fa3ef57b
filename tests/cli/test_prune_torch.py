"""`prune` and `unpack` on PyTorch modules: folders, functions, calibration files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sparseflow_trt.pytorch.sparse_checkpoint import load_checkpoint
from sparseflow_trt.pytorch.torch_layers import find_layers
from sparseflow_trt.pytorch.torch_pattern import is_2to4, mask_hash
from tests.torch_models import TOKENS, make_gpt2, make_llama

if TYPE_CHECKING:
    from tests.commands import Sparseflow

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

MINE = """
import torch

def module():
    torch.manual_seed(0)
    up, down = torch.nn.Linear(64, 128), torch.nn.Linear(128, 32)
    return torch.nn.Sequential(up, torch.nn.ReLU(), down), torch.randn(8, 64)

def data():
    for seed in range(3):
        yield {"input": torch.randn(40, 64, generator=torch.Generator().manual_seed(seed))}

def strange():
    yield {"tokens": torch.zeros(2, 2)}
"""
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(TOKENS - 2))]


@pytest.fixture
def llama(own_folder: Path) -> Path:
    """A folder with a small Llama in FP16, and tokens to calibrate on beside it."""
    make_llama(torch).half().save_pretrained(own_folder / "llama")
    rng = np.random.default_rng(0)
    tokens: dict[str, Any] = {f"input_ids@{i}": rng.integers(0, TOKENS, (2, 16)) for i in range(3)}
    np.savez(own_folder / "tokens.npz", **tokens)
    return own_folder / "llama"


def add_tokenizer(folder: Path) -> None:
    """A tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


def test_a_folder_becomes_a_folder_like_it(llama: Path, sparseflow: Sparseflow) -> None:
    before = {file.name: file.read_bytes() for file in llama.iterdir()}
    ended = sparseflow("prune", llama, "--method", "sparsegpt", "--calibration", "tokens.npz", "--json")
    assert ended.code == 0, ended
    said = ended.json
    assert said["output"] == str(llama.with_name("llama.2to4"))
    assert (said["method"], said["batches"], len(said["layers"])) == ("sparsegpt", 3, 14)
    assert all(layer["rows"] == 96 and layer["output_error"] < 1 for layer in said["layers"])
    assert {file.name: file.read_bytes() for file in llama.iterdir()} == before
    module = transformers.AutoModelForCausalLM.from_pretrained("llama.2to4")
    assert module.dtype == torch.float16
    layers = {layer.name: layer for layer in find_layers(module)}
    assert all(mask_hash(layers[one["name"]].weight) == one["mask_sha256"] for one in said["layers"])
    assert all(is_2to4(layers[one["name"]].weight) for one in said["layers"])
    assert not is_2to4(layers["lm_head"].weight)
    record = json.loads(Path("llama.2to4/pruning.json").read_text())
    assert record["layers"] == said["layers"]


def test_where_it_pays(llama: Path, sparseflow: Sparseflow) -> None:
    command = ("prune", llama, "--where-it-pays", "--policy", "a100-80gb", "--batch", 2, "-o", "some")
    ended = sparseflow(*command)
    assert ended.code == 0, ended
    assert "4 layers pruned 2:4 by magnitude" in ended.out
    lines = ended.out.splitlines()
    assert lines[0].split() == ["Layer", "Kind", "N", "K", "M", "Taken", "Basis", "Why"]
    assert [line.split()[:8] for line in lines if "mlp.down_proj" in line] == [
        ["model.layers.*.mlp.down_proj", "(2)", "down", "64", "128", "256", "no", "threshold"]
    ]
    assert "threshold of kind 'down': sparse for M ≥ 512, and M=256" in ended.out
    assert "Left alone" not in ended.out, "the table has every layer, with the reason"
    record = json.loads(Path("some/pruning.json").read_text())
    rows = {row["name"]: row for row in record["choices"]}
    assert {name for name, row in rows.items() if row["taken"]} == {row["name"] for row in record["layers"]}
    assert {row["name"]: row["why"] for row in rows.values() if not row["taken"]} == record["left"]
    up, head = rows["model.layers.1.mlp.up_proj"], rows["lm_head"]
    assert (up["n"], up["k"], up["m"], up["taken"], up["basis"]) == (128, 64, 256, True, "threshold")
    assert up["why"].startswith("threshold of kind 'gate_up': sparse for M ≥ 256, and M=256")
    assert (head["m"], head["taken"], head["basis"]) == (None, False, None)
    assert sparseflow(*command, "--json").json["choices"] == record["choices"]
    layers = find_layers(transformers.AutoModelForCausalLM.from_pretrained("some"))
    assert {layer.kind for layer in layers if is_2to4(layer.weight)} == {"gate_up"}
    none = sparseflow("prune", llama, "--where-it-pays", "--policy", "h200", "-o", "none")
    assert none.code == 1
    assert none.error.startswith("policy 'h200' runs no layer of this module sparse")
    assert not Path("none").exists()


def test_a_text_file_is_tokenized(llama: Path, sparseflow: Sparseflow) -> None:
    add_tokenizer(llama)
    lines = [" ".join(f"w{(i * j) % 90}" for j in range(1, 5 + i)) for i in range(20)]
    Path("texts.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    ended = sparseflow(
        "prune", llama, "--method", "wanda", "--calibration", "texts.txt", "-o", "out", "--json"
    )
    assert ended.code == 0, ended
    assert ended.json["batches"] == 3  # of eight lines
    assert {layer["rows"] for layer in ended.json["layers"]} == {sum(len(line.split()) for line in lines)}
    assert Path("out/tokenizer.json").read_bytes() == Path("llama/tokenizer.json").read_bytes()


def test_a_conv1d_is_pruned_along_its_inputs(own_folder: Path, sparseflow: Sparseflow) -> None:
    make_gpt2(torch).save_pretrained("gpt2")
    ended = sparseflow("prune", "gpt2", "-o", "out", "--exclude", "*.attn.*")
    assert ended.code == 0
    assert "layers pruned 2:4 by magnitude.\n" in ended.out
    module = transformers.AutoModelForCausalLM.from_pretrained("out")
    layers = {layer.name: layer for layer in find_layers(module)}
    assert is_2to4(layers["transformer.h.1.mlp.c_fc"].weight)
    assert not is_2to4(layers["transformer.h.1.mlp.c_fc"].module.weight)
    assert not is_2to4(layers["transformer.h.1.attn.c_attn"].weight)


def test_a_folder_whose_inputs_nobody_can_make_is_pruned_by_magnitude(
    own_folder: Path, sparseflow: Sparseflow
) -> None:
    """Its module is not run: a Whisper takes frames of sound."""
    small = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64,
             "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
             "eos_token_id": 2, "decoder_start_token_id": 3}  # fmt: skip
    config = transformers.WhisperConfig(**small, suppress_tokens=None, begin_suppress_tokens=None)
    transformers.WhisperForConditionalGeneration(config).save_pretrained("whisper")
    assert sparseflow("prune", "whisper", "-o", "out").code == 0
    module = transformers.WhisperForConditionalGeneration.from_pretrained("out")
    assert is_2to4({layer.name: layer for layer in find_layers(module)}["model.encoder.layers.0.fc1"].weight)


def test_a_functions_module_becomes_a_file(own_folder: Path, sparseflow: Sparseflow) -> None:
    Path("mine.py").write_text(MINE)
    command = ("prune", "mine.py:module", "--method", "sparsegpt", "--calibration", "mine.py:data")
    ended = sparseflow(*command)
    assert ended.code == 0, ended
    assert "2 layers pruned 2:4 by sparsegpt, on 3 batches." in ended.out
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
    found = load_checkpoint(module, Path("mine.module.2to4.safetensors"))
    assert [layer.name for layer in found] == ["0", "2"]
    assert is_2to4(module[0].weight.detach())
    assert json.loads(Path("mine.module.2to4.pruning.json").read_text())["batches"] == 3


@pytest.mark.parametrize("how", ["along N", "anywhere"])
def test_layers_that_were_pruned_another_way_are_told(
    own_folder: Path, sparseflow: Sparseflow, how: str
) -> None:
    anywhere = "l1_unstructured(up, 'weight', 0.5); remove(up, 'weight')"
    along_n = "up.weight.data = (up.weight.data.t().reshape(-1, 4) * mask).reshape(64, 128).t()"
    begins = "from torch.nn.utils.prune import l1_unstructured, remove\nmask = torch.tensor([1.0, 0, 0, 1])"
    text = MINE.replace("import torch", f"import torch\n{begins}", 1)
    spoiled = along_n if how == "along N" else anywhere
    Path("mine.py").write_text(text.replace("128, 32)", f"128, 32)\n    {spoiled}", 1))
    command = ("prune", "mine.py:module", "--method", "sparsegpt", "--calibration", "mine.py:data")
    ended = sparseflow(*command)
    assert ended.code == 0, ended
    assert "1 layer(s) seem to have been pruned before: prune the model from before that" in ended.out
    assert sparseflow(*command, "--json").json["pruned_before"] == ["0"]
    record = json.loads(Path("mine.module.2to4.pruning.json").read_text())
    assert [layer["pruned_before"] for layer in record["layers"]] == [True, False]


def test_a_module_that_is_2to4_already_was_not_pruned_another_way(
    own_folder: Path, sparseflow: Sparseflow
) -> None:
    make_llama(torch).save_pretrained("llama")
    assert "pruned before" not in sparseflow("prune", "llama").out
    assert "pruned before" not in sparseflow("prune", "llama.2to4", "-o", "again").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--method", "wanda"), 2, "--method wanda learns from inputs: give --calibration."),
        (("--policy", "h200"), 2, "--policy, --batch and --seq choose layers with --where-it-pays."),
        (("--include", "*.nothing"), 1, "'*.nothing' matches no layer of the module."),
        (("--device", "gpu0"), 2, "'gpu0' is not a PyTorch device."),
        (("-o", "llama"), 1, "llama is the source itself or a file."),
        (("--method", "wanda", "--calibration", "texts.txt"), 1, "texts.txt cannot be read as text: "),
        (("--method", "wanda", "--calibration", "empty.txt"), 1, "empty.txt holds no text."),
        (("--method", "wanda", "--calibration", "some.txt"), 1, "llama has no tokenizer: "),
        (("--method", "wanda", "--calibration", "gone.npz"), 1, "gone.npz does not exist."),
        (("--method", "wanda", "--calibration", "mine.py:gone"), 1, "mine.py has no function 'gone'."),
        (
            ("--method", "wanda", "--calibration", "mine.py:strange"),
            1,
            "the module fails on a calibration batch",
        ),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], code: int, says: str, llama: Path, sparseflow: Sparseflow
) -> None:
    Path("mine.py").write_text(MINE)
    Path("empty.txt").write_text("\n")
    Path("some.txt").write_text("a line\n")
    ended = sparseflow("prune", "llama", *arguments)
    assert ended.code == code, ended
    assert ended.error.startswith(says)
    assert not Path("llama.2to4").exists()
    assert not list(Path().glob(".*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(llama: Path, sparseflow: Sparseflow) -> None:
    ended = sparseflow("prune", "llama", "--device", "cuda")
    assert ended.code == 6
    assert "sees no GPU" in ended.error


def test_a_file_is_needed_for_a_functions_module(own_folder: Path, sparseflow: Sparseflow) -> None:
    Path("mine.py").write_text(MINE)
    ended = sparseflow("prune", "mine.py:module", "-o", "folder")
    assert ended.error.startswith("folder is not a .safetensors file")
    assert sparseflow("prune", "mine.py:module", "--dtype", "fp16").code == 2


def test_an_onnx_model_takes_no_calibration(own_folder: Path, sparseflow: Sparseflow) -> None:
    Path("model.onnx").write_bytes(b"")
    ended = sparseflow("prune", "model.onnx", "--method", "sparsegpt")
    assert ended.code == 2
    assert ended.error == (
        "an ONNX model is pruned by magnitude only: --method sparsegpt is for PyTorch modules."
    )
    ended = sparseflow("prune", "model.onnx", "--where-it-pays")
    assert ended.error.endswith(": --where-it-pays is for PyTorch modules.")


def test_unpack(own_folder: Path, sparseflow: Sparseflow) -> None:
    written = Path(__file__).parents[1] / "data" / "modelopt_state.pth"
    ended = sparseflow("unpack", written, "-o", "plain.safetensors")
    assert ended.code == 0, ended
    assert "2 weights were modelopt: 2:4 along K" in ended.out
    again = sparseflow("unpack", written, "-o", "plain.safetensors", "--json").json
    assert [layer["name"] for layer in again["layers"]] == ["0", "2"]
    ended = sparseflow("unpack", "plain.safetensors.gone", "-o", "x", "--json")
    assert (ended.code, ended.error) == (1, "plain.safetensors.gone does not exist.")


def test_unpack_says_what_is_not_what_it_should_be(llama: Path, sparseflow: Sparseflow) -> None:
    assert sparseflow("unpack", "llama", "-o", "plain").error.startswith("llama holds no sparse weight")
    config = json.loads((llama / "config.json").read_text())
    sparsity = {"format": "dense", "sparsity_structure": "2:4", "targets": ["re:.*o_proj"], "ignore": []}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    (llama / "config.json").write_text(json.dumps(config))
    ended = sparseflow("unpack", "llama", "-o", "plain", "--json")
    assert ended.code == 3
    assert ended.json["not_2to4"] == [f"model.layers.{i}.self_attn.o_proj.weight" for i in (0, 1)]
