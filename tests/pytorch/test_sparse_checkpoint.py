"""2:4 checkpoints of other tools, written by them where they run here, and broken in every part."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.errors import ArtifactError, ModelError, NotInstalledError
from sparseflow_trt.model.graph import SparsityState, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.pytorch import checkpoint_files
from sparseflow_trt.pytorch.sparse_checkpoint import load_checkpoint, unpack_checkpoint
from sparseflow_trt.pytorch.sparse_entries import MASKS
from sparseflow_trt.pytorch.torch_layers import find_layers
from sparseflow_trt.pytorch.torch_pattern import mask_hash, prune_rows
from tests.torch_models import make_llama

torch: Any = pytest.importorskip("torch")
save_file: Any = pytest.importorskip("safetensors.torch").save_file

WRITTEN_BY_MODELOPT = Path(__file__).parents[1] / "data" / "modelopt_state.pth"


def make_module(kind: Any = None) -> Any:
    """Two Linear layers with 2:4 weights."""
    torch.manual_seed(3)
    made = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    with torch.no_grad():
        for layer in find_layers(made):
            layer.weight.copy_(prune_rows(layer.weight))
    return made.to(kind or torch.float16)


def emptied(module: Any) -> Any:
    """The same module with zeros."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


def bitmask_state(module: Any) -> dict[str, Any]:
    """As compressed-tensors writes it."""
    compressors: Any = pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask"
    )
    configs: Any = pytest.importorskip("compressed_tensors.config")
    compressor = compressors.Sparse24BitMaskCompressor(configs.Sparse24BitMaskConfig())
    targets = {name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    state: dict[str, Any] = compressor.compress(dict(module.state_dict()), compression_targets=targets)
    assert {name for name in state if name.startswith("0.")} == {
        "0.compressed", "0.bitmask", "0.shape", "0.bias",
    }  # fmt: skip
    return {name: value.contiguous() for name, value in state.items()}


def semi_structured(weight: Any) -> Any:
    """W as PyTorch's class for CUTLASS keeps it, which torchao's semi_sparse_weight makes on a GPU."""
    conversions: Any = pytest.importorskip("torch.sparse._semi_structured_conversions")
    warnings.simplefilter("ignore")  # of a prototype
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    return torch.sparse.SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None)


def equal(module: Any, other: Any) -> bool:
    """Whether two modules have the same state, to the bit."""
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_a_bitmask_checkpoint_is_loaded(tmp_path: Path) -> None:
    module = make_module()
    save_file(bitmask_state(module), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        target = emptied(make_module())
        found = load_checkpoint(target, path)
        assert equal(target, module)
        assert [(layer.name, layer.form, layer.n, layer.k) for layer in found] == [
            ("0", "sparse-24-bitmask", 64, 128),
            ("2", "sparse-24-bitmask", 32, 64),
        ]
        assert [layer.mask_sha256 for layer in found] == [
            mask_hash(layer.weight) for layer in find_layers(module)
        ]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_semi_structured_tensors_are_loaded(kind: str, tmp_path: Path) -> None:
    module = make_module(getattr(torch, kind))
    state = dict(module.state_dict())
    if kind == "float32":  # of which the hardware takes one of two
        state["0.weight"].view(-1, 2)[:, 1] = 0
    state["0.weight"] = semi_structured(state["0.weight"])
    torch.save(state, tmp_path / "sparse.pt")
    target = emptied(make_module(getattr(torch, kind)))
    found = load_checkpoint(target, tmp_path / "sparse.pt")
    assert [(layer.name, layer.form) for layer in found] == [("0", "semi-structured (CUTLASS)")]
    assert equal(target, module)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_cusparselt_packed_needs_it(tmp_path: Path) -> None:
    packed = torch.zeros(64, 72, dtype=torch.float16)
    tensor = torch.sparse.SparseSemiStructuredTensorCUSPARSELT((64, 128), packed, None, None, None, None)
    torch.save({**make_module().state_dict(), "0.weight": tensor}, tmp_path / "sparse.pt")
    with pytest.raises(NotInstalledError, match=r"'0\.weight' is packed as cuSPARSELt keeps it"):
        load_checkpoint(make_module(), tmp_path / "sparse.pt")


def test_what_modelopt_wrote_is_loaded(tmp_path: Path) -> None:
    target = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
    found = load_checkpoint(target, WRITTEN_BY_MODELOPT)
    state = torch.load(WRITTEN_BY_MODELOPT, weights_only=True)["model_state_dict"]
    assert [layer.form for layer in found] == ["modelopt", "modelopt"]
    for name in ("0", "2"):
        assert not bool((state[f"{name}.weight"] == 0).any())  # it keeps them as they were
        expected = state[f"{name}.weight"] * state[f"{name}._weight_mask"]
        assert torch.equal(target.state_dict()[f"{name}.weight"], expected)
    done = unpack_checkpoint(str(WRITTEN_BY_MODELOPT), str(tmp_path / "plain.safetensors"))
    assert done.layers == found
    again = emptied(torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)))
    load_checkpoint(again, str(tmp_path / "plain.safetensors"))
    assert equal(again, target)


