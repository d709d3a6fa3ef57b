"""Exit code 2 is for the command's own words, 1 for what files, models and builds say to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparseflow_trt.errors import EXIT_EVIDENCE_DIFFERS, EXIT_FAILED, EXIT_USAGE, EvidenceError, ModelError

if TYPE_CHECKING:
    from tests.commands import Sparseflow

IMPORT = ("policy", "import", "seed.json", "--name", "x", "--device", "x", "-o", "x.json")


@pytest.fixture(autouse=True)
def model(own_folder: Path) -> None:
    """A file in the model's place, which nothing can be read from."""
    (own_folder / "empty.onnx").touch()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        # a value that reads otherwise; the model is empty, and no other file is there
        ("plan empty.onnx --dim batch", "'batch' is not a range of an axis."),
        ("plan empty.onnx --dim batch=8,4,2", "'batch=8,4,2' is not a range of an axis: "),
        ("plan empty.onnx --shapes x", "'x' is not a range of shapes of an input."),
        ("plan empty.onnx --shapes x:8x2,4x2,4x2", "'x:8x2,4x2,4x2' is not a range of shapes: "),
        ("plan empty.onnx --profile a", "'a' is not a profile: "),
        ("plan empty.onnx --profile a:b=2,1", "profile 'a': 'b=2,1' is not a range of an axis"),
        ("plan empty.onnx --precision auto --tolerance atol", "'atol' in the tolerance 'atol' is not a"),
        (
            "build empty.onnx --tolerance atol=-1",
            "atol in the tolerance 'atol=-1' is -1; it has to be",
        ),
        ("validate gone --reference empty.onnx --tolerance atol=x", "'x' for atol in the tolerance"),
        ("baseline create gone --metric score", "'score' is not a metric."),
        ("baseline create gone --max-growth nan", "Invalid value for '--max-growth': 'nan' is not a finite"),
        ("check gone --baseline b --max-drop inf", "Invalid value for '--max-drop': 'inf' is not a finite"),
        ("deploy verify gone --repository r --seconds inf", "Invalid value for '--seconds': 'inf' is not a"),
        (
            "deploy triton gone --repository r --instances 9999999999",
            "Invalid value for '--instances': 9999999999 is not in the range",
        ),
        ("deploy triton gone --repository r --gpus 9999999999", "Invalid value for --gpus: '9999999999' is"),
        ("autotune --preset vit-b --m 0", "--m holds '0', which is not a valid M."),
        ("profile gone.py:f --plot x.pdf", "x.pdf is not a plot's file name."),
        ("deploy triton gone --repository models --name a/b", "'a/b' is not a valid model name."),
        ("roi --cost-per-gpu-hour x", "Invalid value for '--cost-per-gpu-hour': "),
        (
            " ".join((*IMPORT, "--compute-capability", "new")),
            "Invalid value for --compute-capability: 'new' is",
        ),
        # a name that nothing here has
        ("plan empty.onnx --policy h2o", "there is no policy 'h2o'."),
        ("estimate empty.onnx --device h2o", "there is no policy 'h2o'."),
        ("autotune --preset llama-9b", "Invalid value for '--preset': 'llama-9b' is not one of "),
        ("inspect empty.onnx --deep", "No such option"),
        # what contradicts itself
        ("plan empty.onnx --dim b=1 --dim b=2", "axis 'b' is given two ranges."),
        (
            "plan empty.onnx --sparsity off --policy h200",
            "--policy says where sparse wins, and --sparsity off ",
        ),
        (
            "build empty.onnx --policy h200 --sparsity off",
            "--policy says where sparse wins, and --sparsity off ",
        ),
        ("plan empty.onnx --profile a:b=1 --profile a:b=2", "profile 'a' is given twice."),
        ("plan empty.onnx --profile a:b=1:b=2", "profile 'a' gives axis 'b' two ranges."),
        (
            "plan empty.onnx --tolerance atol=1",
            "--inputs, --seed, --tolerance, --dense-model and --backend need --precision auto",
        ),
        ("build empty.onnx --tolerance y:atol=1 --tolerance y:atol=2", "output 'y' is given two tolerances."),
        ("build empty.onnx --verdict --backend onnxruntime", "--verdict times sparse kernels against"),
        ("build empty.onnx --verdict --strip-plan", "--verdict builds two engines and runs them, and "),
        ("build empty.onnx --task encoder", "empty.onnx is not a Hugging Face folder or function"),
        ("export mine.py:f --task encoder", "--task is for a Hugging Face folder, and mine.py:f names a"),
        ("export mine.py:f --dim seq=8 --no-check", "--dim says at which sizes to compare, and --no-check"),
        ("build mine.py:f --random-weights", "--random-weights is for a Hugging Face folder, and mine.py:f"),
        ("deploy triton gone --repository models --with docker", "the files for Docker and Kubernetes name"),
        ("autotune --preset llama-8b --tensor-parallel 3", "llama-8b cannot be shared by 3 GPUs"),
        ("prune mine.py:f --method wanda", "--method wanda learns from inputs: give --calibration."),
        ("prune mine.py:f -o folder", "folder is not a .safetensors file, "),
    ],
)
def test_a_mistake_in_the_commands_own_words_is_usage(
    command: str, says: str, sparseflow: Sparseflow
) -> None:
    ended = sparseflow(*command.split())
    assert (ended.code, ended.error[: len(says)]) == (EXIT_USAGE, says)
    assert sparseflow(*command.split(), "--json").json["error"]["exit_code"] == EXIT_USAGE


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("plan gone.onnx --dim batch=8", "gone.onnx does not exist."),
        ("plan empty.onnx --shapes-file wrong.yaml", "wrong.yaml: profiles.0.axes"),
        ("plan empty.onnx --split b --traffic gone.csv", "gone.csv does not exist."),
        ("plan empty.onnx --dim batch=8 -o gone/plan.yaml", "gone/plan.yaml cannot be written: "),
        ("plan empty.onnx --policy wrong.json", "wrong.json: "),
        ("plan empty.onnx --policy gone.json", "gone.json does not exist."),
        ("estimate empty.onnx --device gone.json", "gone.json does not exist."),
        ("validate gone --reference empty.onnx", "there is no artifact gone."),
        ("baseline create gone --metric gone.py:score", "gone.py does not exist."),
        ("export gone", "gone is not a Hugging Face folder and names no function."),
    ],
)
def test_what_files_say_is_no_usage(command: str, says: str, sparseflow: Sparseflow) -> None:
    Path("wrong.yaml").write_text("- {name: a, axes: {b: [3, 2, 1]}}", encoding="utf-8")
    Path("wrong.json").write_text("{}", encoding="utf-8")
    ended = sparseflow(*command.split())
    assert (ended.code, ended.error[: len(says)]) == (EXIT_FAILED, says)


def test_an_error_says_whether_it_is_usage() -> None:
    assert ModelError("it is none.").exit_code == EXIT_FAILED
    assert ModelError("it is none.", usage=True).exit_code == EXIT_USAGE
    assert EvidenceError("it runs otherwise.").exit_code == EXIT_EVIDENCE_DIFFERS
    assert ModelError.exit_code == EXIT_FAILED
