"""sparseflow-trt baseline create, and check."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import in_module, random_weight

if TYPE_CHECKING:
    from tests.commands import Ended, Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]
OPTIONS = ("--dim", "batch=1,4,8", "--backend", "onnxruntime", "--sparsity", "force")
METRICS = "def mean(outputs, inputs):\n    return sum(float(o['y'].mean()) for o in outputs)\n"


@pytest.fixture(autouse=True)
def not_on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def built(build_once: Callable[..., Path], mlp: MakeModel) -> Path:
    """A model and, in `out`, its artifact."""
    path = mlp()
    build_once(path, "out", *OPTIONS)
    return path


@pytest.fixture
def rebuilt(sparseflow: Sparseflow, built: Path) -> Callable[..., None]:
    """Builds the model again, in `new`, with its weights changed."""

    def build(change: Callable[[str, Any], Any] = lambda _, w: w, *options: str) -> None:
        model = onnx.load(built)
        for tensor in model.graph.initializer:
            changed = change(tensor.name, numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))
        onnx.save(model, "new.onnx")
        assert sparseflow("build", "new.onnx", *OPTIONS, *options, "-o", "new", "--force").code == 0

    return build


def failed(ended: Ended) -> set[tuple[str, str]]:
    """The kinds and names of the checks that failed."""
    assert ended.code == (4 if any(not c["passed"] for c in ended.json["checks"]) else 0)
    return {(c["kind"], c["name"]) for c in ended.json["checks"] if not c["passed"]}


def test_a_build_passes_its_own_baseline_which_is_small(sparseflow: Sparseflow, built: Path) -> None:
    made = sparseflow("baseline", "create", "out")
    assert (made.code, made.err) == (0, "")
    assert "3 input set(s), 3 of them kept as seeds." in made.out
    told = sparseflow("baseline", "create", "out", "-o", "my own.json").out
    assert told.endswith("in CI: sparseflow-trt check NEW.artifact --baseline 'my own.json'\n")
    before = Path("out.baseline.json").read_bytes()
    assert len(before) < 10_000
    ended = sparseflow("check", "out", "--baseline", "out.baseline.json")
    assert (ended.code, ended.err) == (0, "")
    assert "out against out.baseline.json: pass" in ended.out
    assert Path("out.baseline.json").read_bytes() == before, "not without --update"
    assert json.loads(before)["reference"].startswith("the artifact's own typed model, by ONNX Runtime")


def test_a_layer_in_the_plugin_is_sparse(sparseflow: Sparseflow, built: Path) -> None:
    plan = Path("out/plan.yaml").read_text()
    for kernel in ("plugin", "dense"):
        Path("plan.yaml").write_text(plan.replace("sparsity: sparse", f"sparsity: {kernel}"))
        backend = ("--backend", "onnxruntime")
        assert sparseflow("build", built, "--plan", "plan.yaml", *backend, "-o", kernel).code == 0
    for before in ("out", "plugin"):
        assert sparseflow("baseline", "create", before, "-o", "b.json").code == 0
        for after in ("out", "plugin"):
            assert failed(sparseflow("check", after, "--baseline", "b.json", "--json")) == set()
        lost = failed(sparseflow("check", "dense", "--baseline", "b.json", "--json"))
        assert lost == {("layer", "planned sparse: up_proj")}


def test_what_fails_fits_a_terminal_and_is_not_broken_elsewhere(
    sparseflow: Sparseflow, terminal: Sparseflow, rebuilt: Callable[..., None]
) -> None:
    assert sparseflow("baseline", "create", "out", "-o", "b.json").code == 0
    rebuilt(lambda _, weight: weight * 1.5)
    plain, shown = (run("check", "new", "--baseline", "b.json") for run in (sparseflow, terminal))
    assert (plain.code, shown.code, shown.err) == (4, 4, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert max(map(len, plain.out.splitlines())) > 160
    reasons = [p.out.partition("new against b.json: fail")[2].split() for p in (plain, shown)]
    assert reasons[0] == reasons[1] and len(reasons[0]) > 50


def test_the_reference_can_be_a_model(sparseflow: Sparseflow, built: Path) -> None:
    assert sparseflow("baseline", "create", "out", "--reference", built, "-o", "b.json").code == 0
    kept = json.loads(Path("b.json").read_bytes())
    assert kept["reference"].startswith("model.onnx (SHA-256 ")
    assert all(figures["mean_abs"] > 0 for figures in kept["figures"])
    assert failed(sparseflow("check", "out", "--baseline", "b.json", "--json")) == set()


def test_weights_are_not_called_precision(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    """Neither where layers have their unpruned weights back, nor where the reference is not pruned."""
    dense = mlp("dense.onnx")
    assert sparseflow("prune", dense, "-o", "pruned.onnx").code == 0
    assert sparseflow("build", "pruned.onnx", *OPTIONS, "-o", "sparse").code == 0
    create = ("baseline", "create", "sparse", "--tolerance", "atol=9,rtol=9,cosine=0", "--json")
    assert sparseflow(*create, "--reference", dense).json["validation"]["attribution"] is None
    own = sparseflow(*create, "--reference", "pruned.onnx").json["validation"]["attribution"]
    assert own["blamed"] == "precision"
    options = (*OPTIONS[:-2], "--sparsity", "off", "--dense-model", dense, "-o", "restored")
    assert sparseflow("build", "pruned.onnx", *options).code == 0
    refused = sparseflow("baseline", "create", "restored", "--reference", "pruned.onnx")
    assert "have weights of the unpruned model 'dense.onnx', which are not in pruned.onnx." in refused.error
    assert sparseflow("baseline", "create", "restored", "--reference", dense).code == 0
    said = sparseflow("check", "sparse", "--baseline", "restored.baseline.json").out
    assert "--reference pruned.onnx --dense-model dense.onnx --per-layer" in said


def test_given_inputs_are_stored(sparseflow: Sparseflow, built: Path) -> None:
    np.savez("x.npz", x=np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32))
    made = sparseflow("baseline", "create", "out", "--inputs", "x.npz", "-o", "b.json")
    assert "1 input set(s), 0 of them kept as seeds." in made.out
    Path("x.npz").unlink()
    assert failed(sparseflow("check", "out", "--baseline", "b.json", "--json")) == set()


def test_a_changed_output_fails(sparseflow: Sparseflow, built: Path, rebuilt: Callable[..., None]) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    rebuilt(lambda name, w: w * 1.5 if name == "down" else w)
    ended = sparseflow("check", "new", "--baseline", "out.baseline.json", "--json")
    assert ("output", "y") in failed(ended)
    assert ended.json["notes"], "it is another model"
    said = sparseflow("check", "new", "--baseline", "out.baseline.json")
    assert said.code == 4
    assert "outside the absolute bound" in said.out
    assert "new against out.baseline.json: fail" in said.out


def test_an_error_that_grew_within_its_tolerance_fails(
    sparseflow: Sparseflow, built: Path, rebuilt: Callable[..., None]
) -> None:
    assert sparseflow("baseline", "create", "out", "--reference", built).code == 0
    rebuilt(lambda _, w: w, "--precision", "bf16", "--backend", "tensorrt-rtx")
    found = failed(sparseflow("check", "new", "--baseline", "out.baseline.json", "--json"))
    assert ("error", "y") in found, "BF16 rounds eight times as coarsely as FP16"
    assert ("output", "y") not in found


def test_a_layer_that_is_2to4_no_more_fails_though_outputs_agree(
    sparseflow: Sparseflow, built: Path, rebuilt: Callable[..., None]
) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    rebuilt(lambda name, w: np.where(w == 0, 1e-6, w) if name == "up" else w, "--sparsity", "policy")
    found = failed(sparseflow("check", "new", "--baseline", "out.baseline.json", "--json"))
    assert found == {("layer", "weights 2:4: up_proj"), ("layer", "planned sparse: up_proj")}


def test_metrics_are_scored_on_both(
    sparseflow: Sparseflow, built: Path, rebuilt: Callable[..., None]
) -> None:
    Path("m.py").write_text(METRICS, encoding="utf-8")
    create = (
        "baseline",
        "create",
        "out",
        "-o",
        "b.json",
        "--metric",
        "m.py:mean",
        "--tolerance",
        "rms_atol=9",
    )
    assert sparseflow(*create, "--max-drop", "1e-3").code == 0
    check = ("check", "out", "--baseline", "b.json", "--json")
    assert failed(sparseflow(*check)) == {("metric", "m.py:mean")}, "a file names no code that runs"
    assert failed(sparseflow(*check, "--metric", "m.py:mean")) == set()
    rebuilt(lambda name, w: w - 0.05 if name == "down" else w)
    again = ("check", "new", "--baseline", "b.json", "--json", "--metric", "m.py:mean")
    assert ("metric", "m.py:mean") in failed(sparseflow(*again))
    assert ("metric", "m.py:mean") not in failed(sparseflow(*again, "--max-drop", "1e6"))


def test_what_a_metric_prints_is_not_in_what_a_program_reads(sparseflow: Sparseflow, built: Path) -> None:
    Path("m.py").write_text(
        METRICS.replace("    return", "    print('scored')\n    return"), encoding="utf-8"
    )
    made = sparseflow("baseline", "create", "out", "-o", "b.json", "--metric", "m.py:mean", "--json")
    assert (made.json["baseline"], "scored" in made.err) == ("b.json", True)
    told = sparseflow("check", "out", "--baseline", "b.json", "--metric", "m.py:mean", "--json")
    assert (told.json["verdict"], "scored" in told.err) == ("pass", True)


def test_a_metric_whose_code_has_changed_is_named(sparseflow: Sparseflow, built: Path) -> None:
    Path("m.py").write_text(METRICS, encoding="utf-8")
    assert (
        sparseflow(
            "baseline", "create", "out", "-o", "b.json", "--metric", "m.py:mean", "--max-drop", "1"
        ).code
        == 0
    )
    check = ("check", "out", "--baseline", "b.json", "--metric", "m.py:mean", "--json")
    assert sparseflow(*check).json["notes"] == []
    Path("m.py").write_text(METRICS.replace("sum(", "5 + sum("), encoding="utf-8")
    ended = sparseflow(*check)
    (note,) = ended.json["notes"]
    assert ended.code == 0
    assert note.startswith("Metric 'm.py:mean' gives ")
    assert "its code or one of its libraries has changed" in note


def test_update_tightens_and_never_loosens(
    sparseflow: Sparseflow, built: Path, rebuilt: Callable[..., None]
) -> None:
    assert sparseflow("baseline", "create", "out", "--reference", built, "-o", "b.json").code == 0
    before = json.loads(Path("b.json").read_bytes())
    ended = sparseflow("check", "out", "--baseline", "b.json", "--update")
    assert (ended.code, "b.json: tightened to this build." in ended.out) == (0, True)
    after = json.loads(Path("b.json").read_bytes())
    was, now = (kept["tolerances"]["y"] for kept in (before, after))
    assert now["max_abs_rms"] < was["max_abs_rms"] / 10
    assert now["min_cosine"] > was["min_cosine"]
    assert now["max_rel"] < was["max_rel"]
    assert after["outputs"] == before["outputs"]
    assert after["figures"] == before["figures"]
    Path("b.json").write_text(json.dumps({**after, "created": "before"}, indent=1) + "\n", encoding="utf-8")
    tight = Path("b.json").read_bytes()
    again = sparseflow("check", "out", "--baseline", "b.json", "--update")
    assert (again.code, "not changed: this build is no better" in again.out) == (0, True)
    assert Path("b.json").read_bytes() == tight, "a new time alone is no change to review"
    rebuilt(lambda name, w: w * 1.01 if name == "down" else w)
    tight = Path("b.json").read_bytes()
    ended = sparseflow("check", "new", "--baseline", "b.json", "--update")
    assert (ended.code, "not changed: checks failed" in ended.out) == (4, True)
    assert "sparseflow-trt validate new --reference new.onnx --per-layer" in ended.out
    assert Path("b.json").read_bytes() == tight


def test_github_is_told_that_nothing_could_be_checked(
    sparseflow: Sparseflow, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's page showed a step that failed, and nothing else."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(Path("summary.md").resolve()))
    ended = sparseflow("check", "out", "--baseline", "none.json")
    assert ended.code == 1
    assert "::error file=none.json,title=nothing was checked::none.json does not exist. Check" in ended.out
    assert "none.json does not exist." in Path("summary.md").read_text(encoding="utf-8")


def test_what_ci_reads(
    sparseflow: Sparseflow, built: Path, rebuilt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    rebuilt(lambda name, w: np.where(w == 0, 1e-6, w) if name == "up" else w, "--sparsity", "policy")
    check = ("check", "new", "--baseline", "out.baseline.json", "--junit", "junit.xml")
    said = sparseflow(*check)
    assert "::error" not in said.out
    assert "Why a layer is not sparse: sparseflow-trt inspect new." in said.out
    suite = ElementTree.parse("junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("failures") == "2"
    assert len(suite.findall("testcase")) == int(suite.get("tests", ""))
    failures = suite.findall("testcase/failure")
    assert failures[0].get("message") == "layer 'up_proj': weights 2:4 in the baseline, now not 2:4."
    assert (
        "::error file=out.baseline.json,title=layer%3A " in sparseflow(*check, "--annotations", "github").out
    )
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(Path("summary.md").resolve()))
    assert "::error" not in sparseflow(*check, "--annotations", "off").out
    ended = sparseflow(*check, "--json")
    assert ended.json["verdict"] == "fail"
    assert len([line for line in ended.err.splitlines() if line.startswith("::error ")]) == 2
    summary = Path("summary.md").read_text(encoding="utf-8")
    assert "### ❌ new against out.baseline.json: fail" in summary
    assert "| ❌ | weights 2:4: up&#95;proj |" in summary


def test_an_error_is_in_what_ci_reads_in_the_place_of_an_earlier_pass(
    sparseflow: Sparseflow, built: Path
) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    check = ("check", "out", "--baseline", "out.baseline.json", "--junit", "junit.xml")
    assert sparseflow(*check).code == 0
    Path("out.baseline.json").write_text("{}", encoding="utf-8")
    ended = sparseflow(*check)
    assert ended.code == 1
    suite = ElementTree.parse("junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert [suite.get(count) for count in ("name", "tests", "failures", "errors")] == ["out", "1", "0", "1"]
    assert [error.get("message") for error in suite.findall("testcase/error")] == [ended.error]


def test_a_check_that_is_stopped_leaves_no_earlier_pass_for_ci(
    sparseflow: Sparseflow, built: Path, own_folder: Path
) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    check = ("check", "out", "--baseline", "out.baseline.json", "--junit", "junit.xml")
    assert sparseflow(*check).code == 0
    (own_folder / "slow.py").write_text(
        "import os, signal\ndef score(outputs, inputs): os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert sparseflow(*check, "--metric", "slow.py:score").code == 143
    suite = ElementTree.parse("junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert [error.get("message") for error in suite.findall("testcase/error")] == ["it was stopped."]


def test_no_file_that_is_read_is_written(sparseflow: Sparseflow, built: Path) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    before = Path("out.baseline.json").read_bytes()
    ended = sparseflow("check", "out", "--baseline", "out.baseline.json", "--junit", "./out.baseline.json")
    assert (ended.code, ended.error) == (2, "--junit out.baseline.json is the baseline itself.")
    assert Path("out.baseline.json").read_bytes() == before
    ended = sparseflow("baseline", "create", "out", "-o", "out/manifest.json")
    said = "out/manifest.json is inside the artifact, which stays as it was built."
    assert (ended.code, ended.error) == (2, said)
    assert sparseflow("validate", "out", "--reference", built).code == 0


def test_layers_that_fared_alike_are_one_row_and_one_sentence(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    """torch's exporter numbers its nodes: 'node_MatMul_1' is no name that a reader could know."""
    dense = {f"up{i}": random_weight(64, 64) / 8 for i in range(3)}
    for name, weights in (("was", {k: prune_2to4(w, 0) for k, w in dense.items()}), ("now", dense)):
        nodes = [
            helper.make_node("MatMul", [f"x{i or ''}", f"up{i}"], [f"x{i + 1}"], f"node_MatMul_{i}")
            for i in range(3)
        ]
        for i, node in enumerate(nodes):
            in_module(node, f"h.{i}.up")
        models.save(models.model(nodes, weights, {"x": ("m", 64)}, outputs=["x3"]), f"{name}.onnx")
        options = ("--dim", "m=1,2,4", "--backend", "onnxruntime")
        assert sparseflow("build", f"{name}.onnx", *options, "--force", "-o", name).code == 0
    assert sparseflow("baseline", "create", "was").code == 0
    said = sparseflow("check", "now", "--baseline", "was.baseline.json").out
    assert "  layer 'h.*.up' (3): weights 2:4 in the baseline, now not 2:4.\n" in said
    assert re.search(r"^layer +no +weights 2:4: h\.\*\.up \(3\) +2:4 +not 2:4 +stays *$", said, re.M)
    assert "node_" not in said
    told = sparseflow("check", "now", "--baseline", "was.baseline.json", "--json").json["checks"]
    assert [c["layer"] for c in told if c["layer"]] == [f"node_MatMul_{i}" for i in range(3)]
    assert sparseflow("check", "was", "--baseline", "was.baseline.json", "--update").code == 0
    older = json.loads(Path("was.baseline.json").read_text())
    for layer in older["evidence"]["layers"]:
        del layer["module"]
    Path("older.json").write_text(json.dumps(older, indent=1, ensure_ascii=False) + "\n")
    again = sparseflow("check", "now", "--baseline", "older.json").out
    assert "  layer 'h.*.up' (3): weights 2:4 in the baseline, now not 2:4.\n" in again
    same = sparseflow("check", "was", "--baseline", "older.json", "--update")
    assert (same.code, "older.json: not changed: this build is no better." in same.out) == (0, True)


