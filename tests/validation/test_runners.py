"""How models are run: at which level of optimisation, in how much memory, and what waiting threads do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.validation.runners import open_session

if TYPE_CHECKING:
    from tests.conftest import Models


def test_an_fp16_transpose_before_a_linear_runs(tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.ones((32, 8), np.float16), "w"),
        numpy_helper.from_array(np.ones(8, np.float16), "b"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", half, ["s", "b", 32])],
        [helper.make_tensor_value_info("y", half, ["b", "s", 8])], constants,
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from sparseflow_trt.validation.runners import ort_runner\n"
        "with ort_runner(Path(sys.argv[1]), 'm', optimized=True) as runner:\n"
        "    print(runner.infer({'x': np.ones((2, 3, 32), np.float16)})['y'].sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert float(done.stdout.strip().splitlines()[-1]) == 33 * 48


_HELD = r"""
import re, sys
from pathlib import Path
import numpy as np
from sparseflow_trt.validation.runners import ort_runner

def held():
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

x = np.ones((2, 1024), sys.argv[2])
with ort_runner(Path(sys.argv[3]), "warm") as runner:
    runner.infer({"x": x[:, :4]})
before = held()
with ort_runner(Path(sys.argv[1]), "m") as runner:
    runner.infer({"x": x})
    print(held() - before)
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_graph_as_written_holds_no_copy_of_its_weights(tmp_path: Path, dtype: type) -> None:
    """Those of the FP16 one are widened where they are read, as a twin's are: one at a time."""
    count, width = 12, 1024
    held = _held(
        _chain(tmp_path / "m.onnx", count, width, dtype), _chain(tmp_path / "w.onnx", 1, 4, dtype), dtype
    )
    widened = width * width * 4
    assert held < 3 * widened  # all of them: 12


def _held(path: Path, warm: Path, dtype: type) -> int:
    """What running a model adds to the memory of a process that is no file's."""
    command = [sys.executable, "-c", _HELD, str(path), np.dtype(dtype).name, str(warm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return int(done.stdout.strip().splitlines()[-1])


def _chain(path: Path, count: int, width: int, dtype: type) -> Path:
    """Products one behind the other, in FP32, by external weights that are cast to it from another type."""
    given = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, value = [helper.make_node("Cast", ["x"], ["v"], to=TensorProto.FLOAT)], "v"
    constants = [numpy_helper.from_array(np.ones((width, width), dtype), f"w{i}") for i in range(count)]
    for i in range(count):
        weight = f"w{i}"
        if given != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [weight], [f"wide{i}"], to=TensorProto.FLOAT))
            weight = f"wide{i}"
        nodes.append(helper.make_node("MatMul", [value, weight], [f"p{i}"]))
        value = f"p{i}"
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", given, [2, width])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [2, width])], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(made, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.mark.parametrize("optimized", [False, True])
def test_threads_that_wait_do_not_spin(optimized: bool, models: Models) -> None:
    session = open_session(models.matmul(np.ones((8, 4), np.float32)), optimized)
    options = session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
