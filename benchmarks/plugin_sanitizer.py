"""The plugin under compute-sanitizer: memcheck, racecheck, initcheck and synccheck.

    python benchmarks/plugin_sanitizer.py --plugin FILE [--cusparselt FILE] [--minutes 0.5] [--tool NAME …]

Needs what plugin_soak.py needs, and CUDA's compute-sanitizer. The engine is that script's, built here without
the sanitizer, since TensorRT's builder is not what is looked at. Then, in a process under each tool: the
engine is loaded, so that weights are expanded and compressed on the GPU, and two contexts of it run at once
at random M for some minutes, every output checked. With --dense-below M rows below run dense. The plugin has
no kernel of its own: so that reports of cuSPARSELt's kernels can be told from what the plugin does, that
library's algorithms without the plugin (cusparselt_alone.py) are run under each tool, too, at the shape of
the engine's first layer or the one that --alone names. A process that has not ended after --limit seconds is
stopped. Writes results/plugin_sanitizer.json: what each tool counted and said first, which kernels it named,
of which library, and the command; of tools that are not asked for, what it has of them stays.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import command_line, result_that_stands, today, write_result
from plugin_soak import MOST, K, N, build, draw, soak

from sparseflow_trt._files import sha256_of
from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.tensorrt.api import load_flavour

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SAID = 12  # lines of a tool that are kept
PRINTED = 50  # reports that a tool prints in words; it counts all
ALONE = Path(__file__).with_name("cusparselt_alone.py")
SAFE = 36  # algorithms of FP16 that do not end the process (weights.cpp)
SHAPE = (K, N, MOST)
FILES = ("--plugin", "--cusparselt", "--sanitizer")
_COUNT = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?$|hazard)")
_KERNEL = re.compile(r"\bat (?:void )?([\w:<>, ]+?)(?:\(|\+0x)")
_PLACE = re.compile(r"Thread |  File ")
_RUNS = "RUNS "


def main() -> None:
    """Runs the tools, or, in a process under one of them, the engine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plugin", type=Path, required=True, help="the compiled library")
    parser.add_argument("--cusparselt", help="cuSPARSELt's library or its folder")
    parser.add_argument("--minutes", type=float, default=0.5, help="of each tool, loading not counted")
    parser.add_argument("--tool", action="append", choices=TOOLS)
    parser.add_argument("--dense-below", type=int, default=0, metavar="M")
    parser.add_argument(
        "--alone", nargs=3, type=int, default=SHAPE, metavar=("K", "N", "M"), help="cuSPARSELt's shape alone"
    )
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="of each process")
    parser.add_argument("--sanitizer", default=shutil.which("compute-sanitizer"), help="its program")
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cusparselt and Path(asked.cusparselt).is_dir():
        asked.cusparselt = str(Path(asked.cusparselt) / "libcusparseLt.so.0")
    if asked.cusparselt:
        os.environ["SPARSEFLOW_CUSPARSELT"] = asked.cusparselt
    flavour = load_flavour("tensorrt")
    load_plugin(flavour, asked.plugin)
    if asked.engine:
        faulthandler.dump_traceback_later(max(asked.limit - 5, 1))  # where it was, if it has to be stopped
        print(_RUNS + json.dumps(soak(flavour, asked.engine, draw(), asked.minutes)), flush=True)
        return
    if not asked.sanitizer:
        parser.error("compute-sanitizer is not on the PATH: name it with --sanitizer.")
    command = command_line(sys.argv, FILES)
    rows: dict[str, Any] = result_that_stands("plugin_sanitizer").get("tools", {})
    with tempfile.TemporaryDirectory() as scratch:
        engine = build(flavour, Path(scratch), draw(), asked.dense_below)
        for tool in asked.tool or TOOLS:
            rows[tool] = {
                "date": today(),
                "command": command,
                "plugin_sha256": sha256_of(asked.plugin),
                "minutes": asked.minutes,
                "dense_below_m": asked.dense_below,
                **run_tool(asked, tool, engine),
            }
            figures = {
                "sanitizer": version_of(asked.sanitizer),
                "clean": all(row["clean"] for row in rows.values()),
                "tools": rows,
            }
            write_result("plugin_sanitizer", figures, command, show=False)
            print(
                tool,
                {key: rows[tool][key] for key in ("clean", "counted", "runs", "seconds", "kernels named")},
                flush=True,
            )


def run_tool(asked: argparse.Namespace, tool: str, engine: Path) -> dict[str, Any]:
    """What a tool says of a process that loads the engine and runs it, and of cuSPARSELt alone."""
    child = ["--plugin", str(asked.plugin), "--engine", str(engine), "--minutes", str(asked.minutes)]
    child += ["--limit", str(asked.limit)]
    done, seen = under(asked, tool, [__file__, *child])
    (figures,) = [json.loads(line[len(_RUNS) :]) for line in done if line.startswith(_RUNS)] or [{}]
    ran = bool(figures) and not figures["failed"] and figures["outputs_right"]
    row = {
        **seen,
        "clean": ran and seen["counted"] == [0] and seen["exit code"] == 0,
        "runs": figures.get("runs", []),
        "outputs right": ran,
        "failed": figures.get("failed", []) if figures else done[-SAID:],
    }
    if library := asked.cusparselt or os.environ.get("SPARSEFLOW_CUSPARSELT"):
        lines, alone = under(asked, tool, [str(ALONE), library, str(SAFE), *map(str, asked.alone)])
        right = sum(line.startswith("right ") for line in lines)
        row["cuSPARSELt alone"] = {
            "shape": dict(zip("knm", asked.alone, strict=True)),
            **alone,
            "right": right,
        }
    return row


def under(asked: argparse.Namespace, tool: str, script: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The lines of a Python script under a tool, and what the tool said of it, whether it ended or not."""
    flags = ["--show-backtrace", "no", "--print-limit", str(PRINTED)]
    started = time.monotonic()
    process = subprocess.Popen(
        [asked.sanitizer, "--tool", tool, *flags, sys.executable, *script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ended = True
    try:
        output, errors = process.communicate(timeout=asked.limit)
    except subprocess.TimeoutExpired:
        ended = False
        os.killpg(process.pid, signal.SIGKILL)  # the script, too, which is the tool's child
        output, errors = process.communicate()
    lines = [*output.splitlines(), *errors.splitlines()]
    said = [line.removeprefix("=========").strip() for line in lines if line.startswith("=========")]
    return lines, {
        "counted": [int(found[1]) for line in said if (found := _COUNT.search(line))],
        "exit code": process.returncode,
        "ended": ended,
        "seconds": round(time.monotonic() - started, 1),
        "was in": [] if ended else [without_folders(line.strip()) for line in lines if _PLACE.match(line)],
        "kernels named": sorted({found for line in said for found in _KERNEL.findall(line)}),
        "said": [without_folders(line) for line in said[:SAID]],
    }


def without_folders(line: str) -> str:
    """A line with only the names of its files: where they lay is the machine's own affair."""
    return re.sub(r"(?:/[^/\s:()]+)+/", "", line)


def version_of(sanitizer: str) -> str:
    """The line in which it says its version."""
    said = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=False).stdout
    return next((line.strip() for line in said.splitlines() if "ersion" in line), said.strip())


if __name__ == "__main__":
    main()
