"""A Ray cluster: joining the one that there is, and reserving in it a GPU for each worker."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from sparseflow_trt.errors import PolicyError, one_line

Tell = Callable[[str], None]

_STORE_BYTES = 128 << 20  # requests and answers are small
_WORDS = ("auto", "local")  # Ray's own, in RAY_ADDRESS: a cluster of this machine, and a new one
_CONNECT_SECONDS = 10.0
_SAID_EVERY = 30.0  # seconds between two words on what is waited for
# Free places are reserved within a fraction of a second. What is not by then waits for somebody else's end.
_SETTLED = 3.0


def connect(ray: Any) -> bool:
    """Joins the cluster that runs on this machine or that RAY_ADDRESS names; else starts one here.

    Returns:
        Whether one was started.

    Raises:
        PolicyError: Nothing answers where RAY_ADDRESS says.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", *_WORDS):
        _check_address(named)
    if named != "local":
        try:
            ray.init(address="auto", **quiet)
            return False
        except ConnectionError as error:
            if named not in ("", *_WORDS):
                raise _no_answer(named, one_line(error)) from error
    # said outright: with no address Ray would take RAY_ADDRESS again
    ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
    return True


def reserve(ray: Any, count: int | None, gpus: float, ours: bool, tell: Tell) -> list[Any]:
    """Reserves a place for each worker: a CPU and, beside it on the same machine, its GPUs.

    Takes what is free, and where that is nothing, waits until something is.

    Args:
        ray: The module, connected.
        count: How many places; by default as many as the cluster could have.
        gpus: GPUs of each; 0 for none.
        ours: Whether the cluster was started here, for the words of an error.
        tell: Called with a sentence while it waits, now and then, and where not all could be had.

    Returns:
        A placement group for each, ready.

    Raises:
        PolicyError: The cluster has no GPU, or too little for so many places at the best of times.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_places(machine, gpus) for machine in machines)
    _check_room(machines, room, count, gpus, ours)
    wanted = count or room
    bundle = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    groups = {group.ready(): group for group in (ray.util.placement_group([bundle]) for _ in range(wanted))}
    try:
        ready = _wait_for_any(ray, list(groups), gpus, tell)
    except BaseException:
        release(ray, groups.values())
        raise
    release(ray, (group for reference, group in groups.items() if reference not in ready))
    if len(ready) < wanted:
        tell(
            f"Measuring on {len(ready)} of {wanted} {'GPUs' if gpus else 'CPUs'} of the Ray cluster: the "
            "others are in use. To use them as well once they are free, stop this command and "
            "run it again: it continues."
        )
    return [groups[reference] for reference in ready]


def release(ray: Any, groups: Iterable[Any]) -> None:
    """Gives places back."""
    for group in groups:
        ray.util.remove_placement_group(group)


def _wait_for_any(ray: Any, references: list[Any], gpus: float, tell: Tell) -> list[Any]:
    """Those that are ready as soon as any is, and shortly after."""
    begun = time.monotonic()
    ready, _ = ray.wait(references, num_returns=len(references), timeout=_SETTLED)
    while not ready:
        tell(_what_is_waited_for(ray, gpus, time.monotonic() - begun))
        ready, _ = ray.wait(references, num_returns=1, timeout=_SAID_EVERY)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=_SETTLED)
    found: list[Any] = ready
    return found


def _what_is_waited_for(ray: Any, gpus: float, seconds: float) -> str:
    free, all_of_it = ray.available_resources(), ray.cluster_resources()
    kinds = ("GPU", "CPU") if gpus else ("CPU",)
    shown = " and ".join(f"{free.get(kind, 0):g} of {all_of_it.get(kind, 0):g} {kind}s" for kind in kinds)
    return (
        f"Waiting for {_need(gpus)} of the Ray cluster ({seconds:.0f} s so far): {shown} are "
        "free, the others are in use. Ctrl-C ends the wait."
    )


def _check_room(
    machines: list[dict[str, float]], room: int, count: int | None, gpus: float, ours: bool
) -> None:
    """Whether a cluster with nothing else to do has the places: what it lacks, no wait would bring."""
    if gpus and not any(machine.get("GPU") for machine in machines):
        raise _no_gpu(ours)
    if not room:
        raise PolicyError(
            f"no machine of the Ray cluster has {_need(gpus)}.",
            "A worker needs both: start Ray there with --num-cpus and --num-gpus.",
        )
    if count and count > room:
        raise PolicyError(
            f"{count} workers were asked for, and the Ray cluster has room for {room}: each takes "
            f"{_need(gpus)}.",
            "Ask for fewer, or add machines to the cluster.",
        )


def _places(machine: dict[str, float], gpus: float) -> int:
    cpus = int(machine.get("CPU", 0))
    return min(cpus, int(machine.get("GPU", 0) / gpus)) if gpus else cpus


def _need(gpus: float) -> str:
    return f"{gpus:g} GPU with a CPU beside it" if gpus else "a CPU"


def _no_gpu(ours: bool) -> PolicyError:
    if ours:
        return PolicyError(
            "no Ray cluster runs here, and a new one would have no GPU: this machine shows none.",
            "Name a cluster that has some: RAY_ADDRESS=HOST:PORT. Or run this on a machine with a GPU.",
        )
    return PolicyError(
        "the Ray cluster has no GPU.",
        "Add the machines with the GPUs to it, there: ray start --address=HOST:PORT (--num-gpus where Ray "
        "does not see them). Or leave out --ray.",
    )


def _check_address(address: str) -> None:
    """Ray itself waits minutes for a cluster that is not there, and then ends the process."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise PolicyError(
            f"RAY_ADDRESS is '{address}', which is not HOST:PORT.", "Set it to HOST:6379, or unset it."
        )
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_answer(address, error.strerror or one_line(error)) from error


def _no_answer(address: str, why: str) -> PolicyError:
    return PolicyError(
        f"no Ray cluster answers at {address}, which RAY_ADDRESS names: {why}.",
        "Start it there (ray start --head), set RAY_ADDRESS to where it is, or unset it.",
    )
