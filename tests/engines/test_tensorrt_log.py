"""What is kept of TensorRT's messages, and how they read."""

from __future__ import annotations

import io

from sparseflow_trt.engines.tensorrt_log import BuildLog, sentence

NOISE = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient))"
)
REAL = (
    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has no outputs. "
    "In validate at /_src/optimizer/api/network.cpp:4023)"
)


def test_noise_of_a_machine_without_a_gpu_is_not_recorded() -> None:
    log = BuildLog(io.StringIO())

    log.record("ERROR", NOISE)
    log.record("ERROR", f"{REAL}\n{NOISE}")
    log.record("ERROR", REAL)

    assert log.take_errors() == "API Usage Error: Network has no outputs."
    assert log.take_errors() == "it does not say why."


def test_everything_else_goes_to_the_stream() -> None:
    stream = io.StringIO()
    log = BuildLog(stream)

    log.record("VERBOSE", "Trying a tactic")
    log.record("VERBOSE", "Layers:\nName: a")

    assert stream.getvalue() == "[VERBOSE] Trying a tactic\n[VERBOSE] Layers:\nName: a\n"
    assert log.layers == "Layers:\nName: a"


def test_a_message_of_another_form_stays_as_it_is() -> None:
    assert sentence("Out of luck") == "Out of luck."
