"""What a builder tried: every tactic that its verbose log times, summed up for each matrix product.

Two kinds of log are read. TensorRT 8.6 and early 10 time each layer runner by runner:

    Constructing optimization profile number 1 [2/2].
    *************** Autotuning format combination: Half(2048,1,1,1) -> Half(5632,1,1,1) ***************
    --------------- Timing Runner: up_proj [profile 1] (CaskConvolution[0x80000009])
    Tactic Name: sm80_xmma_… Tactic: 0xbb8c3889c7eacd30 Time: 1.05357

From 10.8 on, with an editable timing cache, there is a sorted table for each operator instead (the format
is the one that NVIDIA's sampleEditableTimingCache prints and parses; no such log was made here):

    Autotuning op up_proj(key: 0x1814870c44ff0f8574df6e3dda04cbd7):
    tactic_id, cost(in ms), cost/fastest_cost, prediction_correlation, kernel_name, tactic_hash, …
       3, 0.0112640, 1.00000, 0.50673, sm80_xmma_gemm_…, 0x665ded9abbf88,

Only runners that multiply are counted: conversions between formats, pointwise runners and whole regions
of TensorRT's compiler have no dense and sparse tactics to compare. A table's operators are all kept.
A layer that is like one that was timed before has no lines of its own here (twins.py finds whose it took).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from sparseflow_trt.engines.evidence.tactics import is_sparse_tactic, layer_key, precision_of

_PROFILE_STARTS = re.compile(r"Constructing optimization profile number (\d+)")
_FORMATS = re.compile(r"\*{3,} Autotuning format combination: (.*?) \*{3,}")
_RUNNER = re.compile(r"-{3,} Timing Runner: (?P<layer>.*) \((?P<runner>\w+)(?:\[0x[0-9a-f]+\])?\)\s*$")
_MULTIPLIES = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected", re.IGNORECASE)
_TACTIC = re.compile(
    r"^(?:\[\S+\]\s+)*(?:Tactic Name: (?P<name>.*?) (?:num\w+: \d+ )*)?"
    r"Tactic: (?P<hash>0x[0-9a-f]+) Time: (?P<ms>\S+)\s*$"
)
# Both kinds of skip say so before, or instead of, the tactic's time.
_SKIP = re.compile(
    r"Fast skip Tactic:\s*(0x[0-9a-f]+)|Skipping tactic (0x[0-9a-f]+|.*tactic 0x[0-9a-f]+|\d+)"
)
_OPERATOR = re.compile(r"Autotuning op (?P<layer>.*)\(key: 0x[0-9a-f]+\)")
_ROW = re.compile(
    r"^(?:\[\S+\]\s+)*\s*\d+, (?P<ms>[^,\s]+), [^,]+, [^,]+, (?P<name>[^,]+), (?P<hash>0x[0-9a-f]+),?"
)
_TABLE_ENDS = "The selected tactic is"
_DATATYPE = re.compile(r"\b([A-Z]\w*)\(")


@dataclass(frozen=True)
class Timing:
    """One tactic and how long it took.

    `tactic` is its name, "" for a runner whose tactics have none; `formats` the combination it was timed
    in ("Half(2048,1,1,1) -> Half(5632,1,1,1)"), "" in a table.
    """

    tactic: str
    ms: float
    formats: str = ""
    hash: str = ""


@dataclass(frozen=True)
class LayerTimings:
    """What the builder measured for one matrix product in one profile.

    Attributes:
        layer: TensorRT's own name of the layer, such as "gate_proj || up_proj".
        profile: The optimization profile's number.
        tried_dense: How many measurements of dense tactics gave a time: a tactic counts once for each
            format combination that it was measured in.
        tried_sparse: The same of sparse ones.
        best_dense: The fastest dense one, None where none gave a time.
        best_sparse: The fastest sparse one.
        skipped: How many were given up: too slow in the first run (8.6 gives that run's time all the
            same, and it is counted as tried), short of memory, failed, or without a finite time.
        without_tactics: Runners that had nothing to offer, in any format combination.
        precisions: What the measured format combinations compute in, "" for those that do not tell; one alone
            is what the layer runs in.
    """

    layer: str
    profile: int
    tried_dense: int = 0
    tried_sparse: int = 0
    best_dense: Timing | None = None
    best_sparse: Timing | None = None
    skipped: int = 0
    without_tactics: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()


@dataclass
class _Layer:
    """The sums of one layer so far."""

    layer: str
    profile: int
    tried: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    best: dict[bool, Timing] = field(default_factory=dict)
    skipped: set[tuple[str, str, str]] = field(default_factory=set)
    without_tactics: dict[str, None] = field(default_factory=dict)
    with_tactics: set[str] = field(default_factory=set)
    precisions: dict[str, None] = field(default_factory=dict)

    def add(self, timing: Timing, runner: str) -> None:
        self.with_tactics.add(runner)
        if not math.isfinite(timing.ms):
            self.skipped.add((timing.formats, runner, timing.hash))
            return
        sparse = is_sparse_tactic(timing.tactic)
        self.tried[sparse] += 1
        if sparse not in self.best or timing.ms < self.best[sparse].ms:
            self.best[sparse] = timing
        precision = _precision(timing)
        if precision or timing.formats:  # "" is one, too: of formats between which a cast may be
            self.precisions[precision] = None

    def freeze(self) -> LayerTimings:
        return LayerTimings(
            layer=self.layer,
            profile=self.profile,
            tried_dense=self.tried[False],
            tried_sparse=self.tried[True],
            best_dense=self.best.get(False),
            best_sparse=self.best.get(True),
            skipped=len(self.skipped),
            without_tactics=tuple(r for r in self.without_tactics if r not in self.with_tactics),
            precisions=tuple(self.precisions),
        )


class TimingReader:
    """Reads a log as it is written: feed it messages or lines, and ask for the sums at any time."""

    def __init__(self) -> None:
        self._layers: dict[tuple[str, int], _Layer] = {}
        self._profile = 0
        self._formats = ""
        self._runner = ""
        self._now: _Layer | None = None
        self._in_table = False

    def feed(self, message: str) -> None:
        """Takes one message of the builder, of one line or several."""
        for line in message.split("\n"):  # splitlines would also cut at the \x1e between two nodes' names
            self._feed_line(line)

    def layers(self) -> tuple[LayerTimings, ...]:
        """The sums so far, in the order in which the builder came to the layers."""
        return tuple(layer.freeze() for layer in self._layers.values())

    def _feed_line(self, line: str) -> None:
        if match := _PROFILE_STARTS.search(line):
            self._profile, self._now, self._formats = int(match[1]), None, ""
        elif match := _FORMATS.search(line):
            self._formats, self._now, self._in_table = match[1], None, False
        elif match := _RUNNER.search(line):
            self._runner, self._in_table = match["runner"], False
            self._now = self._layer(match["layer"]) if _MULTIPLIES.search(self._runner) else None
        elif match := _OPERATOR.search(line):
            self._runner, self._formats, self._in_table = "", "", True
            self._now = self._layer(match["layer"])
        elif _TABLE_ENDS in line:
            self._now = None
        elif self._now is not None:
            self._read_tactic(self._now, line)

    def _read_tactic(self, layer: _Layer, line: str) -> None:
        if match := (_ROW if self._in_table else _TACTIC).match(line):
            timing = Timing(match["name"] or "", _milliseconds(match["ms"]), self._formats, match["hash"])
            layer.add(timing, self._runner)
        elif match := _SKIP.search(line):
            tactic = (match[1] or match[2]).rpartition(" ")[2]
            layer.skipped.add((self._formats, self._runner, tactic))
        elif "has no valid tactics" in line:
            layer.without_tactics[self._runner] = None

    def _layer(self, name: str) -> _Layer:
        key = layer_key(name, self._profile)
        return self._layers.setdefault(key, _Layer(*key))


def _milliseconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _precision(timing: Timing) -> str:
    read, arrow, written = timing.formats.partition(" -> ")
    if not arrow:
        return precision_of((), (), timing.tactic)
    return precision_of(_DATATYPE.findall(read), _DATATYPE.findall(written), timing.tactic)
