"""Reading what a builder tried from its log.

The files in data/ are cut from logs of TensorRT 8.6.0 on an H200 host: of each runner the first tactics,
the fastest one and every sparse one.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from sparseflow_trt.engines.evidence.timings import (
    LayerTimings,
    Timing,
    TimingReader,
)
from tests.engines.evidence.logs import read_timings

DATA = Path(__file__).parent.parent / "data"

FORMATS = "[VERBOSE] *************** Autotuning format combination: {} ***************"
RUNNER = "[VERBOSE] --------------- Timing Runner: {} ({}[0x80000009])"
TACTIC = "[VERBOSE] Tactic Name: {} Tactic: {} Time: {}"


def one(*lines: str) -> LayerTimings:
    (timings,) = read_timings(lines)
    return timings


def test_a_real_log_of_int8_products() -> None:
    with (DATA / "trt86_int8.log").open(encoding="utf-8") as log:
        up, down = read_timings(log)

    assert (up.layer, up.profile) == ("w1 + transpose_before_up_proj + up_proj + PWN(relu)", 0)
    assert (up.tried_sparse, up.tried_dense, up.skipped) == (58, 9, 0)
    formats = "Int8(128,1:16,128,128) -> Int8(352,1:16,352,352)"
    assert up.best_sparse == Timing(
        "sm90_xmma_sparse_fprop_implicit_gemm_i8i8_i8i32_f32_nhwckrsc_nhwc_tilesize64x256x128_cgasize1x1x1_"
        "warpgroupsize1x1x1_g1",
        0.0232085,
        formats,
        "0xf8c06686af3eefdf",
    )
    assert up.best_dense is not None
    assert (up.best_dense.ms, up.best_dense.formats) == (0.022042, formats)
    assert (up.precisions, up.without_tactics) == (("Int8",), ("CaskFlattenConvolution",))
    # The same weights, 2:4 too; its output is FP32, and not one sparse tactic is offered.
    assert (down.layer, down.tried_sparse) == ("w2 + transpose_before_down_proj + down_proj", 0)
    assert down.precisions == ("Int8->Float",)


def test_a_real_log_of_two_profiles() -> None:
    text = (DATA / "trt86_two_profiles.log").read_text(encoding="utf-8")

    timings = read_timings(text.splitlines())

    assert [(t.layer, t.profile) for t in timings] == [
        ("gate_proj || up_proj", 0),
        ("down_proj", 0),
        ("gate_proj || up_proj", 1),
        ("down_proj", 1),
    ]
    assert [t.best_dense.ms for t in timings if t.best_dense] == [0.0730795, 0.0456813, 0.955904, 0.461237]
    assert all((t.tried_sparse, t.best_sparse, t.precisions) == (0, None, ("Float",)) for t in timings)
    # A tactic that was too slow in its first run has that run's time: it counts as tried, and as skipped.
    assert [(t.tried_dense, t.skipped) for t in timings] == [(13, 0), (15, 1), (16, 4), (17, 4)]
    counted = sum(t.tried_dense for t in timings)
    assert counted == len(re.findall(r"Tactic Name:", text))


@pytest.mark.parametrize("file", ["trt86_int8.log", "trt86_two_profiles.log"])
def test_the_best_is_what_the_log_itself_calls_the_fastest(file: str) -> None:
    text = (DATA / file).read_text(encoding="utf-8")

    for timings in read_timings(text.splitlines()):
        name = timings.layer + (" [profile 1]" if timings.profile else "")
        said = re.findall(rf"\] {re.escape(name)} \(.*profiling completed.*Time: ([\d.]+)", text)
        best = min(t.ms for t in (timings.best_dense, timings.best_sparse) if t)
        assert best == min(map(float, said))


def test_a_log_is_read_while_it_grows() -> None:
    reader = TimingReader()

    reader.feed(FORMATS.format("Half(8,1) -> Half(8,1)"))
    reader.feed(RUNNER.format("mm", "CaskGemmConvolution"))
    assert reader.layers() == (LayerTimings("mm", 0),)
    reader.feed("\n".join((TACTIC.format("a_sparse_b", "0x1", "0.5"), TACTIC.format("dense", "0x2", "0.25"))))

    (timings,) = reader.layers()
    assert timings.best_sparse == Timing("a_sparse_b", 0.5, "Half(8,1) -> Half(8,1)", "0x1")
    assert (timings.tried_sparse, timings.tried_dense, timings.precisions) == (1, 1, ("Half",))


def test_only_runners_that_multiply_are_counted() -> None:
    lines = (
        RUNNER.format("reshape_before_mm", "Shuffle"),
        "[VERBOSE] Tactic: 0x0000000000000000 Time: 0.001",
        RUNNER.format("Optimizer Reformat(<in> -> mm)", "Reformat"),
        "[VERBOSE] Tactic: 0x00000000000003e8 Time: 0.001",
        RUNNER.format("PWN(PWN(sig), silu)", "PointWiseV2"),
        "[VERBOSE] Tactic: 0x0000000000000001 Time: 0.001",
        RUNNER.format("{ForeignNode[a...b]}", "Myelin"),
        "[VERBOSE] Tactic: 0x0000000000000000 Time: 0.001",
    )

    assert read_timings(lines) == ()


@pytest.mark.parametrize(
    "runner",
    ["CaskConvolution", "CaskGemmConvolution", "CublasConvolution", "MatrixMultiply",
     "CaskGemmMatrixMultiply", "FullyConnected", "CaskDeconvolutionV2"],
)  # fmt: skip
def test_a_tactic_with_no_name_is_a_dense_one(runner: str) -> None:
    timings = one(RUNNER.format("mm", runner), "[VERBOSE] Tactic: 0x0000000000000000 Time: 0.25")

    assert timings.best_dense == Timing("", 0.25, "", "0x0000000000000000")
    assert (timings.tried_dense, timings.tried_sparse) == (1, 0)


@pytest.mark.parametrize(
    "name",
    ["sm80_xmma_fprop_sparse_conv_f16f16", "sm90_xmma_sparse_gemm", "cutlass3x_sm120_sptensorop_s168128",
     "ampere_fp16_SpMMA_x", "sm80_spgemm"],
)  # fmt: skip
def test_sparse_tactics_by_name(name: str) -> None:
    timings = one(RUNNER.format("mm", "CaskConvolution"), TACTIC.format(name, "0x1", "0.25"))

    assert (timings.tried_sparse, timings.tried_dense) == (1, 0)


def test_a_name_ends_before_the_split_of_k() -> None:
    tactic = "sm80_gemm numSplitK: 3 numBuffers: 2 numKernels: 1"
    timings = one(RUNNER.format("mm", "CaskGemmConvolution"), TACTIC.format(tactic, "0x1", "1e-1"))

    assert timings.best_dense == Timing("sm80_gemm", 0.1, "", "0x1")


@pytest.mark.parametrize("time", ["inf", "nan", "-nan", "?"])
def test_a_time_that_is_none_is_skipped(time: str) -> None:
    timings = one(RUNNER.format("mm", "CaskConvolution"), TACTIC.format("x_sparse_y", "0x1", time))

    assert (timings.tried_sparse, timings.best_sparse, timings.skipped) == (0, None, 1)


def test_a_tactic_that_is_given_up_is_skipped_once() -> None:
    timings = one(
        RUNNER.format("mm", "CaskConvolution"),
        "[WARNING] Skipping tactic 0x1 due to exception an illegal memory access was encountered",
        "[WARNING] Skipping tactic 3 due to insufficient memory on requested size of 9385 "
        "detected for tactic 0x2.",
        TACTIC.format("dense", "0x2", "inf"),
        "[VERBOSE] Fast skip Tactic:0x3 which exceed time limit during pre-run",
        TACTIC.format("dense", "0x3", "2.5"),
    )

    assert (timings.skipped, timings.tried_dense) == (3, 1)
    assert timings.best_dense is not None
    assert math.isclose(timings.best_dense.ms, 2.5)


def test_one_layer_in_several_formats_and_runners() -> None:
    timings = one(
        FORMATS.format("Float(8,1) -> Float(8,1)"),
        RUNNER.format("mm", "CaskConvolution"),
        "[VERBOSE] CaskConvolution has no valid tactics for this config, skipping",
        RUNNER.format("mm", "CublasConvolution"),
        "[VERBOSE] CublasConvolution has no valid tactics for this config, skipping",
        FORMATS.format("Half(8,1) -> Half(8,1)"),
        RUNNER.format("mm", "CaskConvolution"),
        TACTIC.format("dense", "0x1", "0.5"),
        FORMATS.format("Half(8,1:2), Half(8,1:2) -> Float(8,1)"),
        RUNNER.format("mm", "CaskConvolution"),
        TACTIC.format("dense", "0x1", "0.25"),
        ">>>>>>>>>>>>>>> Chose Runner Type: CaskConvolution Tactic: 0x1",
    )

    assert (timings.tried_dense, timings.without_tactics) == (2, ("CublasConvolution",))
    assert timings.best_dense == Timing("dense", 0.25, "Half(8,1:2), Half(8,1:2) -> Float(8,1)", "0x1")
    assert timings.precisions == ("Half", ""), "what is written as Float may be a product of Half"


def test_profiles_by_the_line_that_starts_one_and_by_the_name() -> None:
    timings = read_timings(
        (
            "[08/05/2024-11:55:04] [V] [TRT] --------------- Timing Runner: mm (CaskConvolution)",
            "[08/05/2024-11:55:04] [V] [TRT] Tactic Name: dense Tactic: 0x1 Time: 0.5",
            "Constructing optimization profile number 2 [3/3].",
            RUNNER.format("mm", "CaskConvolution"),
            RUNNER.format("mm [profile 1]", "CaskConvolution"),
        )
    )

    assert [(t.profile, t.tried_dense) for t in timings] == [(0, 1), (2, 0), (1, 0)]
    assert {t.layer for t in timings} == {"mm"}


@pytest.mark.parametrize("prefix", ["", "[VERBOSE] ", "[12/01/2025-10:00:00] [V] [TRT] "])
def test_the_table_of_an_editable_timing_cache(prefix: str) -> None:
    # As NVIDIA's sampleEditableTimingCache shows it; the kernels' names are put in for this test.
    table = (
        "Autotuning op mm(1)(key: 0x1814870c44ff0f8574df6e3dda04cbd7): [ONNX Layer: mm]",
        "Sorted table of all evaluated tactics:",
        "tactic_id, cost(in ms), cost/fastest_cost, prediction_correlation, kernel_name, tactic_hash, "
        "tunable_parameter",
        "   3, 0.0112640, 1.00000, 0.50673, sm80_xmma_gemm_f16f16_f16f32_f32_nn_n, 0x665ded9abbf88,",
        "   5, 0.0118784, 1.05455, 0.51157, sm90_xmma_sparse_gemm_f16f16_f16f32_f32_nn, 0x393e4ef8ad243, 1",
        "The selected tactic is (tactic hash, cost(in ms)):0x665ded9abbf88,  0.011264",
        "   6, 0.0000001, 1.00000, 0.50673, not_of_this_table, 0x1,",
    )

    timings = one(*(prefix + line for line in table))

    assert timings == LayerTimings(
        layer="mm(1)",
        profile=0,
        tried_dense=1,
        tried_sparse=1,
        best_dense=Timing("sm80_xmma_gemm_f16f16_f16f32_f32_nn_n", 0.011264, "", "0x665ded9abbf88"),
        best_sparse=Timing("sm90_xmma_sparse_gemm_f16f16_f16f32_f32_nn", 0.0118784, "", "0x393e4ef8ad243"),
        precisions=("Half",),
    )


def test_a_log_without_timings_has_none() -> None:
    lines = ("", "[INFO] Graph optimization time: 0.2 seconds.", TACTIC.format("a", "0x1", "1"))

    assert read_timings(lines) == ()
