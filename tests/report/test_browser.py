"""The report in a real Chromium: it is quiet, sorts and filters, and fits a phone and paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.policies.policy import Policy, find_policy
from sparseflow_trt.report.html import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.conftest import Models
    from tests.report.conftest import MakeManifest

EVIL = '</script></style><img src=x onerror="window.evil=1"><script>window.evil=1</script>&amp;\'"`{{7*7}}'
ROWS = "#layer-table tbody tr"
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return find_policy("a100-80gb")


@pytest.fixture
def opened(browser: Browser, tmp_path: Path, policy: Policy) -> Iterator[Open]:
    """Opens a manifest's report; at the end checks that the page said nothing and asked for nothing."""
    said: list[str] = []
    contexts = []

    def open_page(manifest: Manifest, width: int = 1200, **options: Any) -> Page:
        path = tmp_path / "report.html"
        write_report(manifest, path, policy)
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def shown(page: Page, column: int) -> list[str]:
    """The texts of a column of the layers that are to be seen."""
    found: list[str] = page.eval_on_selector_all(
        ROWS, "(rows, i) => rows.filter((r) => r.offsetParent).map((r) => r.cells[i].innerText)", column
    )
    return found


def test_sorts_by_mouse_and_keyboard_and_says_so(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests(layers=12))
    sorted_by = "th[aria-sort]"
    assert page.locator(sorted_by).count() == 0
    page.get_by_role("columnheader", name="N", exact=True).get_by_role("button").click()
    sizes = [int(text) for text in shown(page, 4)]
    assert sizes == sorted(sizes)
    assert shown(page, 0)[:3] == ["2", "4", "6"], "equal ones stay in the graph's order"
    page.keyboard.press("Enter")
    assert [int(text) for text in shown(page, 4)] == sorted(sizes, reverse=True)
    assert page.get_attribute(sorted_by, "aria-sort") == "descending"
    page.get_by_role("columnheader", name="Layer").get_by_role("button").click()
    assert page.locator(sorted_by).count() == 1
    names = shown(page, 1)
    assert names.index("model.layers.0.qkv_0") < names.index("model.layers.2.qkv_8")
    page.get_by_role("columnheader", name="Sparse µs").get_by_role("button").click()
    assert [float(text) for text in shown(page, 10)] == sorted(float(text) for text in shown(page, 10))


def test_filters_and_counts(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests(layers=16))
    count = page.locator("#count")
    assert (count.inner_text(), count.get_attribute("aria-live")) == ("16 of 16 layers", "polite")
    page.get_by_label("Search").fill("layers.1 GATE")
    assert shown(page, 1) == ["model.layers.1.gate_up_6"]
    page.get_by_label("Search").fill("")
    page.get_by_label("Plan").select_option("dense")
    assert count.inner_text() == "4 of 16 layers"
    assert set(shown(page, 2)) == {"o"}
    page.get_by_label("Weights").select_option("FP16, 2:4")
    assert count.inner_text() == "0 of 16 layers"
    assert not page.get_by_label("Precision").is_visible(), "all layers have one"


def test_names_that_are_code_stay_names(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests(layers=4, rename=lambda name: f"{name}{EVIL}"))
    assert page.evaluate("window.evil") is None
    assert page.locator("h1").inner_text() == f"model.onnx{EVIL}"
    assert shown(page, 1)[0] == f"model.layers.0.qkv_0{EVIL}"
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("layers", [8, 0])
def test_a_phone_never_scrolls_sideways(opened: Open, manifests: MakeManifest, layers: int) -> None:
    long = "decoder_with_a_long_unbroken_name" * 4
    page = opened(manifests(layers=layers, rename=lambda name: name + long), width=375)
    page.eval_on_selector_all("details", "(all) => all.forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    if layers:
        region = page.get_by_role("region", name="Table of layers")
        assert region.evaluate("(box) => box.scrollWidth > box.clientWidth && box.tabIndex === 0")


def test_an_error_far_beyond_its_bound_has_room(opened: Open, manifests: MakeManifest) -> None:
    given = manifests().model_dump()
    output = given["validation"]["candidates"][0]["outputs"][0]
    given["validation"]["candidates"][0]["outputs"] = [
        {**output, "passed": False, "max_abs": 29771.33 * output["abs_bound"]}
    ]
    page = opened(manifests(validation=given["validation"]), width=1024)
    assert page.get_by_text("2,977,133 % of the bound").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 1024


def test_the_layers_of_an_engine_without_times_fit_a_small_screen(
    opened: Open, manifests: MakeManifest
) -> None:
    given = manifests(layers=8).model_dump()
    given["engine"]["outcomes"] = []
    for i, layer in enumerate(given["layers"]):
        layer.update(
            name=f"node_MatMul_{i}", module=f"layers.{i}.gate_proj", kind="classifier", n=1000, k=256
        )
        layer["m"] = {"default": (8, 1024, 8192)}
    page = opened(Manifest.model_validate(given), width=1024)
    region = page.get_by_role("region", name="Table of layers")
    assert region.evaluate("(box) => [box.scrollWidth, box.clientWidth]") == [982, 982]
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})
    row = page.locator(ROWS).first
    size = "(cell) => parseFloat(getComputedStyle(cell).fontSize)"
    assert row.locator(".node").evaluate(size) < row.locator("th").evaluate(size)
    assert row.locator("td").nth(1).evaluate("(cell) => getComputedStyle(cell).whiteSpace") == "nowrap"


