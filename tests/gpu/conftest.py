"""What the tests on a GPU share: they are marked and skipped here, and get one small built artifact.

They need a GPU, TensorRT and cuda-bindings, and of the development tools pytest alone. `make test-gpu` is:

    cd tests/gpu && python -m pytest . --confcutdir=. -p no:cacheprovider --gpu-summary FILE

`--confcutdir` leaves out the conftest above, which needs hypothesis. A summary of the same machine and
versions is added to, so that the tests can be run in parts.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sparseflow_trt.engines.machine.hardware import NO_GPU, find_gpus
from sparseflow_trt.engines.tensorrt.api import version_of
from sparseflow_trt.engines.tensorrt.timing_cache import this_machine
from sparseflow_trt.engines.torch_kernels.cusparselt import load_torch
from sparseflow_trt.errors import NotInstalledError

if TYPE_CHECKING:
    from sparseflow_trt.pipeline import BuildOptions, BuildResult

HERE = Path(__file__).parent
HIDDEN, INTERMEDIATE = 256, 512
PROFILES = {"small": (1, 16, 64), "large": (65, 256, 512)}
PACKAGES = ("sparseflow-trt", "tensorrt", "cuda-bindings", "numpy", "onnx", "onnx-ir", "onnxruntime",
            "polygraphy", "pytest")  # fmt: skip

_TRACE = 40  # lines of a failure that are kept
_MACHINE = ("python", "gpus", "driver", "versions")  # where these differ, results do not go together
_FOLDERS = re.compile(r"(?<![\w.>/:])/(?:[\w.+-]+/)+")  # of an absolute path

WriteMlp = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --gpu-summary."""
    parser.addoption("--gpu-summary", metavar="FILE", help="Write what was run, on what, and how it went.")


def pytest_configure(config: pytest.Config) -> None:
    """Listens to the tests where a summary is asked for."""
    # In a run of all tests this file is read too late for its option to be known.
    if file := config.getoption("--gpu-summary", None):
        config.pluginmanager.register(Summary(Path(file)), "gpu-summary")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, and skips them where they cannot run."""
    why_not = why_not_here()
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            if why_not and getattr(getattr(item, "module", None), "NEEDS_TENSORRT", True):
                item.add_marker(pytest.mark.skip(reason=why_not))
            if item.get_closest_marker("needs_torch") and (why_not_torch := why_no_torch()):
                item.add_marker(pytest.mark.skip(reason=why_not_torch))


def why_not_here() -> str:
    """Why these tests cannot run on this machine, "" if they can."""
    if version_of("tensorrt") is None:
        return "TensorRT is not installed"
    return "" if find_gpus() else NO_GPU


@functools.cache
def why_no_torch() -> str:
    """Why PyTorch's sparse kernels cannot run on this machine, "" if they can."""
    if not find_gpus():
        return NO_GPU
    try:
        load_torch()
    except NotInstalledError as error:
        return error.message
    return ""


