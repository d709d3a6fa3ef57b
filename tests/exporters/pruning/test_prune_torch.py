"""Pruning of whole modules: block by block, on what the pruned blocks before give."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest

from sparseflow_trt.errors import InputError, ModelError
from sparseflow_trt.exporters.pruning import calibration, prune_torch, pruning_methods
from sparseflow_trt.exporters.pruning.blocks import find_blocks
from sparseflow_trt.exporters.pruning.calibration import as_batch
from sparseflow_trt.exporters.pruning.prune_torch import PruneRecord, prune_module
from sparseflow_trt.pytorch.torch_layers import choose_by_name, find_layers
from sparseflow_trt.pytorch.torch_pattern import is_2to4, mask_hash
from tests.torch_models import make_bert, make_gpt2, make_llama, token_batches

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")
Module: Any = torch.nn.Module


class Skipping(Module):  # type: ignore[misc]
    """Its third layer gets what the first gave, too: no block alone gives what the next one gets."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Any) -> Any:
        first = self.layers[0](x)
        return self.layers[3](self.layers[2](self.layers[1](first)) + first)


class Twice(Module):  # type: ignore[misc]
    """Its block runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(32, 32)])

    def forward(self, x: Any) -> Any:
        return self.layers[0](self.layers[0](x).relu())


class Writing(Module):  # type: ignore[misc]
    """What stands between its blocks writes into what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, 32), torch.nn.ReLU(inplace=True), torch.nn.Linear(32, 32)
        )

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def rows() -> list[Any]:
    """Three batches of 50 rows."""
    source = torch.Generator().manual_seed(2)
    return [torch.randn(50, 32, generator=source) for _ in range(3)]


