"""Every command in README and docs runs as it is printed, on a model of the kind that they speak of."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.commands import run_here

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE = [
    ROOT / name
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "demo/sparseflow_trt_demo.ipynb")
]


ENCODER = """
import torch
from collections import OrderedDict as Named

def module():
    torch.manual_seed(0)
    layers = Named(up=torch.nn.Linear(64, 256), act=torch.nn.ReLU(), down=torch.nn.Linear(256, 64))
    return torch.nn.Sequential(layers), torch.randn(8, 64)

def batches():
    for seed in range(4):
        yield {"input": torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))}
"""


def commands(page: Path) -> list[str]:
    """The lines that begin with `$ ` in the page's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def write_model(path: Path) -> None:
    """x[batch, seq, 64] through two products, as a user's encoder has them."""
    rng = np.random.default_rng(0)
    weights = {"up": rng.standard_normal((64, 256)), "down": rng.standard_normal((256, 64)) / 16}
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up_proj"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["y"], "down_proj"),
    ]
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "seq", 64]) for name in ("x", "y")
    ]
    constants = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "encoder", value[:1], value[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def write_checkpoint(folder: Path) -> None:
    """A small BERT with random weights, as a Hugging Face folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, architectures=["BertModel"],
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_the_commands_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.onnx")
    (tmp_path / "encoder.py").write_text(ENCODER, encoding="utf-8")
    (tmp_path / "traffic.csv").write_text("m,weight\n128,3\n1024,1\n", encoding="utf-8")
    if any("my-encoder" in line for line in commands(page)):
        write_checkpoint(tmp_path / "my-encoder")
    for line in commands(page):
        if line.startswith("pip install"):
            continue  # `make setup` is the installation that is tested
        arguments = shlex.split(line)
        assert arguments[0] == "sparseflow-trt", line
        ended = run_here(monkeypatch, capfd, *arguments[1:])
        allowed = {0, 3} if arguments[1] == "inspect" else {0}  # a dense model is what one inspects first
        assert ended.code in allowed, f"{line}\n{ended.err}"


def test_the_make_targets_that_the_readme_names_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named), named


def test_the_page_of_families_is_what_its_result_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    families = importlib.import_module("families")
    result = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "FAMILIES.md").read_text(encoding="utf-8")
    assert page == families.page_from_result(result)
    assert {row["family"] for row in result["rows"]} == {family.name for family in families.FAMILIES}


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = (title.lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Where a page's links and images lead, but for those to other sites."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"https?:|mailto:", link)]


@pytest.mark.parametrize("page", [*PAGES, *MORE], ids=lambda p: p.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in headings(target), link


def test_the_readme_leads_to_every_page() -> None:
    led_to = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert not {page.name for page in [*PAGES[1:], *MORE] if page not in led_to}
