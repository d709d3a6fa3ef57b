"""Asking for an earlier build's tactics. The files in data/ are TensorRT 8.6.0's own, from an H200 host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.artifacts.manifest import EngineLayerRecord
from sparseflow_trt.engines.evidence.inspector import layers_from_inspector
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.tactics import layer_key
from sparseflow_trt.engines.tensorrt.like import (
    compare_tactics,
    like_facts,
    make_selector,
    pick_tactics,
    read_like,
    tactics_of,
)
from sparseflow_trt.errors import ArtifactError

if TYPE_CHECKING:
    from sparseflow_trt.pipeline import BuildResult

DATA = Path(__file__).parent.parent / "data"
UNSIGNED = 1 << 64


def evidence() -> tuple[LayerEvidence, ...]:
    return layers_from_inspector((DATA / "trt86_two_profiles.json").read_text(encoding="utf-8"))


def records(layers: tuple[LayerEvidence, ...]) -> list[EngineLayerRecord]:
    return [
        EngineLayerRecord(
            name=e.name, type=e.type, precision=e.precision, tactic=e.tactic, profile=e.profile,
            nodes=e.nodes, tactic_id=e.tactic_id,
        )
        for e in layers
    ]  # fmt: skip


def signed(number: int) -> int:
    return number - UNSIGNED if number >= UNSIGNED // 2 else number


def test_the_recorded_tactics_are_those_that_the_builder_timed() -> None:
    wanted = tactics_of(records(evidence()))
    assert wanted["gate_proj || up_proj", 0] == {0x40608C4}
    assert wanted["gate_proj || up_proj", 1] == {0x40606E2}
    assert ("cast_in", 0) not in wanted, "what does nothing was not chosen"
    log = (DATA / "trt86_two_profiles.log").read_text(encoding="utf-8")
    timed: dict[tuple[str, int], set[int]] = {}
    for part in re.split(r"-{15} Timing Runner: ", log)[1:]:
        name = re.match(r"(.*) \(\w+\[0x", part)
        assert name is not None
        numbers = re.findall(r"Tactic: (0x[0-9a-f]{16}) Time", part)
        timed.setdefault(layer_key(name[1], 0), set()).update(int(number, 16) for number in numbers)
    both = {key for key in wanted if key in timed and "proj" in key[0] and "reshape" not in key[0]}
    assert both == {(name, p) for name in ("gate_proj || up_proj", "down_proj") for p in (0, 1)}
    assert all(wanted[key] <= timed[key] for key in both)


@given(
    wanted=st.none() | st.frozensets(st.integers(0, UNSIGNED - 1), max_size=3),
    others=st.lists(st.integers(0, UNSIGNED - 1), max_size=6),
    data=st.data(),
)
def test_what_is_picked(wanted: frozenset[int] | None, others: list[int], data: Any) -> None:
    offered = data.draw(st.permutations([*others, *(wanted or ())]))
    picked = pick_tactics(wanted, [signed(number) for number in offered])
    assert sorted(set(picked)) == picked
    if wanted:
        assert {offered[i] for i in picked} == wanted
        assert len(picked) == sum(number in wanted for number in offered)
    else:
        assert picked == list(range(len(offered)))


def test_a_tactic_that_is_not_offered_leaves_the_choice() -> None:
    assert pick_tactics(frozenset({7}), [1, 2]) == [0, 1]


def test_a_selector_knows_layers_by_name_and_profile() -> None:
    wanted = {("up", 0): frozenset({UNSIGNED - 2}), ("up", 1): frozenset({7})}
    selector = make_selector(cast("ModuleType", SimpleNamespace(IAlgorithmSelector=object)), wanted)

    def select(name: str) -> list[int]:
        choices = [SimpleNamespace(algorithm_variant=SimpleNamespace(tactic=n)) for n in (1, -2, 7, -2)]
        picked: list[int] = selector.select_algorithms(SimpleNamespace(name=name), choices)
        return picked

    assert select("up") == [1, 3]
    assert select("up [profile 1]") == [2]
    assert select("down") == [0, 1, 2, 3]
    selector.report_algorithms([], [])  # ends a profile
    assert select("up") == [2]


def test_equal_engines_are_said_to_be_equal() -> None:
    before = records(evidence())
    told = sum(e.type not in ("NoOp", "Reformat") for e in evidence())
    assert compare_tactics("a", before, evidence()) == (
        f"All {told} engine layers of a that report their tactic run the same one here."
    )
    silent = [e.model_copy(update={"tactic": "", "tactic_id": ""}) for e in before]
    assert compare_tactics("a", silent, evidence()).startswith("No layer of a reports its tactic: ")


def test_a_stub_is_no_tactic() -> None:
    """As TensorRT-RTX tells of its layers: of products a stub, of generated kernels what they compute."""
    before = [
        LayerEvidence("up_myl0_1", "gemm", "Half", "__myelin_CASK_STUB"),
        LayerEvidence("down_myl0_3", "gemm", "Half", "__myelin_CASK_STUB"),
        LayerEvidence("relu_myl0_2", "kgen", "Half", "__myl_Relu_0x1f"),
        LayerEvidence("gelu_myl0_4", "runtime_fusion", "", ""),
    ]
    assert compare_tactics("a", before, before) == (
        "The engine of a reports no tactics: 2 of its layers name a stub for a kernel that is picked at the "
        "first run. Whether these are the same is not known."
    )
    chosen = LayerEvidence("out", "gemm", "Half", "sm80_xmma_gemm")
    said = compare_tactics("a", [*before, chosen], [*before, chosen])
    assert said == "All 1 engine layers of a that report their tactic run the same one here."
    generated = before[2:]  # where nothing is a stub they are told, as by TensorRT's own compiler
    assert compare_tactics("a", generated, generated).startswith("All 1 engine layers")


def test_copies_are_not_compared() -> None:
    before = records(evidence())
    assert any(e.type == "Reformat" for e in before)
    after = [replace(e, tactic_id="0x1") if e.type in ("NoOp", "Reformat") else e for e in evidence()]
    assert compare_tactics("a", before, after) == compare_tactics("a", before, evidence())
    copy = next(e.name for e in before if e.type == "Reformat")
    after = [replace(e, type="PointWiseV2") if e.name == copy else e for e in evidence()]
    assert compare_tactics("a", before, after).startswith("All ")


def test_what_differs_is_named() -> None:
    before = records(evidence())
    after = tuple(
        replace(e, tactic="other", tactic_id="0x1") if (e.name, e.profile) == ("down_proj", 1) else e
        for e in evidence()
        if e.name != "mean"
    )
    said = compare_tactics("a", before, (*after, LayerEvidence("new", "Reduce", "", "t")))
    told = sum(e.type not in ("NoOp", "Reformat") for e in evidence())
    assert said.startswith(
        f"{told - 3} of {told} engine layers of a that report their tactic run the same one here."
    )
    down = next(e for e in before if (e.name, e.profile) == ("down_proj", 1))
    assert f"'down_proj' (profile 1) runs other 0x1, not {down.tactic} {down.tactic_id}; " in said
    assert "'mean' is not a layer of this engine; " in said
    assert "'mean' (profile 1) is not a layer of this engine; " in said
    assert said.endswith("'new' is not a layer of that engine.")


def test_a_long_list_is_cut() -> None:
    before = [LayerEvidence(f"l{i}", "t", "", "one") for i in range(9)]
    after = [replace(e, tactic="two") for e in before]
    said = compare_tactics("a", before, after)
    assert (said.count(" runs "), said.endswith("; and 4 more.")) == (5, True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    import numpy as np
    from onnx import helper, numpy_helper, save

    from sparseflow_trt.building.plan_options import PlanOptions
    from sparseflow_trt.pipeline import BuildOptions, build

    folder = tmp_path_factory.mktemp("like")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "main",
        [helper.make_tensor_value_info("x", 1, [4, 64])],
        [helper.make_tensor_value_info("y", 1, [4, 32])],
        [numpy_helper.from_array(np.ones((64, 32), np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "m.onnx")
    options = BuildOptions(folder / "m.artifact", PlanOptions(), backend="tensorrt-rtx")
    return build(folder / "m.onnx", options)


def test_an_artifact_of_this_place_can_be_asked(built: BuildResult) -> None:
    engine = built.manifest.engine
    assert read_like(built.artifact, "tensorrt-rtx", engine.versions, engine.device) == built.manifest
    assert like_facts(built.artifact) == {"like_build": built.manifest.build_key}
    assert like_facts(None) == {}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"backend": "tensorrt"}, "its backend is tensorrt-rtx, and this is tensorrt."),
        ({"versions": {"tensorrt-rtx": "9"}}, "its version is tensorrt-rtx 1."),
        ({"device": "an H200"}, "its device is NVIDIA GPUs of compute capability 8.0"),
    ],
)
def test_an_artifact_of_another_place_cannot(built: BuildResult, changed: dict[str, Any], says: str) -> None:
    engine = built.manifest.engine
    here = {"backend": engine.backend, "versions": engine.versions, "device": engine.device, **changed}
    with pytest.raises(ArtifactError) as caught:
        read_like(built.artifact, **here)
    assert says in caught.value.message
    assert "or without --like" in caught.value.hint


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    for ask in (like_facts, cast("Callable[[Path], Any]", lambda p: read_like(p, "tensorrt", {}, ""))):
        with pytest.raises(ArtifactError, match="is not an artifact"):
            ask(tmp_path)
