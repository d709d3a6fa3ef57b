"""Which layers a policy swaps in a module, what part of the work they are, and that it is undone. No GPU."""

from __future__ import annotations

from typing import Any

import pytest

from sparseflow_trt.engines.torch_kernels.sparsify import restore_module, sparsify_module
from sparseflow_trt.exporters.pruning.prune_torch import prune_module
from sparseflow_trt.policies.policy import Point, find_policy
from tests.engines.torch_kernels.test_torch_sparse import Dense
from tests.made_policies import make_points, make_policy
from tests.torch_models import make_gpt2, make_llama, token_batches

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def llama() -> Any:
    """A Llama in FP16 with 2:4 weights but for the last up_proj."""
    made = make_llama(torch)
    prune_module(made, "magnitude")
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight += 1
    return made.half()


def points(**speedups: float) -> list[Point]:
    """Of PyTorch's kernels at M=32, for each of Llama's shapes by its kind."""
    shapes = {"gate_up": (128, 64), "down": (64, 128), "qkv": (64, 64), "classifier": (99, 64)}
    made: list[Point] = []
    for kind, speedup in speedups.items():
        made += make_points(kind, *shapes[kind], {32: speedup}, library="torch")
    return made


def test_the_mlp_is_swapped_first_and_attention_on_request(llama: Any) -> None:
    policy = make_policy(points(gate_up=1.3, down=1.2, qkv=1.3, classifier=1.5))
    batch = token_batches(torch, 1)[0]
    module = llama
    done = sparsify_module(module, policy, 32, kernel=Dense())
    assert sorted(done.swapped.dense) == [
        "model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj",
    ]  # fmt: skip
    why = {choice.layer.name: choice.why for choice in done.choices}
    assert why["model.layers.1.mlp.up_proj"] == "its weights are not 2:4"
    (kept,) = (each for each in done.choices if each.layer.name == "model.layers.1.mlp.up_proj")
    assert (kept.taken, kept.m, kept.basis) == (False, 32, "exact"), "the policy was asked all the same"
    assert why["model.layers.0.self_attn.q_proj"] == "of attention, not asked for"
    assert why["lm_head"] == "of kind 'classifier', neither an MLP's nor attention's"
    assert "sparse wins at M=32" in why["model.layers.0.mlp.gate_proj"]
    with torch.no_grad():
        swapped = module(**batch).logits
    restore_module(done)
    with torch.no_grad():
        assert torch.allclose(swapped, module(**batch).logits, atol=1e-3)
    more = sparsify_module(module, policy, 32, attention=True, kernel=Dense())
    assert "model.layers.0.self_attn.q_proj" in more.swapped.dense
    assert "lm_head" not in more.swapped.dense
    assert more.coverage.swapped > done.coverage.swapped
    restore_module(more)


def test_undone_it_is_as_it_was(llama: Any) -> None:
    modules, state = dict(llama.named_modules()), {k: v.clone() for k, v in llama.state_dict().items()}
    done = sparsify_module(llama, make_policy(points(gate_up=1.3)), 32, kernel=Dense())
    assert done.swapped.dense
    assert dict(llama.named_modules()) != modules
    restore_module(done)
    assert dict(llama.named_modules()) == modules
    after = llama.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_coverage_is_of_the_policys_times_or_of_arithmetic(llama: Any) -> None:
    # dense times: 2·2 gate_up of 13 µs, 2 down of 12, 6 qkv and 2 o of 10 (o's shape is qkv's), a head of 15
    known = make_policy(points(gate_up=1.3, down=1.2, qkv=1.0, classifier=1.5))
    share = sparsify_module(llama, known, 32, kernel=Dense())
    assert share.coverage.basis == "policy times"
    whole = 4 * 13 + 2 * 12 + 8 * 10
    # k and v are half as large as the measured shape
    whole += -4 * 5 + 15
    assert share.coverage.mlp == pytest.approx((4 * 13 + 2 * 12) / whole)
    assert share.coverage.other == pytest.approx(15 / whole)
    restore_module(share)
    work = sparsify_module(llama, make_policy(points(gate_up=1.3)), 32, kernel=Dense())
    assert work.coverage.basis == "M·N·K"
    mlp, attention, head = 2 * 3 * 64 * 128, 2 * (2 * 64 * 64 + 2 * 32 * 64), 99 * 64
    assert work.coverage.mlp == pytest.approx(mlp / (mlp + attention + head))
    assert work.coverage.attention == pytest.approx(attention / (mlp + attention + head))
    assert work.coverage.swapped == pytest.approx(3 * 64 * 128 / (mlp + attention + head))
    restore_module(work)


def test_only_pytorchs_points_count(llama: Any) -> None:
    policy = make_policy(make_points("gate_up", 128, 64, {32: 1.5}) + points(down=0.8))
    done = sparsify_module(llama, policy, 32, kernel=Dense())
    assert done.swapped.dense == {}
    assert done.coverage.swapped == 0
    why = {choice.layer.name: choice.why for choice in done.choices}
    assert "no measurement near 64→128" in why["model.layers.0.mlp.gate_proj"]
    assert "sparse does not win" in why["model.layers.0.mlp.down_proj"]


def test_what_is_no_linear_is_said() -> None:
    gpt2 = make_gpt2(torch)
    prune_module(gpt2, "magnitude")
    done = sparsify_module(gpt2.half(), find_policy("a100-80gb"), 1024, kernel=Dense())
    why = {choice.layer.name: choice.why for choice in done.choices}
    assert why["transformer.h.0.mlp.c_fc"] == "it is a Conv1D, not a plain Linear"
    assert done.swapped.dense == {}


def test_without_a_gpu_the_library_refuses_what_it_cannot_take(llama: Any) -> None:
    done = sparsify_module(llama.float(), make_policy(points(gate_up=1.3)), 32)
    assert done.swapped.dense == {}
    why = {choice.layer.name: choice.why for choice in done.choices}
    assert "no measurement" in why["model.layers.0.mlp.gate_proj"]  # the policy is of FP16
