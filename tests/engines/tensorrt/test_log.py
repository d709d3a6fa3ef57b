"""What is kept of TensorRT's messages, and how they read."""

from __future__ import annotations

import io
from types import ModuleType, SimpleNamespace

from sparseflow_trt.engines.tensorrt.log import BuildLog, make_logger, sentence

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


def test_what_comes_after_the_first_logs_end_goes_to_the_newest_log() -> None:
    module = ModuleType("trt")
    module.__dict__["ILogger"] = object
    first, second = BuildLog(io.StringIO()), BuildLog(io.StringIO())
    logger = make_logger(module, first)
    verbose, error = SimpleNamespace(name="VERBOSE"), SimpleNamespace(name="ERROR")

    logger.log(verbose, "one")
    make_logger(module, second)
    logger.log(verbose, "two")
    first.stream.close()
    logger.log(verbose, "three")
    logger.log(error, "the plugin has no library")
    assert isinstance(second.stream, io.StringIO)
    assert second.stream.getvalue() == "[VERBOSE] three\n[ERROR] the plugin has no library\n"
    assert (first.errors, second.errors) == ([], ["the plugin has no library."])

    second.stream.close()
    logger.log(error, "nobody writes this down")
    assert second.take_errors().endswith("nobody writes this down.")
