"""What an artifact says of itself: everything that was decided, measured and checked. Fails closed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat

from sparseflow_trt._files import sha256_of
from sparseflow_trt._paths import AnyPath
from sparseflow_trt._schema import Record, load_json, parse, read_text
from sparseflow_trt.artifacts.graph_record import GraphRecord
from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.errors import ArtifactError
from sparseflow_trt.plans.precision_record import PrecisionSearch
from sparseflow_trt.policies.gemm import Gemm

NAME = "manifest.json"
SCHEMA_VERSION = 1

_HINT = "Build it again with `sparseflow-trt build MODEL --force`."


class ModelRecord(Record):
    """The model that was built: names and hashes, no paths."""

    file: str
    sha256: str
    data: dict[str, str]
    opset: int
    bytes: int


class PolicyRecord(Record):
    """The policy that was asked."""

    name: str
    device: str
    sha256: str


class LayerRecord(Record):
    """One weighted layer: what it is, and what was decided for it and why.

    `m` holds M at min, opt and max of each profile, by the profile's name; None where M is not known.
    """

    name: str
    module: str
    kind: str
    op_type: str
    weight: str
    dtype: str
    n: int
    k: int
    batch: int
    m: dict[str, tuple[int | None, int | None, int | None]]
    state: str
    state_reason: str
    mask_hash: str
    precision: str
    sparsity: str
    reason: str

    @property
    def gemm(self) -> Gemm:
        """Its product in the planned type, as a policy is asked about it."""
        return Gemm(self.kind, self.n, self.k, self.precision.upper())


class PluginRecord(Record):
    """The plugin's library, a file of the artifact, and versions of the libraries whose kernels it runs."""

    file: str
    sha256: str
    versions: dict[str, str] = Field(default_factory=dict)


class EngineLayerRecord(Record):
    """One layer as the engine itself names it."""

    name: str
    type: str
    precision: str
    tactic: str
    profile: int
    nodes: tuple[str, ...]
    tactic_id: str = ""


# A tactic of that name stands for a kernel which is chosen later, on the device that runs it.
STUB = "__myelin"


class OutcomeRecord(Record):
    """What became of one planned layer in one profile of the engine, with the times behind it.

    `timed_as` is TensorRT's name of the layer that the times and counts are of, where its builder timed one
    for several that are alike; "" where they are this layer's own. `accumulator` is the type that the kernel
    adds up products in, by its name.
    """

    layer: str
    profile: int
    engine_layer: str
    merged_with: tuple[str, ...]
    tactic: str
    sparse: bool
    precision: str
    best_sparse_ms: FiniteFloat | None
    best_sparse_tactic: str
    best_dense_ms: FiniteFloat | None
    best_dense_tactic: str
    tried_sparse: int
    tried_dense: int
    why: str
    plugin: bool = False
    timed_as: str = ""
    accumulator: str = ""

    @property
    def is_told(self) -> bool:
        """Whether the engine says which kernel the layer runs: a whole compiled by Myelin does not."""
        return self.sparse or bool(self.tactic and not self.tactic.startswith(STUB))


class EngineRecord(Record):
    """The engine: who built it, for what, and what it is not.

    `runs_here` and `sparse_tactics` are "" where there is nothing to say against it. `options` are those
    that were asked for; the others were the library's own. `multiprocessors` is how many the GPU has that it
    was built on; None where that was not asked.
    """

    file: str
    backend: str
    chosen_because: str
    versions: dict[str, str]
    device: str
    multiprocessors: int | None = Field(default=None, ge=1)
    build_seconds: FiniteFloat
    runs_here: str
    sparse_tactics: str
    notes: tuple[str, ...]
    options: dict[str, bool | int | str] = Field(default_factory=dict)
    layers: tuple[EngineLayerRecord, ...]
    outcomes: tuple[OutcomeRecord, ...] = ()
    plugin: PluginRecord | None = None


