"""Where a model's GPU time goes, and what its products could gain: of an engine, or of a PyTorch module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from sparseflow_trt._schema import Record
from sparseflow_trt.artifacts.manifest import EngineLayerRecord, Manifest
from sparseflow_trt.building.loading import engine_file, open_engine, tensorrt_manifest
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.engines.torch_kernels.kernel_profile import KernelProfile, make_profile
from sparseflow_trt.engines.torch_kernels.torch_profile import (
    LinearProduct,
    profile_torch_model,
    record_products,
    require_gpu,
)
from sparseflow_trt.gains.estimate_record import end_to_end
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.target import PLUGIN_OP
from sparseflow_trt.plans.plan import read_plan
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.policy import Library, Policy
from sparseflow_trt.pytorch.hugging_face import TorchDtype
from sparseflow_trt.pytorch.torch_source import check_source, load_torch_model
from sparseflow_trt.validation.inputs import generate_inputs

# What 2:4 products gain, in the middle of what is measured on an A100 and an H200 (docs/AUTOTUNED_POLICY.md).
USUAL_SPEEDUP = 1.3

OnStep = Callable[[str, int, int], None]  # (step, done, total)


class Ceiling(Record):
    """What a whole run gains at most, where dense products become faster and nothing else does.

    Attributes:
        speedup: Of the products.
        why: Where that figure is from.
        ceiling: Of the run.
    """

    speedup: float
    why: str
    ceiling: float


class Profiled(Record):
    """A profile with what follows from it.

    Attributes:
        dense_share: Of the GPU time, in products that are not sparse yet.
    """

    source: str
    device: str
    profile: KernelProfile
    dense_share: float
    ceilings: tuple[Ceiling, ...]


def profile_module(
    source: str,
    batch: int = 1,
    seq: int = 128,
    dtype: TorchDtype = "fp16",
    runs: int = 10,
    speedup: float = USUAL_SPEEDUP,
    policy: Policy | None = None,
    on_step: OnStep = lambda step, done, total: None,
) -> tuple[Profiled, ...]:
    """Profiles a PyTorch module on this machine's GPU, kernel by kernel.

    Args:
        source: A Hugging Face configuration or a function, see `torch_source.load_torch_model`.
        batch: How many rows of tokens, or images, a configuration's module is run on.
        seq: How many tokens each.
        dtype: Of a configuration's module.
        runs: How many runs count.
        speedup: Of products that become sparse.
        policy: Says it for the module's own products.
        on_step: Told what is done.

    Raises:
        InputError: The source is no module, or no inputs can be made for it.
        NotInstalledError: PyTorch, a GPU, or transformers for a configuration.
    """
    check_source(source)
    torch = require_gpu()
    on_step("Loading the module", 0, 0)
    model = load_torch_model(source, batch, seq, dtype)
    on_step("Running it", 0, 0)
    profile = profile_torch_model(model, runs)
    products = record_products(model)
    return (conclude(source, torch.cuda.get_device_name(), profile, products, speedup, policy, "torch"),)


def profile_artifact(
    folder: Path,
    runs: int = 10,
    speedup: float = USUAL_SPEEDUP,
    policy: Policy | None = None,
    on_step: OnStep = lambda step, done, total: None,
) -> tuple[Profiled, ...]:
    """Profiles an artifact's TensorRT engine on this machine's GPU, layer by layer, at each profile's opt.

    Args:
        folder: The artifact.
        runs: How many runs the medians are of.
        speedup: Of products that become sparse.
        policy: Says it for the model's own products.
        on_step: Told what is done.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or its engine is not TensorRT's.
        BuildError: The engine does not load or run here, or this process has another library of the plugin.
        InputError: The model has an input or output that cannot be given here.
        ModelError: The typed model cannot be read.
        NotInstalledError: TensorRT, cuda-bindings or the plugin's library is missing.
        PlanError: The plan cannot be read.
        ShapeError: A profile of the plan does not fit the model.
    """
    manifest = tensorrt_manifest(folder, "profiled")
    profiles = read_plan(folder / "plan.yaml").profiles
    inputs = generate_inputs(read_model(folder / "model.onnx"), profiles, at=("opt",))
    if not profiles:
        inputs = inputs[:1]  # of one shape
    file, found = engine_file(folder, manifest.engine), []
    with open_engine(load_flavour("tensorrt"), file) as engine:
        for i, given in enumerate(inputs):
            name = given.name.partition(":")[0]
            on_step(f"Profiling {name}", i, len(inputs))
            layers = engine.profile_layers(given.feeds, runs)
            shapes = ", ".join(f"{n} {'×'.join(map(str, a.shape))}" for n, a in given.feeds.items())
            told = describe_layers(manifest.engine.layers, engine.profile) | _in_plugin(manifest)
            times = [(plain_name(layer.name), layer.ms, 1.0) for layer in layers]
            profile = make_profile(f"{name}: {shapes}", runs, times, told)
            products = products_of(manifest, name)
            device = next((gpu.name for gpu in find_gpus()), manifest.engine.device)
            found.append(conclude(str(folder), device, profile, products, speedup, policy, "tensorrt"))
    return tuple(found)


def conclude(
    source: str,
    device: str,
    profile: KernelProfile,
    products: Mapping[LinearProduct, int],
    speedup: float,
    policy: Policy | None,
    library: Library,
) -> Profiled:
    """Adds the ceilings to a profile: for the given speedup, and for what a policy expects."""
    share = (profile.ms_of("gemm") - profile.sparse_ms) / profile.ms if profile.ms else 0.0
    gains = [(speedup, "as given")]
    if policy:
        expected, measured = expected_speedup(policy, products, library)
        known = f"times for {measured:.0%} of the products' arithmetic" if measured else "no times for them"
        gains.append((expected, f"policy '{policy.name}', which has {known}"))
    return Profiled(
        source=source,
        device=device,
        profile=profile,
        dense_share=share,
        ceilings=tuple(Ceiling(speedup=s, why=why, ceiling=end_to_end(s, share)) for s, why in gains),
    )


def expected_speedup(
    policy: Policy, products: Mapping[LinearProduct, int], library: Library
) -> tuple[float, float]:
    """The speedup of all products where those that the policy takes are 2:4, and the share that it knows.

    Products without times count as not getting faster.

    Args:
        policy: The times.
        products: How many there are of each.
        library: Whose kernels run.

    Returns:
        The speedup, and the share of the arithmetic that has times, from 0 to 1.
    """
    dense = chosen = known_work = work = 0.0
    for product, count in products.items():
        work += count * product.n * product.k * product.m
        known = known_of(policy, Gemm(product.kind, product.n, product.k, product.dtype), library)
        if times := known.expect(product.m):
            known_work += count * product.n * product.k * product.m
            dense += count * times.dense_us
            chosen += count * (times.sparse_us if known.judge(product.m).sparse else times.dense_us)
    if not known_work:
        return 1.0, 0.0
    return end_to_end(dense / chosen, known_work / work), known_work / work


def describe_layers(layers: tuple[EngineLayerRecord, ...], profile: int) -> dict[str, tuple[str, ...]]:
    """What the engine's inspector says of each layer of one profile: its tactic and its type."""
    return {plain_name(e.name): (e.tactic, e.type) for e in layers if e.profile == profile}


def _in_plugin(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The layers in the plugin, which TensorRT tells by a type alone."""
    return {plain_name(o.engine_layer): (PLUGIN_OP,) for o in manifest.engine.outcomes if o.plugin}


def plain_name(name: str) -> str:
    """A layer's name without the profile that TensorRT adds to it."""
    return re.sub(r" \[profile \d+\]$", "", name)


def products_of(manifest: Manifest, profile: str) -> dict[LinearProduct, int]:
    """The products of an artifact's weighted layers at a profile's opt; those of unknown M are left out."""
    found: Counter[LinearProduct] = Counter()
    for layer in manifest.layers:
        m = layer.m.get(profile, (None, None, None))[1]
        if m and layer.n and layer.k:
            found[LinearProduct(layer.kind, layer.n, layer.k, m, layer.precision.upper())] += layer.batch
    return dict(found)
