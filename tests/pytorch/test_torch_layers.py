"""Which layers a module has, and which of them patterns and policies take."""

from __future__ import annotations

from typing import Any

import pytest

from sparseflow_trt.engines.torch_kernels.torch_profile import LinearProduct, record_products
from sparseflow_trt.errors import InputError, PolicyError
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.pytorch.torch_layers import choose_by_name, choose_by_policy, find_layers, record_rows
from sparseflow_trt.pytorch.torch_source import TorchModel
from tests.made_policies import make_points, make_policy
from tests.torch_models import make_gpt2, make_llama, token_batches

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_layers_are_read_as_products() -> None:
    layers = {layer.name: layer for layer in find_layers(make_llama(torch))}
    down = layers["model.layers.1.mlp.down_proj"]
    assert (down.kind, down.n, down.k, down.dtype, down.shared_with) == ("down", 64, 128, "FP32", "")
    assert layers["model.layers.0.self_attn.k_proj"].kind == "qkv"
    assert layers["lm_head"].kind == "classifier"
    gpt2 = {layer.name: layer for layer in find_layers(make_gpt2(torch))}
    up = gpt2["transformer.h.0.mlp.c_fc"]
    assert (up.kind, up.n, up.k) == ("gate_up", 256, 64)
    assert up.weight.shape == (256, 64)
    up.weight[3, 5] = 7
    assert float(up.module.weight[5, 3]) == 7
    assert gpt2["lm_head"].shared_with == "transformer.wte"


def test_rows_are_those_of_the_inputs() -> None:
    module = make_llama(torch)
    layers = find_layers(module)
    batch = token_batches(torch, 1)[0]
    rows = record_rows(layers, lambda: module(**batch))
    assert set(rows.values()) == {32}
    assert rows.keys() == {layer.name for layer in layers}
    assert not any(layer.module._forward_pre_hooks for layer in layers)


def test_rows_of_a_layer_that_is_called_by_its_inputs_name() -> None:
    class Named(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not read by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = torch.nn.Linear(8, 16)

        def forward(self, x: Any) -> Any:
            return self.up_proj(input=x)

    module = Named()
    x = torch.ones(2, 3, 8)
    assert record_rows(find_layers(module), lambda: module(x)) == {"up_proj": 6}
    made = TorchModel(module, (x,), {}, "2×3×8")
    assert record_products(made) == {LinearProduct("gate_up", 16, 8, 6, "FP32"): 1}


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (torch.nn.Linear(30, 8), "K=30 is not a multiple of 4"),
        (torch.nn.Linear(12, 8), "too small: K=12, a sparse FP16 or BF16 instruction takes 16"),
        (torch.nn.Linear(12, 8).half(), "too small: K=12, a sparse FP16 instruction takes 16"),
        (torch.nn.Linear(32, 8, dtype=torch.float64), "no sparse tensor core product for float64 weights"),
        (torch.nn.Linear(32, 8, device="meta"), "its weight is not loaded (it is on PyTorch's meta device)"),
        (
            torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(32, 32)),
            "its weight is computed from others",
        ),
    ],
)
def test_what_cannot_be_2to4(layer: Any, why: str) -> None:
    choice = choose_by_name(find_layers(torch.nn.ModuleDict({"fc1": layer})))[0]
    assert not choice.taken
    assert choice.why.startswith(why)


def test_patterns_take_layers() -> None:
    layers = find_layers(make_llama(torch))
    taken = [c.layer.name for c in choose_by_name(layers, include=("*.o_proj", "lm_head")) if c.taken]
    assert taken == ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj", "lm_head"]
    assert sum(c.taken for c in choose_by_name(layers)) == 14
    assert sum(c.taken for c in choose_by_name(layers, exclude=("*.1.*",))) == 7
    with pytest.raises(InputError, match=r"'\*\.o_prj' matches no layer"):
        choose_by_name(layers, exclude=("*.o_prj",))
    with pytest.raises(InputError) as caught:
        choose_by_name(layers, exclude=("lm_haed",))
    assert caught.value.hint.startswith("Did you mean lm_head? Its layers: model.layers.0")


def test_a_policy_takes_what_it_runs_sparse() -> None:
    layers = find_layers(make_llama(torch))
    policy = make_policy(
        make_points("gate_up", 128, 64, {64: 1.3, 512: 1.3})
        + make_points("down", 64, 128, {64: 0.9, 512: 1.2})
    )
    by_name = choose_by_name(layers, exclude=("*.1.*",))
    small = choose_by_policy(by_name, policy, 64, "FP16")
    assert [c.layer.name for c in small if c.taken] == [
        "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
    ]  # fmt: skip
    assert "sparse wins at M=64: 1.30× measured" in next(c.why for c in small if c.taken)
    assert next(c.why for c in small if c.layer.name.endswith("1.mlp.up_proj")) == "excluded"
    large = choose_by_policy(by_name, policy, {"model.layers.0.mlp.down_proj": 512}, "FP16")
    assert [c.layer.name for c in large if c.taken] == ["model.layers.0.mlp.down_proj"]
    assert next(c.why for c in large if c.layer.name.endswith("up_proj")).startswith(
        "the module does not call it"
    )


def test_a_policy_that_takes_nothing_is_said() -> None:
    choices = choose_by_name(find_layers(make_llama(torch)))
    with pytest.raises(
        PolicyError, match="policy 'h200' runs no layer of this module sparse: no measurement"
    ):
        choose_by_policy(choices, find_policy("h200"), 1024, "FP16")


def test_a_layer_is_taken_that_gains_in_the_plugin_alone() -> None:
    module = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"down_proj": torch.nn.Linear(5632, 2048)})})
    (choice,) = choose_by_policy(choose_by_name(find_layers(module)), find_policy("h200"), 1024, "FP16")
    assert choice.taken
    assert "the plugin wins at M=1024" in choice.why
