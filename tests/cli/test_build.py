"""sparseflow-trt build: what it prints, how it ends, and what it leaves behind when it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from onnx import helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.errors import EXIT_NOT_SPARSE
from tests.graphs import random_weight

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
Left = Callable[[Path], "list[str]"]

BATCH = ("--dim", "batch=1,4,8")
QUICK = (*BATCH, "--backend", "onnxruntime")
IMPOSSIBLE = ("--tolerance", "atol=0,rtol=0,cosine=1")


def test_says_what_was_decided_built_and_checked(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    ended = sparseflow("build", mlp(), *BATCH, "--backend", "tensorrt-rtx", "--sparsity", "force")
    assert (ended.code, ended.err) == (0, "")
    for words in (
        "asked for: sparsity is forced",
        "weights are not 2:4",
        "1 of 2 layers could be 2:4 but are not, and stay dense: 'down_proj'.",
        "Engine: model.engine by tensorrt-rtx (tensorrt-rtx 1.",
        "The backend is tensorrt-rtx: it was asked for.",
        "this engine runs dense, and no speedup is claimed for it.",
        "Validation against the FP32 reference: pass",
        "Artifact: model.artifact\n",
        "Report:   model.artifact/report.html\n",
    ):
        assert words in ended.out
    rows = {line.split("  ")[0]: line for line in ended.out.splitlines()}
    assert " not run" in rows["engine (tensorrt-rtx)"], "which is no pass"
    assert (
        "  engine (tensorrt-rtx): A TensorRT-RTX engine needs a GPU to run" in ended.out or "8.0" in ended.out
    )
    manifest = json.loads((own_folder / "model.artifact" / "manifest.json").read_text())
    assert manifest["command"].startswith("sparseflow-trt build ")
    assert manifest["command"].endswith("--dim batch=1,4,8 --backend tensorrt-rtx --sparsity force")


def test_where_sparsity_is_off_there_is_no_policy(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    assert sparseflow("build", mlp(), *BATCH, "--sparsity", "off", "--backend", "onnxruntime").code == 0
    built = own_folder / "model.artifact"
    assert not (built / "policy.json").exists()
    assert json.loads((built / "manifest.json").read_text())["policy"] is None
    assert "policy: none\n" in (built / "plan.yaml").read_text()
    assert "No policy." in (built / "report.html").read_text()


def test_auto_says_which_backend_and_why(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("build", mlp(), *BATCH)
    assert ended.code == 0
    assert "The backend is tensorrt-rtx: it is installed" in ended.out


def test_a_model_that_nobody_pruned_is_told_to_be(sparseflow: Sparseflow, models: Models) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    build = ("build", models.matmul(weight), "--backend", "onnxruntime", "--dim", "batch=1,8,16")
    ended = sparseflow(*build)
    assert ended.code == 0
    assert (
        "No weights are 2:4, though 1 could be: nothing can run sparse. `sparseflow-trt prune " in ended.out
    )


def test_a_model_that_was_pruned_another_way_is_told_as_inspect_tells_it(
    sparseflow: Sparseflow, models: Models
) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    path = models.matmul(np.where(abs(weight) > np.median(abs(weight)), weight, 0))
    told = "1 layer(s) seem to have been pruned before: prune the model from before that"
    ended = sparseflow("build", path, "--backend", "onnxruntime", "--dim", "batch=1,8,16")
    assert f"`sparseflow-trt prune {path}` prunes them. {told}" in " ".join(ended.out.split())
    assert told in sparseflow("inspect", path).out


@pytest.mark.parametrize("command", ["build", "plan"])
def test_what_is_not_2to4_is_not_forced(
    command: str, sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    path = models.matmul(weight)
    ended = sparseflow(command, path, "--sparsity", "force", "--dim", "batch=1,8,16", "-o", "out")
    assert ended.code == EXIT_NOT_SPARSE
    assert ended.error == (
        f"{path.name} has no weights that are 2:4, and --sparsity force takes 2:4 weights as they are: of "
        "layer 'mm' 100% of 1024 groups hold more than two non-zeros."
    )
    assert f"`sparseflow-trt prune {path} -o {path.stem}.2to4.onnx`" in ended.err
    assert "--sparsity policy" in ended.err
    assert not (own_folder / "out").exists()


def test_a_plan_edited_to_be_sparse_is_refused_where_weights_are_not(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    path = mlp()
    assert sparseflow("plan", path, "--dim", "batch=1,4,8", "-o", "plan.yaml").code == 0
    plan = own_folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("sparsity: dense", "sparsity: sparse"))
    ended = sparseflow("build", path, "--plan", "plan.yaml", "--backend", "onnxruntime", "-o", "out")
    assert ended.code == EXIT_NOT_SPARSE
    assert "'down_proj' is planned sparse but is not-sparse" in ended.error
    assert not (own_folder / "out").exists()


def test_what_can_be_pruned_is_told_beside_a_classifier(sparseflow: Sparseflow, with_head: Path) -> None:
    ended = sparseflow("build", with_head, "--backend", "onnxruntime", "--dim", "batch=8")
    prune, inspect = (f"`sparseflow-trt {name} {with_head}`" for name in ("prune", "inspect"))
    assert f"{prune} prunes 1 of them, and {inspect} says" in " ".join(ended.out.split())


def test_again_does_nothing(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    path = mlp()
    assert "Nothing has changed" not in sparseflow("build", path, *QUICK).out
    assert "Nothing has changed since this artifact was built" in sparseflow("build", path, *QUICK).out
    assert sparseflow("build", path, *QUICK, "--json").json["unchanged"] is True
    assert sparseflow("build", path, *QUICK, "--force", "--json").json["unchanged"] is False


def test_json_holds_the_manifest(sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path) -> None:
    ended = sparseflow("build", mlp(), *QUICK, "-o", "out", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["artifact"] == "out"
    assert ended.json["manifest"] == json.loads((own_folder / "out" / "manifest.json").read_text())


def test_the_current_folder_may_be_the_artifact(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mlp()
    (own_folder / "here").mkdir()
    monkeypatch.chdir(own_folder / "here")
    assert sparseflow("build", path, *QUICK, "-o", "..").error.endswith(" exists and is not an artifact.")
    assert sparseflow("build", path, *QUICK, "-o", ".").code == 0
    assert (own_folder / "here" / "manifest.json").is_file()


def test_outputs_that_differ_exit_with_4_and_are_kept(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path, left: Left
) -> None:
    path = mlp()
    for options in (("--json",), (), ("--force",)):
        ended = sparseflow("build", path, *QUICK, *IMPOSSIBLE, "-o", "out", *options)
        assert (ended.code, ended.err) == (4, "")
        assert "--json" not in options or ended.json["manifest"]["status"] == "fail"
        assert json.loads((own_folder / "out" / "manifest.json").read_text())["status"] == "fail"
    assert "Validation against the FP32 reference: fail" in ended.out
    assert left(own_folder) == ["model.onnx", "out"]
    assert sparseflow("build", path, *QUICK, "-o", "out").code == 0
    ended = sparseflow("build", path, *QUICK, *IMPOSSIBLE, "-o", "out")
    assert ended.code == 4
    assert "Artifact: out.failed\n" in ended.out
    assert json.loads((own_folder / "out" / "manifest.json").read_text())["status"] == "pass"


def test_a_terminal_breaks_no_word_and_is_told_once_why_it_failed(
    sparseflow: Sparseflow, terminal: Sparseflow, mlp: MakeModel
) -> None:
    tight = ("--tolerance", "atol=1e-9,rtol=1e-9", "--backend", "tensorrt-rtx", "-o", "out")
    piped = sparseflow("build", mlp(), "--dim", "batch=1,4,8", *tight)
    assert piped.code == 4
    assert piped.out.count("worst at") == 1
    shown = terminal("inspect", "out")
    told = shown.out[shown.out.index("\nEngine: ") : shown.out.index("\nArtifact: ")]
    assert max(map(len, told.splitlines())) <= 80
    sentence = next(line for line in piped.out.splitlines() if "worst at" in line)
    assert " ".join(sentence.split()) in " ".join(told.split())


def test_rows_name_their_layers_where_there_is_room(
    sparseflow: Sparseflow, terminal: Sparseflow, models: Models
) -> None:
    names = [f"h.{i}.attn.{name}" for i in range(2) for name in ("c_q", "c_k", "c_v", "c_g")]
    nodes = [
        helper.make_node("MatMul", [f"x{i or ''}", f"w{i}"], [f"x{i + 1}"], name)
        for i, name in enumerate(names)
    ]
    weights = {f"w{i}": random_weight(64, 64) for i in range(len(names))}
    models.save(models.model(nodes, weights, {"x": ("m", 64)}, outputs=["x8"]), "gpt.onnx")
    options = ("--dim", "m=1,2,4", "--backend", "onnxruntime", "-o", "out")
    for ended in (sparseflow("build", "gpt.onnx", *options), sparseflow("inspect", "out")):
        head, *rows = ended.out[ended.out.index("Layer ") :].splitlines()
        assert re.match(r"Layer +Count +Kind", head)
        told = " ".join(row[: head.index("Count")].strip() for row in rows)
        assert told.startswith("h.*.attn.c_q (2), h.*.attn.c_k (2), h.*.attn.c_v (2) and 1 more")
    narrow = terminal("inspect", "out").out
    assert re.search(r"^Count +Kind", narrow, re.M)
    assert "Not shown, as the terminal is narrow: Layer." in narrow


def test_the_report_names_the_policy_of_a_plan_that_was_given(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    path = mlp()
    for policy, told in (
        (("--policy", "h200"), "The plan was given, made by policy h200 (NVIDIA H200, shipped)."),
        (("--sparsity", "off"), "No policy."),
    ):
        assert sparseflow("plan", path, *BATCH, *policy, "-o", "plan.yaml").code == 0
        built = ("--plan", "plan.yaml", "--backend", "onnxruntime", "-o", "out", "--force")
        assert sparseflow("build", path, *built).code == 0
        page = Path("out/report.html").read_text()
        assert told in page
        assert ("the build used no policy" in page) == (told == "No policy.")


def test_an_edited_plan_is_built(sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path) -> None:
    path = mlp()
    sparseflow("plan", path, *BATCH, "-o", "plan.yaml")
    plan = own_folder / "plan.yaml"
    data = yaml.safe_load(plan.read_text())
    data["layers"][1]["precision"] = "fp32"
    plan.write_text(yaml.safe_dump(data))
    manifest = sparseflow("build", path, "--plan", plan, "--json").json["manifest"]
    assert [layer["precision"] for layer in manifest["layers"]] == ["fp16", "fp32"]
    evidence = [layer for layer in manifest["engine"]["layers"] if "down_proj" in layer["nodes"]]
    assert [layer["precision"] for layer in evidence] == ["Float"]

    ended = sparseflow("build", path, "--plan", plan, "--precision", "fp32")
    assert ended.code == 2
    assert "the plan already sets shapes, policy, precision and sparsity" in ended.error


def test_a_plan_for_another_file_is_built_and_said(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    sparseflow("plan", mlp(), *BATCH, "-o", "plan.yaml")
    command = ("build", mlp("other.onnx", seed=1), "--plan", "plan.yaml", *QUICK[2:], "-o", "out")
    said = "The plan was made for another file than other.onnx (SHA-256 "
    ended = sparseflow(*command)
    assert (ended.code, ended.out.count(said)) == (0, 1)
    assert said in sparseflow(*command).out, "also where nothing has changed"
    assert said in (own_folder / "out" / "report.html").read_text(encoding="utf-8")
    plan = own_folder / "plan.yaml"
    plan.write_text(yaml.safe_dump(yaml.safe_load(plan.read_text()) | {"model_sha256": ""}))
    assert sparseflow(*command, "--json").json["manifest"]["notes"] == []
    assert sparseflow("build", mlp(), *QUICK, "-o", "own", "--json").json["manifest"]["notes"] == []


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda plan: plan["layers"].pop(), "'down_proj' is not in the plan"),
        (
            lambda plan: plan["layers"][0].update(precision="int3"),
            "precision 'int3' of layer 'up_proj' is none that a plan may ask for (fp32, fp16, bf16).",
        ),
        (lambda plan: plan.update(colour="red"), "colour: Extra inputs are not permitted"),
        (lambda plan: plan["profiles"][0]["inputs"]["x"].update(min=[9, 64]), "min ≤ opt ≤ max"),
        (lambda plan: plan.update(profiles=[]), "input 'x' has dynamic dimensions batch"),
    ],
)
def test_a_wrong_plan(
    edit: Callable[[object], None],
    says: str,
    sparseflow: Sparseflow,
    mlp: MakeModel,
    own_folder: Path,
    left: Left,
) -> None:
    path = mlp()
    plan = own_folder / "plan.yaml"
    sparseflow("plan", path, *BATCH, "-o", plan)
    data = yaml.safe_load(plan.read_text())
    edit(data)
    plan.write_text(yaml.safe_dump(data))
    assert says in sparseflow("build", path, "--plan", plan).error
    assert left(own_folder) == ["model.onnx", "plan.yaml"]


@pytest.mark.parametrize(
    ("text", "says"), [("layers: [", "is not YAML"), ("", "holds no mapping"), ("\x00", "is not YAML")]
)
def test_a_plan_that_is_none(
    text: str, says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    path = mlp()
    (own_folder / "plan.yaml").write_text(text)
    assert says in sparseflow("build", path, "--plan", "plan.yaml").error
    assert "no.yaml does not exist." in sparseflow("build", path, "--plan", "no.yaml").error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--inputs", "no.npz"), "no.npz"),
        (("--inputs", "model.onnx"), "is not a source of inputs"),
        (("--tolerance", "atol=lots"), "'lots' for atol in the tolerance"),
        (("--tolerance", "z:atol=1"), "a tolerance is for output 'z'; the model has 'y'."),
        (("-o", "taken"), "taken exists and is not an artifact."),
        (("-o", "model.onnx"), "model.onnx exists and is not an artifact."),
        (("-o", "no/such/place"), "no/such/place cannot be written: the folder no/such does not exist."),
        (("--backend", "tensorrt"), "TensorRT is not installed:"),
    ],
)
def test_what_cannot_be_built(
    options: tuple[str, ...], says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path, left: Left
) -> None:
    (own_folder / "taken").mkdir()
    (own_folder / "taken" / "notes.txt").write_text("mine")
    ended = sparseflow("build", mlp(), *(QUICK if "--backend" not in options else BATCH), *options)
    assert says in ended.error
    words = "not a source" in says or "'lots'" in says
    assert ended.code == (6 if "--backend" in options else 2 if words else 1)
    assert left(own_folder) == ["model.onnx", "taken"]
    assert left(own_folder / "taken") == ["notes.txt"]


def test_a_folder_that_cannot_be_written_to(
    process: Sparseflow, mlp: MakeModel, own_folder: Path, left: Left
) -> None:
    closed = own_folder / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        pytest.skip("whoever runs this may write anywhere (root)")
    ended = process("build", mlp(), *QUICK, "-o", closed / "out")
    assert "out cannot be written: Permission denied." in ended.error
    assert left(closed) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "sparseflow-test", str(folder)]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(
    "n", [2048, 1024]
)  # FP16 weights of 1.2 MB, and of 600 KB, where the engine is too much
def test_a_full_disk(
    backend: str, n: int, process: Sparseflow, mlp: MakeModel, small_disk: Path, left: Left
) -> None:
    path = mlp(k=256, n=n)
    ended = process("build", path, *BATCH, "--backend", backend, "-o", small_disk / "out")
    assert ended.code == 1
    assert " cannot be written: No space left on device." in ended.error
    assert left(small_disk) == []


def test_a_file_that_may_not_grow(process: Sparseflow, mlp: MakeModel, own_folder: Path, left: Left) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    path = mlp(k=256, n=1024)
    ended = process("build", path, *QUICK, "-o", "out", preexec_fn=limit)
    assert ended.code == 1
    assert " cannot be written: " in ended.error
    assert left(own_folder) == ["model.onnx"]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def hangup_is_heard() -> Iterator[None]:
    """Also in a run of the tests under nohup, whose processes inherit that it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_is_heard")
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_a_build_that_is_stopped_leaves_nothing(
    start: Start, mlp: MakeModel, own_folder: Path, left: Left, number: int, code: int, says: str
) -> None:
    running = start("build", mlp(), *BATCH, "--backend", "tensorrt-rtx", "-o", "out")
    _wait_for(lambda: _children(running.pid))
    (child,) = _children(running.pid)
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert (out, err.strip()) == ("", f"error: {says}; nothing unfinished was written.")
    _wait_for(lambda: _is_gone(child))  # by the kernel, where Ctrl-C came while it was being started
    assert left(own_folder) == ["model.onnx"]
    assert left(own_folder / "temporary") == []


