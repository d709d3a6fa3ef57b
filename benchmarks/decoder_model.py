"""A TinyLlama-shaped decoder as ONNX files with random 2:4 weights in FP16.

A prefill is one sequence with causal attention, a decode-like step many sequences of one token each, which
attend to a cache that comes as inputs. There is no embedding and no head. RMSNorm is written out in FP32.
Layers have one set of weights, turned along K by four elements more in each: 22 layers are drawn in seconds,
and are 2:4 all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import written_atomically
from sparseflow_trt.model.pattern import prune_2to4

HALF = TensorProto.FLOAT16
Arrays = dict[str, np.ndarray[Any, Any]]
Places = Mapping[str, tuple[int, int]]  # of each weight in the weights file: its offset and its size


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; the defaults are TinyLlama's."""

    layers: int = 22
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    kv_heads: int = 4

    @property
    def head(self) -> int:
        """The size of one head."""
        return self.hidden // self.heads

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """K and N of a layer's weights, by name."""
        kv = self.kv_heads * self.head
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.hidden, kv),
            "self_attn.v_proj": (self.hidden, kv),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }


@dataclass(frozen=True)
class Phase:
    """What a graph is run on: `batch` sequences of `seq` tokens each, after `past` tokens in the cache."""

    batch: int
    seq: int
    past: int = 0

    @property
    def m(self) -> int:
        """The rows of every product."""
        return self.batch * self.seq


def write_weights(path: Path, shape: Shape) -> dict[str, tuple[int, int]]:
    """Writes all layers' weights [K, N] one behind the other; gives each one's offset and size in bytes."""
    rng = np.random.default_rng(0)
    first = {}
    for name, (k, n) in shape.products.items():
        drawn = rng.standard_normal((k, n), np.float32) * np.float32(k**-0.5)
        if name.endswith(("o_proj", "down_proj")):
            drawn *= np.float32((2 * shape.layers) ** -0.5)  # so that the sum of all layers stays near one
        first[name] = prune_2to4(drawn.astype(np.float16), 0)
    places, at = {}, 0
    with written_atomically(path) as temporary, temporary.open("wb") as stream:
        for layer in range(shape.layers):
            for name, weight in first.items():
                turned = np.ascontiguousarray(np.roll(weight, 4 * layer, axis=0))
                stream.write(memoryview(turned).cast("B"))
                places[f"model.layers.{layer}.{name}"] = (at, turned.nbytes)
                at += turned.nbytes
    return places


