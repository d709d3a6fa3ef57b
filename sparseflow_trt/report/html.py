"""Writes a build's manifest as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sparseflow_trt.manifest import Manifest


def write_report(manifest: Manifest, path: Path) -> None:
    """Writes the report: the verdict first, then the decisions, the figures and what the engine says."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine = manifest.engine
    sparse = sum(layer.sparsity == "sparse" for layer in manifest.layers)
    types = Counter((layer.type, layer.precision) for layer in engine.layers)
    page = environment.get_template("report.html.jinja").render(
        manifest=manifest,
        notes=[n for n in dict.fromkeys((*manifest.notes, engine.sparse_tactics, *engine.notes)) if n],
        sparse_layers=sparse,
        plugin_layers=sum(layer.sparsity == "plugin" for layer in manifest.layers),
        engine_types=types.most_common(),
    )
    path.write_text(page, encoding="utf-8")
