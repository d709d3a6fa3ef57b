"""Writes a build's manifest as one self-contained HTML page."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._listing import counted
from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.artifacts.verdict import cancelling
from sparseflow_trt.model.layer_names import shown_names
from sparseflow_trt.plans.precision_record import by_need
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.report.errors import Gauge, draw_gauges, draw_steps, shipped_gauges
from sparseflow_trt.report.layer_table import layer_rows, time_groups, whose_times
from sparseflow_trt.report.speedups import HEIGHT, WIDTH, draw_speedups
from sparseflow_trt.report.spine import draw_spine

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_HERE = Path(__file__).parent
_MOST_LAYER_ERRORS = 30
_MOST_ROWS = 250  # of the table of layers that a browser lays out before someone asks for all


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page."""

    name: str
    value: str
    unit: str
    said: str


@functools.cache
def _environment() -> jinja2.Environment:
    """One for all reports: to compile the template takes longer than to fill it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"slug": _slug, "percent": _percent, "time": _time, "breakable": _breakable}
    environment.filters["counted"] = counted
    return environment


def write_report(manifest: Manifest, path: Path, policy: Policy | None = None) -> None:
    """Writes the report: the verdict first, then errors, graph, layers, times and what the engine says.

    The page loads nothing and, by its Content-Security-Policy, could not: only its own script runs, known by
    its hash, whatever names a model holds.

    Args:
        manifest: What is told.
        path: The file to write.
        policy: What the build's plan was made by, for the times to expect and the speedups against M.
    """
    from markupsafe import Markup

    environment = _environment()
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.jinja").render(
        **_context(manifest, policy),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    path.write_text(page, encoding="utf-8")


def _context(manifest: Manifest, policy: Policy | None) -> dict[str, Any]:
    engine, attribution = manifest.engine, manifest.validation.attribution
    rows = layer_rows(manifest, policy)
    gauges = draw_gauges(manifest)
    groups, groups_left_out = time_groups(manifest, policy)
    panels, panels_left_out = draw_speedups(manifest, policy)
    sections = [
        ("duel", "Sparse against dense") if manifest.duel else None,
        ("errors", "Errors"),
        ("graph", "Graph"),
        ("precisions", "Precisions") if manifest.precision_search else None,
        ("layers", "Layers"),
        ("times", "Times"),
        ("speedup", "Speedup against M") if panels else None,
        ("engine", "Engine"),
        ("origin", "Origin"),
    ]
    return {
        "manifest": manifest,
        "policy": policy,
        "whose_plan": "" if manifest.plan_policy == "none" else manifest.plan_policy,
        "sections": [section for section in sections if section],
        "notes": [n for n in dict.fromkeys((*manifest.notes, engine.sparse_tactics, *engine.notes)) if n],
        "tiles": _tiles(manifest, gauges),
        "gauges": gauges,
        "steps": draw_steps(manifest),
        "cancelling": cancelling(attribution.steps if attribution else ()),
        "restored": len(manifest.graph.restored_layers),
        "guarded": sum(check.read for check in manifest.graph.mask_checks),
        "spine": draw_spine(manifest),
        "in_plugin": any(layer.sparsity == "plugin" for layer in manifest.layers),
        "sensitivities": by_need(manifest.precision_search) if manifest.precision_search else (),
        "rows": rows,
        "shown": shown_names(manifest.layers),
        "show_runs": any(row.runs for row in rows),
        "show_times": any(row.times for row in rows),
        "groups": groups,
        "groups_left_out": groups_left_out,
        "longest": max((max(g.times.dense, g.times.sparse) for g in groups), default=1.0),
        "whose": whose_times(manifest, policy),
        "panels": panels,
        "panels_left_out": panels_left_out,
        "plugin_drawn": any(curve.plugin for panel in panels for curve in panel.curves),
        "width": WIDTH,
        "height": HEIGHT,
        "engine_types": Counter((layer.type, layer.precision) for layer in engine.layers).most_common(),
        "most_rows": _MOST_ROWS,
        "most_layer_errors": _MOST_LAYER_ERRORS,
    }


def _tiles(manifest: Manifest, gauges: tuple[Gauge, ...]) -> list[Tile]:
    layers, outcomes = manifest.layers, [o for o in manifest.engine.outcomes if o.is_told]
    planned = sum(layer.sparsity == "sparse" for layer in layers)
    pruned = sum(layer.state == "sparse" for layer in layers)
    in_plugin = sum(layer.sparsity == "plugin" for layer in layers)
    tiles = [Tile("Layers planned sparse", str(planned), f"of {len(layers)}", f"{pruned} have 2:4 weights")]
    if in_plugin:
        tiles.append(
            Tile("Planned for the plugin", str(in_plugin), f"of {len(layers)}", "cuSPARSELt's kernels")
        )
    if outcomes:
        ran = sum(outcome.sparse for outcome in outcomes)
        tiles.append(
            Tile(
                "Sparse kernels", str(ran), f"of {len(outcomes)}", "layers and profiles whose kernel is known"
            )
        )
    if manifest.duel and manifest.duel.speedup:
        shipped = f"{manifest.duel.ships} ships"
        tiles.append(Tile("Sparse engine", f"{manifest.duel.speedup:.3f}×", "as fast as dense", shipped))
    of_shipped, whose = shipped_gauges(manifest, gauges)
    cosines = [gauge.worst.cosine for gauge in of_shipped if gauge.worst.cosine is not None]
    if cosines:
        tiles.append(Tile("Least cosine", f"{min(cosines):.7f}", "", f"to the FP32 reference, {whose}"))
    used = max((gauge.used for gauge in of_shipped if gauge.used is not None), default=None)
    if used is not None:
        said = f"of the error allowed for an element, {whose}"
        tiles.append(Tile("Largest error", _percent(used), "", said))
    islands, casts = len(manifest.graph.islands), counted(manifest.graph.casts, "cast")
    tiles.append(Tile("Kept in FP32", str(islands), "node" if islands == 1 else "nodes", f"{casts} added"))
    built = f"{manifest.engine.build_seconds:.1f}"
    tiles.append(Tile("Engine", built, "s to build", f"{sum(manifest.seconds.values()):.1f} s in all"))
    return tiles


def _slug(text: str) -> str:
    """A word of ours as a CSS class."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


def _percent(share: float) -> str:
    if share == 0:
        return "0 %"
    percent = 100 * share
    return (
        f"{percent:.2g} %"
        if abs(percent) >= 1e9
        else f"{percent:,.0f} %"
        if abs(percent) >= 9.5
        else f"{percent:.2g} %"
        if abs(percent) >= 1e-3
        else f"{percent:.0e} %"
    )


def _breakable(name: str) -> Markup:
    """A name that may be broken behind its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(escape(name).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>")))


def _time(microseconds: float) -> str:
    return f"{microseconds:.3g}" if microseconds < 1000 else f"{microseconds:,.0f}".replace(",", " ")
