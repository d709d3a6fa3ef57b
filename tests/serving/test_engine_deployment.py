"""One engine as a model of Triton's: what the target would not load is refused, and plugins."""

from __future__ import annotations

import _ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.manifests import server_command
from sparseflow_trt.exporters.triton.rollback import roll_back
from sparseflow_trt.exporters.triton.version import (
    check_version,
    read_record,
)
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server
from tests.serving.conftest import LIBRARY, WithPlugin

AsTensorrt = Callable[..., Path]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"container": "26.06"}, "built by TensorRT 10.16.1.11 and container 26.06 has 11.0.0"),
        ({"tensorrt": "10.16.1.12"}, "the server has 10.16.1.12"),
        ({"container": "26.02"}, "the TensorRT of container 26.02 is unknown"),
        ({"container": "19.01"}, "is not in the table"),
        ({"name": "a/b"}, "'a/b' is not a valid model name"),
    ],
)
def test_what_the_target_would_not_load_is_refused(
    options: dict[str, str], said: str, plan_artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeployError) as caught:
        deploy(plan_artifact, DeployOptions(tmp_path / "repository", **options))  # type: ignore[arg-type]
    assert said in caught.value.message
    assert not (tmp_path / "repository").exists()


def test_a_release_that_nobody_knows_is_refused_whatever_the_engine(
    ort_artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeployError, match=r"container '99\.99' is not in the table"):
        deploy(ort_artifact, DeployOptions(tmp_path / "repository", container="99.99"))
    assert not (tmp_path / "repository").exists()
    deploy(
        ort_artifact, DeployOptions(tmp_path / "repository", container="26.02")
    )  # TensorRT does not matter
    deploy(ort_artifact, DeployOptions(tmp_path / "r", container="99.99", tensorrt="10.16.1"))


def test_what_the_target_loads_is_said_with_its_source(plan_artifact: Path, tmp_path: Path) -> None:
    (model,) = deploy(plan_artifact, DeployOptions(tmp_path / "repository", container="26.05"))
    assert any("nvcr.io/nvidia/tensorrt:26.05-py3" in note for note in model.notes)
    (model,) = deploy(plan_artifact, DeployOptions(tmp_path / "r"))
    assert any("No server's TensorRT was compared" in note for note in model.notes)


def test_options_that_change_nothing_for_an_engine_are_told(
    ort_artifact: Path, plan_artifact: Path, tmp_path: Path
) -> None:
    options = DeployOptions(tmp_path / "r", gpus=(0, 1), threads=4, tensorrt="10.16.1.11")
    said = "This engine runs by {}, where {} nothing."
    (model,) = deploy(ort_artifact, options)
    assert said.format("ONNX Runtime on the CPU", "--gpus and --tensorrt change") in model.notes
    (model,) = deploy(plan_artifact, options)
    assert said.format("TensorRT on the GPU", "--threads changes") in model.notes
    (model,) = deploy(ort_artifact, DeployOptions(tmp_path / "plain"))
    assert not any("nothing." in note for note in model.notes)


@pytest.mark.parametrize("container", ["26.06", "26.02", None])  # of another TensorRT, an unknown, not said
def test_the_python_backend_runs_an_engine_with_the_dockerfiles_tensorrt(
    container: str | None, plan_artifact: Path, tmp_path: Path
) -> None:
    options = DeployOptions(tmp_path / "repository", route="python", container=container)
    (model,) = deploy(plan_artifact, options)
    said = "It runs with the tensorrt 10.16.1.11 that the Dockerfile installs, not with the container's."
    assert model.notes[0] == said
    installed = plan_server(options.repository, (), container).dockerfile.split()
    assert "tensorrt==10.16.1.11" in installed


def test_a_python_known_to_have_another_tensorrt_is_refused(plan_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"the server has 10\.16\.1\.12"):
        deploy(plan_artifact, DeployOptions(tmp_path / "r", route="python", tensorrt="10.16.1.12"))
    with pytest.raises(DeployError, match=r"container '99\.99' is not in the table"):
        deploy(plan_artifact, DeployOptions(tmp_path / "r", route="python", container="99.99"))


