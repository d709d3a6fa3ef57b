"""The kind of a layer, from the names that common models give it."""

from __future__ import annotations

import pytest

from sparseflow_trt.model.kinds import KINDS, kind_from_names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj", "qkv"),
        ("model.layers.0.self_attn.qkv_proj", "qkv"),
        ("encoder.layer.3.attention.self.query", "qkv"),
        ("h.0.attn.c_attn.weight", "qkv"),
        ("gpt_neox.layers.0.attention.query_key_value", "qkv"),
        ("transformer.layer.0.attention.k_lin", "qkv"),
        ("encoder.block.0.layer.0.SelfAttention.v", "qkv"),
        ("encoder.layers.0.self_attn.in_proj_weight", "qkv"),
        ("layers.0.attention.wq", "qkv"),
        ("/layers.0/attention/wv/MatMul", "qkv"),
        ("layers.0.attention.wqkv", "qkv"),
        ("model.layers.0.self_attn.o_proj", "o"),
        ("layers.0.attention.wo", "o"),
        ("layers.0.attention.wo.weight", "o"),
        ("/layers.0/attention/wo/MatMul", "o"),
        ("encoder.layer.0.attention.output.dense", "o"),
        ("h.0.attn.c_proj", "o"),
        ("gpt_neox.layers.0.attention.dense", "o"),
        ("blocks.0.attn.proj", "o"),
        ("encoder.block.0.layer.0.SelfAttention.o", "o"),
        ("transformer.layer.0.attention.out_lin", "o"),
        ("model.layers.0.mlp.gate_proj", "gate_up"),
        ("model.layers.0.mlp.up_proj", "gate_up"),
        ("model.layers.0.mlp.gate_up_proj", "gate_up"),
        ("encoder.layer.0.intermediate.dense", "gate_up"),
        ("h.0.mlp.c_fc", "gate_up"),
        ("blocks.0.mlp.fc1", "gate_up"),
        ("transformer.h.0.mlp.fc_in", "gate_up"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0", "gate_up"),
        ("encoder.layers.0.linear1", "gate_up"),
        ("model.layers.0.block_sparse_moe.experts.0.w1", "gate_up"),
        ("layers.0.feed_forward.w3", "gate_up"),
        ("rwkv.blocks.0.attention.key", "qkv"),
        ("rwkv.blocks.0.attention.output", "o"),
        ("rwkv.blocks.0.feed_forward.key", "gate_up"),
        ("/blocks.0/feed_forward/value/MatMul", "down"),
        ("model.layers.0.mlp.down_proj", "down"),
        ("encoder.layer.0.output.dense", "down"),
        ("h.0.mlp.c_proj", "down"),
        ("blocks.0.mlp.fc2", "down"),
        ("transformer.h.0.mlp.fc_out", "down"),
        ("encoder.block.0.layer.1.DenseReluDense.wo", "down"),
        ("layers.0.feed_forward.w2", "down"),
        ("model.layers.0.block_sparse_moe.experts.0.w2", "down"),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h", "down"),
        ("blocks.0.mlp.0", "ffn"),
        ("layers.0.wo", "other"),
        ("layers.0.mlp.up_proj.lora_A.default", "adapter"),
        ("/layers.0/self_attn/q_proj/lora_B/default/MatMul", "adapter"),
        ("lora_unet.attn.to_q.lora_down.weight", "adapter"),
        ("layers.0.mlp.up_proj.base_layer", "gate_up"),
        ("lm_head", "classifier"),
        ("fc", "classifier"),
        ("fc.weight", "classifier"),
        ("/fc/Gemm", "classifier"),
        ("head", "classifier"),
        ("/proj_out/MatMul", "classifier"),
        ("single_transformer_blocks.0.proj_out", "other"),
        ("heads.head", "classifier"),
        ("model.layers.0.self_attn.dense", "o"),
        ("model.layers.0.mlp.gate", "other"),
        ("visual_projection", "other"),
        ("convnext.encoder.stages.0.layers.0.pwconv1", "gate_up"),
        ("convnext.encoder.stages.0.layers.0.pwconv2", "down"),
        ("classifier.weight", "classifier"),
        ("/model/layers.0/self_attn/q_proj/MatMul", "qkv"),
        ("/encoder/layer.0/attention/output/dense/MatMul", "o"),
        ("/encoder/layer.0/output/dense/MatMul", "down"),
        ("/encoder/layer.0/intermediate/dense/MatMul", "gate_up"),
        ("/blocks/blocks.0/attn/proj/MatMul", "o"),
        ("/block.0/layer.0/SelfAttention/q/MatMul", "qkv"),
        ("/h.0/mlp/c_proj/MatMul", "down"),
        ("/layers.0/mlp/gate/MatMul", "other"),
        ("/heads/head/Gemm", "classifier"),
        ("head.fc", "classifier"),
        ("/head/fc/Gemm", "classifier"),
        ("mask_head.fc", "other"),
        ("transformer_blocks.0.attn1.to_q", "qkv"),
        ("/transformer_blocks.0/attn2/to_k/MatMul", "qkv"),
        ("layers.0.0.to_qkv", "qkv"),
        ("layers.0.0.to_kv", "qkv"),
        ("transformer_blocks.0.attn1.to_out.0", "o"),
        ("transformer_blocks.0.attn.to_add_out", "o"),
        ("transformer_blocks.0.ff.net.0.proj", "gate_up"),
        ("/transformer_blocks.0/ff/net.2/MatMul", "down"),
        ("time_embedding.linear_2", "other"),
        ("encoder.layers.0.feed_forward.intermediate_dense", "gate_up"),
        ("encoder.layers.0.feed_forward.output_dense", "down"),
        ("model.layers.0.mlp.Wo", "down"),
    ],
)
def test_names_say_the_kind(name: str, kind: str) -> None:
    assert kind_from_names((name,), 64, 64) == kind
    assert kind in KINDS


