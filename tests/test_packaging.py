"""What an install adds: one import name, with every folder of ours in it."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAPPED = {"exporters", "engines", "validation"}
SOURCES = ROOT / "plugins" / "sparse_linear"


def test_setup_cfg_lists_every_folder_with_code() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    inside = {p.parent.relative_to(ROOT) for p in (ROOT / "sparseflow_trt").rglob("__init__.py")}
    mapped = {p.parent.relative_to(ROOT) for name in MAPPED for p in (ROOT / name).rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in inside}
    expected |= {".".join(("sparseflow_trt", *folder.parts)) for folder in mapped}
    assert listed == expected | {"sparseflow_trt.plugin_sources"}


def test_a_build_holds_one_import_name_and_all_the_data(tmp_path: Path) -> None:
    code = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-c", code, "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [p.name for p in tmp_path.iterdir()] == ["sparseflow_trt"]
    for name in (
        *(f"policies/shipped/{name}.json" for name in ("a100-80gb", "h100", "h200")),
        "report/report.html.jinja",
        "report/report.css",
        "report/report.js",
        "py.typed",
        "engines/backends/worker.py",
    ):
        assert (tmp_path / "sparseflow_trt" / name).is_file()
    sources = tmp_path / "sparseflow_trt" / "plugin_sources"
    expected = {path.name for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h", ".py")}
    assert {path.name for path in sources.iterdir()} == expected | {"CMakeLists.txt"}
