"""What follows from a profile: ceilings, given and by a policy; an engine's layers told apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.artifacts.manifest import EngineLayerRecord
from sparseflow_trt.engines.torch_kernels.kernel_profile import make_profile
from sparseflow_trt.engines.torch_kernels.torch_profile import LinearProduct
from sparseflow_trt.gains.profiling import conclude, describe_layers, expected_speedup, plain_name
from sparseflow_trt.policies.policy import Point, Policy
from tests.made_policies import make_policy


def _policy(speedups: dict[tuple[str, int], float], dense_us: Callable[[int], float] = float) -> Policy:
    """At M=64, of each kind and N with K=64: N microseconds dense."""
    points = []
    for (kind, n), speedup in speedups.items():
        shape = {"kind": kind, "n": n, "k": 64, "m": 64, "dtype": "FP16", "library": "torch"}
        for kernel, us in (("dense", dense_us(n)), ("sparse", dense_us(n) / speedup)):
            points.append(Point.model_validate({**shape, "kernel": kernel, "us": us}))
    return make_policy(points)


def _product(kind: str, n: int, m: int = 64) -> LinearProduct:
    return LinearProduct(kind, n, 64, m, "FP16")


PROFILE = make_profile(
    "x 64×64",
    10,
    [("nvjet", 6.0, 3), ("sm90_xmma_sparse_gemm", 2.0, 1), ("triton_poi_fused", 2.0, 4)],
)


def test_the_ceiling_is_of_products_that_are_dense_yet() -> None:
    profiled = conclude("mine", "GPU X", PROFILE, {}, 1.5, None, "torch")
    assert profiled.dense_share == 0.6
    (given,) = profiled.ceilings
    assert (given.speedup, given.why) == (1.5, "as given")
    assert math.isclose(given.ceiling, 10 / (4 + 6 / 1.5))


def test_a_policy_says_it_for_the_model_s_own_products() -> None:
    policy = _policy({("gate_up", 256): 2.0, ("down", 128): 0.5})
    products = {_product("gate_up", 256): 2, _product("down", 128): 1, _product("qkv", 4096): 1}
    speedup, known = expected_speedup(policy, products, "torch")
    work = 2 * 256 + 128
    assert math.isclose(known, work / (work + 4096))
    # gate_up takes half of its time, down stays dense; of qkv nothing is known: it stays as it is
    gain = (2 * 256 + 128) / (256 + 128)
    assert math.isclose(speedup, 1 / (1 - known + known / gain))
    profiled = conclude("mine", "GPU X", PROFILE, products, 1.3, policy, "torch")
    assert profiled.ceilings[1].speedup == speedup
    assert profiled.ceilings[1].why == "policy 'mine', which has times for 14% of the products' arithmetic"


def test_a_policy_that_knows_none_of_the_products() -> None:
    products = {_product("qkv", 4096): 1}
    assert expected_speedup(_policy({("down", 128): 2.0}), products, "torch") == (1.0, 0.0)
    profiled = conclude("mine", "GPU X", PROFILE, products, 1.3, _policy({("down", 128): 2.0}), "torch")
    assert profiled.ceilings[1].why == "policy 'mine', which has no times for them"
    assert profiled.ceilings[1].ceiling == 1.0


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["gate_up", "down", "o"]), st.sampled_from([64, 128, 256])),
        st.floats(0.25, 4),
        min_size=1,
    ),
    st.integers(1, 4096),
)
def test_products_never_get_slower_and_never_faster_than_the_fastest(
    speedups: dict[tuple[str, int], float], m: int
) -> None:
    products = {_product(kind, n, m): i + 1 for i, (kind, n) in enumerate(speedups)}
    # a shape that two kinds have is one shape: the faster of its times count
    speedup, known = expected_speedup(_policy(speedups), products, "torch")
    assert known == 1.0
    assert 1 - 1e-9 <= speedup <= max(4.0, *speedups.values()) + 1e-9


def test_an_engine_s_layers_are_told_by_tactic_and_type() -> None:
    def layer(name: str, kind: str, tactic: str, profile: int) -> EngineLayerRecord:
        return EngineLayerRecord(
            name=name, type=kind, precision="", tactic=tactic, profile=profile, nodes=(name,)
        )

    layers = (
        layer("a", "CaskGemmMatrixMultiply", "sm90_xmma_sparse_gemm_f16", 0),
        layer("a", "gemm", "nvjet", 1),
        layer("b", "kgen", "", 1),
    )
    told = describe_layers(layers, 1)
    assert told == {"a": ("nvjet", "gemm"), "b": ("", "kgen")}
    times = [(plain_name("a [profile 1]"), 3.0, 1.0), (plain_name("b"), 1.0, 1.0), ("c", 1.0, 1.0)]
    kernels = make_profile("x", 1, times, told).kernels
    assert [(k.name, k.kind, k.sparse) for k in kernels] == [
        ("a", "gemm", False), ("b", "elementwise", False), ("c", "other", False),
    ]  # fmt: skip
    assert make_profile("x", 1, times, describe_layers(layers, 0)).sparse_ms == 3.0


def test_the_usual_speedup_is_the_command_s_default() -> None:
    from sparseflow_trt.cli.profile_model import command
    from sparseflow_trt.gains.profiling import USUAL_SPEEDUP

    (option,) = [option for option in command.params if option.name == "speedup"]
    assert option.default == pytest.approx(USUAL_SPEEDUP)
