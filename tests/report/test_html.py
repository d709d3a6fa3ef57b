"""The report: one page that needs nothing else, and says the verdict."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.artifacts.manifest import DuelRecord, Manifest
from sparseflow_trt.artifacts.verdict import ZERO, Attribution
from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.cli.attributions import print_attribution
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.precision_record import PrecisionSearch
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.report.html import write_report
from sparseflow_trt.validation.tolerances import parse_tolerances

if TYPE_CHECKING:
    from tests.conftest import Models

EVIL = "<script>alert('x')</script>"


class _Page(HTMLParser):
    """The tags of a page, its attributes, and its text; checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "br", "wbr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


@pytest.fixture
def report(models: Models, tmp_path: Path) -> Callable[..., tuple[str, Manifest]]:
    """Builds a model whose names are code, and gives the report."""

    def make(*tolerances: str, **options: Any) -> tuple[str, Manifest]:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], name=EVIL),
            helper.make_node("ArgMax", ["a"], [f"best{EVIL}"], axis=1, keepdims=0),
            helper.make_node("Identity", ["a"], ["y"]),
        ]
        weights = {"w": np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32) / 8}
        model = models.model(nodes, weights, outputs=("y", f"best{EVIL}"))
        model.graph.output[1].type.tensor_type.elem_type = 7
        path = models.save(model, f"a&b{EVIL.replace('/', '')}.onnx")
        given = ValidationOptions(tolerances=parse_tolerances(tolerances), **options)
        plan = PlanOptions(axes={"batch": (2, 4, 8)})
        result = build(path, BuildOptions(tmp_path / "out", plan, "onnxruntime", given, command=EVIL))
        return (result.artifact / "report.html").read_text(encoding="utf-8"), result.manifest

    return make


def test_needs_nothing_else_and_escapes_names(report: Callable[..., tuple[str, Manifest]]) -> None:
    text, manifest = report()
    page = _Page(text)
    assert page.tags.count("script") == 1, "the page's own"
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count("<script>") == 1
    assert "default-src 'none'" in text
    assert EVIL in "".join(page.text), "it is there as text"
    assert manifest.layers[0].name == EVIL


def test_says_the_verdict_and_the_figures(report: Callable[..., tuple[str, Manifest]]) -> None:
    text, manifest = report()
    said = re.sub(r"\s+", " ", " ".join(_Page(text).text))
    assert manifest.status == "pass"
    assert re.search(r"\.onnx pass ", said)
    assert manifest.validation.reason in said
    assert " 2, 4, 8 " in said
    assert manifest.model.sha256 in said
    assert not re.search(r"\b(nan|inf|None)\b", said, re.IGNORECASE)
    assert "1.0000" in said, "the share of equal indices"


def test_says_why_it_failed(report: Callable[..., tuple[str, Manifest]]) -> None:
    text, manifest = report("atol=0,rtol=0,cosine=1")
    said = re.sub(r"\s+", " ", " ".join(_Page(text).text))
    assert manifest.status == "fail"
    assert re.search(r"\.onnx fail ", said)
    wrong = next(o for c in manifest.validation.candidates for o in c.outputs if not o.passed)
    assert wrong.reason in said


