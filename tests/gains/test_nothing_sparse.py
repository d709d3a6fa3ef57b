"""The error of a module of which no layer becomes sparse: why, and what to do. The profile needs a GPU."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparseflow_trt.cli.main import group
from sparseflow_trt.engines.torch_kernels.sparsify import sparsify_module
from sparseflow_trt.errors import InputError
from sparseflow_trt.gains.nothing_sparse import nothing_sparse
from sparseflow_trt.policies.policy import Point, Policy
from sparseflow_trt.pytorch.torch_layers import find_layers, record_rows
from sparseflow_trt.pytorch.torch_source import load_torch_model
from tests.engines.torch_kernels.test_torch_sparse import Dense
from tests.made_policies import make_points, make_policy
from tests.torch_models import make_gpt2, make_llama

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")

SEQ = 32


def mlp_points(speedups: dict[int, float]) -> list[Point]:
    """Of PyTorch's kernels, for the two shapes of the small Llama's MLPs."""
    return [
        point
        for kind, n, k in (("gate_up", 128, 64), ("down", 64, 128))
        for point in make_points(kind, n, k, speedups, library="torch")
    ]


WINS = make_policy(mlp_points({SEQ: 1.3}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder `tiny`, dense, in the current folder."""
    monkeypatch.chdir(tmp_path)
    make_llama(torch).half().save_pretrained("tiny")
    return tmp_path / "tiny"


def error_of(source: str, policy: Policy, attention: bool = False, dtype: Any = "fp16") -> InputError:
    """The error that `profile --sparsify` ends with."""
    model = load_torch_model(source, 1, SEQ, dtype, "cpu")
    rows = record_rows(find_layers(model.module), model.run)
    done = sparsify_module(model.module, policy, rows, attention, Dense())
    assert done.swapped.dense == {}
    return nothing_sparse(source, done.choices, policy, rows, attention)


def test_reasons_of_layers_that_were_asked_for_come_first_with_how_many_there_are(folder: Path) -> None:
    error = error_of("tiny", WINS)
    assert error.message == (
        "tiny: no layer was made sparse; 6 layers: its weights are not 2:4; 8 layers: of attention, not "
        "asked for; 1 layer: of kind 'classifier', neither an MLP's nor attention's."
    )


def test_a_folder_is_pruned_by_the_command_that_the_hint_names(folder: Path) -> None:
    hint = error_of("tiny", WINS).hint
    assert hint == "Prune it with `sparseflow-trt prune tiny`, and profile what that writes, tiny.2to4."
    assert run_command(hint) == 0
    model = load_torch_model("tiny.2to4", 1, SEQ, "fp16", "cpu")
    assert len(sparsify_module(model.module, WINS, SEQ, kernel=Dense()).swapped.dense) == 6
    # the weights beside a config.json that is named itself are not taken
    assert error_of("tiny/config.json", WINS).hint == hint


def test_a_folder_without_weights_needs_a_checkpoint_first(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    expected = (
        "tiny holds no weights, and random ones are not 2:4: put the checkpoint there, prune it with "
        "`sparseflow-trt prune tiny`, and profile what that writes, tiny.2to4."
    )
    assert error_of("tiny", WINS).hint == expected
    assert error_of("tiny/config.json", WINS).hint == expected


def test_a_functions_module_is_pruned_by_the_command_that_the_hint_names(folder: Path) -> None:
    Path("my model.py").write_text(
        "import torch\n"
        "from tests.torch_models import make_llama\n"
        "def made():\n"
        f"    return make_llama(torch).half(), torch.ones(1, {SEQ}, dtype=torch.int64)\n"
    )
    hint = error_of("my model.py:made", WINS).hint
    assert "load what that writes, my model.made.2to4.safetensors, with `load_checkpoint`" in hint
    assert run_command(hint) == 0
    assert Path("my model.made.2to4.safetensors").is_file()


def test_where_the_policy_loses_at_this_m_the_nearest_that_wins_is_named(folder: Path) -> None:
    policy = make_policy(mlp_points({16: 1.3, SEQ: 0.9, 256: 1.2}))
    error = error_of("tiny", policy)
    assert re.search(
        r"; 4 layers: sparse does not win .* 2 layers: sparse does not win .* at M=32", error.message
    )
    assert error.hint == (
        "Policy 'mine' runs 'model.layers.0.mlp.down_proj' sparse at M=16, but these inputs make it M=32: "
        "choose others (of a folder: --batch and --seq)."
    )


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (mlp_points({SEQ: 0.9}), "sparse does not win"),
        (make_points("gate_up", 128, 64, {SEQ: 1.3}), "no measurement"),  # TensorRT's, not PyTorch's
    ],
)
def test_where_the_policy_never_wins_another_is_asked_for(
    points: Sequence[Point], says: str, folder: Path
) -> None:
    error = error_of("tiny", make_policy(points))
    assert f"layers: {says}" in error.message
    assert "none of these layers runs sparse at any M" in error.hint
    assert "autotune MODEL.onnx --library torch --dtype fp16" in error.hint


