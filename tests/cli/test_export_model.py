"""sparseflow-trt export, and build from a module."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.commands import Ended
from tests.torch_models import FIXING

if TYPE_CHECKING:
    from tests.commands import Sparseflow

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

MakeModel = Callable[..., Path]

MODULE = """
import sys
import torch

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up_proj = torch.nn.Linear(32, 64)
        self.down_proj = torch.nn.Linear(64, 32)
    def forward(self, x):
        return self.down_proj(torch.relu(self.up_proj(x)))

def make():
    return Encoder(), torch.randn(2, 5, 32)

class Liar(Encoder):
    def forward(self, x):
        return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)

def liar():
    return Liar(), torch.randn(2, 5, 32)

class ByValue(Encoder):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x

def by_value():
    return ByValue(), torch.randn(2, 5, 32)

class Loud(Encoder):
    def forward(self, x):
        print("of the module", file=sys.stderr)
        return super().forward(x)

def loud():
    return Loud(), torch.randn(2, 5, 32)
"""

MASKED = """
import torch
from torch.nn.utils import prune

def apart():
    module = torch.nn.Sequential(torch.nn.Linear(32, 64))
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(64, 8)
    prune.custom_from_mask(module[0], "weight", mask)
    return module.eval(), torch.randn(2, 32)

def removed():
    module, inputs = apart()
    prune.remove(module[0], "weight")
    return module, inputs

def computed():
    module = torch.nn.Sequential(torch.nn.Linear(32, 64))
    torch.nn.utils.parametrizations.weight_norm(module[0])
    return module.eval(), torch.randn(2, 32)

def weightless():
    return torch.nn.Sequential(torch.nn.ReLU()), torch.randn(2, 32)
"""

CROSS = """
import torch

def decoder():
    torch.manual_seed(0)
    layer = torch.nn.TransformerDecoderLayer(32, 2, 64, batch_first=True)
    inputs = {"tgt": torch.randn(2, 5, 32), "memory": torch.randn(2, 7, 32)}
    return layer.eval(), inputs, {"tgt": {0: "batch", 1: "seq"}, "memory": {0: "batch", 1: "images"}}
"""


T5 = """
import torch
from transformers import T5Config, T5EncoderModel

def sdpa():
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=50)
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 6))
    return T5EncoderModel(config).eval(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "seq"}}

def eager():
    module, inputs, axes = sdpa()
    module.set_attn_implementation("eager")
    return module, inputs, axes
"""


# Runs commands one after the other, each with files of its own as its standard output and error.
IN_TURN = """
import json, os, sys
from sparseflow_trt.cli.main import main
codes = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), stream)
    sys.argv = ["sparseflow-trt", *arguments]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""


@pytest.fixture(scope="module")
def ended_in_turn(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Ended]:
    """How commands of mine.py ended, in one process of their own: to load torch takes longer than they do."""
    folder = tmp_path_factory.mktemp("in_turn")
    (folder / "mine.py").write_text(MODULE)
    by_value = [("mine.py:by_value", *options) for options in ((), ("--json",), ("--debug",))]
    commands = [*by_value, ("mine.py:loud", "--no-check")]
    given = json.dumps([("export", *words) for words in commands])
    subprocess.run([sys.executable, "-c", IN_TURN, given], cwd=folder, check=True, timeout=120)
    codes = json.loads((folder / "codes.json").read_text())
    said = [[(folder / f"{i}.{name}").read_text() for name in ("out", "err")] for i in range(len(commands))]
    return {words: Ended(code, *texts) for words, code, texts in zip(commands, codes, said, strict=True)}


@pytest.fixture
def source(own_folder: Path) -> str:
    (own_folder / "mine.py").write_text(MODULE)
    return "mine.py:make"


def test_attention_that_torch_does_not_export_is_named_with_what_does(
    sparseflow: Sparseflow, own_folder: Path
) -> None:
    (own_folder / "t5.py").write_text(T5)
    ended = sparseflow("export", "t5.py:sdpa", "-o", "t5.onnx")
    if ended.code:  # a later torch may export it
        assert "torch cannot export the T5EncoderModel: " in ended.err
        assert "transformers' 'sdpa'" in ended.err
        assert "set_attn_implementation('eager')" in ended.err
    ended = sparseflow("export", "t5.py:eager", "-o", "t5.onnx")
    assert ended.code == 0, ended.err
    assert "Validation against PyTorch: pass" in ended.out