def test_no_baseline_of_outputs_that_differ(sparseflow: Sparseflow, built: Path) -> None:
    strict = ("--tolerance", "atol=0,rtol=0,cosine=1")
    ended = sparseflow("baseline", "create", "out", "--reference", built, *strict)
    assert (ended.code, "No baseline was written." in ended.out) == (4, True)
    assert not Path("out.baseline.json").exists()


def test_a_baseline_too_large_for_version_control_is_not_written(sparseflow: Sparseflow, built: Path) -> None:
    ended = sparseflow("baseline", "create", "out", "--max-size", "0.004")
    assert "0.0 MB of inputs), but 0.004 MB is the limit" in ended.error
    assert not Path("out.baseline.json").exists()


def test_outputs_too_large_are_refused_before_the_artifact_runs(sparseflow: Sparseflow, built: Path) -> None:
    """With --reference the typed model is a candidate alone: one that cannot run is not found out."""
    made = sparseflow("baseline", "create", "out", "--reference", built)
    arrays = json.loads(Path("out.baseline.json").read_text())["outputs"].values()
    room = sum(len(array["data"]) for of in arrays for array in of.values())
    limit = ("--max-size", f"{(room - 1) / 1e6:.6f}")
    Path("measure.py").write_text("def no(outputs, inputs):\n    raise ValueError('was scored')\n")
    scored = ("--metric", "measure.py:no")
    late = sparseflow("baseline", "create", "out", "--reference", built, *scored)
    early = sparseflow("baseline", "create", "out", "--reference", built, *scored, *limit)
    assert (made.code, "was scored" in late.error) == (0, True)
    assert (early.code, f"the baseline would take {room / 1e6:.1f} MB" in early.error) == (1, True)


