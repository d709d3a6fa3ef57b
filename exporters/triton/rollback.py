"""A model's newest version is withdrawn, and the one before is served again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

from sparseflow_trt._schema import read_text
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.config import parse_config
from sparseflow_trt.exporters.triton.repository import (
    CPU_CONFIG,
    WITHDRAWN,
    is_router,
    merged_config,
    put_plugin,
    write_configs,
)
from sparseflow_trt.exporters.triton.version import (
    CONFIG,
    RECORD,
    damage_of,
    read_record,
    served_versions,
    versions_in,
)
from sparseflow_trt.exporters.triton.version_policy import serve


def roll_back(folder: Path) -> tuple[int, int]:
    """Serves the version before the newest, with its configuration, by one rename, and withdraws the newest.

    A router's two models first serve the versions that the router before sends batches to, too.

    Returns:
        The version that was withdrawn and the one that is served now.

    Raises:
        DeployError: There is no such repository or model, or no older version, or this tool did not write it;
            or it is one of a router's two models, or the router's version before has lost one of its two; or
            a file of what is to be served was changed.
        ArtifactError: The disk is full or not writable.
    """
    if not folder.is_dir():
        _refuse_missing(folder)
    served = served_versions(folder)
    older = [number for number in versions_in(folder) if served and number < served[-1]]
    if not older:
        raise DeployError(
            f"{folder} serves {f'version {served[-1]}' if served else 'nothing'}, and has none before it.",
            "Deploy the artifact that is to be served.",
        )
    newest = read_record(folder, served[-1])
    number = newest.before if newest is not None and newest.before in older else older[-1]
    before = read_record(folder, number)
    if newest is None or before is None:
        raise DeployError(
            f"{folder}: version {served[-1]} or {number} has no {RECORD}: something else wrote it.",
            "Roll back by hand: move the newest version's folder away.",
        )
    if newest.router and is_router(folder.parent / newest.router):
        raise DeployError(
            f"'{folder.name}' is one of the two models that the router '{newest.router}' sends batches to.",
            f"Roll back the router, which rolls back both: --name {newest.router}.",
        )
    for model, version in ((folder, number), *((folder.parent / p, v) for p, v in before.parts.items())):
        if damage := damage_of(model, version):
            raise DeployError(damage, "Deploy the artifact that is to be served; nothing was rolled back.")
    for part, version in before.parts.items():
        _serve_too(folder.parent / part, version)
    target = folder / f"{WITHDRAWN}{served[-1]}"
    shutil.rmtree(target, ignore_errors=True)
    config, _ = merged_config(folder, newest, parse_config(before.generated, RECORD))
    put_plugin(folder, number, before)
    write_configs(folder, config, (folder / CPU_CONFIG).exists())
    (folder / str(served[-1])).rename(target)
    return served[-1], number


def _serve_too(folder: Path, version: int) -> None:
    """Has a router's part serve an older version beside those that it serves now."""
    served = served_versions(folder)
    if version in served:
        return
    if read_record(folder, version) is None:
        raise DeployError(
            f"{folder} has no version {version} any more, to which the previous router sends batches.",
            "Deploy the two artifacts that are to be served.",
        )
    path = folder / CONFIG
    config = parse_config(read_text(path, DeployError, "configuration"), str(path))
    serve(config, served[-1], folder, {*served, version})
    write_configs(folder, config, (folder / CPU_CONFIG).exists())


def _refuse_missing(folder: Path) -> NoReturn:
    repository = folder.parent
    if not repository.is_dir():
        raise DeployError(
            f"there is no repository {repository}.", "Name the one that `deploy triton` wrote to."
        )
    known = sorted(entry.name for entry in repository.iterdir() if versions_in(entry))
    raise DeployError(
        f"{repository} has no model '{folder.name}'; it has {', '.join(known) or 'none'}.",
        "Name one of its models with --name, or another repository.",
    )