def test_export_says_what_it_wrote(sparseflow: Sparseflow, source: str, own_folder: Path) -> None:
    ended = sparseflow("export", source)
    assert ended.code == 0, ended.err
    assert "Input 'x': [batch, seq, 32]" in ended.out
    assert "2 layer(s) have their zeros where the module has them; 0 of them are 2:4." in ended.out
    assert "Validation against PyTorch: pass" in ended.out
    assert "Written: mine.make.onnx" in ended.out
    assert (own_folder / "mine.make.onnx").is_file()


def test_a_weight_that_two_layers_share_counts_with_each_as_layers(
    sparseflow: Sparseflow, own_folder: Path
) -> None:
    """As they are listed above: "weights" would be one too many."""
    (own_folder / "shared.py").write_text(
        "import torch\n\n"
        "class Shared(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.up_proj = torch.nn.Linear(32, 32)\n"
        "    def forward(self, x):\n"
        "        return self.up_proj(self.up_proj(x).relu())\n\n"
        "def make():\n"
        "    return Shared(), torch.randn(2, 32)\n"
    )
    ended = sparseflow("export", "shared.py:make", "--no-check")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[1].split()[-1] == "2"
    assert "\n2 layer(s) have their zeros where the module has them; 0 of them are 2:4." in ended.out


def test_json(sparseflow: Sparseflow, source: str) -> None:
    said = sparseflow("export", source, "-o", "m.onnx", "--dim", "seq=1,2,3", "--opset", "18", "--json").json
    assert (said["output"], said["opset"], said["task"]) == ("m.onnx", 18, "function")
    assert said["inputs"] == {"x": ["batch", "seq", 32]}
    assert [layer["module"] for layer in said["layers"]] == ["up_proj", "down_proj"]
    assert said["validation"]["verdict"] == "pass"
    assert [given["shapes"]["x"][1] for given in said["validation"]["input_sets"]] == [1, 2, 3]


def test_an_export_that_differs_exits_with_4_and_writes_nothing(
    sparseflow: Sparseflow, source: str, own_folder: Path
) -> None:
    for command in (("export",), ("build", "--backend", "onnxruntime", "--dim", "batch=1", "--dim", "seq=2")):
        ended = sparseflow(command[0], "mine.py:liar", *command[1:])
        assert ended.code == 4
        assert "Nothing was written." in ended.out
    assert not list(own_folder.glob("*.onnx*"))


def test_the_graphs_that_torch_prints_of_a_failed_export_are_for_debug_alone(
    ended_in_turn: dict[tuple[str, ...], Ended],
) -> None:
    for options in ((), ("--json",)):
        assert "torch cannot export the ByValue: " in ended_in_turn[("mine.py:by_value", *options)].error
    assert "torch.ops.aten.sum" in ended_in_turn[("mine.py:by_value", "--debug")].err


def test_what_a_module_prints_while_it_is_exported_is_kept(
    ended_in_turn: dict[tuple[str, ...], Ended],
) -> None:
    ended = ended_in_turn[("mine.py:loud", "--no-check")]
    assert (ended.code, set(ended.err.splitlines())) == (0, {"of the module"})


def test_an_axis_that_torch_fixes_is_named_with_what_to_do(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "fixing.py").write_text(FIXING)
    for command in (("export",), ("build", "--backend", "onnxruntime", "--dim", "batch=1", "--dim", "seq=2")):
        ended = sparseflow(command[0], "fixing.py:fixing", *command[1:])
        assert ended.code == 4
        told = (
            "torch's exporter fixed axis 'seq' (dimension 0 of input 'x') at 5, the size it was traced with"
        )
        assert f"\nNothing was written.\n{told}: the file fails at other sizes. Leave it out" in ended.out
    assert sparseflow("export", "fixing.py:fixing", "--json").json["fixed_axes"] == {"seq": 5}


def test_export_says_where_masks_are_apart(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "masked.py").write_text(MASKED)
    for function, says in (("apart", True), ("removed", False)):
        ended = sparseflow("export", f"masked.py:{function}", "-o", f"{function}.onnx", "--no-check")
        assert ended.code == 0
        assert ("1 layer(s) multiply their weight by a mask" in ended.out) is says
        assert (
            "1 layer(s) have their zeros where the module has them; 1 of them are 2:4." in ended.out
        ) is not says
        row = ["other", "not-eligible", "1"] if says else ["gate_up", "sparse", "1"]
        assert ended.out.splitlines()[1].split() == row


