"""Kernels by their names, as profilers print them, and what a profile adds up to."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseflow_trt.engines.evidence.tactics import is_sparse_tactic
from sparseflow_trt.engines.torch_kernels.kernel_profile import (
    CLASSES,
    IN_WORDS,
    KernelClass,
    classify_kernel,
    make_profile,
)

# As torch's profiler and Nsight print them, templates shortened; and as TensorRT names layers and tactics.
_TABLE = Path(__file__).with_name("kernel_names.tsv").read_text(encoding="utf-8")
NAMES = [tuple(line.split("\t")) for line in _TABLE.splitlines()]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_a_kernel_is_known_by_its_name(kind: KernelClass, name: str) -> None:
    assert classify_kernel(name) == kind


def test_every_class_has_words_and_names() -> None:
    assert set(IN_WORDS) == set(CLASSES) == {kind for kind, _ in NAMES}


def test_sparse_kernels_are_those_of_sparse_tensor_cores() -> None:
    sparse = [name for kind, name in NAMES if is_sparse_tactic(name)]
    assert sparse == [name for kind, name in NAMES if kind == "gemm" and "spars" in name.lower()]
    assert len(sparse) == 5


def test_a_profile_adds_up() -> None:
    profile = make_profile(
        "ids 1×1024",
        10,
        [
            ("nvjet_a", 2.0, 3),
            ("Memset (Device)", 0.5, 1),
            ("nvjet_a", 1.0, 1),
            ("sm90_xmma_sparse_gemm_x", 4.0, 2),
            ("mystery", 0.5, 1),
            ("layer 1", 1.5, 1),
            ("layer 2", 0.5, 1),
        ],
        {"layer 1": ("", "fmha_v2_flash"), "layer 2": ("sm90_xmma_sparse_fprop", "CaskConvolution")},
        wall_ms=50.0,
    )
    assert [(k.name, k.ms, k.launches) for k in profile.kernels][:2] == [
        ("sm90_xmma_sparse_gemm_x", 4.0, 2),
        ("nvjet_a", 3.0, 4),
    ]
    assert profile.ms == 10.0
    assert {kind: profile.ms_of(kind) for kind in CLASSES} == {
        "gemm": 7.5, "attention": 1.5, "elementwise": 0.0, "copy": 0.5, "other": 0.5,
    }  # fmt: skip
    assert (profile.gemm_share, profile.sparse_ms) == (0.75, 4.5)


def test_an_empty_profile_has_no_share() -> None:
    assert make_profile("nothing", 1, []).gemm_share == 0.0
