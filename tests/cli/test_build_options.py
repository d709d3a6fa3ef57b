"""sparseflow-trt build: several profiles, and the options of TensorRT's builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.commands import Sparseflow

pytestmark = pytest.mark.usefixtures("one_builder")

MakeModel = Callable[..., Path]

RTX = ("--backend", "tensorrt-rtx")
BATCH = ("--dim", "batch=1,4,8")


def test_two_profiles_are_built_shown_and_validated(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    (own_folder / "shapes.yaml").write_text("- {name: many, axes: {batch: [16, 32, 64]}}\n")
    profiles = ("--profile", "few:batch=1,2,4", "--shapes-file", "shapes.yaml")
    manifest = sparseflow("build", mlp(), *RTX, *profiles, "--json").json["manifest"]
    assert {layer["profile"] for layer in manifest["engine"]["layers"]} == {0, 1}
    assert {(o["layer"], o["profile"]) for o in manifest["engine"]["outcomes"]} == {
        ("up_proj", 0), ("up_proj", 1), ("down_proj", 0), ("down_proj", 1)
    }  # fmt: skip
    assert manifest["layers"][0]["m"] == {"few": [1, 2, 4], "many": [16, 32, 64]}
    validated = [given["name"] for given in manifest["validation"]["input_sets"]]
    assert validated == [f"{name}:{point}" for name in ("few", "many") for point in ("min", "opt", "max")]


def test_a_layer_that_wins_in_one_profile_is_sparse(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    few, many = ("--profile", "few:batch=1,2,4"), ("--profile", "many:batch=512,1024,2048")
    policy = ("--policy", "a100-80gb", "--json")
    path = mlp()
    up, _ = sparseflow("plan", path, *few, *many, *policy).json["layers"]
    assert up["sparsity"] == "sparse"
    assert up["reason"].startswith("profile 'many': ")
    up, _ = sparseflow("plan", path, *few, *policy).json["layers"]
    assert (up["sparsity"], up["reason"].startswith("profile 'few': ")) == ("dense", True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--profile", "p:batch=8,1"), "profile 'p': 'batch=8,1' is not a range of an axis."),
        (("--profile", "batch=8"), "'batch=8' is not a profile"),
        (("--profile", "p:length=8", *BATCH), "profile 'p': axis 'length' is not in the model"),
        (("--profile", "p:batch=8", "--profile", "p:batch=9"), "profile 'p' is given twice."),
        (("--profile", "p:batch=8", "--shapes", "x:1x64"), "profile 'p' gives axis 'batch' a range, and so"),
        (("--shapes-file", "no.yaml"), "no.yaml does not exist."),
        (("--shapes-file", "shapes.yaml"), "shapes.yaml: profiles.0.axes.batch.2: Field required."),
    ],
)
def test_profiles_that_cannot_be_read(
    options: tuple[str, ...], says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    (own_folder / "shapes.yaml").write_text("- {name: p, axes: {batch: [1, 8]}}\n")
    for command in ("plan", "build"):
        assert says in sparseflow(command, mlp(), *options).error


def test_a_plan_has_its_profiles_itself(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    sparseflow("plan", mlp(), *BATCH, "-o", "plan.yaml")
    for options in (("--profile", "p:batch=8"), ("--shapes-file", "s.yaml")):
        ended = sparseflow("build", mlp(), "--plan", "plan.yaml", *options)
        assert (ended.code, "the plan already sets shapes" in ended.error) == (2, True)
    engine = sparseflow("build", mlp(), "--plan", "plan.yaml", "--workspace", 64, "--json").json["manifest"]
    assert engine["engine"]["options"] == {"workspace": 64}


def test_options_decide_whether_anything_has_changed(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    command = ("build", mlp(), *RTX, *BATCH, "--json", "--optimization-level")
    assert sparseflow(*command, 0).json["unchanged"] is False
    assert sparseflow(*command, 0).json["unchanged"] is True
    again = sparseflow(*command, 5).json
    assert again["unchanged"] is False
    assert again["manifest"]["engine"]["options"] == {"optimization_level": 5}


def test_what_a_backend_ignores_is_printed(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("build", mlp(), *BATCH, *RTX, "--timing-cache", "my.cache")
    assert (ended.code, "the timing cache my.cache was ignored." in ended.out) == (0, True)
    ended = sparseflow("build", mlp(), *BATCH, "--backend", "onnxruntime", "--hardware-compatible")
    assert (ended.code, "ignores them: --hardware-compatible." in ended.out) == (0, True)


@pytest.mark.parametrize(
    "options", [("--workspace", "0"), ("--workspace", "x"), ("--optimization-level", "6")]
)
def test_values_that_there_are_not(options: tuple[str, ...], sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("build", mlp(), *BATCH, *options)
    assert (ended.code, options[0] in ended.error) == (2, True)


def test_too_little_workspace_is_an_error_with_what_to_do(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("build", mlp(), *BATCH, *RTX, "--workspace", 1)
    assert "the memory pool WORKSPACE is limited to 1 MiB" in ended.error
    assert "Raise --workspace" in ended.err