def test_what_was_loaded_is_exported_as_any_other(tmp_path: Path) -> None:
    save_file(bitmask_state(make_module(torch.float32)), tmp_path / "model.safetensors")
    module = emptied(make_module(torch.float32))
    load_checkpoint(module, tmp_path)
    program = torch.onnx.export(module.eval(), (torch.zeros(8, 128),), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    layers = read_layers(read_model(tmp_path / "model.onnx"))
    assert [(layer.n, layer.k, layer.state) for layer in layers] == [
        (64, 128, SparsityState.SPARSE),
        (32, 64, SparsityState.SPARSE),
    ]


def hugging_face(folder: Path, state: Callable[[Any], dict[str, Any]], form: str) -> Any:
    """A Llama's folder as compressed-tensors leaves it; gives the module."""
    module = make_llama(torch).half()
    with torch.no_grad():
        for layer in find_layers(module):
            if layer.name != "lm_head":
                layer.weight.copy_(prune_rows(layer.weight))
    module.save_pretrained(folder)
    save_file(state(module), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    sparsity = {"format": form, "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": ["lm_head"]}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return module


def compressed(module: Any) -> dict[str, Any]:
    """Its state with all Linear layers but the head as bitmasks."""
    made: Any = pytest.importorskip("compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask")
    state = dict(module.state_dict())
    for layer in find_layers(module):
        if layer.name != "lm_head":
            tensor = made.Sparse24BitMaskTensor.from_dense(state.pop(f"{layer.name}.weight"))
            state.update(tensor.dict(f"{layer.name}.weight"))
    return {name: value.contiguous() for name, value in state.items()}


def plain(module: Any) -> dict[str, Any]:
    """Its state."""
    return dict(module.state_dict())


@pytest.mark.parametrize(("state", "form"), [(compressed, "sparse-24-bitmask"), (plain, "dense")])
def test_a_folder_is_unpacked_to_what_transformers_loads(state: Any, form: str, tmp_path: Path) -> None:
    import transformers

    module = hugging_face(tmp_path / "given", state, form)
    before = {file.name: file.read_bytes() for file in (tmp_path / "given").iterdir()}
    done = unpack_checkpoint(tmp_path / "given", tmp_path / "plain")
    assert {layer.form for layer in done.layers} == {form}
    assert len(done.layers) == 14
    assert done.broken == ()
    assert {file.name: file.read_bytes() for file in (tmp_path / "given").iterdir()} == before
    assert (tmp_path / "plain" / "tokenizer.json").read_text() == "{}"
    assert equal(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), module)
    target = emptied(make_llama(torch).half())
    assert len(load_checkpoint(target, tmp_path / "given")) == 14
    assert equal(target, module)


def test_a_dense_checkpoint_that_is_not_what_it_says(tmp_path: Path) -> None:
    def broken(module: Any) -> dict[str, Any]:
        state = dict(module.state_dict())
        state["model.layers.1.mlp.up_proj.weight"] += 1
        return state

    hugging_face(tmp_path / "given", broken, "dense")
    with pytest.raises(ModelError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is not 2:4 along K"):
        load_checkpoint(make_llama(torch).half(), tmp_path / "given")
    done = unpack_checkpoint(tmp_path / "given", tmp_path / "plain")
    assert done.broken == ("model.layers.1.mlp.up_proj.weight",)
    assert len(done.layers) == 13


def test_shards_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "given"
    module = hugging_face(folder, compressed, "sparse-24-bitmask")
    state = compressed(module)
    names, places = sorted(state), {}
    (folder / "model.safetensors").unlink()
    for i in range(3):  # the parts of a weight may lie in different files
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: state[name] for name in names[i::3]}, folder / file)
        places.update(dict.fromkeys(names[i::3], file))
    (folder / checkpoint_files.INDEX).write_text(json.dumps({"weight_map": places}))
    monkeypatch.setattr(checkpoint_files, "SHARD_BYTES", 40_000)
    unpack_checkpoint(folder, tmp_path / "plain")
    assert len(list((tmp_path / "plain").glob("model-*.safetensors"))) > 2
    target = emptied(make_llama(torch).half())
    load_checkpoint(target, tmp_path / "plain")
    assert equal(target, module)


