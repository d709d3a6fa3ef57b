"""What a server of a repository's models asks of its machine, reckoned before it has ever run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.exporters.triton.config import parse_config
from sparseflow_trt.exporters.triton.manifests import Resources
from sparseflow_trt.exporters.triton.version import RECORD, VersionRecord, served_versions, stubs_of

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

_ON_CPU = ("onnxruntime", "router")
# GiB of the host's memory. Measured on the CPU (tritonserver 2.51, ONNX Runtime 1.31): a server takes 0.04 to
# 0.25 and a stub 0.06; a model of 96 MiB makes that 0.3 when it is loaded and 0.6 under load. With a GPU
# nothing was measured: a process with a CUDA context and TensorRT, and of Python PyTorch.
_SHARED_MEMORY = 1.0
_SERVER = {False: 0.4, True: 3.0}
_STUB = {False: 0.5, True: 3.0}
_PLUGIN = 2.5  # some hundred sizes at 23 MB each, for which it compiles kernels
_COPIES = 3  # of an engine's file: as it is read, as it is laid out for the kernels, and room


def reckon_resources(repository: Path, models: Mapping[str, VersionRecord]) -> Resources:
    """What a server of all of them needs, at the versions that are served of each.

    Args:
        repository: Triton's.
        models: What is served of each model, by name.

    Raises:
        DeployError: A configuration cannot be read.
    """
    configs = {name: parse_config(record.served, RECORD) for name, record in models.items()}
    gpus = max((_gpus_of(config) for name, config in configs.items() if _takes_gpu(models[name])), default=0)
    cpus, memory = 1 + (gpus > 0), _SHARED_MEMORY + _SERVER[gpus > 0]
    for name, record in models.items():
        versions = served_versions(repository / name)
        stubs = stubs_of(record)
        cpus += stubs * _threads_of(configs[name])
        size = sum(_size_of(repository / name / str(version)) for version in versions) / (1 << 30)
        memory += max(stubs, 1) * _COPIES * size + len(versions) * stubs * _STUB[_takes_gpu(record)]
        memory += _PLUGIN * bool(record.plugin) * max(stubs, 1)
    return Resources(gpus, cpus, math.ceil(memory))


def _takes_gpu(record: VersionRecord) -> bool:
    return record.backend not in _ON_CPU


def _gpus_of(config: ModelConfig) -> int:
    return 1 + max((gpu for group in config.instance_group for gpu in group.gpus), default=0)


def _threads_of(config: ModelConfig) -> int:
    told = config.parameters["threads"].string_value if "threads" in config.parameters else ""
    return int(told) if told.isdecimal() else 1


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