def make_t5() -> Any:
    """Two lists of blocks, one after the other."""
    import transformers

    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=99, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def with_decoder(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same tokens for the decoder."""
    return [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in batches]


@pytest.mark.parametrize(
    ("make", "batches", "replays"),
    [
        (lambda: make_llama(torch, 3), token_batches(torch), True),
        (lambda: make_gpt2(torch), token_batches(torch), True),
        (make_t5, with_decoder(token_batches(torch)), True),
        (Writing, rows(), True),
        (Skipping, rows(), False),
        (Twice, rows(), False),
    ],
    ids=["llama", "gpt2", "t5", "writing", "skipping", "twice"],
)
def test_blocks_that_are_not_computed_again_change_nothing(
    make: Any, batches: list[Any], replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = make()
    whole, state = copy.deepcopy(module), []
    check, trace = calibration._check_replay, calibration._trace

    def checked(*arguments: Any) -> None:
        check(*arguments)
        state.append(arguments[-1].works)

    monkeypatch.setattr(calibration, "_check_replay", checked)
    record = prune_module(module, "sparsegpt", batches)
    assert state[-1] is replays
    monkeypatch.setattr(calibration, "_trace", lambda *a: dict.fromkeys(trace(*a), 2))  # as if called twice
    expected = prune_module(whole, "sparsegpt", batches)
    assert [layer.name for layer in record.layers] == [layer.name for layer in expected.layers]
    for (name, value), other in zip(module.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.allclose(value, other, atol=1e-5), name


def test_replay_computes_each_block_a_few_times_and_not_all_before_it() -> None:
    module, batches = make_llama(torch, 6), token_batches(torch, 4)
    calls = [0] * 6
    for i, block in enumerate(module.model.layers):
        block.mlp.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    prune_module(module, "wanda", batches)
    # each batch twice, before and after pruning; one run in the order of blocks, and one batch to check by
    assert all(calls[i] <= 2 * len(batches) + 1 + len(calls) - i for i in range(6)), calls


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_bert])
def test_a_module_is_pruned_and_left_as_it_was_but_for_weights(method: Any, make: Any) -> None:
    module = make(torch).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    cache = module.config.__dict__.get("use_cache")
    steps: list[str] = []
    record = prune_module(module, method, token_batches(torch), on_step=lambda step, *_: steps.append(step))
    layers = {layer.name: layer for layer in find_layers(module)}
    for pruned in record.layers:
        layer = layers[pruned.name]
        assert is_2to4(layer.weight)
        assert mask_hash(layer.weight) == pruned.mask_sha256
        assert pruned.zeros == pytest.approx(0.5, abs=1e-3)
        if pruned.name != "pooler.dense":
            assert 0 < pruned.weight_error < 1
            assert pruned.output_error is not None
            assert 0 < pruned.output_error < 1
        assert (pruned.damping == 0.01) is (method == "sparsegpt")
    changed = {f"{pruned.name}.weight" for pruned in record.layers}
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name not in changed)
    assert all(part.training for part in module.modules())
    assert module.config.__dict__.get("use_cache") == cache
    assert not any("forward" in part.__dict__ for part in module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert f"Pruning {record.layers[0].name}" in steps
    assert PruneRecord.model_validate_json(record.model_dump_json()) == record


def test_methods_are_ranked_by_what_the_module_gives() -> None:
    batches, held_out = token_batches(torch, 8), token_batches(torch, 10)[8:]
    dense = make_llama(torch)
    errors = {}
    for method in pruning_methods.METHODS:
        module = copy.deepcopy(dense)
        prune_module(module, method, batches)
        with torch.no_grad():
            errors[method] = sum(float((module(**b).logits - dense(**b).logits).norm()) for b in held_out)
    assert errors["sparsegpt"] < errors["magnitude"]


def test_a_classifier_and_a_shared_weight_are_left_alone() -> None:
    record = prune_module(make_llama(torch), "magnitude")
    assert record.left == {"lm_head": "a classifier, which is taken only where it is named"}
    assert record.layers[0].output_error is None
    tied = prune_module(make_gpt2(torch), "magnitude")
    assert tied.left == {"lm_head": "its weight is shared with 'transformer.wte'"}


def test_one_blocks_statistics_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held: weakref.WeakSet[Any] = weakref.WeakSet()
    alive: list[int] = []

    class Counted(pruning_methods.Hessian):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            held.add(self)

        def add(self, x: Any) -> None:
            super().add(x)
            alive.append(len(held))

    monkeypatch.setattr(prune_torch, "Hessian", Counted)
    prune_module(make_llama(torch, 3), "sparsegpt", token_batches(torch))
    assert len(alive) == 3 * 3 * 7
    assert max(alive) == 7  # the layers of a block


def test_padding_teaches_nothing() -> None:
    tokens = token_batches(torch, 1)[0]["input_ids"]
    mask = (torch.arange(16) < 12).long().expand(2, 16)
    other = tokens.clone()
    other[:, 12:] = 5
    found = []
    for each in (tokens, other):
        module = make_bert(torch)
        record = prune_module(module, "sparsegpt", [{"input_ids": each, "attention_mask": mask}])
        rows_seen = {layer.name: layer.rows for layer in record.layers}
        assert rows_seen["encoder.layer.0.attention.self.query"] == 24
        assert rows_seen["pooler.dense"] == 2
        found.append({layer.name: layer.mask_sha256 for layer in record.layers})
    assert found[0] == found[1]


def test_a_layer_that_no_row_reaches_is_pruned_by_magnitude() -> None:
    class Unused(Skipping):
        def __init__(self) -> None:
            super().__init__()
            self.never = torch.nn.Linear(32, 32)

    record = prune_module(Unused(), "sparsegpt", rows())
    last = record.layers[-1]
    assert (last.name, last.method, last.rows, last.output_error) == ("never", "magnitude", 0, None)


def test_what_is_no_linear_layer_is_named() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(32, 8))
    record = prune_module(module, "magnitude")
    assert record.left == {"0": "it is a Conv2d, neither a Linear nor a Conv1D"}
    module.positions = torch.nn.Parameter(torch.zeros(4, 32))
    (whole, _) = prune_module(module, "magnitude").left.items()
    assert whole == ("(the module itself)", "it is a Sequential, neither a Linear nor a Conv1D")


@pytest.mark.parametrize(
    ("module", "method", "batches", "says"),
    [
        (Skipping(), "sparsegpt", [], "sparsegpt needs calibration batches."),
        (Skipping(), "wanda", [7], "a calibration batch is a int."),
        (
            Skipping(),
            "wanda",
            [torch.randn(5, 16)],
            "the module fails on a calibration batch: RuntimeError: ",
        ),
        (
            Skipping(),
            "wanda",
            [{"y": torch.randn(5, 32)}],
            "the module fails on a calibration batch: TypeError",
        ),
        (torch.nn.ReLU(), "magnitude", [], "there is no layer to prune."),
        (torch.nn.Linear(30, 8), "magnitude", [], "there is no layer to prune."),
        (Skipping(), "sparsegpt", [torch.full((5, 32), float("nan"))], "'layers.0': the layer's inputs"),
    ],
)
def test_what_cannot_be_done_is_said(module: Any, method: Any, batches: list[Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        prune_module(module, method, batches)
    assert caught.value.message.startswith(says)
    assert caught.value.hint
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_weight_that_is_not_finite_is_refused() -> None:
    module = Skipping()
    with torch.no_grad():
        module.layers[1].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"the weight of 'layers\.1' holds values that are not finite"):
        prune_module(module, "magnitude")


def test_blocks_are_elements_of_the_outermost_list() -> None:
    llama = make_llama(torch)
    names = [block.name for block in find_blocks(llama, find_layers(llama))]
    assert names == ["model.layers.0", "model.layers.1", "lm_head"]
    wrapped = torch.nn.Sequential(llama, torch.nn.Identity())
    names = [block.name for block in find_blocks(wrapped, find_layers(wrapped))]
    assert names == ["0.model.layers.0", "0.model.layers.1", "0"]
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    assert [block.name for block in find_blocks(plain, find_layers(plain))] == ["0", "2"]


def test_layers_are_chosen() -> None:
    module = make_llama(torch)
    choices = choose_by_name(find_layers(module), include=("*.mlp.*",), exclude=("*.1.*",))
    record = prune_module(module, "magnitude", choices=choices)
    assert [layer.name for layer in record.layers] == [
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    assert record.left["model.layers.1.mlp.up_proj"] == "excluded"
    assert record.left["model.layers.0.self_attn.q_proj"] == "no pattern names it"


def test_a_batch_is_what_a_module_is_called_with() -> None:
    x = torch.randn(2, 3)
    assert as_batch(x, "cpu").args[0] is x
    assert as_batch((x, 3), "cpu").args == (x, 3)
    named = as_batch({"x": x, "attention_mask": torch.tensor([[1, 0]])}, "cpu")
    assert named.mask is not None
    assert named.mask.tolist() == [[True, False]]
    assert as_batch({"attention_mask": torch.zeros(1, 1, 4, 4)}, "cpu").mask is None