def test_engines_that_triton_cannot_serve(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    stripped = as_tensorrt(ort_artifact, tmp_path / "stripped", options={"strip_plan": True})
    with pytest.raises(DeployError, match="its engine has no weights"):
        deploy(stripped, DeployOptions(tmp_path / "repository"))
    with pytest.raises(DeployError, match="not for Triton's TensorRT backend"):
        deploy(ort_artifact, DeployOptions(tmp_path / "repository", route="tensorrt_plan"))


def test_a_version_compatible_engine_needs_the_servers_flag(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    artifact = as_tensorrt(ort_artifact, tmp_path, options={"version_compatible": True})
    (model,) = deploy(artifact, DeployOptions(tmp_path / "repository", tensorrt="10.17", cache=True))
    assert model.needs == (
        "--backend-config=tensorrt,version-compatible=true", "--cache-config=local,size=67108864",
    )  # fmt: skip
    assert read_record(model.written.folder, 1).needs == model.needs  # type: ignore[union-attr]


def test_a_plans_plugin_is_in_the_repository_and_in_the_servers_command(
    with_plugin: WithPlugin, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    folder = repository / "m"
    (model,) = deploy(with_plugin("a", b"one"), DeployOptions(repository, "m"))
    assert {p.name for p in (folder / "1").iterdir()} == {"model.plan", LIBRARY, "sparseflow.json"}
    assert any("cuSPARSELt 0.8.1: the server has to find it" in note for note in model.notes)
    assert any("restart a server that is already running" in note for note in model.notes)
    check_version(folder, 1)

    def loaded() -> list[str]:
        words = server_command(plan_server(repository, (), None))
        return [word for word in words if "plugins=" in word]

    assert loaded() == ["--backend-config=tensorrt,plugins=/models/m/plugin.so"]
    assert (folder / "plugin.so").read_bytes() == b"one"

    # another build with another library, under the same command; and back
    assert deploy(with_plugin("b", b"two"), DeployOptions(repository, "m"))[0].written.version == 2
    assert (folder / "plugin.so").read_bytes() == b"two"
    roll_back(folder)
    assert (folder / "plugin.so").read_bytes() == b"one"
    assert loaded() == ["--backend-config=tensorrt,plugins=/models/m/plugin.so"]
    (folder / "1" / LIBRARY).write_bytes(b"???")
    with pytest.raises(DeployError, match=rf"{LIBRARY} is not the file that was deployed"):
        check_version(folder, 1)


def test_one_server_loads_one_plugin_library(with_plugin: WithPlugin, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    artifact = with_plugin("a", b"one")
    deploy(artifact, DeployOptions(repository, "m"))
    (same,) = deploy(artifact, DeployOptions(repository, "n"))
    assert same.written.version == 1
    assert plan_server(repository, (), None).own_plugins == ["m/plugin.so"]
    other = with_plugin("b", b"two")
    with pytest.raises(DeployError, match="'o' needs a different build of the plugin's library from 'm'"):
        deploy(other, DeployOptions(repository, "o"))
    assert not (repository / "o").exists()
    deploy(other, DeployOptions(repository, "o", route="python"))  # a process of its own
    assert plan_server(repository, (), None).own_plugins == ["m/plugin.so"]


TENSORRT = """class ILogger:
    ERROR, WARNING = 1, 2
    def __init__(self): pass
class Runtime:
    def __init__(self, log): pass
    def deserialize_cuda_engine(self, data):
        print("mapped" if "libsparseflow_linear24" in open("/proc/self/maps").read() else "not mapped")
"""
TRITON = "class TritonModelException(Exception): pass\n"


def test_model_py_loads_the_plugin_before_the_engine(with_plugin: WithPlugin, tmp_path: Path) -> None:
    """Up to where TensorRT, which is not here, would load the engine: a stand-in says what is mapped then."""
    pytest.importorskip("torch")
    library = Path(_ctypes.__file__).read_bytes()  # any that loads
    (tmp_path / "tensorrt.py").write_text(TENSORRT, encoding="utf-8")
    (tmp_path / "triton_python_backend_utils.py").write_text(TRITON, encoding="utf-8")

    def deployed(artifact: Path, name: str) -> Path:
        (model,) = deploy(artifact, DeployOptions(tmp_path / "repository", name, route="python"))
        files = {"model.engine", LIBRARY, "model.py", "sparseflow.json"}
        assert {p.name for p in (model.written.folder / "1").iterdir()} == files
        return model.written.folder

    def load(folder: Path) -> subprocess.CompletedProcess[str]:
        told = {
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_device_id": "0",
            "model_config": '{"max_batch_size": 8}',
        }
        code = f"import model; model.TritonPythonModel().initialize({told!r})"
        environment = {"PYTHONPATH": f"{folder / '1'}:{tmp_path}", "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    folder = deployed(with_plugin("a", library), "m")
    done = load(folder)
    assert done.stdout == "mapped\n" and "TensorRT refused model.engine" in done.stderr, done.stderr
    done = load(deployed(with_plugin("b", b"no library"), "n"))
    assert done.stdout == "" and "TritonModelException: the plugin's library does not load: " in done.stderr
    (folder / "1" / LIBRARY).write_bytes(b"another")
    assert f"{LIBRARY} is not the file that was deployed: its SHA-256 differs" in load(folder).stderr
