"""Manifests that have something to say everywhere, and a browser to see what it looks like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from sparseflow_trt.artifacts.manifest import Manifest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_CHROMIUMS = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
)  # fmt: skip
_SHAPES = (("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 14336, 4096), ("down", 4096, 14336))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium: the machine's, or the one that `playwright install` got."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=found, args=sandbox)
        except sync_api.Error as error:
            if os.environ.get("SPARSEFLOW_NEEDS_BROWSER"):
                raise
            first = str(error).strip().splitlines()[0]
            pytest.skip(f"no Chromium could be started (`make browser` installs one): {first}")
        yield started
        started.close()


def _layer(i: int, name: str) -> dict[str, Any]:
    kind, n, k = _SHAPES[i % 4]
    return {
        "name": name, "module": "", "kind": kind, "op_type": "MatMul", "weight": "w", "dtype": "FP16", "n": n,
        "k": k, "batch": 1, "m": {"decode": (1, 8, 32), "prefill": (64, 512, 4096)},
        "state": "not-sparse" if kind == "o" else "sparse", "state_reason": "", "mask_hash": "",
        "precision": "fp16", "sparsity": "dense" if kind == "o" else "sparse",
        "reason": f"profile 'prefill': {kind} wins at M=512",
    }  # fmt: skip


def _outcome(i: int, name: str, profile: int) -> dict[str, Any]:
    dense = 0.01 + 0.002 * (i % 7) + 0.1 * profile
    return {
        "layer": name, "profile": profile, "engine_layer": f"{name} fused", "merged_with": (), "tactic": "t",
        "sparse": i % 4 == 2, "precision": "Half", "best_sparse_ms": dense / 1.3, "best_sparse_tactic": "s",
        "best_dense_ms": dense, "best_dense_tactic": "d", "tried_sparse": 2, "tried_dense": 5,
        "why": "the sparse one is faster",
    }  # fmt: skip


def _attribution() -> dict[str, Any]:
    figures = {"output": "logits", "input_set": "prefill:opt", "max_abs": 1e-2}
    return {
        "blamed": "pruning",
        "reason": "Pruning changes most.",
        "unrestored": {"name": "pruning", "before": "unpruned", "after": "pruned",
                       "outputs": [{**figures, "error": 0.2, "accumulated": 0.2}]},
        "steps": [
            {"name": "pruning", "before": "unpruned", "after": "pruned",
             "outputs": [{**figures, "error": 0.05, "accumulated": 0.05, "share": 0.99}]},
            {"name": "precision", "before": "pruned", "after": "typed",
             "outputs": [{**figures, "error": 0.0005, "accumulated": 0.051, "share": 0.01}]},
            {"name": "engine", "before": "typed", "after": "engine", "not_run": "No GPU."},
        ],
    }  # fmt: skip


MakeManifest = Callable[..., Manifest]


@pytest.fixture
def manifests() -> MakeManifest:
    """Makes a manifest as TensorRT's would be, of layers in blocks of four; `rename` gives each its name."""

    def make(layers: int = 16, rename: Callable[[str], str] = lambda name: name, **more: Any) -> Manifest:
        names = [rename(f"model.layers.{i // 4}.{_SHAPES[i % 4][0]}_{i}") for i in range(layers)]
        tolerance = {"max_abs": 1e-3, "max_abs_rms": 0.1, "max_rel": 0.02, "min_cosine": 0.999}
        output = {
            "output": "logits", "input_set": "prefill:opt", "passed": True, "tolerance": tolerance,
            "abs_bound": 0.2, "max_abs": 0.05, "mean_abs": 0.004, "cosine": 0.99999, "psnr": 60.0,
        }  # fmt: skip
        spine = [{"after": name, "operators": ("Pow", "ReduceMean", "Softmax")} for name in names[::4]]
        gemm = {
            "name": rename("a"), "type": "gemm", "precision": "Half", "tactic": "", "profile": 0, "nodes": ()
        }  # fmt: skip
        data: dict[str, Any] = {
            "schema_version": 1, "status": "pass", "tool": "sparseflow-trt", "created": "2026-01-01",
            "command": "build", "build_key": "0", "policy": None, "plan_sha256": "0", "files": {},
            "seconds": {"backend": 9.0},
            "model": {"file": rename("model.onnx"), "sha256": "0", "data": {}, "opset": 20, "bytes": 1},
            "layers": [_layer(i, name) for i, name in enumerate(names)],
            "graph": {
                "nodes_retyped": 9, "casts": 4, "islands": ("n",) * layers, "clamped": (),
                "restored": [
                    {"layer": rename("o"), "weight": "w", "route": "restored", "reason": "", "elements": 5},
                    {"layer": rename("tied"), "weight": "w", "route": "kept", "reason": "it is tied"},
                ],
                "mask_checks": [{"step": "casting", "touched": 3, "read": 3}],
                "spine": [{"after": "", "operators": ("Gather", "LayerNormalization")}, *spine],
            },
            "engine": {
                "file": "model.engine", "backend": "tensorrt", "chosen_because": "", "device": "NVIDIA H200",
                "versions": {"tensorrt": "10"}, "build_seconds": 9.0, "runs_here": "", "sparse_tactics": "",
                "notes": (), "layers": [gemm],
                "outcomes": [_outcome(i, name, p) for i, name in enumerate(names) for p in (0, 1)],
            },
            "validation": {
                "verdict": "pass", "reason": "All agreed.", "reference": "model.onnx",
                "reference_runtime": "CPU", "compared_by": "Polygraphy", "input_sets": (),
                "attribution": _attribution(),
                "candidates": [
                    {"name": rename("typed model"), "file": "model.onnx", "verdict": "pass", "reason": "",
                     "outputs": [output]},
                    {"name": "engine", "file": "model.engine", "verdict": "not run", "reason": "No GPU."},
                ],
            },
        }  # fmt: skip
        return Manifest.model_validate({**data, **more})

    return make