def test_build_says_once_that_masks_are_apart(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "masked.py").write_text(MASKED)
    ended = sparseflow("build", "masked.py:apart", "--backend", "onnxruntime", "--dim", "batch=1,2,4")
    assert ended.code == 0, ended.err
    assert ended.out.count("1 layer(s) multiply their weight by a mask") == 1


def test_export_lists_what_has_no_stored_weight_as_inspect_does(
    sparseflow: Sparseflow, own_folder: Path
) -> None:
    (own_folder / "masked.py").write_text(MASKED)
    ended = sparseflow("export", "masked.py:computed", "-o", "m.onnx", "--no-check")
    assert ended.out.splitlines()[1].split() == ["other", "not-eligible", "1"]
    assert "\n1 layer(s) have weights that the graph computes from constants" in ended.out
    told = sparseflow("export", "masked.py:computed", "-o", "m.onnx", "--no-check", "--json").json
    (layer,) = told["layers"]
    (same,) = sparseflow("inspect", "m.onnx", "--json").json["layers"]
    assert layer == {name: same[name] for name in layer}
    assert layer["reason"].startswith("its weight is computed from constants by Mul ")
    weightless = sparseflow("export", "masked.py:weightless", "-o", "none.onnx", "--no-check")
    assert weightless.out.startswith("Input 'input': "), "a table with no rows says nothing"


def test_build_exports_first(sparseflow: Sparseflow, source: str, own_folder: Path) -> None:
    dims = ("--dim", "batch=1,2,4", "--dim", "seq=1,4,8")
    command = ("build", source, "--backend", "onnxruntime", *dims, "--json")
    said = sparseflow(*command).json
    assert said["artifact"] == "mine.make.artifact"
    assert said["export"]["output"] == "mine.make.exported.onnx"
    assert said["manifest"]["status"] == "pass"
    assert (own_folder / "mine.make.exported.onnx").is_file()
    assert sparseflow(*command).json["unchanged"]  # an export of the same module is the same file
    reference = (own_folder / "mine.make.exported.onnx").read_bytes()
    again = sparseflow(*command, "--opset", 19, "-o", "other.artifact").json
    assert again["export"]["output"] == "other.exported.onnx"
    assert (own_folder / "mine.make.exported.onnx").read_bytes() == reference


def test_cross_attention_from_module_to_artifact(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "cross.py").write_text(CROSS)
    said = sparseflow("export", "cross.py:decoder", "-o", "m.onnx", "--json").json
    assert said["validation"]["verdict"] == "pass"
    assert (said["masks"]["compared"], said["masks"]["foreign"]) == (7, [])
    cross = "multihead_attn.in_proj_weight"
    parts = {f"{cross}/MatMul": f"{cross}.0:32", f"{cross}/MatMul_1": f"{cross}.32:96"}
    pruned = sparseflow("prune", "m.onnx", "-o", "p.onnx", "--json").json["pruned"]
    assert {name: entry["weight"] for entry in pruned for name in entry["layers"] if name in parts} == parts
    assert sparseflow("inspect", "p.onnx").code == 0
    sizes = [given for axis in ("batch", "seq", "images") for given in ("--dim", f"{axis}=1,2,4")]
    options = ("--backend", "onnxruntime", "--sparsity", "force", "--dense-model", "m.onnx", "--json")
    manifest = sparseflow("build", "p.onnx", *sizes, *options).json["manifest"]
    assert manifest["status"] == "pass"
    planned = {layer["name"]: layer["sparsity"] for layer in manifest["layers"]}
    assert [planned[name] for name in parts] == ["sparse", "sparse"]


def test_functions_of_one_name_in_two_files_have_files_of_their_own(
    sparseflow: Sparseflow, source: str, own_folder: Path
) -> None:
    (own_folder / "other.py").write_text(MODULE)
    for named in (source, "other.py:make", "other:make"):
        assert sparseflow("export", named, "--no-check").code == 0
    assert sorted(file.name for file in own_folder.glob("*.onnx")) == ["mine.make.onnx", "other.make.onnx"]