def test_paper_shows_all_of_it_in_light(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests(), width=718, color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(14, 20, 24)"
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert page.evaluate("document.documentElement.scrollWidth") == 718
    assert not page.get_by_label("Search").is_visible()
    ink = page.evaluate("getComputedStyle(document.querySelector('h2')).color")
    assert ink == "rgb(20, 33, 43)", "dark ink on white paper"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.evaluate("[...document.querySelectorAll('details')].some((one) => one.open)")
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_says_everything_without_a_script(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests(layers=300), java_script_enabled=False)
    assert page.locator(ROWS).nth(299).is_visible()
    assert not page.get_by_label("Search").is_visible(), "nothing that would do nothing"


def test_drawings_and_tables_have_words(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests())
    assert page.get_by_role("img", name="gate_up 4096 → 14336: sparse is taken from M=256").count() == 1
    assert page.locator("svg:not([role=img][aria-label])").count() == 0
    assert page.locator("thead th:not([scope=col])").count() == 0
    assert page.locator("section:not([aria-labelledby])").count() == 0
    assert page.locator(".spine > li").first.inner_text().startswith("outside of blocks")
    assert page.locator(".spine .block").all_inner_texts() == ["outside of blocks", "model.layers.0 … 3 ×4"]
    blamed = page.locator("#errors .gauge").filter(has_text="most").all_inner_texts()
    assert [text.split()[0] for text in blamed] == ["pruning"]
    assert "3 layers planned sparse are still 2:4" in page.locator("#graph").inner_text()
    assert "1 layer that runs dense has its weight from" in page.locator("#graph").inner_text()
    assert "Layer tied keeps its pruned weight: it is tied." in page.locator("#graph").inner_text()
    assert page.get_by_text("No GPU.").count() >= 1


def test_a_blocks_first_normalisation_is_drawn_in_it(opened: Open, models: Models, tmp_path: Path) -> None:
    """Of a model whose nodes tell their modules by PyTorch's name scopes, and by no name."""
    rng = np.random.default_rng(0)
    nodes, scopes = [], []
    weights: dict[str, np.ndarray[Any, Any]] = {"scale": np.ones(64, np.float32)}
    value = "x"
    for i in range(3):
        nodes += [
            helper.make_node("LayerNormalization", [value, "scale"], [f"n{i}"]),
            helper.make_node("MatMul", [f"n{i}", f"w{i}"], [f"h{i}"]),
        ]
        scopes += [f"blocks.{i}.norm", f"blocks.{i}.up"]
        weights[f"w{i}"] = rng.standard_normal((64, 64)).astype(np.float32) / 8
        value = f"h{i}"
    nodes += [
        helper.make_node("LayerNormalization", [value, "scale"], ["last"]),
        helper.make_node("MatMul", ["last", "w0"], ["y"]),
    ]
    model = models.model(nodes, weights)
    for node, module in zip(model.graph.node, [*scopes, "norm", "head"], strict=True):
        told = node.metadata_props.add()
        told.key, told.value = "pkg.torch.onnx.name_scopes", f"['', '{module}', 'op']"
    plan = PlanOptions(axes={"batch": (2, 4, 8)}, precision="fp16")
    options = BuildOptions(tmp_path / "out", plan, "onnxruntime")
    page = opened(build(models.save(model), options).manifest)
    assert page.locator(".spine .block").all_inner_texts() == ["blocks.0 … 2 ×3", "outside of blocks"]
    drawn = [
        [text.splitlines()[0] for text in block.locator(".mark").all_inner_texts()]
        for block in page.locator(".spine > li").all()
    ]
    assert drawn == [["LayerNormalization", "up"], ["LayerNormalization", "head"]]


def test_two_thousand_layers_stay_quick(opened: Open, manifests: MakeManifest) -> None:
    page = opened(manifests(layers=2000))
    assert page.locator("#count").inner_text() == "2000 of 2000 layers"
    assert len(shown(page, 1)) == 250
    took = page.evaluate(
        """() => {
            const began = performance.now();
            document.querySelectorAll('#layer-table thead button')[5].click();
            document.body.offsetHeight;
            return performance.now() - began;
        }"""
    )
    assert took < 2000, f"sorting took {took:.0f} ms"
    page.get_by_label("Search").fill("layers.499")
    assert len(shown(page, 1)) == 4, "the hidden ones are searched, too"
    page.get_by_label("Search").fill("")
    page.get_by_role("button", name="Show all 2000").click()
    assert page.locator(f"{ROWS}:not(.hidden)").count() == 2000
    assert page.locator(".spine > li").count() <= 41
