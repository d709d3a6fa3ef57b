"""deploy triton, verify and rollback: what they print, their JSON and exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import helper

from sparseflow_trt.cli.deployments import batch_words
from sparseflow_trt.engines.triton.server import find_server
from sparseflow_trt.errors import NotInstalledError
from tests.shared_libraries import write_library

if TYPE_CHECKING:
    from tests.commands import Sparseflow

BUILD = ("--backend", "onnxruntime", "--dim", "batch=1,4,8")


@pytest.fixture
def artifact(mlp: Callable[..., Path], build_once: Callable[..., Path]) -> Path:
    return build_once(mlp(), "m.artifact", "--policy", "a100-80gb", *BUILD)


@pytest.fixture
def deployed(artifact: Path, sparseflow: Sparseflow) -> Path:
    """The artifact, which is in the repository 'models'."""
    assert sparseflow("deploy", "triton", artifact, "--repository", "models").code == 0
    return artifact


@pytest.fixture
def tritonserver() -> None:
    try:
        find_server()
    except NotInstalledError as error:
        pytest.skip(error.message)


def test_deploy_says_what_it_wrote_and_how_to_serve_it(
    artifact: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    done = sparseflow("deploy", "triton", artifact, "--repository", "models")
    assert done.code == 0
    assert "m: version 1 written (models/m, python)" in done.out
    assert "Batches of 1 to 8 are taken at every shape." in done.out
    command = (
        "tritonserver",
        "--model-repository=/models",
        "--model-control-mode=explicit",
        "--load-model=m",
    )
    assert " \\\n  ".join(command) in done.out
    assert "In Triton's container, which sees models at /models, " in done.out
    assert "models.deploy/start-server.sh serves it:" in done.out
    assert (tmp_path / "models.deploy" / "start-server.sh").stat().st_mode & 0o111
    assert (
        "version 1 stands already" in sparseflow("deploy", "triton", artifact, "--repository", "models").out
    )


def test_what_cannot_be_written_is_said_before_a_version_is(
    artifact: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    (tmp_path / "models.deploy").write_text("no folder")
    done = sparseflow("deploy", "triton", artifact, "--repository", "models")
    assert (done.code, "models.deploy cannot be written" in done.error) == (1, True), done.error
    assert not (tmp_path / "models").exists()


def test_the_largest_batch_is_an_option(artifact: Path, sparseflow: Sparseflow) -> None:
    deploy = ("deploy", "triton", artifact, "--repository", "models", "--max-batch-size")
    assert "Requests share no batch, as asked." in sparseflow(*deploy, "0").out
    assert sparseflow(*deploy, "4", "--json").json["models"][0]["batching"]["max_batch_size"] == 4
    refused = sparseflow(*deploy, "9")
    assert (refused.code, "a batch of 9 is asked for, and the engine takes 8" in refused.error) == (1, True)


def test_two_models_share_a_server(artifact: Path, mlp: Callable[..., Path], sparseflow: Sparseflow) -> None:
    assert sparseflow("build", mlp("n.onnx", seed=1), "-o", "n.artifact", *BUILD).code == 0
    done = sparseflow("deploy", "triton", artifact, "n.artifact", "--repository", "models", "--json").json
    assert [model["name"] for model in done["models"]] == ["m", "n"]
    assert "--load-model=m" in done["start"] and "--load-model=n" in done["start"]
    assert [file.rpartition("/")[2] for file in done["files"]] == ["start-server.sh"]
    (lacks,) = done["notes"]  # nothing was asked for that makes an image with the ONNX Runtime
    assert lacks.startswith("Triton's own image lacks what these models need") and "--with docker" in lacks
    manifest = Path("n.artifact/manifest.json")
    told = json.loads(manifest.read_text())
    told["engine"]["versions"]["onnxruntime"] = "1.0.0"
    manifest.write_text(json.dumps(told))
    done = sparseflow("deploy", "triton", artifact, "n.artifact", "--repository", "others")
    assert done.code == 0
    assert "Models here need several versions of onnxruntime: " in done.out
    assert "1.0.0 ('n')" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("triton", "m.artifact", "x/m"), "two artifacts would both be named 'm'"),
        (("triton", "m.artifact", "--gpus", "-1"), "'-1' is not a list of GPUs"),
        (("triton", "m.artifact", "--max-batch-size", "-1"), "-1 is not in the range x>=0"),
        (("verify", "m.artifact", "--concurrency", "1,-1"), "'1,-1' is not a list of numbers"),
        (
            ("verify", "m.artifact", "--http", "http://h:1", "--grpc", "h:2"),
            "'http://h:1' is not HOST:PORT",
        ),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: tuple[str, ...], said: str, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    done = sparseflow("deploy", *arguments, "--repository", "models")
    assert (done.code, said in done.error) == (2, True), done.error
    assert not (tmp_path / "models").exists()


def test_files_for_docker_and_kubernetes(artifact: Path, sparseflow: Sparseflow, tmp_path: Path) -> None:
    plugin = write_library(tmp_path / "lib.so", "AnyPlugin")
    deploy = ("deploy", "triton", artifact, "--repository", "models")
    untold = sparseflow(*deploy, "--with", "docker")
    assert (untold.code, untold.error) == (2, "the files for Docker and Kubernetes name an image.")
    assert sparseflow(*deploy, "--with", "swarm").code == 2
    assert not (tmp_path / "models").exists(), "nothing was deployed"
    assert sparseflow(*deploy, "--with", "docker,k8s", "--container", "26.05", "--plugin", plugin).code == 0
    written = {
        str(p.relative_to(tmp_path / "models.deploy")) for p in (tmp_path / "models.deploy").rglob("*.*")
    }
    assert written == {
        "start-server.sh", "compose.yaml", "probe-tensorrt.sh", "plugins/lib.so", "k8s/deployment.yaml",
        "k8s/service.yaml", "k8s/hpa.yaml", "k8s/pdb.yaml", "k8s/kustomization.yaml", "k8s/podmonitor.yaml",
        "k8s/prometheus-adapter-values.yaml",
    }  # fmt: skip
    compose = (tmp_path / "models.deploy" / "compose.yaml").read_text(encoding="utf-8")
    assert "../models:/models:ro" in compose and "plugins=/plugins/lib.so" in compose
    assert str(tmp_path) not in compose
    dockerfile = (tmp_path / "models.deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert dockerfile.startswith(
        "ARG BASE=nvcr.io/nvidia/tritonserver:26.05-py3\nFROM ${BASE}\nRUN pip install"
    )
    # later deployments keep the plugins of earlier ones
    assert "plugins=/plugins/lib.so" in sparseflow(*deploy, "--json").json["start"]


def test_the_image_that_is_run_says_which_build_it_is(
    artifact: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    deploy = ("deploy", "triton", artifact, "--repository", "models", "--container", "26.05")
    assert sparseflow(*deploy, "--image", "r/triton:1").error == (
        "only the files for Docker and Kubernetes name an image."
    )
    for image in ("triton", "r.example.com:5000/triton", "r/triton:latest", "r/triton:", ""):
        done = sparseflow(*deploy, "--with", "docker,k8s", "--image", image)
        assert (done.code, "does not say which build" in done.error) == (2, True), image
    assert not (tmp_path / "models").exists(), "nothing was deployed"

    def images(*more: str) -> set[str]:
        done = sparseflow(*deploy, "--with", "docker,k8s", *more)
        assert done.code == 0
        folder = tmp_path / "models.deploy"
        texts = [
            (folder / file).read_text(encoding="utf-8") for file in ("compose.yaml", "k8s/deployment.yaml")
        ]
        return {found for text in texts for found in re.findall(r"^ +image: (.*)$", text, re.MULTILINE)}

    (own,) = images()
    assert re.fullmatch(r"models-triton:26\.05-[0-9a-f]{8}", own)  # another tag where its packages are others
    assert images() == {own} != images("--container", "26.04")
    assert (
        "They run r/triton:1, which the Dockerfile makes."
        in sparseflow(*deploy, "--with", "k8s", "--image", "r/triton:1").out
    )
    assert "lacks what these models need" not in sparseflow(*deploy, "--with", "docker").out
    assert "lacks what these models need" in sparseflow(*deploy).out
    digest = "@sha256:" + "0" * 64
    for image in ("r.example.com:5000/a/triton:26.05-1", f"r/triton{digest}", f"r/triton:latest{digest}"):
        assert images("--image", image) == {image}


def test_a_plugin_that_no_server_could_load_is_refused_before_anything_is_deployed(
    artifact: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    (tmp_path / "lib.so").write_text("INPUT(libother.so)\n")
    deploy = ("deploy", "triton", artifact, "--repository", "models", "--plugin")
    assert sparseflow(*deploy, "none.so").error == "none.so does not exist."
    assert sparseflow(*deploy, "lib.so").error == "lib.so is not a plugin library: it is not an ELF file."
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "models.deploy").exists()


def test_what_another_models_configuration_says_wrongly_is_told_before_one_is_written(
    artifact: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    deploy = ("deploy", "triton", artifact, "--repository", "models", "--name")
    assert sparseflow(*deploy, "other").code == 0
    path = tmp_path / "models" / "other" / "config.pbtxt"
    path.write_text(path.read_text(encoding="utf-8") + "oops: 1\n", encoding="utf-8")
    done = sparseflow(*deploy, "m")
    assert done.code == 1
    assert done.error.startswith("models/other/config.pbtxt is not a valid Triton configuration: ")
    assert done.error.endswith('has no field named "oops".')
    assert not (tmp_path / "models" / "m").exists()


def test_an_edited_configuration_is_shown(artifact: Path, sparseflow: Sparseflow, tmp_path: Path) -> None:
    deploy = ("deploy", "triton", artifact, "--repository", "models")
    assert sparseflow(*deploy).code == 0
    path = tmp_path / "models" / "m" / "config.pbtxt"
    path.write_text(path.read_text(encoding="utf-8").replace("count: 1", "count: 2"), encoding="utf-8")
    done = sparseflow(*deploy)
    assert done.code == 0
    assert "The configuration was edited" in done.out
    assert "count: 2" in done.out and "the file's" in done.out
    (difference,) = sparseflow(*deploy, "--json").json["models"][0]["differences"]
    assert difference["field"] == "instance_group"
    path.write_text("nonsense", encoding="utf-8")
    assert "is not a valid Triton configuration" in sparseflow(*deploy).error


def test_a_reference_with_other_inputs_is_refused_before_a_server_starts(
    deployed: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    model = onnx.load(deployed / "model.onnx")
    (given,) = model.graph.input
    model.graph.node.insert(0, helper.make_node("Identity", ["other"], [given.name]))
    given.name = "other"
    onnx.save(model, tmp_path / "other.onnx")
    verify = ("deploy", "verify", deployed, "--repository", "models", "--server", "nowhere")
    said = "other.onnx takes an input 'other', and "
    assert said in sparseflow(*verify, "--reference", "other.onnx").error
    create = ("baseline", "create", deployed, "--reference", "other.onnx")
    assert said in sparseflow(*create).error


@pytest.mark.usefixtures("tritonserver")
def test_verify_compares_measures_and_draws(
    deployed: Path, mlp: Callable[..., Path], sparseflow: Sparseflow, tmp_path: Path
) -> None:
    other = mlp("other.onnx", seed=7)  # the server is right, and what it is compared with is another model
    verify = ("deploy", "verify", deployed, "--repository", "models", "--reference", other)
    done = sparseflow(*verify, "--concurrency", "1,4", "--seconds", "0.2", "-o", "load")
    assert done.code == 4, done
    assert "Validation against the FP32 reference: fail" in done.out
    assert "outside the absolute bound" in done.out
    assert "Triton over gRPC" in done.out and "Per s" in done.out
    rows = (tmp_path / "load" / "load.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("concurrency,requests,failed,per_second,p50_ms") and len(rows) == 3
    assert "<svg" in (tmp_path / "load" / "load.svg").read_text(encoding="utf-8")


def test_batches_that_are_left_out_are_counted() -> None:
    assert batch_words({1: 5, 8: 63}) == "63×8, 5×1"
    assert batch_words({1: 5, 2: 1, 3: 4, 8: 63, 7: 12, 5: 3}) == "63×8, 12×7, 3×5, 4×3, … 2 more"


def test_verify_needs_a_server_that_is_there(deployed: Path, sparseflow: Sparseflow) -> None:
    verify = ("deploy", "verify", deployed, "--repository", "models")
    assert sparseflow(*verify, "--http", "127.0.0.1:9").code == 2
    assert "the server at 127.0.0.1:9 is not ready" in sparseflow(
        *verify, "--http", "127.0.0.1:9", "--grpc", "127.0.0.1:9"
    ).error  # fmt: skip
    done = sparseflow(*verify, "--server", "no/environment")
    assert (done.code, "there is no tritonserver in no/environment" in done.error) == (6, True)


@pytest.mark.usefixtures("tritonserver")
def test_ctrl_c_during_verify_leaves_no_server(
    deployed: Path,
    sparseflow: Sparseflow,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))  # all that is started is known by it
    tool = start(
        "deploy", "verify", deployed, "--repository", "models", "--concurrency", "2", "--seconds", "60"
    )

    def servers() -> list[bytes]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(scratch).encode() in command and process.name != str(tool.pid):
                found.append(command)
        return found

    end = time.monotonic() + 60
    running = servers()
    while not any(b"python_backend_stub" in one for one in running) and time.monotonic() < end:
        assert tool.poll() is None, tool.communicate()
        time.sleep(0.1)
        running = servers()
    assert len(running) >= 3, running  # the guard, the server, the stub
    time.sleep(2)
    tool.send_signal(signal.SIGINT)
    _, err = tool.communicate(timeout=60)
    assert tool.returncode == 130, err
    assert "interrupted" in err
    end = time.monotonic() + 20
    while servers() and time.monotonic() < end:
        time.sleep(0.1)
    assert servers() == []


def test_a_folder_whose_name_is_no_models_is_given_one(
    artifact: Path, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    artifact.rename(tmp_path / "my model")
    deploy = ("deploy", "triton", "my model", "--repository", "models")
    assert "'my model' is not a valid model name" in sparseflow(*deploy).error
    assert sparseflow(*deploy, "--name", "m", "--json").json["models"][0]["name"] == "m"


def test_rollback_serves_the_version_before(
    artifact: Path, mlp: Callable[..., Path], sparseflow: Sparseflow, tmp_path: Path
) -> None:
    deploy = ("deploy", "triton", "--repository", "models", "--name", "m")
    rollback = ("deploy", "rollback", "--repository", "models", "--name", "m")
    assert sparseflow(*rollback).error == "there is no repository models."
    assert sparseflow(*deploy, artifact).code == 0
    other = sparseflow(*rollback[:-1], "n")
    assert (other.code, other.error) == (1, "models has no model 'n'; it has m.")
    assert "m serves version 1, and has none before it" in sparseflow(*rollback).error
    assert (
        sparseflow("build", mlp("n.onnx", seed=1), "-o", "n.artifact", "--policy", "a100-80gb", *BUILD).code
        == 0
    )
    told = "To load it into a running server:\n  curl -X POST http://HOST:8000/v2/repository/models/m/load"
    assert told in sparseflow(*deploy, "n.artifact").out
    assert told not in sparseflow(*deploy, "n.artifact").out
    assert sparseflow(*rollback, "--json").json == {"name": "m", "withdrawn": 2, "version": 1}
    assert json.loads((tmp_path / "models/m/1/sparseflow.json").read_text())["route"] == "python"


def test_a_running_server_is_told_of_a_routers_engines_first(
    mlp: Callable[..., Path], sparseflow: Sparseflow
) -> None:
    for name, sparsity in (("m", "force"), ("d", "off"), ("e", "off")):
        model = mlp(f"{name}.onnx", seed=int(name == "e"))
        assert sparseflow("build", model, "-o", f"{name}.artifact", "--sparsity", sparsity, *BUILD).code == 0
    deploy = ("deploy", "triton", "m.artifact", "--sparse-from", "2", "--repository", "models", "--dense")
    first = sparseflow(*deploy, "d.artifact")
    assert (first.code, "A running server" in first.out) == (0, False), first.error
    lines = [
        f"  curl -X POST http://HOST:8000/v2/repository/models/{m}/load" for m in ("m-sparse", "m-dense", "m")
    ]
    told = "\n".join(["To load it into a running server, one after the other:", *lines])
    assert told in sparseflow(*deploy, "e.artifact").out
    assert told in sparseflow("deploy", "rollback", "--repository", "models", "--name", "m").out