def test_an_export_goes_beside_the_artifact_where_that_is_the_current_folder(
    sparseflow: Sparseflow, source: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "here").mkdir()
    monkeypatch.chdir(own_folder / "here")
    dims = ("--dim", "batch=1", "--dim", "seq=2")
    command = ("build", f"../{source}", "--backend", "onnxruntime", *dims, "-o", ".", "--json")
    assert sparseflow(*command).json["export"]["output"] == str(own_folder / "here.exported.onnx")
    assert (own_folder / "here" / "manifest.json").is_file()


def test_a_configuration_alone_needs_a_word_for_its_weights(sparseflow: Sparseflow, own_folder: Path) -> None:
    pytest.importorskip("transformers")
    (own_folder / "hf").mkdir()
    (own_folder / "hf" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "holds a configuration and no weights" in sparseflow("export", "hf").error


def test_missing_ranges_are_said_before_the_export(
    sparseflow: Sparseflow, source: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[object] = []
    monkeypatch.setattr("sparseflow_trt.export.export_module", lambda *given: exported.append(given))
    for dims, missing in (((), "batch, seq"), (("--dim", "batch=1,2,4"), "seq")):
        ended = sparseflow("build", source, "--backend", "onnxruntime", *dims)
        assert ended.code == 1
        said = f"input 'x' has dynamic dimensions {missing} and no profile says their ranges."
        assert said in ended.error
    unknown = sparseflow("build", source, "--dim", "batch=1", "--dim", "seq=2", "--dim", "sequence=3")
    assert "axis 'sequence' is not in the model, which has: batch, seq." in unknown.error
    unknown = sparseflow("export", source, "--dim", "sequence=3")
    assert unknown.error.startswith("axis 'sequence' is not in the model, which has: batch, seq.")
    assert exported == []
    assert not list(own_folder.glob("*.export*"))


def test_export_options_are_for_sources(sparseflow: Sparseflow, own_folder: Path) -> None:
    Path("model.onnx").touch()
    ended = sparseflow("build", "model.onnx", "--random-weights")
    assert ended.code == 2
    assert "it has nothing to export" in ended.error


def test_an_onnx_model_needs_no_export(sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path) -> None:
    for name in ("model.onnx", "no_suffix"):
        before = Path(mlp(name)).read_bytes()
        ended = sparseflow("export", name, "-o", "x.onnx")
        assert ended.code == 1
        assert f"{name} is an ONNX model already: it needs no export." in ended.error
        assert f"sparseflow-trt build {name}" in ended.err
        assert (own_folder / name).read_bytes() == before
    assert not (own_folder / "x.onnx").exists()


def test_a_file_of_something_else_is_no_source(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "model.safetensors").write_bytes(b"\xff\xfe")
    ended = sparseflow("export", "model.safetensors")
    assert "model.safetensors is not a Hugging Face folder and names no function." in ended.error


def test_an_artifact_is_exported_whether_or_not_it_passed(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    build = ("build", mlp("model.onnx"), "--dim", "batch=1,4,8", "--backend", "onnxruntime")
    assert sparseflow(*build).code == 0
    assert sparseflow(*build, "--force", "--tolerance", "atol=0,rtol=0,cosine=1").code == 4
    for name, file in (
        ("model.artifact", "model.typed.onnx"),
        ("model.artifact.failed", "model.artifact.failed.typed.onnx"),
    ):
        ended = sparseflow("export", name)
        assert ended.code == 0, ended.err
        assert "No layer was taken out of sparse kernels: there was nothing to put back." in ended.out
        assert (own_folder / file).is_file()


def test_a_source_that_is_none(sparseflow: Sparseflow) -> None:
    assert (
        "nowhere is not a Hugging Face folder and names no function" in sparseflow("export", "nowhere").error
    )
    assert "failed: ModuleNotFoundError" in sparseflow("export", "no.such.module:make").error


def test_of_a_function_that_is_not_there_those_that_are_there_are_named(
    sparseflow: Sparseflow, own_folder: Path
) -> None:
    (own_folder / "mine.py").write_text("from math import sqrt\n\ndef make():\n    ...\n\nSIZE = 3\n")
    for function in ("mak", "SIZE"):
        ended = sparseflow("export", f"mine.py:{function}")
        assert (ended.code, f"mine.py has no function '{function}'." in ended.error) == (1, True)
        assert "It has: make." in ended.err