def test_a_killed_build_leaves_the_old_artifact_and_the_next_one_cleans_up(
    start: Start, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path, left: Left
) -> None:
    path = mlp()
    assert sparseflow("build", path, *QUICK, "-o", "out").code == 0
    before = {file.name: sha256_of(file) for file in (own_folder / "out").iterdir()}
    running = start("build", path, *BATCH, "--backend", "tensorrt-rtx", "-o", "out")
    _wait_for(lambda: _children(running.pid))
    (child,) = _children(running.pid)
    running.kill()
    running.communicate(timeout=20)
    _wait_for(lambda: _is_gone(child))
    assert {file.name: sha256_of(file) for file in (own_folder / "out").iterdir()} == before
    assert len(left(own_folder)) == 3, "what it had begun"
    assert sparseflow("build", path, *QUICK, "-o", "out", "--force").code == 0
    assert left(own_folder) == ["model.onnx", "out"]


def test_an_artifacts_typed_model_is_exported(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    assert sparseflow("build", mlp(), *QUICK, "-o", "some.artifact").code == 0
    ended = sparseflow("export", "some.artifact")
    assert (ended.code, ended.err) == (0, "")
    assert "there was nothing to put back." in ended.out
    assert "some.typed.onnx" in ended.out
    assert (own_folder / "some.typed.onnx").is_file()
    said = sparseflow("export", "some.artifact", "-o", "other.onnx", "--json").json
    assert (said["output"], said["put_back"]) == ("other.onnx", [])
    refused = sparseflow("export", "some.artifact", "--no-check")
    assert (refused.code, "is an artifact, whose model is written as it is typed" in refused.error) == (
        2,
        True,
    )