def _swap(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**state, name: value}


BROKEN_BITMASKS: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("a part is missing", lambda s: {k: v for k, v in s.items() if k != "0.bitmask"}, "'0.bitmask' is not"),
    (
        "a bitmask alone",
        lambda s: {k: v for k, v in s.items() if k != "0.compressed"},
        "'0.compressed' is not",
    ),
    (
        "too few values",
        lambda s: _swap(s, "0.compressed", s["0.compressed"][:, :-1].contiguous()),
        "needs values",
    ),
    ("a short bitmask", lambda s: _swap(s, "0.bitmask", s["0.bitmask"][:-1].contiguous()), "needs values"),
    ("a huge shape", lambda s: _swap(s, "0.shape", torch.tensor([1 << 40, 1 << 40])), "needs values"),
    ("a negative shape", lambda s: _swap(s, "0.shape", torch.tensor([-64, -128])), "its shape is"),
    ("three sizes", lambda s: _swap(s, "0.shape", torch.tensor([64, 128, 1])), "its shape is"),
    ("sizes that are fractions", lambda s: _swap(s, "0.shape", torch.tensor([64.0, 128.0])), "its shape is"),
    ("an odd K", lambda s: _swap(s, "0.shape", torch.tensor([64, 126])), "its shape is"),
    ("three of four", lambda s: _swap(s, "0.bitmask", s["0.bitmask"] | 7), "do not have two places"),
    ("none of four", lambda s: _swap(s, "0.bitmask", s["0.bitmask"] * 0), "do not have two places"),
    ("another type", lambda s: _swap(s, "0.bitmask", s["0.bitmask"].int()), "is torch.int32"),
    ("quantised", lambda s: _swap(s, "0.weight_scale", torch.ones(1)), "is also quantized"),
    ("a layer too many", lambda s: _swap(s, "9.bias", torch.ones(1)), "the module has no '9.bias'"),
    ("a bias too long", lambda s: _swap(s, "0.bias", torch.ones(65)), "these have other shapes: '0.bias'"),
    ("no bias", lambda s: {k: v for k, v in s.items() if k != "0.bias"}, "it lacks '0.bias'"),
]


@pytest.mark.parametrize(
    ("change", "says"), [b[1:] for b in BROKEN_BITMASKS], ids=[b[0] for b in BROKEN_BITMASKS]
)
def test_a_broken_bitmask_checkpoint_changes_nothing(change: Any, says: str, tmp_path: Path) -> None:
    save_file(change(bitmask_state(make_module())), tmp_path / "model.safetensors")
    target = emptied(make_module())
    with pytest.raises(ModelError) as caught:
        load_checkpoint(target, tmp_path)
    assert says in caught.value.message
    assert caught.value.hint
    assert not any(bool(value.any()) for value in target.state_dict().values())


