"""The files beside a repository that say how it is served: `REPOSITORY.deploy`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sparseflow_trt._files import write_atomically
from sparseflow_trt.engines.plugin.shared_library import why_no_library
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.kubernetes import kubernetes_files
from sparseflow_trt.exporters.triton.manifests import (
    ServerPlan,
    compose_file,
    dockerfile,
    start_script,
)
from sparseflow_trt.exporters.triton.releases import image_of, probe_script
from sparseflow_trt.exporters.triton.repository import PLUGIN, plugins_in
from sparseflow_trt.exporters.triton.version import VersionRecord, read_models, stubs_of
from sparseflow_trt.serving.server_resources import reckon_resources

_NAME_LENGTH = 40
_UNKNOWN = "CONTAINER"
_TORCH = "torch==2.13.0"  # the one that the tests run with (constraints.txt)
# What the Python backend's models import, by the backend that they are of: none is in Triton's image, not
# even TensorRT's bindings, which bring a TensorRT of their own.
_IMPORTED = ("onnxruntime", "tensorrt", "tensorrt-rtx")
# With another one than it was built with a plugin measures anew while it loads.
_CUSPARSELT = "cuSPARSELt"


def deployment_folder(repository: Path) -> Path:
    """Where the files lie: beside the repository, since Triton takes every folder in it for a model."""
    repository = repository.resolve()
    return repository.with_name(f"{repository.name}.deploy")


def check_plugins(plugins: Iterable[Path]) -> None:
    """Refuses what a server could not load. The libraries may be any TensorRT plugins': models bring ours.

    Raises:
        DeployError: A file does not exist, or is no whole shared library.
    """
    for plugin in plugins:
        if not plugin.is_file():
            raise DeployError(f"{plugin} does not exist.", "Check the path of the plugin's library.")
        if reason := why_no_library(plugin):
            raise DeployError(
                f"{plugin} is not a plugin library: {reason}.",
                "Name the shared library of a TensorRT plugin, compiled for the server.",
            )


def check_wanted(wanted: Collection[str], container: str | None, image: str | None = None) -> None:
    """Refuses files that name an image where the container is not known, and images that may change.

    Raises:
        DeployError: "docker" or "k8s" is wanted without a container, or an image without either; or the
            image's name does not say which build of it is meant.
    """
    if wanted and not container:
        raise DeployError(
            "the files for Docker and Kubernetes name an image.",
            "Give its release: --container 26.05.",
            usage=True,
        )
    if image is None:
        return
    if not wanted:
        raise DeployError(
            "only the files for Docker and Kubernetes name an image.", "Add --with docker,k8s.", usage=True
        )
    last = image.rpartition("/")[2]  # a registry's port is no tag
    if "@" not in last and last.partition(":")[2] in ("", "latest"):
        raise DeployError(
            f"'{image}' does not say which build of an image is to run.",
            "Give its name with a tag of its own or a digest: --image registry.example.com/triton:26.05-1.",
            usage=True,
        )


def plan_server(
    repository: Path, plugins: Sequence[Path], container: str | None, image: str | None = None
) -> ServerPlan:
    """What a server of all the models in a repository needs.

    Args:
        repository: Triton's.
        plugins: Libraries to add to those of earlier deployments.
        container: The release of Triton's container, None where it is not known.
        image: What the container is to run. By default Triton's own, or where that lacks what models
            need the Dockerfile's, whose tag follows from it.

    Raises:
        DeployError: A model's record cannot be read.
    """
    models = read_models(repository)
    known = deployment_folder(repository) / "plugins"
    names = {plugin.name for plugin in (*plugins, *(known.iterdir() if known.is_dir() else ()))}
    own: dict[str, str] = {}  # one library is loaded once, whichever models bring it
    for model, sha256 in plugins_in(repository).items():
        own.setdefault(sha256, f"{model}/{PLUGIN}")
    release = (container or _UNKNOWN).removesuffix("-py3")
    base = image_of(release)
    wanted = _wanted(models)
    versions = {library: next(iter(found)) for library, found in wanted.items()}
    made_by = dockerfile(base, _packages(versions), versions.get(_CUSPARSELT, ""))
    return ServerPlan(
        image=image or (_image_name(repository, release, made_by) if made_by else base),
        base=base,
        models=list(models),
        flags=list(dict.fromkeys(flag for record in models.values() for flag in record.needs)),
        plugins=sorted(names),
        own_plugins=list(own.values()),
        dockerfile=made_by,
        stubs={name: stubs for name, record in models.items() if (stubs := stubs_of(record))},
        resources=reckon_resources(repository, models),
        notes=list(_disagreements(wanted)),
    )


def _wanted(models: Mapping[str, VersionRecord]) -> dict[str, dict[str, str]]:
    """The versions of each library that models want of the image, each with the first model that does."""
    wanted: dict[str, dict[str, str]] = {}
    for name, record in models.items():
        if record.route == "python" and record.backend in _IMPORTED:
            version = record.versions.get(record.backend, "")
            wanted.setdefault(record.backend, {}).setdefault(version, name)
        if record.plugin and (version := record.versions.get(_CUSPARSELT, "")):
            wanted.setdefault(_CUSPARSELT, {}).setdefault(version, name)
    return wanted


def _packages(versions: Mapping[str, str]) -> list[str]:
    """What the Python backend's models import, for pip."""
    packages = [f"{name}=={versions[name]}" for name in _IMPORTED if name in versions]
    on_gpu = any(name in versions for name in _IMPORTED if name != "onnxruntime")
    return [*packages, *([_TORCH] if on_gpu else [])]


