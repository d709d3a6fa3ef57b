"""Where a PyTorch module's GPU time goes dense, and with the layers sparse that a policy picks."""

from __future__ import annotations

from sparseflow_trt._schema import Record
from sparseflow_trt.engines.torch_kernels.sparsify import restore_module, sparsify_module
from sparseflow_trt.engines.torch_kernels.torch_profile import (
    profile_torch_model,
    record_products,
    require_gpu,
)
from sparseflow_trt.gains.nothing_sparse import nothing_sparse
from sparseflow_trt.gains.profiling import OnStep, Profiled, conclude, expected_speedup
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.pytorch.hugging_face import TorchDtype
from sparseflow_trt.pytorch.torch_layers import find_layers, record_rows
from sparseflow_trt.pytorch.torch_source import check_source, load_torch_model


class SparsifiedProfile(Record):
    """A module's profile dense, and with the layers sparse that a policy picks.

    Attributes:
        basis: Of the shares: the policy's dense times, or M·N·K.
        mlp_share: Of the products' time in MLPs, from 0 to 1.
        attention_share: In attention's projections.
        swapped_share: In the layers that were sparse.
        swapped: Their names.
        kept: The other layers, with the reason.
    """

    dense: Profiled
    sparse: Profiled
    basis: str
    mlp_share: float
    attention_share: float
    swapped_share: float
    swapped: tuple[str, ...]
    kept: dict[str, str]


def profile_sparsified(
    source: str,
    policy: Policy,
    batch: int = 1,
    seq: int = 128,
    dtype: TorchDtype = "fp16",
    attention: bool = False,
    runs: int = 10,
    on_step: OnStep = lambda step, done, total: None,
) -> SparsifiedProfile:
    """Profiles a PyTorch module on this machine's GPU, dense and with the layers that a policy picks sparse.

    Args:
        source: As for `profile_module`, with 2:4 weights.
        policy: Picks the layers, by its torch points.
        batch: As for `profile_module`.
        seq: As for `profile_module`.
        dtype: As for `profile_module`.
        attention: See `sparsify.sparsify_module`.
        runs: How many runs count.
        on_step: Told what is done.

    Raises:
        InputError: The source is no module, or no layer of it was swapped; the reasons say why.
        NotInstalledError: PyTorch, a GPU, or transformers for a configuration.
    """
    check_source(source)
    torch = require_gpu()
    on_step("Loading the module", 0, 0)
    model = load_torch_model(source, batch, seq, dtype)
    device, products = torch.cuda.get_device_name(), record_products(model)
    rows = record_rows(find_layers(model.module), model.run)
    on_step("Choosing and compressing", 0, 2)
    done = sparsify_module(model.module, policy, rows, attention)
    try:  # sparse first: where nothing becomes sparse that is said at once
        if not done.swapped.dense:
            raise nothing_sparse(source, done.choices, policy, rows, attention)
        on_step("Running it sparse", 0, 2)
        sparse = profile_torch_model(model, runs)
    finally:
        restore_module(done)
    on_step("Running it dense", 1, 2)
    dense = profile_torch_model(model, runs)
    gain = expected_speedup(policy, products, "torch")[0]
    profiles = [
        conclude(source, device, profile, products, gain, None, "torch") for profile in (dense, sparse)
    ]
    return SparsifiedProfile(
        dense=profiles[0],
        sparse=profiles[1],
        basis=done.coverage.basis,
        mlp_share=done.coverage.mlp,
        attention_share=done.coverage.attention,
        swapped_share=done.coverage.swapped,
        swapped=tuple(done.swapped.dense),
        kept={choice.layer.name: choice.why for choice in done.choices if not choice.taken},
    )
