"""From modules to ONNX files that do the same: names, masks, shapes, and what leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sparseflow_trt.engines.protocol import Progress
from sparseflow_trt.errors import InputError, ModelError, NotInstalledError
from sparseflow_trt.export import ExportOptions, export_model, is_torch_source
from sparseflow_trt.model.graph import SparsityState, read_layers
from sparseflow_trt.model.model_file import read_model
from tests.torch_models import FIXING

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 99, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA = {**SMALL, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 1}
MIXTRAL = {
    **LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
}  # fmt: skip
BERT = {**SMALL, "architectures": ["BertModel"], "model_type": "bert"}
RESNET = {
    "model_type": "resnet", "architectures": ["ResNetForImageClassification"], "embedding_size": 8,
    "hidden_sizes": [16], "depths": [1], "image_size": 32, "layer_type": "basic",
}  # fmt: skip

MODULES = """
import collections
import numpy as np
import torch
from sparseflow_trt.model.pattern import prune_2to4

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = torch.nn.Linear(16, 32)
        self.down_proj = torch.nn.Linear(32, 16, bias=False)
        self.fc = torch.nn.Linear(16, 8)
    def forward(self, x):
        return self.fc(self.down_proj(torch.relu(self.up_proj(x))))

class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = Block()
    def forward(self, x):
        return self.mlp(x)

def sparse():
    torch.manual_seed(0)
    module = Outer()
    with torch.no_grad():
        for linear in (module.mlp.up_proj, module.mlp.down_proj):
            linear.weight.copy_(torch.from_numpy(prune_2to4(linear.weight.numpy(), 1)))
    return module, torch.randn(2, 5, 16)

def named():
    return Outer(), {"x": torch.randn(2, 5, 16)}, {"x": {1: "tokens"}}

class Liar(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
    def forward(self, x):
        return self.linear(x) * (2 if torch.compiler.is_compiling() else 1)

def liar():
    return Liar(), torch.randn(2, 16)

class Told(torch.nn.Module):
    def forward(self, x):
        return 2 * x if x.shape[0] == 5 else x + x
def told():
    return Told(), torch.randn(5, 2, 16), {"x": {0: "seq", 1: "batch"}}

def told_by_name():
    return Told(), {"x": torch.randn(5, 2, 16)}, {"x": {0: "seq", 1: "batch"}}

class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 16)
        self.lm_head = torch.nn.Linear(16, 32, bias=False)
        self.lm_head.weight = self.embedding.weight
    def forward(self, ids):
        return self.lm_head(self.embedding(ids))
def tied():
    return Tied(), torch.ones(2, 5, dtype=torch.long)

