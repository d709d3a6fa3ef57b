"""What of cuSPARSELt's use runs without a GPU: pruning, padding, the choice of an algorithm, and refusals."""

from __future__ import annotations

import types
from typing import Any

import pytest

from sparseflow_trt.engines.torch_kernels import cusparselt
from sparseflow_trt.engines.torch_kernels.cusparselt import (
    load_torch,
    pad_rows,
    rank_algorithms,
    why_not,
)
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm, library_version
from sparseflow_trt.errors import NotInstalledError, PolicyError

torch: Any = pytest.importorskip("torch")


@pytest.mark.parametrize(("rows", "padded"), [(1, 8), (7, 8), (8, 8), (9, 16), (4096, 4096)])
def test_rows_are_padded_with_zeros_to_a_multiple_of_8(rows: int, padded: int) -> None:
    x = torch.randn(rows, 32)
    result = pad_rows(x)
    assert result.shape == (padded, 32)
    assert torch.equal(result[:rows], x)
    assert not result[rows:].any()


def test_the_fastest_algorithm_that_takes_the_product_is_chosen() -> None:
    times = {Algorithm(0): 3.0, Algorithm(1): 1.0, Algorithm(2): 2.0}

    def time_us(algorithm: Algorithm) -> float:
        if algorithm not in times:
            raise RuntimeError("CUSPARSE_STATUS_NOT_SUPPORTED\nsecond line")
        return times[algorithm]

    ranked = rank_algorithms(map(Algorithm, range(5)), time_us)
    assert ranked == [Algorithm(1), Algorithm(2), Algorithm(0)]
    with pytest.raises(PolicyError, match=r"no algorithm .* \(algorithm 3: CUSPARSE_STATUS_NOT_SUPPORTED\)"):
        rank_algorithms([Algorithm(3)], time_us)


class Planned:
    """A plan that has been closed or not."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_measurement_gives_back_its_own_plans_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, measured = Planned(), Planned()
    plans: dict[str, Planned] = {"layer": layer}
    monkeypatch.setattr(cusparselt, "_plans", lambda: plans)
    with pytest.raises(RuntimeError), cusparselt.passing_plans():
        plans["measured"] = measured
        raise RuntimeError
    assert plans == {"layer": layer}
    assert (layer.closed, measured.closed) == (False, True)


def test_the_version_is_the_one_that_the_library_tells() -> None:
    def tell(part: int, into: Any) -> None:
        into._obj.value = (0, 9, 1)[part]

    assert library_version(types.SimpleNamespace(cusparseLtGetProperty=tell)) == "0.9.1"


def test_a_library_that_tells_no_version_is_an_error_in_words() -> None:
    with pytest.raises(NotInstalledError, match=r"cuSPARSELt \(libcusparseLt.so.0\) cannot be used"):
        library_version(types.SimpleNamespace())


@pytest.mark.parametrize(("n", "k", "taken"), [(16, 16, True), (1000, 768, False), (768, 1000, False)])
def test_weights_that_the_library_does_not_take_are_said(n: int, k: int, taken: bool) -> None:
    assert (why_not(n, k) == "") is taken
    assert taken or f"{k}→{n}" in why_not(n, k)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_pytorch_without_a_gpu_is_said() -> None:
    with pytest.raises(NotInstalledError, match="sees no GPU"):
        load_torch()
