"""Which versions of a model are served: its configuration names them, and one rename of it changes that."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.exporters.triton.config import parse_config
from sparseflow_trt.exporters.triton.version import RECORD, read_record, served_versions, versions_in

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


def serve(config: ModelConfig, newest: int, folder: Path, others: Iterable[int] = ()) -> None:
    """Has a configuration name a version and others that stay beside it, where they are there.

    Of the others the checksum agent compares what it compared before.

    Raises:
        DeployError: The record of another cannot be read.
    """
    named = {newest}
    for number in others:
        record = read_record(folder, number)
        if record is None:
            continue
        named.add(number)
        before = parse_config(record.generated, RECORD).model_repository_agents.agents
        for agent in config.model_repository_agents.agents:
            for path, digest in before[0].parameters.items() if before else ():
                if path.startswith(f"MD5:{number}/"):
                    agent.parameters[path] = digest
    config.version_policy.specific.versions[:] = sorted(named)


def sent_to(repository: Path, router: str, part: str) -> tuple[set[int], set[int]]:
    """The versions of a model that a router sends batches to: by what is served of it, and by all there are.

    Raises:
        DeployError: A record or the configuration of the router cannot be read.
    """
    if not router:
        return set(), set()
    folder = repository / router
    served = served_versions(folder)
    by_version = {}
    for number in versions_in(folder):
        record = read_record(folder, number)
        by_version[number] = {record.parts[part]} if record is not None and part in record.parts else set()
    now = {version for number in served for version in by_version[number]}
    return now, {version for named in by_version.values() for version in named}
