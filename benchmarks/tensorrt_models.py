"""Whole networks on TensorRT: the dense engine against the sparse one of the same 2:4 weights.

    python benchmarks/tensorrt_models.py resnet50 [--image 224] [--work DIR] [--stop-after S]
    python benchmarks/tensorrt_models.py minilm --model minilm.2to4.onnx

resnet50 has ResNet-50's architecture (v1.5: the stride is in the 3×3 convolution), BatchNorm folded into
biases, and random He-scaled weights, 2:4 along the input channels wherever these are a multiple of four.
minilm's model is what demo/export_minilm.py writes, pruned by `sparseflow-trt prune`; any ONNX model with the
axes batch and seq will do. Writes results/tensorrt_NAME.json after each profile.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from compare_engines import run_profiles
from engine_sides import add_options, settings_from
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import sha256_of, written_atomically
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.profile_specs import ProfileSpec, parse_profile

RESNET_PROFILES = ("b1:batch=1,1,1", "b32:batch=2,32,32")
MINILM_PROFILES = ("b8s128:batch=1,8,8:seq=8,128,128", "b32s256:batch=1,32,32:seq=8,256,256")
# blocks, width of their 3×3, output channels, stride of the first
STAGES = ((3, 64, 256, 1), (4, 128, 512, 2), (6, 256, 1024, 2), (3, 512, 2048, 2))
CLASSES = 1000
RESIDUAL_GAIN = 0.25  # of a block's last convolution: without BatchNorm the sums would grow block by block


def main() -> None:
    """Reads the command line and runs one network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=("resnet50", "minilm"))
    parser.add_argument("--model", type=Path, help="minilm's ONNX file")
    parser.add_argument("--image", type=int, default=224, help="resnet50's height and width")
    parser.add_argument("--profile", action="append", help="instead of the usual ones, as `build` takes them")
    add_options(parser)
    asked = parser.parse_args()
    if (asked.network == "minilm") != bool(asked.model):
        parser.error("minilm needs --model, and resnet50 takes none.")
    command = f"python benchmarks/tensorrt_models.py {asked.network}"
    with settings_from(asked) as settings:
        if asked.model:
            model, usual = asked.model, MINILM_PROFILES
            command += f" --model {model.name}"
        else:
            model, usual = settings.work / f"resnet50-{asked.image}.onnx", RESNET_PROFILES
            command += f" --image {asked.image}" * (asked.image != 224)
            if not model.exists():
                with written_atomically(model) as path:
                    write_resnet50(path, asked.image)
        command += "".join(f" --profile {text}" for text in asked.profile or ())
        specs: list[ProfileSpec] = [parse_profile(text) for text in asked.profile or usual]
        figures = {"model": {"file": model.name, "sha256": sha256_of(model)}}
        run_profiles(f"tensorrt_{asked.network}", model, specs, settings, figures, command)


class Net:
    """An ONNX graph that grows convolution by convolution."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Adds a node; its one output has its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Adds an initializer."""
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def conv(
        self, value: str, shape: tuple[int, int, int], name: str, stride: int = 1, gain: float = 1.0
    ) -> str:
        """A convolution of a shape (channels from, channels to, kernel's size), He-scaled, with a bias."""
        given, made, size = shape
        weight = self.rng.standard_normal((made, given, size, size)).astype(np.float32)
        if given % 4 == 0:
            weight = prune_2to4(weight, 1)
        # to the fan-in's energy of 2 that He's rule asks for, whatever pruning has left
        weight *= gain * np.sqrt(2 * made / (weight.astype(np.float64) ** 2).sum()).astype(np.float32)
        inputs = [
            value,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", 0.05 * self.rng.standard_normal(made)),
        ]
        pads = [size // 2] * 4
        return self.node("Conv", inputs, name, kernel_shape=[size, size], strides=[stride, stride], pads=pads)

    def block(self, value: str, given: int, width: int, made: int, stride: int, name: str) -> str:
        """A bottleneck: 1×1, 3×3 and 1×1, beside the input or its projection."""
        inner = self.node("Relu", [self.conv(value, (given, width, 1), f"{name}.conv1")], f"{name}.relu1")
        inner = self.conv(inner, (width, width, 3), f"{name}.conv2", stride)
        inner = self.node("Relu", [inner], f"{name}.relu2")
        inner = self.conv(inner, (width, made, 1), f"{name}.conv3", gain=RESIDUAL_GAIN)
        if given != made:
            value = self.conv(value, (given, made, 1), f"{name}.downsample", stride, gain=2**-0.5)
        added = self.node("Add", [inner, value], f"{name}.add")
        return self.node("Relu", [added], f"{name}.relu3")


def write_resnet50(path: Path, image: int) -> None:
    """image[batch, 3, H, W] → logits[batch, 1000]: 53 convolutions and one product."""
    net = Net()
    value = net.node("Relu", [net.conv("image", (3, 64, 7), "conv1", 2)], "relu1")
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    value = net.node("MaxPool", [value], "maxpool", **pool)
    given = 64
    for stage, (blocks, width, made, stride) in enumerate(STAGES, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            value = net.block(value, given, width, made, stride if block == 0 else 1, name)
            given = made
    value = net.node("Flatten", [net.node("GlobalAveragePool", [value], "pool")], "flatten", axis=1)
    weight = prune_2to4(net.rng.standard_normal((CLASSES, given)).astype(np.float32) * given**-0.5, 1)
    inputs = [value, net.constant("fc.weight", weight), net.constant("fc.bias", np.zeros(CLASSES))]
    net.nodes.append(helper.make_node("Gemm", inputs, ["logits"], "fc", transB=1))
    graph = helper.make_graph(
        net.nodes, "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, image, image])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        net.tensors,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    main()
