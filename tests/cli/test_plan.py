"""sparseflow-trt plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from onnx import helper

from sparseflow_trt.model.pattern import prune_2to4
from tests.shared_libraries import write_library

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]


def test_the_plan_is_printed_as_yaml(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("plan", mlp(), "--dim", "batch=1,8,32", "--precision", "bf16", "--sparsity", "force")
    assert (ended.code, ended.err) == (0, "")
    plan = yaml.safe_load(ended.out)
    assert [(p["name"], p["precision"], p["sparsity"]) for p in plan["layers"]] == [
        ("up_proj", "bf16", "sparse"),
        ("down_proj", "bf16", "dense"),
    ]
    assert plan["profiles"][0]["inputs"]["x"] == {"min": [1, 64], "opt": [8, 64], "max": [32, 64]}


def test_the_yaml_alone_is_printed_and_what_it_is_not_for_is_said_beside_it(
    sparseflow: Sparseflow, models: Models
) -> None:
    nodes = [
        helper.make_node("Mul", ["w", "mask"], ["masked"]),
        helper.make_node("MatMul", ["x", "masked"], ["y"], name="mm"),
    ]
    weights = {"w": np.ones((64, 64), np.float32), "mask": np.eye(64, dtype=np.float32)}
    models.save(models.model(nodes, weights, {"x": (8, 64)}), "masked.onnx")
    ended = sparseflow("plan", "masked.onnx", "--policy", "h200")
    assert ended.code == 0
    assert yaml.safe_load(ended.out)["layers"] == []
    assert ended.err.startswith("1 layer(s) multiply their weight by a mask at each run")
    ended = sparseflow("estimate", "masked.onnx", "--policy", "h200")
    assert (ended.code, ended.out) == (1, "")
    assert (
        "no layer multiplies by a stored weight.\nhint:  1 layer(s) multiply their weight by a mask"
        in ended.err
    )


def test_a_dynamically_quantized_model_has_no_plan_and_says_what_to_do(
    sparseflow: Sparseflow, models: Models
) -> None:
    quantization: Any = pytest.importorskip("onnxruntime.quantization")
    path = models.matmul(prune_2to4(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32), 0))
    quantization.quantize_dynamic(path, models.folder / "dynamic.onnx")
    reasoned = ("--policy", "h200", "--dim", "batch=1,8,16")
    ended = sparseflow("plan", "dynamic.onnx", *reasoned, "-o", "plan.yaml")
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert said.startswith("No layer multiplies by a stored weight in a way that has a 2:4 path: none is ")
    assert "(MatMulInteger), and stay as they are. `sparseflow-trt inspect` lists them. Prune the " in said

    batches = iter([{"x": np.ones((2, 64), np.float32)}])
    reader = type(
        "Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(batches, None)}
    )
    static = models.folder / "static.onnx"
    qdq = quantization.QuantFormat.QDQ  # what is advised
    quantization.quantize_static(path, static, reader(), quant_format=qdq)
    (layer,) = sparseflow("inspect", "static.onnx", "--json").json["layers"]
    assert (layer["state"], layer["dtype"]) == ("sparse", "INT8")


def test_m_is_known_behind_a_shape_that_the_graph_computes(sparseflow: Sparseflow, models: Models) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["dims"]),
        helper.make_node("Gather", ["dims", "first"], ["rows"]),
        helper.make_node("Mul", ["rows", "two"], ["twice"]),
        helper.make_node("Concat", ["twice", "width"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("MatMul", ["a", "up"], ["y"], name="up_proj"),
    ]
    numbers = {"first": 0, "two": 2, "width": 64}
    weights = {"up": prune_2to4(np.ones((64, 128), np.float32), 0)}
    weights |= {name: np.array([number], np.int64) for name, number in numbers.items()}
    path = models.save(models.model(nodes, weights, {"x": ("batch", 128)}, opset=17))
    (layer,) = sparseflow("inspect", path, "--json").json["layers"]
    assert layer["m"] == "2*batch"
    reasoned = ("--policy", "h200", "--dim", "batch=1,8,32")
    (layer,) = yaml.safe_load(sparseflow("plan", path, *reasoned).out)["layers"]
    assert "is not known" not in layer["reason"]


def test_or_written_with_a_table_of_the_reasons(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    ended = sparseflow("plan", mlp(), "--shapes", "x:1x64,8x64,32x64", "-o", "plan.yaml")
    assert ended.code == 0
    assert "weights are not 2:4" in ended.out
    assert "Build it with: sparseflow-trt build" in ended.out
    assert yaml.safe_load((own_folder / "plan.yaml").read_text())["precision"] == "fp16"


def test_in_a_terminal_lines_are_broken_between_words_and_the_command_is_whole(
    sparseflow: Sparseflow, terminal: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    folder = own_folder / "a-folder-whose-path-is-long" / "and-goes-on-for-more-than-one-line"
    folder.mkdir(parents=True)
    command = (
        "plan", mlp(), "--policy", "a100-80gb", "--dim", "batch=1,8,2048", "--split", "batch",
        "-o", folder / "plan.yaml",
    )  # fmt: skip
    (plain, shown) = (run(*command) for run in (sparseflow, terminal))
    assert (plain.code, shown.code, shown.err) == (0, 0, "")
    assert shown.out.split()[-30:] == plain.out.split()[-30:], "the same words"
    build = f"sparseflow-trt build {own_folder / 'model.onnx'} --plan {folder / 'plan.yaml'}"
    assert f"Build it with: {build}\n" in plain.out
    lines = shown.out.splitlines()
    assert lines[-1] == f"  {build}", "to be copied"
    assert str(folder / "plan.yaml") in shown.out, "nor is a path"
    long = [line for line in lines if len(line) > 80]
    assert all(str(folder) in line for line in long), long
    assert any(len(line) > 80 and line.startswith("Profiles: ") for line in plain.out.splitlines())


def test_a_shipped_policy_gives_its_reason(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("plan", mlp(), "--dim", "batch=8", "--policy", "a100-80gb", "--json")
    plan = ended.json
    assert "A100" in plan["policy"]
    assert "M=8" in plan["layers"][0]["reason"]


def test_a_profile_is_split_at_the_policy_s_crossovers(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    (own_folder / "traffic.json").write_text('{"64": 100, "1024": 100}')
    options: tuple[str, ...] = ("--dim", "batch=1,8,4096", "--policy", "a100-80gb", "--split", "batch")
    without = sparseflow("plan", mlp(), *options, "--json").json
    assert [p["name"] for p in without["profiles"]] == ["default"]
    assert "is not split: layers change at 256 (gate_up), where one profile loses 0." in without["split"]
    options += ("--traffic", "traffic.json")
    plan = sparseflow("plan", mlp(), *options, "--json").json
    assert [(p["name"], p["inputs"]["x"]["opt"][0]) for p in plan["profiles"]] == [
        ("batch-1-255", 64),
        ("batch-256-4096", 1024),
    ]
    assert plan["layers"][0]["reason"].endswith("; dense in profile 'batch-1-255'")
    written = sparseflow("plan", mlp(), *options, "-o", "plan.yaml")
    assert "Profiles: axis 'batch' is split where layers change, at 256 (gate_up)" in written.out
    assert "  batch-256-4096: x 256x64…1024x64…4096x64" in written.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "length", "--dim", "batch=1,8,32"), "axis 'length' is not in the model"),
        (("--traffic", "t.csv", "--dim", "batch=1,8,32"), "--traffic weighs the cuts of --split: give both."),
        (("--split", "batch", "--profile", "p:batch=1"), "--split makes the profiles"),
        (("--split", "batch", "--traffic", "no.csv", "--dim", "batch=1"), "no.csv does not exist."),
        (
            ("--split", "batch", "--traffic", "t.csv", "--dim", "batch=1,8,32"),
            "no M of the traffic lies between",
        ),
    ],
)
def test_what_cannot_be_split(
    options: tuple[str, ...], says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    (own_folder / "t.csv").write_text("m,weight\n64,1\n")
    assert says in sparseflow("plan", mlp(), *options).error


@pytest.mark.parametrize(
    ("command", "near"),
    [
        ("plan model.onnx --dim bacth=8", "Did you mean batch? Name one of these."),
        ("plan model.onnx --shapes xs:8x64", "Name one of these."),
        ("plan model.onnx --dim batch=8 --split batsh --traffic t.csv", "Did you mean batch? Name one"),
        ("plan model.onnx --dim batch=8 --policy h20", "Did you mean h200? Shipped: "),
        ("prune model.onnx --include up_porj", "Did you mean up_proj? `sparseflow-trt inspect` lists"),
        ("prune model.onnx --include up_porj*", "`sparseflow-trt inspect` lists"),
    ],
)
def test_of_a_misspelt_name_the_nearest_is_told(
    command: str, near: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    (own_folder / "t.csv").write_text("m,weight\n64,1\n")
    mlp()
    ended = sparseflow(*command.split())
    assert (ended.code in (1, 2), ended.err.partition("hint:  ")[2].startswith(near)) == (True, True), ended


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--dim", "batch=8,1"), "'batch=8,1' is not a range of an axis."),
        (("--dim", "batch=8,1,9"), "it has to be 0 ≤ min ≤ opt ≤ max"),
        (("--dim", "length=8"), "axis 'length' is not in the model, which has: batch."),
        (("--dim", "batch=8", "--dim", "batch=9"), "axis 'batch' is given two ranges."),
        (("--shapes", "x:8x64", "--shapes", "x:9x64"), "input 'x' is given two ranges."),
        (("--shapes", "x:8by64"), "'x:8by64' is not a range of shapes"),
        (("--shapes", "z:8x64"), "input 'z' is not in the model, which has: x."),
        (("--shapes", "x:8x65"), "dimension 1 of input 'x'"),
        (("--shapes", "x:8"), "1 dimensions; the model takes 2."),
        ((), "input 'x' has dynamic dimensions batch and no profile says their ranges."),
        (("--dim", "batch=8", "--policy", "h2o"), "there is no policy 'h2o'."),
        (("--dim", "batch=8", "-o", "model.onnx"), "model.onnx is the model itself."),
        (("--dim", "batch=8", "-o", "no/plan.yaml"), "no/plan.yaml cannot be written"),
    ],
)
def test_what_cannot_be_planned(
    options: tuple[str, ...], says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path,
    left: Callable[[Path], list[str]],
) -> None:  # fmt: skip
    path = mlp()
    before = path.read_bytes()
    assert says in sparseflow("plan", path, *options).error
    assert left(own_folder) == ["model.onnx"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no mapping of fields"),
        ('{"schema_version": 1, "name": "a"}', "device: Field required"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
    ],
)
def test_a_policy_that_is_none(
    text: str, says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path
) -> None:
    (own_folder / "policy.json").write_text(text)
    ended = sparseflow("plan", mlp(), "--dim", "batch=8", "--policy", "policy.json")
    assert says in ended.error
    assert "policy.json" in ended.error


@pytest.mark.parametrize("command", [("plan",), ("build",), ("build", "--plan", "none.yaml")], ids=" ".join)
def test_what_is_no_library_of_the_plugin_is_refused_before_any_work(
    command: tuple[str, ...], sparseflow: Sparseflow, own_folder: Path
) -> None:
    (own_folder / "text.so").write_text("no library")
    whole = write_library(own_folder / "cut.so").read_bytes()
    (own_folder / "cut.so").write_bytes(whole[: len(whole) // 2])
    write_library(own_folder / "other.so", "AnotherPlugin")
    for library, says in (
        ("none.so", "There is no plugin library none.so."),
        ("temporary", "There is no plugin library temporary."),  # a folder
        ("text.so", "it is not an ELF file."),
        ("cut.so", f"it is cut off after {len(whole) // 2} of {len(whole)} bytes."),
        ("other.so", "it holds no SparseFlowLinear24."),
    ):
        ended = sparseflow(*command, "none.onnx", "--plugin", library, "--json")
        assert ended.code == 6
        assert ended.error in (says, f"{library} is not a library of the plugin: {says}")
        assert "hint:  Compile it with `sparseflow-trt plugin build`." in ended.err
    forgotten = sparseflow(*command, "none.onnx", "--plugin", "--dim", "batch=8")
    assert forgotten.code == 2
    assert "it takes the library's file, not --dim; `estimate --plugin` needs none." in forgotten.err


def test_layers_are_given_to_the_plugin(sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path) -> None:
    write_library(own_folder / "lib.so")
    command = ("plan", mlp(), "--dim", "batch=8", "--sparsity", "plugin")
    assert "--plugin LIB names its library" in sparseflow(*command).error
    missing = sparseflow(*command, "--plugin", "none.so")
    assert (missing.code, "There is no plugin library none.so" in missing.error) == (6, True)
    up, down = sparseflow(*command, "--plugin", "lib.so", "--json").json["layers"]
    assert (up["sparsity"], up["reason"]) == ("plugin", "asked for: the plugin wherever it can run")
    assert down["sparsity"] == "dense"
    written = sparseflow(*command, "--plugin", "lib.so", "-o", "plan.yaml").out
    assert "--plan plan.yaml --plugin lib.so" in " ".join(written.split())
    built = sparseflow("build", command[1], "--dim", "batch=8", "--sparsity", "plugin", "--plugin", "lib.so",
                       "--backend", "onnxruntime")  # fmt: skip
    assert built.code == 0
    assert "1 layer(s) are planned for the plugin, which ONNX Runtime does not support" in " ".join(
        built.out.split()
    )


@pytest.mark.parametrize("mode", ["off", "force"])
@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_library_that_no_layer_may_use_is_not_taken_in_silence(
    sparseflow: Sparseflow, own_folder: Path, command: str, mode: str
) -> None:
    write_library(own_folder / "lib.so")
    (own_folder / "empty.onnx").touch()
    ended = sparseflow(command, "empty.onnx", "--sparsity", mode, "--plugin", "lib.so")
    assert ended.code == 2
    assert f"and --sparsity {mode} puts none there: leave out one." in ended.error
