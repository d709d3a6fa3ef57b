"""A model that ONNX Runtime crashes on at its highest optimisation level is run at a lower one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


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
        "with ort_runner(Path(sys.argv[1]), 'm') as runner:\n"
        "    print(runner.infer({'x': np.ones((2, 3, 32), np.float16)})['y'].sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert float(done.stdout.strip().splitlines()[-1]) == 33 * 48