class Summary:
    """Collects the tests' outcomes in one JSON file, written after each: a run that is cut has it, too.

    Where the file holds results of the same machine and versions, those that are not run again are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        self.started = time.monotonic()
        self.collected: list[str] = []
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes what is to be run."""
        self.collected = [item.nodeid for item in session.items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up a test's setup, call and teardown; one that fails in any of them has failed."""
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.outcome != "passed" and test["outcome"] != "failed":
            test["outcome"] = report.outcome
            test["reason"] = without_folders(reason_of(report))
            if report.failed:
                test["trace"] = [without_folders(line) for line in report.longreprtext.splitlines()[-_TRACE:]]
        if report.when == "teardown":
            self._write()

    def _write(self) -> None:
        """Writes the file, where a test was run: nobody's result is lost to a machine without a GPU."""
        from sparseflow_trt._files import write_atomically

        if {test["outcome"] for test in self.tests.values()} <= {"skipped"}:
            return
        arguments = (os.path.relpath(a) if Path(a).is_absolute() else a for a in sys.argv[1:])
        run = {
            "command": shlex.join(["python", "-m", "pytest", *arguments]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        machine = {
            "python": platform.python_version(),
            "gpus": [gpu.name for gpu in find_gpus()],
            "driver": this_machine("").driver,
            "versions": {name: found for name in PACKAGES if (found := version_or_none(name))},
        }
        result = added_to(self.before, machine, run, self.tests, self.collected)
        write_atomically(self.file, json.dumps(result, indent=2) + "\n")


def added_to(
    before: dict[str, Any] | None,
    machine: dict[str, Any],
    run: dict[str, Any],
    tests: dict[str, dict[str, Any]],
    collected: list[str],
) -> dict[str, Any]:
    """A summary with a run's tests in it: the later run of a test counts, but a skipped one hides no result.

    Args:
        before: The summary so far; one of another machine, or of other versions, is left out.
        machine: Python, GPUs, driver and versions.
        run: The run's command, date and seconds.
        tests: What was run of it, by name.
        collected: The names of all that was to be run.
    """
    if before is None or "runs" not in before or any(before[key] != machine[key] for key in _MACHINE):
        before = {"runs": [], "tests": {}, "not run": []}
    told = before["tests"] | {
        name: test
        for name, test in tests.items()
        if test["outcome"] != "skipped" or name not in before["tests"]
    }
    outcomes = [test["outcome"] for test in told.values()]
    return {
        **machine,
        "runs": [*before["runs"], run],
        **{word: outcomes.count(word) for word in ("passed", "failed", "skipped")},
        "not run": [name for name in dict.fromkeys([*before["not run"], *collected]) if name not in told],
        "tests": dict(sorted(told.items(), key=lambda named: named[0].partition("::")[0])),
    }


def without_folders(text: str) -> str:
    """A line with only the names of its files: where they lay is the machine's own affair."""
    return _FOLDERS.sub("", text)


def reason_of(report: pytest.TestReport) -> str:
    """One line of why a test was skipped or has failed."""
    if isinstance(report.longrepr, tuple):  # (file, line, reason) of a skip
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).strip().splitlines()[0][:300]


def version_or_none(package: str) -> str | None:
    """A package's installed version, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.fixture(scope="session")
def write_mlp() -> WriteMlp:
    """Writes x[m, 256] → ·up → Relu → ·down → y[m, 256], in FP32 as given: `write_mlp(path, dense=())`.

    The weights are seeded and 2:4 along K, but for the layers named in `dense` (up_proj, down_proj).
    """

    def write(path: Path, dense: tuple[str, ...] = ()) -> Path:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        from sparseflow_trt.model.pattern import prune_2to4

        rng = np.random.default_rng(0)
        tensors = []
        for name, shape in {"up": (HIDDEN, INTERMEDIATE), "down": (INTERMEDIATE, HIDDEN)}.items():
            weight = (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
            kept = weight if f"{name}_proj" in dense else prune_2to4(weight, 0)
            tensors.append(numpy_helper.from_array(kept, name))
        nodes = [
            helper.make_node("MatMul", ["x", "up"], ["a"], "up_proj"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("MatMul", ["b", "down"], ["y"], "down_proj"),
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", HIDDEN]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return write


@pytest.fixture(scope="session")
def mlp_model(write_mlp: WriteMlp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small MLP, 2:4 in both layers."""
    return write_mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx")


@pytest.fixture(scope="session")
def mlp_options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    """What the small MLP's artifact is built with: FP16, sparsity forced, two profiles (PROFILES)."""
    from sparseflow_trt.building.plan_options import PlanOptions
    from sparseflow_trt.pipeline import BuildOptions
    from sparseflow_trt.plans.profile_specs import ProfileSpec

    profiles = tuple(ProfileSpec(name=name, axes={"m": sizes}) for name, sizes in PROFILES.items())
    plan = PlanOptions(profiles=profiles, precision="fp16", sparsity="force")
    return BuildOptions(tmp_path_factory.mktemp("built") / "mlp.artifact", plan, backend="tensorrt")


@pytest.fixture(scope="session")
def mlp_build(mlp_model: Path, mlp_options: BuildOptions) -> BuildResult:
    """The small MLP as an artifact, built once; nobody may change it."""
    from sparseflow_trt.pipeline import build

    return build(mlp_model, mlp_options)


@pytest.fixture(scope="session")
def mlp_artifact(mlp_build: BuildResult) -> Path:
    """The folder of that artifact."""
    return mlp_build.artifact
