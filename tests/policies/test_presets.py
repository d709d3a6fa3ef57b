"""The products of named models are those of their configurations, whole and shared by several GPUs."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.presets import PRESETS, Product, products_of_preset


def test_llama_8b_is_what_its_configuration_says() -> None:
    assert products_of_preset("llama-8b") == (
        Product("qkv", 6144, 4096),
        Product("qkv", 4096, 4096),
        Product("qkv", 1024, 4096),
        Product("o", 4096, 4096),
        Product("gate_up", 14336, 4096),
        Product("gate_up", 28672, 4096),
        Product("down", 4096, 14336),
    )


def test_without_grouped_queries_and_gate_each_product_stands_once() -> None:
    assert products_of_preset("bert-base") == products_of_preset("vit-b")
    assert products_of_preset("bert-base") == (
        Product("qkv", 2304, 768),
        Product("qkv", 768, 768),
        Product("o", 768, 768),
        Product("gate_up", 3072, 768),
        Product("down", 768, 3072),
    )


def test_eight_gpus_share_llama_70b() -> None:
    assert products_of_preset("llama-70b", 8) == (
        Product("qkv", 1280, 8192),
        Product("qkv", 1024, 8192),
        Product("qkv", 128, 8192),
        Product("o", 8192, 1024),
        Product("gate_up", 3584, 8192),
        Product("gate_up", 7168, 8192),
        Product("down", 8192, 3584),
    )


def test_more_gpus_than_key_value_heads_have_one_each() -> None:
    assert Product("qkv", 64, 2048) in products_of_preset("tinyllama", 8)


@given(st.sampled_from(PRESETS), st.sampled_from([1, 2, 4]))
def test_what_is_split_adds_up_to_the_whole(name: str, gpus: int) -> None:
    assume((name, gpus) != ("phi-4", 4))  # it has 10 key-value heads
    whole = {p.kind: p for p in reversed(products_of_preset(name))}  # the first of each kind
    share = {p.kind: p for p in reversed(products_of_preset(name, gpus))}
    assert share.keys() == whole.keys()
    for kind, product in whole.items():
        split = (
            (product.n // gpus, product.k) if kind in ("qkv", "gate_up") else (product.n, product.k // gpus)
        )
        assert (share[kind].n, share[kind].k) == split


@pytest.mark.parametrize(
    ("name", "gpus", "says"),
    [
        ("llama-9b", 1, "there is no preset 'llama-9b'"),
        ("llama-8b", 3, "attention heads 32 is no multiple"),
        ("llama-8b", 0, "shared by 0 GPUs"),
        ("bert-base", 8, "attention heads 12"),
    ],
)
def test_what_cannot_be_shared_is_said(name: str, gpus: int, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        products_of_preset(name, gpus)


def test_the_hint_names_what_can_be_shared() -> None:
    with pytest.raises(PolicyError) as caught:
        products_of_preset("bert-base", 8)
    assert caught.value.hint == "Choose one of: --tensor-parallel 2, 3, 4, 6, 12."
    assert all(products_of_preset("bert-base", gpus) for gpus in (2, 3, 4, 6, 12))
