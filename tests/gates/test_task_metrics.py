"""A user's metric: called with what it is promised, and its faults are said in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparseflow_trt.errors import InputError
from sparseflow_trt.gates.task_metrics import load_metric, score_reference


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.py"
    path.write_text(
        "import numpy as np\n"
        "def mean(outputs, inputs):\n"
        "    return np.mean([o['y'].mean() * i['x'].size for o, i in zip(outputs, inputs)])\n"
        "def broken(outputs, inputs):\n    return outputs[7]\n"
        "def nan(outputs, inputs):\n    return float('nan')\n"
        "def ends(outputs, inputs):\n    raise SystemExit(0)\n"
        "def in_place(outputs, inputs):\n    outputs[0]['y'] -= 1\n    return outputs[0]['y'].sum()\n"
        "calls = []\n"
        "def flaky(outputs, inputs):\n    calls.append(0)\n    return len(calls) / 100\n",
        encoding="utf-8",
    )
    return path


def test_scores_all_sets_at_once(metrics: Path) -> None:
    outputs = [{"y": np.ones(2)}, {"y": np.full(2, 3.0)}]
    assert load_metric(f"{metrics}:mean")(outputs, [{"x": np.zeros(4)}] * 2) == 8.0


def test_a_metric_may_work_in_place(metrics: Path) -> None:
    """The reference outputs are read-only in `check`, and what the next metric is given is not this one's."""
    outputs = [{"y": np.full(2, 3.0)}]
    outputs[0]["y"].flags.writeable = False
    score = load_metric(f"{metrics}:in_place")
    assert (score(outputs, []), score(outputs, [])) == (4.0, 4.0)


def test_a_metric_that_varies_by_more_than_it_may_drop_gates_nothing(metrics: Path) -> None:
    score = load_metric(f"{metrics}:flaky")
    with pytest.raises(InputError, match=r"m:flaky gave 0\.01 and then 0\.02 for the same outputs"):
        score_reference("m:flaky", score, [], [], max_drop=0.001)
    assert score_reference("m:flaky", score, [], [], max_drop=0.05) == 0.03


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "IndexError"),
        ("nan", "gave nan"),
        ("lacks", "has no function 'lacks'"),
        ("ends", "failed: SystemExit: 0"),
    ],
)
def test_faults_are_worded(metrics: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_metric(f"{metrics}:{name}")([], [])
    assert (str(metrics) if name == "lacks" else f"{metrics}:{name}") in caught.value.message


@pytest.mark.parametrize(
    "source", ["metrics.py", "no_such_module_here:f", "nowhere.py:f", ":f", "m:not a name"]
)
def test_what_is_no_metric_is_refused(source: str) -> None:
    with pytest.raises(InputError):
        load_metric(source)


def test_a_script_that_ends_python_is_no_metric(tmp_path: Path) -> None:
    """`check` had ended with it, with exit code 0 and nothing checked."""
    script = tmp_path / "script.py"
    script.write_text("import sys\ndef mean(outputs, inputs): return 1.0\nsys.exit(0)\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"script.py:mean failed: SystemExit: 0"):
        load_metric(f"{script}:mean")
