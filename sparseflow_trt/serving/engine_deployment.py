"""One artifact's engine as a model of Triton's: route, files and configuration, and what is to be said."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.artifacts.manifest import EngineRecord, Manifest
from sparseflow_trt.exporters.triton.batching import Batching, overlapping
from sparseflow_trt.exporters.triton.check import check_config
from sparseflow_trt.exporters.triton.config import PLAN_FILE, Device, Route, ServedModel, make_config
from sparseflow_trt.exporters.triton.models import MODEL_FILE, write_model_py
from sparseflow_trt.exporters.triton.releases import check_tensorrt, release_of, tensorrt_of
from sparseflow_trt.exporters.triton.repository import NewVersion, largest_batch
from sparseflow_trt.exporters.triton.version import CONFIG, versions_in
from sparseflow_trt.serving.deployment import DeployOptions, Planned, needs_of
from sparseflow_trt.serving.served_artifact import (
    DENSE_ALL_THE_SAME,
    RUNTIMES,
    Artifact,
    choose_route,
    plugin_notes,
)

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


def plan_engine(
    name: str,
    artifact: Artifact,
    options: DeployOptions,
    plugins: Mapping[str, str],
    router: str = "",
) -> Planned:
    """Plans the model that serves an artifact's engine.

    Args:
        name: The model's.
        artifact: What it serves.
        options: How.
        plugins: SHA-256 of the library that the server loads for each model, by its name.
        router: The model that it is one of the two of, "" where it is none.

    Raises:
        DeployError: The target would not load the engine, or Triton could not serve it.
        NotInstalledError: tritonclient is missing.
    """
    manifest, engine = artifact.manifest, artifact.manifest.engine
    route = choose_route(artifact, options.route)
    notes = _notes(name, artifact, route, options, plugins)
    files, texts, parameters = _contents(artifact, route, options.threads)
    device: Device = "cpu" if RUNTIMES[engine.backend] == "onnxruntime" else "gpu"

    def configure(number: int, place: Path) -> ModelConfig:
        plan = place / PLAN_FILE
        md5 = {f"{number}/{PLAN_FILE}": _md5(plan)} if route == "tensorrt_plan" else {}
        return make_config(
            ServedModel(
                name,
                route,
                device,
                artifact.ends,
                artifact.plan.profiles,
                artifact.batching,
                options.gpus,
                options.count,
                options.cuda_graphs,
                options.cache,
                md5,
                parameters,
            )
        )

    version = NewVersion(
        name,
        manifest.build_key,
        engine.backend,
        route,
        engine.versions | (engine.plugin.versions if engine.plugin else {}),
        files,
        texts,
        configure,
        lambda config, source: check_config(
            config, artifact.ends, artifact.plan.profiles, artifact.batching, source
        ),
        cpu_twin=route == "tensorrt_plan",
        needs=needs_of(options, route == "tensorrt_plan" and _is_compatible(engine)),
        batch_given=options.max_batch_size is not None,
        plugin=engine.plugin.file if engine.plugin else "",
        router=router,
    )
    return Planned(version, artifact.batching, artifact.sparse_from, tuple(notes))


def _contents(
    artifact: Artifact, route: Route, threads: int
) -> tuple[dict[str, Path], dict[str, str], dict[str, str]]:
    """What a version's folder holds, copied and written, and the parameters of its configuration."""
    manifest, engine = artifact.manifest, artifact.manifest.engine
    engines = {file: artifact.folder / file for file in manifest.files if _is_engine(file, engine)}
    if route == "tensorrt_plan":
        return {PLAN_FILE if file == engine.file else file: path for file, path in engines.items()}, {}, {}
    runtime = RUNTIMES[engine.backend]
    digests = {file: manifest.files[file] for file in engines}
    plugin = engine.plugin.file if engine.plugin else ""
    text = write_model_py(runtime, engine.file, digests, _is_compatible(engine), plugin)
    on_cpu = runtime == "onnxruntime"
    parameters = {"threads": str(threads)} if on_cpu else {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    return engines, {MODEL_FILE: text}, parameters


def _notes(
    name: str, artifact: Artifact, route: Route, options: DeployOptions, plugins: Mapping[str, str]
) -> list[str]:
    """What the person who deploys has to know, in sentences; refuses what the target would not load."""
    manifest, plugin = artifact.manifest, artifact.manifest.engine.plugin
    notes = [*_target_notes(manifest, route, options), *_ignored(manifest.engine, options)]
    notes += [*_unseen(manifest), *artifact.batching.why]
    if artifact.sparse_from and manifest.engine.backend != "tensorrt":
        notes.append(DENSE_ALL_THE_SAME)
    if options.cache:
        notes.append(
            "The response cache works only with the server's --cache-config; without that option it is "
            "silently off."
        )
    if route == "tensorrt_plan" and (pairs := overlapping(artifact.plan.profiles)):
        notes.append(
            f"Profiles '{pairs[0][0]}' and '{pairs[0][1]}' overlap: for a shape that both take, Triton's "
            "backend tends to pick the one with the smaller opt. `plan --split` makes profiles that do not "
            "overlap."
        )
    if plugin:
        notes += plugin_notes(name, plugin, route, plugins)
    return [*notes, *_batch_notes(options.repository / name, artifact.batching)]


def _batch_notes(folder: Path, batching: Batching) -> list[str]:
    """Whether requests that shared no batch before do now, as a sentence."""
    served = versions_in(folder) and (folder / CONFIG).is_file()
    if not batching.max_batch_size or not served or largest_batch(folder):
        return []
    return ["Requests to this model shared no batch before; --max-batch-size 0 keeps it that way."]


def _target_notes(manifest: Manifest, route: Route, options: DeployOptions) -> list[str]:
    """Refuses an engine that the target would not load, and a release that is not known of.

    Returns:
        What could not be checked, and whose TensorRT runs it where it is not the container's.
    """
    engine = manifest.engine
    compatible = _is_compatible(engine)
    built = engine.versions.get("tensorrt", "")
    if engine.backend != "tensorrt" or (route == "python" and not options.tensorrt):
        if options.container and not options.tensorrt:
            release_of(options.container)  # its image is named in the files for Docker and Kubernetes
        said = f"It runs with the tensorrt {built} that the Dockerfile installs, not with the container's."
        return [said] if engine.backend == "tensorrt" else []
    if options.tensorrt:
        said = check_tensorrt(built, options.tensorrt, "the server", compatible)
    elif options.container:
        release = tensorrt_of(options.container)
        said = check_tensorrt(built, release.tensorrt or "", f"container {release.container}", compatible)
        said = " ".join(filter(None, (said, f"Source of the table's row: {release.source}.")))
    else:
        said = f"No server's TensorRT was compared with the engine's {built}: give --container or --tensorrt."
    return [said] if said else []


def _ignored(engine: EngineRecord, options: DeployOptions) -> list[str]:
    """Which options say nothing to this engine's runtime, in a sentence: other artifacts may take them."""
    defaults = DeployOptions(options.repository)
    if RUNTIMES[engine.backend] == "onnxruntime":
        given = {"--gpus": options.gpus != defaults.gpus, "--tensorrt": options.tensorrt is not None}
        runs = "ONNX Runtime on the CPU"
    else:
        given = {"--threads": options.threads != defaults.threads}
        runs = "TensorRT on the GPU"
    flags = [flag for flag, is_given in given.items() if is_given]
    change = "change" if len(flags) > 1 else "changes"
    return [f"This engine runs by {runs}, where {' and '.join(flags)} {change} nothing."] if flags else []


def _unseen(manifest: Manifest) -> list[str]:
    """Which parts of an artifact's validation were not run, in sentences: an engine with no GPU there."""
    return [
        f"{candidate.name} was not compared with the reference when it was built: {candidate.reason} "
        "`deploy verify` compares it where it is served."
        for candidate in manifest.validation.candidates
        if candidate.verdict == "not run"
    ]


def _is_compatible(engine: EngineRecord) -> bool:
    return bool(engine.options.get("version_compatible"))


def _is_engine(file: str, engine: EngineRecord) -> bool:
    """Whether a file of the artifact is the engine, its weights or its plugin's library."""
    if engine.plugin and file == engine.plugin.file:
        return True
    return file == engine.file or (engine.file == "model.ort.onnx" and file == "model.ort.data")


def _md5(path: Path) -> str:
    """What Triton's checksum agent compares: it knows MD5 alone. SHA-256 stands in the version's record."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(8 << 20):
            digest.update(piece)
    return digest.hexdigest()
