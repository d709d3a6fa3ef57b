"""Asks a builder for the tactics of an earlier build, and says where it then took others.

An artifact's evidence holds the tactic of every engine layer, so any artifact can be asked for again, and
recording costs its build nothing. How they are asked for depends on the TensorRT:

- 8.6 to 10.7: its algorithm selector, which is asked about each layer and leaves it the recorded tactic
  alone. A selector only for recording would not be free: NVIDIA's guide calls it incompatible with a timing
  cache. What TensorRT's compiler (Myelin) takes whole has no tactics to select.
- From 10.8 on: the editable timing cache, which covers the compiler's operators, too. Every build keeps its
  own in the artifact (`timing_cache.KEPT`), and a build from that cache decides as that one did.

Neither is a promise (a cache may be refused, a selector is not asked about everything), so the two builds'
evidence is compared afterwards. Layers that only copy or cast a tensor in either engine are left out of that:
on an H200 TensorRT 8.6.0 gave casts another number, or made one of them another kind of layer, where each
product ran the tactic that it was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sparseflow_trt._listing import listed_apart
from sparseflow_trt.artifacts.manifest import STUB, EngineLayerRecord, Manifest, check_files, read_manifest
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.tactics import layer_key
from sparseflow_trt.errors import ArtifactError

Wanted = Mapping[tuple[str, int], frozenset[int]]

_UNSIGNED = (1 << 64) - 1
_COPIES = ("NoOp", "Reformat")  # types of layers that compute nothing
_GENERATED = "kgen"  # the type of layers whose kernel is compiled from what they compute: nothing was chosen
_SHOWN = 5


def read_like(folder: Path, backend: str, versions: Mapping[str, str], device: str) -> Manifest:
    """The manifest of an artifact that another one can be built like, here and now.

    Args:
        folder: The artifact.
        backend: The name of the backend that is to build.
        versions: Of its libraries.
        device: What it builds for, in the words of its engines.

    Raises:
        ArtifactError: The folder is no artifact, or one of another backend, version, device or driver.
    """
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    engine = manifest.engine
    for what, theirs, ours in (
        ("backend", engine.backend, backend),
        ("version", _listed(engine.versions), _listed(versions)),
        ("device", engine.device, device),
    ):
        if theirs != ours:
            raise ArtifactError(
                f"{folder} cannot provide its tactics here: its {what} is {theirs}, and this is {ours}.",
                "Tactics hold for one TensorRT release, GPU and driver: build there, or without --like.",
            )
    return manifest


def like_facts(folder: Path | None) -> dict[str, str]:
    """What of an artifact decides a build that is like it; empty where there is none.

    Raises:
        ArtifactError: The folder is no artifact.
    """
    return {} if folder is None else {"like_build": read_manifest(folder).build_key}


def tactics_of(layers: Sequence[EngineLayerRecord]) -> Wanted:
    """The tactics' numbers of an engine's layers, by the layer's name and profile.

    Layers that do nothing have a number, too, which is no choice of the builder's.
    """
    found: dict[tuple[str, int], set[int]] = {}
    for layer in layers:
        if layer.tactic_id and layer.type != "NoOp":
            found.setdefault((layer.name, layer.profile), set()).add(int(layer.tactic_id, 16))
    return {key: frozenset(numbers) for key, numbers in found.items()}


def pick_tactics(wanted: frozenset[int] | None, offered: Sequence[int]) -> list[int]:
    """The places of the wanted tactics among those offered; all places where none is wanted or offered.

    One tactic may be offered several times, for several formats: TensorRT then takes the fastest of these.

    Args:
        wanted: Numbers of tactics, unsigned; None for a layer that none is known of.
        offered: Numbers as TensorRT offers them, signed.
    """
    places = [i for i, number in enumerate(offered) if number & _UNSIGNED in (wanted or ())]
    return places or list(range(len(offered)))


def make_selector(trt: ModuleType, wanted: Wanted) -> Any:
    """An IAlgorithmSelector that leaves each layer its wanted tactics; it has to outlast the build."""
    base: Any = trt.IAlgorithmSelector  # the bindings have no types

    class Selector(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # super() would not do: pybind11 wants its own constructor called
            self.profile = 0

        def select_algorithms(self, context: Any, choices: list[Any]) -> list[int]:
            offered = [choice.algorithm_variant.tactic for choice in choices]
            return pick_tactics(wanted.get(layer_key(context.name, self.profile)), offered)

        def report_algorithms(self, contexts: list[Any], choices: list[Any]) -> None:
            self.profile += 1  # it is called once for each profile, after all of that one's selections

    return Selector()


def compare_tactics(
    name: str,
    before: Sequence[EngineLayerRecord | LayerEvidence],
    after: Sequence[EngineLayerRecord | LayerEvidence],
) -> str:
    """Which engine layers run other tactics than those of an earlier build, in words.

    Args:
        name: The earlier artifact's name.
        before: Its engine's layers.
        after: The new engine's layers.
    """
    copies = {(layer.name, layer.profile) for layer in (*before, *after) if layer.type in _COPIES}
    stubs = sum(layer.tactic.startswith(STUB) for layer in before)
    if stubs:  # where products tell nothing, names made from what generated kernels compute say no more
        copies |= {(layer.name, layer.profile) for layer in (*before, *after) if layer.type == _GENERATED}
    was, now = _told(before, copies), _told(after, copies)
    if stubs and not was:
        return (
            f"The engine of {name} reports no tactics: {stubs} of its layers name a stub for a kernel "
            "that is picked at the first run. Whether these are the same is not known."
        )
    if not was:
        return f"No layer of {name} reports its tactic: whether the tactics are the same is not known."
    differing = [
        f"'{layer}'{_in_profile(profile)} runs {now[layer, profile]}, not {tactic}"
        if (layer, profile) in now
        else f"'{layer}'{_in_profile(profile)} is not a layer of this engine"
        for (layer, profile), tactic in was.items()
        if now.get((layer, profile)) != tactic
    ]
    differing += [
        f"'{layer}'{_in_profile(profile)} is not a layer of that engine"
        for layer, profile in now
        if (layer, profile) not in was
    ]
    if not differing:
        return f"All {len(was)} engine layers of {name} that report their tactic run the same one here."
    same = sum(now.get(key) == tactic for key, tactic in was.items())
    return (
        f"{same} of {len(was)} engine layers of {name} that report their tactic run the same one here. "
        f"Different: {listed_apart(differing, _SHOWN)}."
    )


def _told(
    layers: Sequence[EngineLayerRecord | LayerEvidence], but: Collection[tuple[str, int]]
) -> dict[tuple[str, int], str]:
    """The tactics of layers `but` some, by name and profile: with numbers, as several may share a name."""
    return {
        (layer.name, layer.profile): " ".join(part for part in (layer.tactic, layer.tactic_id) if part)
        for layer in layers
        if (layer.name, layer.profile) not in but
        and (layer.tactic or layer.tactic_id)
        and not layer.tactic.startswith(STUB)
    }


def _in_profile(profile: int) -> str:
    return f" (profile {profile})" if profile else ""


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "unknown"