def test_weights_that_are_not_2to4_come_before_a_policy_that_loses(folder: Path) -> None:
    policy = make_policy(
        make_points("gate_up", 128, 64, {SEQ: 0.9}, library="torch")
        + make_points("down", 64, 128, {SEQ: 1.3}, library="torch")
    )
    error = error_of("tiny", policy)
    assert (
        "no layer was made sparse; 2 layers: its weights are not 2:4; 4 layers: sparse does" in error.message
    )
    assert "`sparseflow-trt prune tiny`" in error.hint


def test_with_attention_its_layers_are_asked_for_and_rare_reasons_are_counted(folder: Path) -> None:
    points = mlp_points({SEQ: 0.9}) + make_points("qkv", 64, 64, {SEQ: 0.9}, library="torch")
    error = error_of("tiny", make_policy(points), attention=True)
    assert "not asked for" not in error.message
    assert re.search(r"; \d+ more layers: other reasons\.$", error.message)


def test_a_type_that_the_library_does_not_take_is_said(folder: Path) -> None:
    assert "cuSPARSELt takes FP16 and BF16" in error_of("tiny", WINS, dtype="fp32").hint


class Mlp(torch.nn.Module):  # type: ignore[misc]
    """Two layers of an MLP, 2:4, of types that may differ."""

    def __init__(self, second: Any) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(64, 128, bias=False).half()
        self.up_proj = torch.nn.Linear(64, 128, bias=False).to(second)
        for layer in (self.gate_proj, self.up_proj):
            layer.weight.data[:, ::2] = 0


def hint_of(module: Any, policy: Policy, rows: dict[str, int]) -> str:
    choices = sparsify_module(module, policy, rows, kernel=Dense()).choices
    assert not any(choice.taken for choice in choices)
    return nothing_sparse("a.py:f", choices, policy, rows, attention=False).hint


def test_a_hook_is_named_where_it_is_in_the_way() -> None:
    module = Mlp(torch.float16)
    for layer in (module.gate_proj, module.up_proj):
        layer.register_forward_hook(lambda *_: None)
    hint = hint_of(module, WINS, {"gate_proj": SEQ, "up_proj": SEQ})
    assert hint.startswith("Layers that can be sparse are plain Linear ones: no hooks, N and K")


def test_layers_that_are_not_called_say_nothing_of_the_policy() -> None:
    assert "calls none of these layers" in hint_of(Mlp(torch.float16), WINS, {})


def test_a_type_that_can_be_measured_is_asked_for() -> None:
    hint = hint_of(
        Mlp(torch.float32), make_policy(mlp_points({SEQ: 0.9})), {"up_proj": SEQ, "gate_proj": SEQ}
    )
    assert hint.endswith("--library torch --dtype fp16`.")


def test_layers_of_another_class_stay_dense(tmp_path: Path) -> None:
    make_gpt2(torch).half().save_pretrained(tmp_path)
    points = make_points("ffn", 256, 64, {SEQ: 1.3}, library="torch")
    points += make_points("down", 64, 256, {SEQ: 1.3}, library="torch")
    error = error_of(str(tmp_path), make_policy(points))
    assert "4 layers: it is a Conv1D, not a plain Linear; " in error.message
    assert error.hint.startswith("Layers that can be sparse are plain Linear ones")


def test_a_module_of_attention_alone_and_one_without_layers() -> None:
    class Attention(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(64, 64).half()

    choices = sparsify_module(Attention(), WINS, SEQ, kernel=Dense()).choices
    error = nothing_sparse("a.py:f", choices, WINS, {"q_proj": SEQ}, attention=False)
    assert error.message == "a.py:f: no layer was made sparse; 1 layer: of attention, not asked for."
    assert "--attention" in error.hint
    nothing = nothing_sparse("a.py:f", (), WINS, {}, attention=False)
    assert nothing.message == "a.py:f: no layer was made sparse; it has no Linear layer."


def run_command(hint: str) -> int:
    """Runs the command that a hint names."""
    (command,) = re.findall(r"`(sparseflow-trt [^`]+)`", hint)
    return CliRunner().invoke(group, shlex.split(command)[1:]).exit_code