DAMAGES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda kept: kept.update(schema_version=2), "schema version 2"),
    (lambda kept: kept.pop("tolerances"), "tolerances"),
    (lambda kept: kept["inputs"][0].update(sha256="0" * 64), "cannot be drawn again"),
    (lambda kept: kept["inputs"][0].update(shapes={"x": [999, 64]}), "cannot be drawn again"),
    (lambda kept: kept["inputs"][0].update(shapes={"x": [1 << 40, 64]}), "which is not drawn"),
    (lambda kept: kept["inputs"][0].update(shapes={}), "has no shape for input 'x'"),
    (lambda kept: kept["inputs"][0].update(name="other"), "not those of its input sets"),
    (lambda kept: kept["outputs"]["default:min"].clear(), "not those of its outputs"),
    (lambda kept: kept["outputs"]["default:min"]["y"].update(data="AAAA"), "cannot be read"),
    (lambda kept: kept.update(inputs=[]), "inputs"),
]


def test_a_damaged_baseline_is_refused(sparseflow: Sparseflow, built: Path) -> None:
    assert sparseflow("baseline", "create", "out").code == 0
    text = Path("out.baseline.json").read_text(encoding="utf-8")
    for change, words in DAMAGES:
        kept = json.loads(text)
        change(kept)
        Path("b.json").write_text(json.dumps(kept), encoding="utf-8")
        assert words in sparseflow("check", "out", "--baseline", "b.json").error


def test_what_is_no_baseline_is_refused(sparseflow: Sparseflow, built: Path) -> None:
    for text in ("", "[]", "{}", "no json"):
        Path("b.json").write_text(text, encoding="utf-8")
        assert "b.json" in sparseflow("check", "out", "--baseline", "b.json").error
    assert "does not exist" in sparseflow("check", "out", "--baseline", "nowhere.json", "--json").error
