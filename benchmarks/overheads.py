"""`--help`, and what `build` on MiniLM takes outside the backend's own build and the validation runs.

python benchmarks/overheads.py
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import BIN, summary, timed_command, write_result

DEMO = Path(__file__).parent.parent / "demo" / "out"
RUNS = 5
BUILD = ("--policy", "a100-80gb", "--dim", "batch=1,8,32", "--dim", "seq=8,128,256")


def main() -> None:
    """Runs both and writes results/overheads.json."""
    model = DEMO / "minilm.2to4.onnx"
    if not model.exists():
        raise SystemExit(f"{model} is missing: run `make demo` first.")
    tool = str(BIN / "sparseflow-trt")
    timed_command([tool, "--help"])
    helps = [timed_command([tool, "--help"]) for _ in range(4 * RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        builds = [
            build([tool, "build", str(model), "-o", f"{folder}/{i}", *BUILD, "--json"]) for i in range(RUNS)
        ]
    write_result(
        "overheads",
        {
            "seconds of --help": summary(helps),
            "seconds of build": summary([b["wall"] for b in builds]),
            "of these, the backend's own build": summary([b["backend"] for b in builds]),
            "of these, the validation runs": summary([b["validate"] for b in builds]),
            "outside both": summary([b["wall"] - b["backend"] - b["validate"] for b in builds]),
        },
    )


def build(command: list[str]) -> dict[str, Any]:
    """One build: its wall time as a process, and the two steps that are others' work."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=True)
    wall = time.perf_counter() - started
    seconds = json.loads(done.stdout)["manifest"]["seconds"]
    return {"wall": wall, "backend": seconds["backend"], "validate": seconds["validate"]}


if __name__ == "__main__":
    main()