def _disagreements(wanted: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Of which libraries models want several versions where an image has one, in sentences."""
    for library, versions in wanted.items():
        if len(versions) > 1:
            said = ", ".join(f"{version} ('{model}')" for version, model in versions.items())
            meant = "a plugin measures its algorithms anew each time it is loaded"
            lost = meant if library == _CUSPARSELT else "an engine may not load"
            yield (
                f"Models here need several versions of {library}: {said}. The Dockerfile installs "
                f"{next(iter(versions))}. With a version other than its own, {lost}: build "
                "them with one version, or deploy them into separate repositories."
            )


def _image_name(repository: Path, release: str, made_by: str) -> str:
    """A name for an image that has to be made: another Dockerfile is another tag."""
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:8]
    return f"{kubernetes_name(repository.resolve().name)}-triton:{release}-{digest}"


def kubernetes_name(folder: str) -> str:
    """A name for Kubernetes' objects made of a folder's.

    A Service's has small letters, digits and hyphens, begins with a letter and has 63 characters at most
    (RFC 1035); here fewer, since others are made of it.
    """
    plain = re.sub(r"[^a-z0-9-]+", "-", folder.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"triton-{plain}".strip("-")
    return plain[:_NAME_LENGTH].strip("-")


def write_deployment_files(
    repository: Path, plan: ServerPlan, plugins: Sequence[Path], wanted: Collection[str]
) -> tuple[Path, ...]:
    """Writes what is wanted, of "docker" and "k8s", with the start script and the plugins' libraries.

    Raises:
        DeployError: As `check_plugins`.
        ArtifactError: The folder is not writable.
    """
    folder, repository = deployment_folder(repository), repository.resolve()
    files = {"start-server.sh": start_script(plan)}
    if "docker" in wanted:
        files["compose.yaml"] = compose_file(plan, f"../{repository.name}")
        files["probe-tensorrt.sh"] = probe_script(plan.base)
    if wanted and plan.dockerfile:
        files["Dockerfile"] = plan.dockerfile
    if "k8s" in wanted:
        name = kubernetes_name(repository.name)
        files |= {f"k8s/{file}": text for file, text in kubernetes_files(plan, name).items()}
    check_plugins(plugins)
    for plugin in plugins:
        (folder / "plugins").mkdir(parents=True, exist_ok=True)
        # by rename: a server that runs has the earlier one mapped
        write_atomically(folder / "plugins" / plugin.name, plugin.read_bytes())
    written = []
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, text)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
        written.append(folder / name)
    return tuple(written)