class Graph:
    """An ONNX graph in FP16 that grows node by node."""

    def __init__(self, weights: str, places: Places) -> None:
        self.weights, self.places = weights, places
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._known: set[str] = set()

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Adds a node; its one output has its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Adds a constant, once."""
        if name not in self._known:
            self._known.add(name)
            self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def give(self, name: str, dims: Sequence[int]) -> str:
        """Adds an input."""
        self.inputs.append(helper.make_tensor_value_info(name, HALF, dims))
        return name

    def linear(self, value: str, name: str, shape: tuple[int, int]) -> str:
        """x · W, with W in the weights file."""
        offset, size = self.places[name]
        tensor = TensorProto(
            name=f"{name}.weight", data_type=HALF, dims=shape, data_location=TensorProto.EXTERNAL
        )
        for key, told in (("location", self.weights), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=told)
        self.tensors.append(tensor)
        return self.node("MatMul", [value, tensor.name], name)

    def reshape(self, value: str, name: str, dims: Sequence[int]) -> str:
        """A Reshape to fixed dimensions."""
        text = "x".join(map(str, dims))
        return self.node("Reshape", [value, self.constant(f"shape_{text}", np.array(dims, np.int64))], name)

    def norm(self, value: str, name: str) -> str:
        """RMSNorm with weights of one, in FP32."""
        wide = self.node("Cast", [value], f"{name}.wide", to=TensorProto.FLOAT)
        square = self.node("Mul", [wide, wide], f"{name}.square")
        mean = self.node("ReduceMean", [square], f"{name}.mean", axes=[-1])
        small = self.node("Add", [mean, self.constant("epsilon", np.float32(1e-5))], f"{name}.epsilon")
        root = self.node("Sqrt", [small], f"{name}.root")
        return self.node("Cast", [self.node("Div", [wide, root], f"{name}.normal")], f"{name}.half", to=HALF)

    def silu_mul(self, gate: str, up: str, name: str) -> str:
        """silu(gate) · up."""
        sigmoid = self.node("Sigmoid", [gate], f"{name}.sigmoid")
        return self.node("Mul", [self.node("Mul", [gate, sigmoid], f"{name}.silu"), up], f"{name}.product")

    def save(self, path: Path, output: str, dims: Sequence[int]) -> None:
        """Writes the file; the weights file lies beside it."""
        y = self.node("Identity", [output], "y")
        ends = [helper.make_tensor_value_info(y, HALF, dims)]
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, ends, self.tensors)
        opsets = [helper.make_opsetid("", 17)]
        with written_atomically(path) as temporary:
            temporary.write_bytes(
                helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
            )


def write_decoder(path: Path, weights: Path, places: Places, shape: Shape, phase: Phase) -> None:
    """Writes x[batch, seq, hidden] → y of the same shape, all dimensions fixed."""
    graph = Graph(weights.name, places)
    dims = (phase.batch, phase.seq, shape.hidden)
    value = graph.give("x", dims)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        attended = _attention(graph, graph.norm(value, f"{name}.input_norm"), name, shape, phase)
        value = graph.node("Add", [value, attended], f"{name}.attention_residual")
        inner = graph.norm(value, f"{name}.post_norm")
        sizes = shape.products
        gate, up = (
            graph.linear(inner, f"{name}.mlp.{side}_proj", sizes[f"mlp.{side}_proj"])
            for side in ("gate", "up")
        )
        product = graph.silu_mul(gate, up, f"{name}.mlp")
        down = graph.linear(product, f"{name}.mlp.down_proj", sizes["mlp.down_proj"])
        value = graph.node("Add", [value, down], f"{name}.mlp_residual")
    graph.save(path, graph.norm(value, "model.norm"), dims)


def feeds_of(path: Path) -> Arrays:
    """Seeded inputs of a graph of this file."""
    rng = np.random.default_rng(1)
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(
            np.float16
        )
        for value in graph.input
    }


def _attention(graph: Graph, value: str, name: str, shape: Shape, phase: Phase) -> str:
    """Grouped-query attention: each of `kv_heads` keys serves the rows of its queries together."""
    name, sizes = f"{name}.self_attn", shape.products
    batch, seq, kv, head = phase.batch, phase.seq, shape.kv_heads, shape.head
    group, total = shape.heads // kv, phase.past + phase.seq
    q, k, v = (graph.linear(value, f"{name}.{side}_proj", sizes[f"self_attn.{side}_proj"]) for side in "qkv")
    split = {"q": (batch, seq, shape.heads, head), "k": (batch, seq, kv, head), "v": (batch, seq, kv, head)}
    by_head = {
        side: graph.node(
            "Transpose",
            [graph.reshape(made, f"{name}.{side}_heads", split[side])],
            f"{name}.{side}_t",
            perm=[0, 2, 1, 3],
        )
        for side, made in (("q", q), ("k", k), ("v", v))
    }
    q, k = (_rotate(graph, by_head[side], f"{name}.{side}", phase, head) for side in "qk")
    k, v = (
        _after_past(graph, made, f"{name}.{side}", shape, phase)
        for side, made in (("k", k), ("v", by_head["v"]))
    )
    q = graph.node("Mul", [q, graph.constant("scale", np.float16(head**-0.5))], f"{name}.q_scaled")
    rows = graph.reshape(q, f"{name}.q_rows", (batch, kv, group * seq, head))
    keys = graph.node("Transpose", [k], f"{name}.keys", perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", [rows, keys], f"{name}.scores")
    if seq > 1:
        mask = np.triu(np.full((seq, total), -1e4, np.float16), k=1 + phase.past)
        apart = graph.reshape(scores, f"{name}.scores_apart", (batch, kv, group, seq, total))
        masked = graph.node("Add", [apart, graph.constant("mask", mask)], f"{name}.masked")
        scores = graph.reshape(masked, f"{name}.scores_rows", (batch, kv, group * seq, total))
    weights = graph.node("Softmax", [scores], f"{name}.softmax", axis=-1)
    mixed = graph.node("MatMul", [weights, v], f"{name}.mixed")
    all_heads = graph.reshape(mixed, f"{name}.mixed_heads", (batch, shape.heads, seq, head))
    turned = graph.node("Transpose", [all_heads], f"{name}.mixed_t", perm=[0, 2, 1, 3])
    flat = graph.reshape(turned, f"{name}.mixed_flat", (batch, seq, shape.hidden))
    return graph.linear(flat, f"{name}.o_proj", sizes["self_attn.o_proj"])


def _rotate(graph: Graph, value: str, name: str, phase: Phase, head: int) -> str:
    """Rotary position embedding: x · cos + (−second half, first half) · sin (Su et al., RoFormer, 2021)."""
    half = head // 2
    angles = np.outer(phase.past + np.arange(phase.seq), 1e4 ** (-np.arange(half) / half))
    cos, sin = (f(np.concatenate([angles, angles], -1)).astype(np.float16) for f in (np.cos, np.sin))
    ends = [graph.constant(f"i{i}", np.array([i], np.int64)) for i in (0, half, head, -1)]
    first = graph.node("Slice", [value, ends[0], ends[1], ends[3]], f"{name}.first")
    second = graph.node("Slice", [value, ends[1], ends[2], ends[3]], f"{name}.second")
    turned = graph.node(
        "Concat", [graph.node("Neg", [second], f"{name}.minus"), first], f"{name}.turned", axis=-1
    )
    straight = graph.node("Mul", [value, graph.constant("cos", cos)], f"{name}.straight")
    across = graph.node("Mul", [turned, graph.constant("sin", sin)], f"{name}.across")
    return graph.node("Add", [straight, across], f"{name}.rotated")


def _after_past(graph: Graph, value: str, name: str, shape: Shape, phase: Phase) -> str:
    """The cache, an input, with what is new behind it."""
    if not phase.past:
        return value
    past = graph.give(f"{name}_past", (phase.batch, shape.kv_heads, phase.past, shape.head))
    return graph.node("Concat", [past, value], f"{name}.all", axis=2)