@pytest.mark.parametrize(
    ("n", "k", "kind"),
    [
        (4096, 1024, "gate_up"),
        (2048, 1024, "gate_up"),
        (1024, 2048, "down"),
        (1024, 1024, "other"),
        (0, 8, "other"),
    ],
)
def test_where_no_name_tells_the_shape_does(n: int, k: int, kind: str) -> None:
    assert kind_from_names(("", "val_3", "node_MatMul_12", "monkey_business"), n, k) == kind


@pytest.mark.parametrize(
    "names", [("head.0", "head.0.weight", "node_linear"), ("", "head.0.weight", "/head/head.0/Gemm")]
)
def test_a_layer_inside_of_a_head_is_no_classifier_however_it_was_exported(names: tuple[str, ...]) -> None:
    """A head of several layers: one exporter names the module, the other a path to the node."""
    assert kind_from_names(names, 64, 64) == "other"


def test_a_fc_inside_of_a_module_is_no_classifier() -> None:
    assert kind_from_names(("blocks.0.se.fc", "blocks.0.se.fc.weight"), 64, 256) == "down"


def test_where_a_layer_is_says_less_than_any_name_of_it() -> None:
    assert kind_from_names(("layers.0.mlp.experts", "layers.0.mlp.experts.down_proj"), 64, 64) == "down"
    assert kind_from_names(("layers.0.mlp.experts", "layers.0.mlp.experts.gate_up_proj"), 64, 64) == "gate_up"


@pytest.mark.parametrize(
    "names",
    [
        ("enc.layers.0.self_attn", "val_5", "node_MatMul_4"),
        ("", "onnx::MatMul_370", "/enc/layers.0/self_attn/MatMul"),
        ("decoder.layers.1.multihead_attn", "", "node_Gemm_7"),
    ],
)
def test_attentions_fused_product_is_qkv_where_only_the_module_is_named(names: tuple[str, ...]) -> None:
    assert kind_from_names(names, 384, 128) == "qkv"
    assert kind_from_names(names, 128, 128) == "other"  # one of its parts, or what is behind them


def test_the_first_telling_name_says_the_kind() -> None:
    assert kind_from_names(("val", "mlp.down_proj", "q_proj"), 64, 64) == "down"