class TimingRecord(Record):
    """GPU times of one engine on one input set, in milliseconds.

    `p50`, `p90` and `p99` are over all launches; `low` and `high` the extremes of the rounds' medians.
    """

    p50: FiniteFloat
    p90: FiniteFloat
    p99: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class DuelProfileRecord(Record):
    """Sparse against dense at one profile's opt.

    `speedup` is how many times as fast as the dense engine the sparse one is: the median of the rounds'
    ratios; `low` and `high` are their extremes.
    """

    profile: str
    shapes: dict[str, tuple[int, ...]]
    sparse: TimingRecord
    dense: TimingRecord
    speedup: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class DuelRecord(Record):
    """Which engine ships, of one with sparse weights and one without, and the times that decided it.

    Attributes:
        margin: By what share sparse had to be faster.
        why: The sentence behind `ships`.
        speedup: The geometric mean over the profiles; None where there was nothing to compare.
        rounds: How many rounds of each engine in turn counted.
        launches: CUDA graph replays a round and engine.
        sparse_outcomes: What became of each layer in the sparse engine, where that does not ship.
    """

    margin: FiniteFloat
    ships: Literal["sparse", "dense"]
    why: str
    speedup: FiniteFloat | None = None
    rounds: int = 0
    launches: int = 0
    profiles: tuple[DuelProfileRecord, ...] = ()
    sparse_outcomes: tuple[OutcomeRecord, ...] = ()


class Manifest(Record):
    """manifest.json, schema version 1. Fields with defaults came later: older manifests lack them.

    `notes` are sentences for the person who builds that are not about the engine; `duel` is None where
    sparse and dense were not compared; `dense_model` is the unpruned model, None where it was not given;
    `precision_search` is None where precisions were given, not searched for. `policy` is None where no policy
    was asked, as where the build was given a plan: `plan_policy` is what that says of its own. `masks_apart`
    are layers that no plan is for, and `layers` has not: a mask is still multiplied with their weight.
    """

    schema_version: Literal[1]
    status: Literal["pass", "fail", "not run"]
    tool: str
    created: str
    command: str
    build_key: str
    model: ModelRecord
    dense_model: ModelRecord | None = None
    policy: PolicyRecord | None
    plan_policy: str = ""
    plan_sha256: str
    layers: tuple[LayerRecord, ...]
    masks_apart: tuple[str, ...] = ()
    graph: GraphRecord
    engine: EngineRecord
    duel: DuelRecord | None = None
    precision_search: PrecisionSearch | None = None
    validation: Validation
    notes: tuple[str, ...] = ()
    seconds: dict[str, FiniteFloat]
    files: dict[str, str]


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes manifest.json into a folder that is not in anyone's use yet."""
    text = manifest.model_dump_json(indent=2)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: AnyPath) -> Manifest:
    """Reads an artifact's manifest.

    Raises:
        ArtifactError: The folder is no artifact, its manifest is of another schema, or a field is wrong.
    """
    folder = Path(folder)
    path = folder / NAME
    if not folder.exists():
        raise ArtifactError(f"there is no artifact {folder}.", "Name the folder that `build` wrote.")
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is not an artifact: it has no {NAME}.", "Name the folder that `build` wrote."
        )
    data = load_json(read_text(path, ArtifactError, "manifest"), str(path), ArtifactError, _HINT)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}; this tool reads {SCHEMA_VERSION}.",
            "Build it again, or use the version of sparseflow-trt that wrote it.",
        )
    return parse(Manifest, data, str(path), ArtifactError, _HINT)


def check_files(manifest: Manifest, folder: Path) -> None:
    """Checks that an artifact's files are there and unchanged.

    Raises:
        ArtifactError: One is missing or its hash differs, or the manifest has no hash for one that is used.
    """
    plugin = [manifest.engine.plugin.file] if manifest.engine.plugin else []
    for name in ("model.onnx", "plan.yaml", manifest.engine.file, *plugin):
        if name not in manifest.files:
            raise ArtifactError(f"{folder / NAME} has no hash for '{name}'.", _HINT)
    for name, sha256 in manifest.files.items():
        if Path(name).name != name:
            raise ArtifactError(
                f"{folder / NAME} names '{name}', which is not a file of the artifact.", _HINT
            )
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing from the artifact.", _HINT)
        if sha256_of(path) != sha256:
            raise ArtifactError(f"{path} is not the file that was built: its SHA-256 differs.", _HINT)