def truncated(data: bytes) -> bytes:
    """The first two thirds."""
    return data[: len(data) * 2 // 3]


def huge_header(data: bytes) -> bytes:
    """A header that claims to be larger than memory."""
    return struct.pack("<Q", 1 << 60) + data[8:]


@pytest.mark.parametrize("change", [truncated, huge_header, lambda data: b"", lambda data: b"{}" * 99])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_file_that_is_not_whole(name: str, change: Any, tmp_path: Path) -> None:
    module = make_module()
    if name.endswith(".pt"):
        torch.save(module.state_dict(), tmp_path / name)
    else:
        save_file(module.state_dict(), tmp_path / name)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(ModelError) as caught:
        load_checkpoint(module, tmp_path / name)
    assert name in caught.value.message
    assert "\n" not in caught.value.message


class _Runs:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_not_run(how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    how({"0.weight": _Runs()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match=r"evil\.pt (holds more than tensors|is not a complete)"):
        load_checkpoint(make_module(), tmp_path / "evil.pt")
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("[]", "holds no weight_map"),
        ("{", "is not JSON"),
        ('{"weight_map": {"a": 3}}', "holds no weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "which is not a file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which is not a file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "is not a complete safetensors file"),
        ('{"weight_map": {"a": "here.safetensors"}}', "lacks 'a'"),
    ],
)
def test_an_index_that_lies(index: str, says: str, tmp_path: Path) -> None:
    save_file({"b": torch.ones(1)}, tmp_path / "here.safetensors")
    (tmp_path / checkpoint_files.INDEX).write_text(index)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(make_module(), tmp_path)
    assert says in caught.value.message


def test_broken_semi_structured_tensors(tmp_path: Path) -> None:
    weight = make_module().state_dict()["0.weight"]
    whole = semi_structured(weight)
    made_by = type(whole)
    half, meta = whole.packed[:, :32].contiguous(), whole.meta
    for packed, other, shape, says in [
        (half, meta, (64, 128), "its packed values are"),
        (whole.packed, meta[:8].contiguous(), (64, 128), "do not fit"),
        (whole.packed, None, (64, 128), "its packed values are"),
        (whole.packed, torch.zeros_like(meta), (64, 128), "names a place twice"),
        (None, None, (64, 128), "only its transpose"),
    ]:
        turned = (
            {"packed_t": whole.packed, "meta_t": meta}
            if packed is None
            else {"packed_t": None, "meta_t": None}
        )
        tensor = made_by(shape, packed=packed, meta=other, compressed_swizzled_bitmask=None, **turned)
        torch.save({"0.weight": tensor}, tmp_path / "sparse.pt")
        with pytest.raises(ModelError) as caught:
            load_checkpoint(make_module(), tmp_path / "sparse.pt")
        assert says in caught.value.message


def test_a_mask_of_modelopts_that_does_not_fit(tmp_path: Path) -> None:
    state = torch.load(WRITTEN_BY_MODELOPT, weights_only=True)["model_state_dict"]
    mask = state["0._weight_mask"]
    module = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
    for changed, says in [
        ({"0._weight_mask": mask[:4]}, "its mask is torch.bool of [4, 32]"),
        ({"0._weight_mask": mask.float()}, "its mask is torch.float32"),
        ({"0._weight_mask": mask | True}, "'0.weight' is not 2:4 along K"),
    ]:
        torch.save({**state, **changed}, tmp_path / "state.pth")
        with pytest.raises(ModelError) as caught:
            load_checkpoint(module, tmp_path / "state.pth")
        assert says in caught.value.message
    torch.save({name: value for name, value in state.items() if name != "0.weight"}, tmp_path / "state.pth")
    with pytest.raises(ModelError, match=r"'0\._weight_mask' is there, and its weight is not"):
        load_checkpoint(module, tmp_path / "state.pth")


def test_a_mask_that_was_changed_after_it_was_written(tmp_path: Path) -> None:
    module = make_module()
    masks = {"0": mask_hash(find_layers(module)[0].weight)}
    save_file(module.state_dict(), tmp_path / "a.safetensors", {MASKS: json.dumps(masks)})
    assert [layer.name for layer in load_checkpoint(make_module(), tmp_path / "a.safetensors")] == ["0"]
    with torch.no_grad():
        module[0].weight.copy_(module[0].weight.roll(1, 1))  # 2:4 no more or at other places
    save_file(module.state_dict(), tmp_path / "b.safetensors", {MASKS: json.dumps(masks)})
    with pytest.raises(ModelError, match=r"is not 2:4|is not the one that was written"):
        load_checkpoint(make_module(), tmp_path / "b.safetensors")
    save_file(module.state_dict(), tmp_path / "c.safetensors", {MASKS: "3"})
    with pytest.raises(ModelError, match="its masks are not a mapping"):
        load_checkpoint(make_module(), tmp_path / "c.safetensors")


def test_what_needs_no_unpacking_is_said(tmp_path: Path) -> None:
    save_file(make_module().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="holds no sparse weight in a known format"):
        unpack_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()
    (tmp_path / "empty").mkdir()
    for path, says in [
        ("empty", "holds no weights in a known format"),
        ("gone.safetensors", "does not exist"),
    ]:
        with pytest.raises(ModelError, match=says):
            unpack_checkpoint(tmp_path / path, tmp_path / "out")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds a list, not a state_dict"):
        unpack_checkpoint(tmp_path / "list.pt", tmp_path / "out.safetensors")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    with pytest.raises(ModelError, match="holds no tensor"):
        unpack_checkpoint(tmp_path / "none.pt", tmp_path / "out.safetensors")


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    shutil.copyfile(WRITTEN_BY_MODELOPT, tmp_path / "state.pth")
    with pytest.raises(ArtifactError, match="cannot be written"):
        unpack_checkpoint(tmp_path / "state.pth", tmp_path / "gone" / "out.safetensors")
