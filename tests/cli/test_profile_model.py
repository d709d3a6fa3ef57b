"""sparseflow-trt profile, as far as it goes with no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparseflow_trt.artifacts.manifest import read_manifest
from sparseflow_trt.cli.profile_model import _as_data, _draw, print_profiled
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.torch_kernels.kernel_profile import make_profile
from sparseflow_trt.engines.torch_kernels.torch_profile import LinearProduct
from sparseflow_trt.errors import InputError
from sparseflow_trt.gains.profiling import conclude, products_of

if TYPE_CHECKING:
    from tests.commands import Sparseflow

MakeModel = Callable[..., Path]

PROFILED = conclude(
    "mine",
    "GPU X",
    make_profile(
        "ids 1×1024",
        10,
        [
            ("nvjet_hsh", 6.0, 154),
            ("sm90_xmma_sparse_gemm_" + "x" * 200, 2.0, 44),
            ("Memset (Device)", 1.5, 1),
            ("odd", 0.5, 1),
        ],
        wall_ms=33.0,
    ),
    {},
    1.3,
    None,
    "torch",
)


def test_a_profile_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_profiled(PROFILED, 2)
    printed = capsys.readouterr().out
    assert "ids 1×1024 on GPU X: 10.000 ms of GPU time per run; 33.000 ms wall-clock, 10 runs" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["products", "(GEMM,", "convolution)", "8.0000", "80.0%"] in rows
    assert ["of", "which", "sparse", "2.0000", "20.0%"] in rows
    assert ["6.0000", "60.0%", "154", "gemm", "nvjet_hsh"] in rows
    assert "Memset" not in printed
    assert "x" * 97 + "…" in printed
    assert "Dense products take 60.0% of the GPU time." in printed
    assert "With products 1.3× faster (as given): 1.161× at most." in printed


def test_a_profile_as_json_has_its_sums() -> None:
    data = _as_data(PROFILED)
    assert (data["ms"], data["gemm_share"], data["classes"]["copy"]) == (10.0, 0.8, 1.5)
    assert data["profile"]["kernels"][0] == {
        "name": "nvjet_hsh", "kind": "gemm", "sparse": False, "ms": 6.0, "launches": 154.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["profile.png", "profile.svg"])
def test_a_profile_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _draw((PROFILED, PROFILED), tmp_path / name)
    first = (tmp_path / name).read_bytes()
    if name.endswith("png"):
        assert first.startswith(b"\x89PNG")
        return
    text = first.decode()
    for words in ("mine · GPU X", "ids 1×1024: 10.000 ms", "dense products", "sparse products", "60%", "20%"):
        assert words in text
    assert "attention" not in text
    _draw((PROFILED, PROFILED), tmp_path / name)
    assert (tmp_path / name).read_bytes() == first


def test_a_plot_is_a_png_or_an_svg(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a plot's file name"):
        _draw((PROFILED,), tmp_path / "profile.pdf")


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tiny",), "sees no GPU, and a profile is of GPU kernels."),
        (("mine.py:function",), "sees no GPU, and a profile is of GPU kernels."),
        (("nosuchfile.py:f",), "nosuchfile.py does not exist."),
        (("missing/",), "missing/ is not a PyTorch module."),
        (("missing/", "--sparsify", "--policy", "h200"), "missing/ is not a PyTorch module."),
        ((".",), ".: transformers cannot make a model from it: there is no config.json."),
        (
            ("mine.py:function", "--seq", "8"),
            "--batch, --seq and --dtype are for the inputs of a Hugging Face",
        ),
        (("model", "--policy", "h2o"), "there is no policy 'h2o'."),
        (("model", "--speedup", "0.5"), "Invalid value for '--speedup'"),
        (("model", "--sparsify"), "--sparsify is for PyTorch modules: it needs --policy"),
        (("model", "--attention"), "--attention extends what --sparsify swaps"),
        (("tiny", "--sparsify", "--policy", "h200"), "sees no GPU, and a profile is of GPU kernels."),
    ],
)
def test_what_cannot_be_profiled(
    arguments: tuple[str, ...], says: str, sparseflow: Sparseflow, own_folder: Path
) -> None:
    pytest.importorskip("torch")
    (own_folder / "mine.py").write_text("def function(): ...")
    (own_folder / "tiny").mkdir()
    (own_folder / "tiny" / "config.json").write_text("{}")
    assert says in sparseflow("profile", *arguments).error


def test_an_onnx_file_is_not_profiled(sparseflow: Sparseflow) -> None:
    ended = sparseflow("profile", "a model.onnx")
    assert ended.code == 1
    assert ended.error == "a model.onnx is an ONNX file, which runs nothing by itself."
    assert "sparseflow-trt build 'a model.onnx'" in ended.err


def test_an_artifact_without_tensorrt_is_not_profiled(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    pytest.importorskip("onnxruntime")
    built = sparseflow(
        "build", mlp(), "-o", "a", "--backend", "onnxruntime", "--dim", "batch=1,8,32", "--sparsity", "force"
    )
    assert built.code == 0
    ended = sparseflow("profile", "a")
    assert ended.error == "a holds an engine of onnxruntime; only TensorRT's are profiled."
    assert products_of(read_manifest(own_folder / "a"), "default") == {
        LinearProduct("gate_up", 128, 64, 8, "FP16"): 1,
        LinearProduct("down", 32, 128, 8, "FP16"): 1,
    }
