"""Optional packages: what is said where one is missing, old or broken."""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata
import re
import shlex
import signal
from pathlib import Path
from types import ModuleType

import pytest

from sparseflow_trt import _deps
from sparseflow_trt.errors import EXIT_NOT_INSTALLED, NotInstalledError


def _install(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], module: ModuleType | Exception
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    def import_module(name: str) -> ModuleType:
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib, "import_module", import_module)


def test_a_package_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("onnxruntime")
    _install(monkeypatch, {"onnxruntime-gpu": "1.23.1"}, module)
    assert _deps.require("onnxruntime", "validation") is module
    assert _deps.version_of("onnxruntime") == "1.23.1"


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("error", [None, ImportError("initialization failed")])
def test_an_interrupt_waits_for_the_import(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    went_on = []

    def import_module(name: str) -> ModuleType:
        signal.raise_signal(signal.SIGINT)
        went_on.append(name)
        if error:
            raise error
        return ModuleType(name)

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.10.0")
    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(KeyboardInterrupt):
        _deps.require("torch", "exporting")
    assert went_on == ["torch"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("versions", "error", "says"),
    [
        ({}, ImportError("no"), "torch is not installed: it is needed for exporting."),
        (
            {"torch": "1.9.0+cpu"},
            ImportError("no"),
            "torch 1.9.0+cpu is too old: exporting needs 2.6 or later.",
        ),
        (
            {"torch": "2.10.0"},
            ImportError("libx"),
            "torch 2.10.0 does not load (libx): it is needed for exporting.",
        ),
        ({"torch": "2.10.0"}, OSError("libx.so"), "torch 2.10.0 does not load (libx.so)"),
    ],
)
def test_a_package_that_is_not(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], error: Exception, says: str
) -> None:
    _install(monkeypatch, versions, error)
    with pytest.raises(NotInstalledError) as caught:
        _deps.require("torch", "exporting")
    assert caught.value.message.startswith(says)
    assert (
        caught.value.hint
        == _deps.install_line("torch")
        == ("pip install 'safetensors>=0.4' 'torch>=2.6' 'onnxscript>=0.7'")
    )
    assert caught.value.exit_code == EXIT_NOT_INSTALLED


def _required() -> dict[str, set[str]]:
    """What setup.cfg says: the requirements of each extra, and under "" those of the package itself."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        name: {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")}
        for name, text in lists.items()
    }


@pytest.mark.parametrize("module", _deps._KNOWN)
def test_a_line_that_installs_asks_for_what_setup_cfg_asks_for(module: str) -> None:
    """It names packages that are on PyPI, since this one is not."""
    known = _deps._KNOWN[module]
    assert any(set(known.requirements) <= wanted for wanted in _required().values())
    command, action, *requirements = shlex.split(_deps.install_line(module))
    assert (command, action, tuple(requirements)) == ("pip", "install", known.requirements)
    own = [each for each in requirements if re.split(r"[\[>]", each)[0] in known.distributions]
    assert [each.rpartition(">=")[2] for each in own] == [known.floor]


def test_a_whole_extra_is_installed_where_one_is_for_the_module() -> None:
    extras = _required()
    for module, extra in {
        "onnxruntime": "ort", "matplotlib": "plot", "ray": "ray", "torch": "torch", "onnxscript": "torch",
        "transformers": "hf", "tensorrt": "tensorrt",
        "tritonclient.http": "triton", "tensorrt_rtx_libs": "rtx",
    }.items():  # fmt: skip
        assert set(_deps._KNOWN[module].requirements) == extras[extra]


@pytest.mark.parametrize(
    ("one", "other"), [("2.9", "2.10"), ("2.6.0rc1", "2.6.1"), ("8.5.3", "8.6"), ("10.0.1.dev3+x", "11")]
)
def test_versions_are_compared_by_number(one: str, other: str) -> None:
    assert _deps._release(one) < _deps._release(other)
    assert _deps._release("unknown") == ()