class Merging(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
    def forward(self, unread, x, y):
        return self.linear(x) + y
def merging():
    axes = {"x": {0: "rows"}, "y": {0: "more rows"}}
    return Merging(), (torch.randn(5, 2, 4), torch.randn(5, 16), torch.randn(5, 16)), axes
def merged():
    return *merging()[:2], {"x": {0: "rows"}, "y": {0: "rows"}}

class Giving(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(16, 16, batch_first=True)
    def forward(self, x):
        y, state = self.rnn(x)
        tags = {"tag": y.argmax(-1), "loss": None, "heads": [y + 1, y + 2], "x": y * 2}
        return {"x": x + 1, "tags": tags, "state": state, "pair": Pair(y - 1, y - 2)}
Pair = collections.namedtuple("Pair", "low high")
def giving():
    return Giving(), torch.randn(2, 5, 16), {"x": {0: "batch"}}

class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(16, 16, num_layers=2, batch_first=True)
        self.fc1 = torch.nn.Linear(16, 64)
    def forward(self, x):
        return {"y": self.fc1(self.rnn(x)[0])}
def recurrent():
    return Recurrent(), torch.randn(2, 5, 16), {"x": {0: "batch", 1: "seq"}}

class Beside(torch.nn.Module):
    def __init__(self, beside):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
        self.beside = beside
    def forward(self, x):
        return {"y": self.linear(x), "x": x, "beside": self.beside(x)}
def beside_itself():
    return Beside(lambda x: x), torch.randn(2, 16)
def beside_an_int():
    return Beside(lambda x: 3), torch.randn(2, 16)
def beside_a_text():
    return Beside(lambda x: "text"), torch.randn(2, 16)
def beside_a_size():
    return Beside(lambda x: x.shape[0]), torch.randn(2, 16)
class Nothing(torch.nn.Module):
    def forward(self, x):
        return None
def nothing():
    return Nothing(), torch.randn(2, 16)

class ByValue(torch.nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x
def by_value():
    return ByValue(), torch.randn(2, 16)
def wrong_axes():
    return Outer(), torch.randn(2, 5, 16), {"y": {0: "batch"}}
def axes_as_ranges():
    return torch.nn.Linear(8, 8), torch.ones(2, 8), {"input": (1, 8, 16)}
def no_inputs():
    return torch.nn.Linear(8, 8), 5
def no_tensor():
    return Outer(), {"x": 3}
def misnamed():
    return Outer(), {"pixels": torch.randn(2, 5, 16)}, {"pixels": {0: "batch"}}
"""


@pytest.fixture
def modules(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MODULES + FIXING)
    return f"{tmp_path}/mine.py"


def _write(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_module_keeps_its_masks_and_its_names(modules: str, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    report = export_model(f"{modules}:sparse", output)
    assert report.written
    assert report.inputs == {"x": ("batch", "seq", 16)}
    assert (report.masks.compared, report.masks.sparse, report.masks.foreign) == (3, 2, ())
    assert [(layer.module, layer.weight, layer.state, layer.kind) for layer in report.layers] == [
        ("mlp.up_proj", "mlp.up_proj.weight", SparsityState.SPARSE, "gate_up"),
        ("mlp.down_proj", "mlp.down_proj.weight", SparsityState.SPARSE, "down"),
        ("mlp.fc", "mlp.fc.weight", SparsityState.NOT_SPARSE, "ffn"),
    ]
    assert [layer.name for layer in report.layers][:2] == ["mlp.up_proj/MatMul", "mlp.down_proj/MatMul"]
    assert report.validation is not None
    assert report.validation.verdict == "pass"
    sets = {tuple(given.shapes["x"]) for given in report.validation.input_sets}
    assert sets == {(1, 1, 16), (2, 7, 16), (3, 16, 16)}
    text = output.read_bytes()
    assert str(tmp_path).encode() not in text  # stack traces name the files of the machine
    assert not list(tmp_path.glob(".m.onnx*"))


def test_weights_are_the_parameters_byte_for_byte(modules: str, tmp_path: Path) -> None:
    export_model(f"{modules}:sparse", tmp_path / "m.onnx", ExportOptions(check=False))
    tensors = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    weight = onnx.numpy_helper.to_array(tensors["mlp.down_proj.weight"])
    assert weight.shape == (16, 32)  # as torch stores it, not transposed
    assert np.all((weight.reshape(16, 8, 4) != 0).sum(-1) == 2)


def test_a_tied_weight_is_written_once(modules: str, tmp_path: Path) -> None:
    """Not as a transposed copy, too, which doubled the embedding and matched no parameter."""
    report = export_model(f"{modules}:tied", tmp_path / "m.onnx")
    assert [(x.name, x.weight_shape, x.k_axes) for x in report.layers] == [("lm_head/MatMul", (32, 16), (1,))]
    assert (report.masks.compared, report.masks.foreign) == (1, ())
    tensors = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert [tuple(t.dims) for t in tensors if len(t.dims) == 2] == [(32, 16)]
    assert report.written


def test_axes_are_what_the_function_says(modules: str, tmp_path: Path) -> None:
    sizes = {"tokens": (1, 3, 4)}
    report = export_model(f"{modules}:named", tmp_path / "m.onnx", ExportOptions(sizes=sizes))
    assert report.inputs == {"x": (2, "tokens", 16)}
    assert report.layers[0].module == "mlp.up_proj"


def test_large_weights_stand_in_a_file_of_their_own(
    modules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseflow_trt.exporters.torch_onnx._INLINE_BYTES", 0)
    seen: list[Progress] = []
    report = export_model(f"{modules}:sparse", tmp_path / "m.onnx", on_step=seen.append)
    assert [file.name for file in report.files] == ["m.onnx.data", "m.onnx"]
    assert (tmp_path / "m.onnx.data").stat().st_size >= 2 * 16 * 32 * 4
    assert read_model(tmp_path / "m.onnx").path.stat().st_size < report.bytes
    writing = [p for p in seen if p.step == "Writing the weights"]
    assert len(writing) >= 2
    assert writing[-1].done > writing[0].done


def test_an_export_that_does_something_else_is_not_written(modules: str, tmp_path: Path) -> None:
    report = export_model(f"{modules}:liar", tmp_path / "m.onnx")
    assert report.validation is not None
    assert (report.validation.verdict, report.written) == ("fail", False)
    assert not (tmp_path / "m.onnx").exists()
    assert report.fixed == {}, "it is wrong at the sizes that it was traced with, too"
    assert export_model(f"{modules}:liar", tmp_path / "m.onnx", ExportOptions(check=False)).written


def test_an_axis_that_torch_fixes_is_named(modules: str, tmp_path: Path) -> None:
    """As it fixes the sequence of an LSTM, and tells it or not."""
    report = export_model(f"{modules}:fixing", tmp_path / "m.onnx")
    assert (report.written, report.inputs, report.fixed) == (False, {"x": ("seq", "batch", 16)}, {"seq": 5})
    as_traced = ExportOptions(sizes={"seq": (5, 5, 5), "batch": (1, 2, 3)})
    assert export_model(f"{modules}:fixing", tmp_path / "m.onnx", as_traced).written


def test_two_axes_of_one_name_are_one(modules: str, tmp_path: Path) -> None:
    """As the error says to name those that torch finds equal."""
    report = export_model(f"{modules}:merged", tmp_path / "m.onnx")
    assert report.inputs == {"unread": (5, 2, 4), "x": ("rows", 16), "y": ("rows", 16)}
    assert report.written


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("by_value", ModelError, "torch cannot export the ByValue: "),
        (
            "told",
            ModelError,
            r"fixes axis 'seq' \(dimension 0 of input 'x'\) at 5, the size it is traced with",
        ),
        ("told_by_name", ModelError, r"fixes axis 'seq' \(dimension 0 of input 'x'\) at 5, the size it is"),
        (
            "merging",
            ModelError,
            r"finds axes 'rows' \(dimension 0 of input 'x'\) and 'more rows' \(dimension 0 of input 'y'\) "
            "always equal, and merges them into one, 'rows'",
        ),
        ("beside_an_int", ModelError, "torch cannot export the Beside: its `forward` gives int, which is no"),
        ("beside_a_text", ModelError, "its `forward` gives str, which is not a tensor"),
        ("beside_a_size", ModelError, "its `forward` gives int, which is not a tensor"),
        ("nothing", ModelError, "torch cannot export the Nothing: it returns no tensor"),
        ("misnamed", ModelError, "the Outer has no such input: .* unexpected keyword argument 'pixels'"),
        ("wrong_axes", InputError, "gives axes for 'y', which is not an input"),
        ("axes_as_ranges", InputError, "gives axes that name no dimensions of 'input'"),
        ("no_inputs", InputError, "gives a int as inputs"),
        ("no_tensor", InputError, "gives 'x' as a int, not a tensor"),
        ("missing", InputError, "has no function 'missing'"),
    ],
)
def test_what_cannot_be_exported(
    function: str, error: type[Exception], words: str, modules: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        export_model(f"{modules}:{function}", tmp_path / "m.onnx")
    assert not list(tmp_path.glob("*m.onnx*"))


def test_a_decoder_with_a_cache(tmp_path: Path) -> None:
    options = ExportOptions(task="decoder-with-cache", random_weights=True, dtype="fp16")
    report = export_model(_write(tmp_path / "llama", LLAMA), tmp_path / "m.onnx", options)
    assert report.inputs == {
        "input_ids": ("batch", "seq"),
        "attention_mask": ("batch", "past + seq"),
        "position_ids": ("batch", "seq"),
        "past_key_values.0.key": ("batch", 1, "past", 16),
        "past_key_values.0.value": ("batch", 1, "past", 16),
    }
    assert report.outputs == ("logits", "present.0.key", "present.0.value")
    present = read_model(tmp_path / "m.onnx").ir.graph.outputs[1].shape
    assert [str(dim) for dim in present or ()] == ["batch", "1", "past + seq", "16"]
    kinds = {layer.module: layer.kind for layer in report.layers if layer.weight}
    assert kinds == {
        "model.layers.0.self_attn.q_proj": "qkv", "model.layers.0.self_attn.k_proj": "qkv",
        "model.layers.0.self_attn.v_proj": "qkv", "model.layers.0.self_attn.o_proj": "o",
        "model.layers.0.mlp.gate_proj": "gate_up", "model.layers.0.mlp.up_proj": "gate_up",
        "model.layers.0.mlp.down_proj": "down", "lm_head": "classifier",
    }  # fmt: skip
    assert report.validation is not None
    assert report.validation.verdict == "pass"
    empty = report.validation.input_sets[0].shapes
    assert (empty["past_key_values.0.key"], empty["attention_mask"]) == ((1, 1, 0, 16), (1, 1))


def test_experts_are_products_with_constant_weights(tmp_path: Path) -> None:
    options = ExportOptions(random_weights=True)
    report = export_model(_write(tmp_path / "moe", MIXTRAL), tmp_path / "m.onnx", options)
    experts = {x.module.rpartition(".")[2]: x for x in report.layers if "experts" in x.module}
    assert {name: (x.batch, x.n, x.k, x.kind) for name, x in experts.items()} == {
        "gate_up_proj": (4, 128, 32, "gate_up"),
        "down_proj": (4, 32, 64, "down"),
    }
    assert report.validation is not None
    assert report.validation.verdict == "pass"


def test_a_function_may_return_a_mixture_of_experts(tmp_path: Path) -> None:
    values = {key: value for key, value in MIXTRAL.items() if key not in ("architectures", "model_type")}
    (tmp_path / "moe.py").write_text(
        "import torch, transformers\n"
        "class Logits(torch.nn.Module):\n"
        "    def __init__(self, model):\n"
        "        super().__init__()\n"
        "        self.model = model\n"
        "    def forward(self, ids):\n"
        "        return self.model(ids, use_cache=False).logits\n"
        "def make():\n"
        f"    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**{values!r}))\n"
        "    ids = torch.arange(8).reshape(2, 4)\n"
        "    return Logits(model.eval()), {'ids': ids}, {'ids': {0: 'batch', 1: 'seq'}}\n"
    )
    report = export_model(f"{tmp_path / 'moe.py'}:make", tmp_path / "m.onnx", ExportOptions())
    experts = {x.module.rpartition(".")[2]: x.batch for x in report.layers if "experts" in x.module}
    assert experts == {"gate_up_proj": 4, "down_proj": 4}
    assert report.validation is not None
    assert report.validation.verdict == "pass"


def test_a_function_may_return_a_model_of_transformers(tmp_path: Path) -> None:
    """Its cache is no tensor; and one tensor as two inputs is two inputs all the same."""
    (tmp_path / "lm.py").write_text(
        "import torch, transformers\n"
        "def make():\n"
        "    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,\n"
        "                                      num_hidden_layers=1, num_attention_heads=2)\n"
        "    ids = torch.ones(2, 9, dtype=torch.long)\n"
        "    return transformers.LlamaForCausalLM(config), {'input_ids': ids, 'attention_mask': ids}\n"
    )
    report = export_model(f"{tmp_path / 'lm.py'}:make", tmp_path / "m.onnx", ExportOptions())
    assert set(report.inputs) == {"input_ids", "attention_mask"}
    assert report.outputs == ("logits",)
    assert {x.module for x in report.layers} >= {"model.layers.0.mlp.up_proj", "lm_head"}
    assert report.validation is not None
    assert report.validation.verdict == "pass"


def test_a_module_may_give_tensors_in_mappings_and_in_tuples(modules: str, tmp_path: Path) -> None:
    """A key or a field names its output, unless an input has that name; what is no tensor is left out."""
    report = export_model(f"{modules}:giving", tmp_path / "m.onnx")
    unnamed, *named = report.outputs
    assert " ".join(named) == ("tags.tag tags.heads.0 tags.heads.1 tags.x state.0 state.1 pair.low pair.high")
    assert unnamed not in ("x", *named)
    assert report.validation is not None
    assert {row.output for row in report.validation.candidates[0].outputs} == set(report.outputs)
    assert report.validation.verdict == "pass"


def test_an_input_that_is_given_out_as_it_is_keeps_its_name(modules: str, tmp_path: Path) -> None:
    report = export_model(f"{modules}:beside_itself", tmp_path / "m.onnx")
    assert report.inputs == {"x": ("batch", 16)}
    assert report.outputs[1:] == ("x_out", "beside")
    assert report.validation is not None
    assert report.validation.verdict == "pass"


def test_behind_an_lstm_the_sequence_is_as_long_as_the_input(modules: str, tmp_path: Path) -> None:
    """torch says of what an LSTM gives the length that it was traced with."""
    # in a process of its own: of a second LSTM in one process torch 2.13 fixes the length
    model = tmp_path / "m.onnx"
    command = [sys.executable, "-m", "sparseflow_trt.cli.main", "export", f"{modules}:recurrent"]
    subprocess.run([*command, "-o", str(model)], check=True, capture_output=True)
    (linear,) = (layer for layer in read_layers(read_model(model)) if layer.module == "fc1")
    assert linear.m.evaluate({"batch": 3, "seq": 7}) == 21
    (output,) = read_model(model).ir.graph.outputs
    assert output.name == "y"
    assert str(output.shape) == "[batch,seq,64]"


def test_every_expert_weighed_is_what_the_chosen_ones_make(tmp_path: Path) -> None:
    from sparseflow_trt.pytorch.experts import use_every_expert
    from sparseflow_trt.pytorch.hugging_face import load_hugging_face, read_config

    folder = Path(_write(tmp_path / "moe", MIXTRAL))
    plain = load_hugging_face(folder, weights="random")
    config = read_config(folder)
    use_every_expert(config)
    ours = load_hugging_face(folder, weights="random", config=config)
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(
    ("config", "inputs", "outputs"),
    [
        (BERT, ["input_ids", "attention_mask", "token_type_ids"], ("last_hidden_state",)),
        (RESNET, ["pixel_values"], ("logits",)),
    ],
)
def test_the_task_follows_from_the_configuration(
    config: dict[str, Any], inputs: list[str], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    options = ExportOptions(random_weights=True)
    report = export_model(_write(tmp_path / "hf", config), tmp_path / "m.onnx", options)
    assert (list(report.inputs), report.outputs) == (inputs, outputs)
    assert all(layer.module for layer in report.layers)
    assert report.validation is not None
    assert report.validation.verdict == "pass"


def test_a_task_that_the_model_does_not_do(tmp_path: Path) -> None:
    options = ExportOptions(random_weights=True, task="decoder-with-cache")
    with pytest.raises(InputError, match="transformers cannot make a model from it"):
        export_model(_write(tmp_path / "hf", RESNET), tmp_path / "m.onnx", options)


def test_what_a_source_is(tmp_path: Path) -> None:
    folder = _write(tmp_path / "hf", BERT)
    assert is_torch_source(folder)
    assert is_torch_source(f"{folder}/config.json")
    assert is_torch_source("package.module:function")
    assert not is_torch_source("model.onnx")
    assert not is_torch_source(str(tmp_path))


def test_transformers_that_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotInstalledError, match="transformers") as raised:
        export_model(_write(tmp_path / "hf", BERT), tmp_path / "m.onnx")
    assert "transformers>=4.56" in raised.value.hint
