"""Which TensorRT a release of Triton's container holds, and whether it takes an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sparseflow_trt._schema import Record, parse
from sparseflow_trt.errors import DeployError

_TABLE = Path(__file__).with_name("releases.json")
_GIVEN = '"$IMAGE"'  # to the script
_COMMAND = 'echo "TRT_VERSION=${TRT_VERSION:-not set}"; dpkg -l | grep -E "libnvinfer[0-9]+ "'


class Release(Record):
    """One release of nvcr.io/nvidia/tritonserver:CONTAINER-py3; `tensorrt` is None where it is not known."""

    container: str
    triton: str
    tensorrt: str | None
    source: str


class Releases(Record):
    """The table."""

    about: str
    releases: tuple[Release, ...]


def read_releases() -> tuple[Release, ...]:
    """The releases that are known of, in order."""
    data = json.loads(_TABLE.read_text(encoding="utf-8"))
    return parse(Releases, data, str(_TABLE), DeployError, "Install sparseflow-trt again.").releases


def tensorrt_of(container: str) -> Release:
    """The release of a container, whose TensorRT is known.

    Raises:
        DeployError: It is not in the table, or its TensorRT is unknown.
    """
    release = release_of(container)
    if release.tensorrt is None:
        raise DeployError(
            f"the TensorRT of container {release.container} is unknown.", _ask(release.container)
        )
    return release


def release_of(container: str) -> Release:
    """The release of a container, whatever is known of its TensorRT.

    Raises:
        DeployError: It is not in the table.
    """
    container = container.removesuffix("-py3")
    known = {release.container: release for release in read_releases()}
    if container not in known:
        raise DeployError(
            f"container '{container}' is not in the table, which has {', '.join(known)}.",
            _ask(container),
            usage=True,
        )
    return known[container]


def image_of(container: str) -> str:
    """Triton's image of a release."""
    return f"nvcr.io/nvidia/tritonserver:{container.removesuffix('-py3')}-py3"


def check_tensorrt(built: str, target: str, where: str, version_compatible: bool) -> str:
    """Refuses an engine that the target's TensorRT would not load.

    TensorRT loads the engines of its own release alone: all four numbers have to agree. A version-compatible
    engine is loaded by later releases of the same major version too.

    Args:
        built: The TensorRT that built the engine.
        target: The one that is to load it; it may have fewer numbers.
        where: The target in words.
        version_compatible: Whether the engine was built to be.

    Returns:
        What could not be checked, as a sentence; "" where everything agreed.

    Raises:
        DeployError: It would not be loaded.
    """
    own, other = _numbers(built), _numbers(target)
    shared = min(len(own), len(other))
    if version_compatible and own[0] == other[0] and own[:shared] <= other[:shared]:
        return ""
    if not shared or own[:shared] != other[:shared]:
        also = " or a later one of the same major version" if version_compatible else ""
        raise DeployError(
            f"the engine was built by TensorRT {built} and {where} has {target}: it would not load the "
            "engine.",
            f"Build it with that release{also}, or with --version-compatible.",
        )
    if shared < 4:
        return f"Of {where}'s TensorRT only {target} is known, and the engine needs {built} exactly."
    return ""


def probe_script(image: str) -> str:
    """A shell script that asks an image for its TensorRT, which is the authority where the table is not."""
    return (
        "#!/bin/sh\n"
        "# Prints the TensorRT inside a container's image. Needs Docker, and no GPU.\n"
        f'IMAGE="${{1:-{image}}}"\n'
        f"exec {_asking(_GIVEN)}\n"
    )


def _ask(container: str) -> str:
    return (
        "Ask the image (this needs Docker, but no GPU) and pass its answer with --tensorrt: "
        f"{_asking(image_of(container))}"
    )


def _asking(image: str) -> str:
    return f"docker run --rm --entrypoint sh {image} -c '{_COMMAND}'"


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