def test_an_output_that_nothing_was_compared_with_is_no_pass(
    report: Callable[..., tuple[str, Manifest]], tmp_path: Path
) -> None:
    _, manifest = report()
    flat = [
        c.model_copy(update={"tells_nothing": {o.output: ZERO for o in c.outputs}, "reason": "Nothing told."})
        for c in manifest.validation.candidates
    ]
    validation = manifest.validation.model_copy(update={"candidates": tuple(flat)})
    write_report(manifest.model_copy(update={"validation": validation}), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    said = re.sub(r"\s+", " ", " ".join(_Page(page).text))
    number = sum(len(c.outputs) for c in flat)
    assert page.count('<td class="not-run-text">not run</td>') == number > 0
    assert said.count("Nothing told.") >= len(flat)
    assert '<td class="pass-text">' not in page


def test_unknown_figures_and_an_empty_engine_leave_no_gap(
    report: Callable[..., tuple[str, Manifest]], tmp_path: Path
) -> None:
    _, manifest = report()
    layer = manifest.layers[0].model_copy(update={"m": {"default": (None, None, None)}})
    candidate = manifest.validation.candidates[0]
    blank = candidate.outputs[0].model_copy(
        update={"max_abs": None, "mean_abs": None, "cosine": None, "psnr": None}
    )
    skipped = candidate.model_copy(update={"verdict": "not run", "reason": "no GPU here", "outputs": ()})
    candidates = (candidate.model_copy(update={"outputs": (blank,)}), skipped)
    changed = manifest.model_copy(
        update={
            "layers": (layer,),
            "engine": manifest.engine.model_copy(update={"layers": ()}),
            "validation": manifest.validation.model_copy(update={"candidates": candidates}),
        }
    )
    write_report(changed, tmp_path / "page.html")
    said = re.sub(r"\s+", " ", " ".join(_Page((tmp_path / "page.html").read_text()).text))
    assert " ?, ?, ? " in said
    assert "not run. no GPU here" in said
    assert "None" not in said
    assert "What the engine says it runs" not in said
    assert "No times are known" in said
    write_report(changed, tmp_path / "page.html", find_policy("h200"))
    page = (tmp_path / "page.html").read_text()
    assert "h200&#39; holds no such times near these layers.</p>" in page


def test_shows_how_precisions_were_found(report: Callable[..., tuple[str, Manifest]], tmp_path: Path) -> None:
    text, manifest = report()
    assert 'id="precisions"' not in text
    row = {"op_type": "MatMul", "work": 1.0, "largest": 3.5}
    search = {
        "held_to": "fp16", "inputs": f"1 input set(s) read from {EVIL}: a", "layers": 2, "groups": 4,
        "measuring_runs": 1, "irreducible": False, "work": {"fp16": 0.75, "fp32": 0.25}, "cost": 4.75,
        "runs": [{"what": "everything in FP16", "groups": 0, "passed": False, "max_abs": None}],
        "sensitivities": [
            {**row, "node": manifest.layers[0].name, "precision": "fp16", "fp16_error": 0.5},
            {**row, "node": EVIL, "precision": "fp32", "why": "it reaches 1.0e+05"},
        ],
        "notes": ["The inputs were drawn at random."],
    }  # fmt: skip
    first, *others = manifest.layers
    layers = (first.model_copy(update={"module": "bears it"}), *others)
    found = PrecisionSearch.model_validate(search)
    changed = manifest.model_copy(update={"precision_search": found, "layers": layers})
    write_report(changed, tmp_path / "page.html")
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    said = re.sub(r"\s+", " ", " ".join(page.text))
    assert "#precisions" in page.links
    assert page.tags.count("script") == 1
    for words in (
        "in 1 compared run; outputs held to FP16's tolerance.",
        "Share of the products' M·N·K: 75 % FP16, 25 % FP32.",
        "The runs were used up",
        "The inputs were drawn at random.",
        "everything in FP16 fail – –",
        "fp32 3.50e+00 – – it reaches 1.0e+05 bears it fp16 3.50e+00 5.00e-01 –",
    ):
        assert words in said, words


def test_shows_both_engines_times_and_what_the_losing_one_ran(
    report: Callable[..., tuple[str, Manifest]], tmp_path: Path
) -> None:
    text, manifest = report()
    assert 'id="duel"' not in text
    times = {"p50": 1.5, "p90": 1.625, "p99": 1.75, "low": 1.25, "high": 1.875}
    outcome = {
        "layer": EVIL, "profile": 0, "engine_layer": "", "merged_with": ["up", EVIL], "tactic": "",
        "sparse": False, "precision": "", "best_sparse_ms": 0.125, "best_sparse_tactic": "sm90_sparse_gemm",
        "best_dense_ms": None,
        "best_dense_tactic": "", "tried_sparse": 1, "tried_dense": 0, "why": "the dense one is faster",
    }  # fmt: skip
    row = {
        "profile": EVIL, "shapes": {"ids": [4, 64], "mask": [4]}, "sparse": times,
        "dense": {**times, "p50": 1.375}, "speedup": 0.917, "low": 0.9, "high": 0.95,
    }  # fmt: skip
    duel = {
        "margin": 0.02, "ships": "dense", "why": "Dense ships: it does.", "speedup": 0.917, "rounds": 15,
        "launches": 20, "profiles": [row], "sparse_outcomes": [outcome],
    }  # fmt: skip
    changed = {"duel": DuelRecord.model_validate(duel), "notes": ("The plan is another's.",)}
    write_report(manifest.model_copy(update=changed), tmp_path / "page.html")
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    said = re.sub(r"\s+", " ", " ".join(page.text))
    assert page.tags.count("script") == 1
    for words in (
        "The plan is another's.", "Dense ships: it does.", "15 rounds of 20 CUDA graph launches",
        f"{EVIL} ids 4×64, mask 4 sparse 1.5000 (1.2500–1.8750) 1.6250 1.7500 0.917× (0.900–0.950)",
        "dense 1.3750 (1.2500–1.8750) 1.6250 1.7500",
        "What became of each layer in the sparse engine, which does not ship",
        f"{EVIL} merged with up, {EVIL} 0 – ? no 0.125 – 1 sparse 0 dense best sparse sm90_ sparse_ gemm",
        "gemm the dense one is faster",
    ):  # fmt: skip
        assert words in said, said
    bare = {"duel": DuelRecord(margin=0.02, ships="dense", why="There was nothing to compare.")}
    write_report(manifest.model_copy(update=bare), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "There was nothing to compare." in text
    assert "GPU times" not in text


def test_times_of_another_layer_are_marked(manifests: Callable[..., Manifest], tmp_path: Path) -> None:
    def said_of(manifest: Manifest) -> str:
        write_report(manifest, tmp_path / "report.html")
        page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        return re.sub(r"\s+", " ", " ".join(page.text))

    manifest = manifests()
    assert "as another" not in said_of(manifest)
    outcomes = [o.model_copy(update={"timed_as": f"{EVIL} fused"}) for o in manifest.engine.outcomes]
    engine = manifest.engine.model_copy(update={"outcomes": tuple(outcomes)})
    said = said_of(manifest.model_copy(update={"engine": engine}))
    for words in (f"qkv_0 timed as {EVIL} fused", "7.69 as another", "4 of 4 timed as others like them"):
        assert words in said, words


def test_bars_by_step_are_of_the_input_set_of_the_table(
    manifests: Callable[..., Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precision changes most on another input set than the one that the sentence is about."""
    figures = {"pruning": {"s": 0.05, "t": 0.01}, "precision": {"s": 0.002, "t": 0.06}}
    attribution = Attribution.model_validate(
        {
            "blamed": "pruning",
            "reason": "Pruning makes most of the error on input set 's'.",
            "input_set": "s",
            "steps": [
                {
                    "name": name, "before": "one", "after": "other",
                    "outputs": [
                        {"output": "logits", "input_set": on, "error": error,
                         "accumulated": error + (name == "precision") * figures["pruning"][on]}
                        for on, error in sets.items()
                    ],
                }
                for name, sets in figures.items()
            ],
        }
    )  # fmt: skip
    manifest = manifests()
    validation = manifest.validation.model_copy(update={"attribution": attribution})
    write_report(manifest.model_copy(update={"validation": validation}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    bars = re.findall(r'one → other, on (\w+)</span></span>.*?class="figure">([^<]*)<', page, re.DOTALL)
    print_attribution(attribution)
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [(row[-1], f"{row[2]} %") for row in table] == bars == [("s", "5 %"), ("s", "0.2 %")]


def test_errors_by_layer_are_of_modules_as_in_the_sentence(
    manifests: Callable[..., Manifest], tmp_path: Path
) -> None:
    rows = [
        {"step": "precision", "layer": node, "op_type": "MatMul", "module": module, "value": node,
         "own": 0.01, "accumulated": 0.01}
        for node, module in (("node_MatMul_7", "layers.0.up"), ("mm", ""))
    ]  # fmt: skip
    attribution = Attribution.model_validate(
        {"blamed": "", "reason": "", "steps": [], "layers": rows, "layers_input_set": "s"}
    )
    manifest = manifests()
    validation = manifest.validation.model_copy(update={"attribution": attribution})
    write_report(manifest.model_copy(update={"validation": validation}), tmp_path / "report.html")
    text = "".join(_Page((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "layers.0.upnode_MatMul_7" in text, "the node stands below its module, as in the table of layers"


def test_what_became_of_a_layer_is_told_of_its_module(
    manifests: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = manifests()
    first, *others = manifest.layers
    named = first.model_copy(update={"module": "h.0.first"})
    merged = [o.model_copy(update={"merged_with": (first.name,)}) for o in manifest.engine.outcomes]
    engine = manifest.engine.model_copy(update={"outcomes": tuple(merged)})
    changed = manifest.model_copy(update={"layers": (named, *others), "engine": engine})
    write_report(changed, tmp_path / "report.html")
    text = "".join(_Page((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert f"h.0.first{first.name}merged with h.0.first" in text


def test_the_plugins_curve_is_drawn_and_named(manifests: Callable[..., Manifest], tmp_path: Path) -> None:
    pages = {}
    for name in ("h200", "a100-80gb"):
        write_report(manifests(), tmp_path / "report.html", find_policy(name))
        pages[name] = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert _Page(pages[name])
    for mark in (
        'class="curve plugin"',
        'class="plugin-dot"',
        'class="taken-plugin"',
        "the plugin, measured",
        "How it was measured (shipped)",  # many commands, which are folded away
    ):
        assert [mark in page for page in pages.values()] == [True, False]
