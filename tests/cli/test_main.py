"""What all commands share: help, exit codes, errors in words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparseflow_trt import __version__
from sparseflow_trt.cli.main import _COMMANDS
from sparseflow_trt.errors import EvidenceError, NotInstalledError
from tests.cli.conftest import COMMAND

if TYPE_CHECKING:
    from tests.commands import Sparseflow

MakeModel = Callable[..., Path]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; sys.argv[1:] = ['--help']\n"
        "from sparseflow_trt.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(json.dumps([end.code, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, modules = json.loads(ended.stderr)
    assert status == 0
    assert not {"onnx", "onnx_ir", "numpy", "pydantic", "rich", "yaml", "jinja2", "polygraphy"} & set(modules)
    for name in _COMMANDS:
        assert f"\n  {name} " in ended.stdout


@pytest.mark.parametrize(
    "command",
    [
        "inspect gone.onnx", "inspect . --since gone.onnx", "plan gone.onnx", "build gone.onnx",
        "prune gone.onnx", "estimate gone.onnx", "refit . gone.onnx", "autotune gone.onnx",
        "validate . --reference gone.onnx",
        "baseline create . --reference gone.onnx", "deploy verify . --reference gone.onnx",
        "build . --dense-model gone.onnx",
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_said_before_onnx_is_imported(command: str, own_folder: Path) -> None:
    code = (
        f"import sys; sys.argv[1:] = {command.split()}\n"
        "from sparseflow_trt.cli.main import main\n"
        "try: main()\n"
        "finally: print({'onnx', 'onnx_ir', 'sympy', 'torch'} & {*sys.modules})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "set()\n")
    assert ended.stderr == "error: gone.onnx does not exist.\nhint:  Check the path.\n"


GROUPS = ("baseline", "deploy", "plugin", "policy")  # whose commands have --json
SUBCOMMANDS = ("baseline create", "deploy triton", "deploy verify", "deploy rollback", "plugin build",
               "policy list", "policy show")  # fmt: skip


@pytest.mark.parametrize("command", [*_COMMANDS, *SUBCOMMANDS])
def test_every_command_has_help(command: str, sparseflow: Sparseflow) -> None:
    ended = sparseflow(*command.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: sparseflow-trt {command} ")
    if command not in GROUPS:
        assert "--json" in ended.out
        assert "--debug" in ended.out


@pytest.mark.parametrize(
    ("command", "sections"),
    [
        ("plan", ["Options", "Shapes", "Precision and sparsity", "Comparison with FP32"]),
        ("build", ["Options", "Shapes", "Precision and sparsity", "TensorRT's builder",
                   "Comparison with FP32", "Export, if MODEL is not an ONNX file"]),
    ],
)  # fmt: skip
def test_many_options_are_listed_in_sections(
    command: str, sections: list[str], sparseflow: Sparseflow
) -> None:
    said = sparseflow(command, "--help").out
    assert re.findall(r"^(\S.*):$", said, re.MULTILINE) == sections
    parts = re.split(r"^\S.*:$", said, flags=re.MULTILINE)[1:]
    assert parts[0].split()[0] == "-o,"
    assert "--dim" in parts[1]
    assert "--policy" in parts[2]
    assert "--dense-model" in parts[sections.index("Comparison with FP32")]


@pytest.mark.parametrize("group", GROUPS)
def test_no_line_of_a_groups_commands_is_cut(group: str, sparseflow: Sparseflow) -> None:
    commands = sparseflow(group, "--help").out.partition("Commands:")[2]
    assert commands.strip()
    assert "..." not in commands


def test_no_command_prints_the_help(sparseflow: Sparseflow) -> None:
    ended = sparseflow()
    assert "Usage: sparseflow-trt" in ended.out + ended.err
    assert "error:" not in ended.err


def test_the_version(sparseflow: Sparseflow) -> None:
    assert sparseflow("--version").out == f"sparseflow-trt, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("frobnicate",), "No such command 'frobnicate'."),
        (("build",), "Missing argument 'MODEL'."),
        (("inspect", "a", "--jsno"), "--jsno"),
        (("build", "a", "--precision", "fp12"), "'fp12' is not one of"),
        (("build", "a", "--seed", "many"), "'many' is not a valid integer"),
        (("build", "a", "--seed", "-3"), "-3 is not in the range x>=0"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], says: str, sparseflow: Sparseflow) -> None:
    ended = sparseflow(*arguments)
    assert ended.code == 2
    assert says in ended.error
    assert "--help lists its arguments and options" in ended.err


@pytest.mark.parametrize("command", [*(c for c in _COMMANDS if c != "policy"), "policy show", "policy list"])
def test_every_commands_errors_are_json_with_json(command: str, sparseflow: Sparseflow) -> None:
    ended = sparseflow(*command.split(), "--json", "--frobnicate")
    message, said = ended.error, ended.json["error"]  # which checks that both say the same
    assert (ended.code, said["message"], said["exit_code"]) == (2, message, 2)
    assert said["hint"] == f"sparseflow-trt {command} --help lists its arguments and options."
    assert sparseflow(*command.split(), "--frobnicate").out == ""


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (EvidenceError("it runs otherwise.", "Plan it so."), 5, "Plan it so."),
        (NotInstalledError("nothing is there.", "pip install it"), 6, "pip install it"),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "Use a machine with more memory, or smaller shapes."),
        (ZeroDivisionError("oh"), 1, "Run it again with --debug and report what it prints."),
    ],
)
def test_what_kind_of_error_it_was_is_in_the_json(
    error: BaseException, code: int, hint: str, sparseflow: Sparseflow, mlp: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sparseflow_trt.model.graph.read_layers", fail)
    ended = sparseflow("inspect", mlp(), "--json")
    said = ended.json["error"]
    assert (ended.code, said["exit_code"], said["hint"]) == (code, code, hint)
    assert ended.err.lstrip().startswith(f"error: {said['message']}\n")


def test_json_holds_a_name_as_it_is(sparseflow: Sparseflow) -> None:
    ended = sparseflow("inspect", "evil\x1b[2J.onnx", "--json")
    assert ended.json["error"]["message"] == "evil\x1b[2J.onnx does not exist."
    assert "\x1b" not in ended.out, "JSON escapes it"


def test_debug_shows_the_traceback_and_keeps_the_exit_code(sparseflow: Sparseflow) -> None:
    for arguments in (("--debug", "inspect", "no.onnx"), ("inspect", "no.onnx", "--debug")):
        ended = sparseflow(*arguments)
        assert ended.code == 1
        assert "Traceback (most recent call last)" in ended.err
        assert ended.err.count("error: no.onnx does not exist.") == 1
    assert "Traceback" not in sparseflow("inspect", "no.onnx").err


def test_a_fault_of_our_own_is_said_to_be_one(
    sparseflow: Sparseflow, mlp: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("sparseflow_trt.model.graph.read_layers", fail)
    ended = sparseflow("inspect", mlp())
    assert ended.code == 1
    assert ended.err.startswith(
        "error: this is a bug in sparseflow-trt, not in your input: ZeroDivisionError: oh\n"
    )
    assert "--debug" in ended.err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "there is not enough memory."),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied."),
        (OSError(28, "No space left on device"), "reading or writing failed: No space left on device."),
    ],
)
def test_the_machines_own_limits(
    error: Exception, says: str, sparseflow: Sparseflow, mlp: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sparseflow_trt.model.graph.read_layers", fail)
    assert sparseflow("inspect", mlp()).error == says


@pytest.mark.parametrize(
    "arguments", [("inspect", "model.onnx"), ("inspect", "model.onnx", "--json"), ("policy", "list"), ("-h",)]
)
def test_output_that_nobody_reads_ends_as_by_sigpipe(arguments: tuple[str, ...], mlp: MakeModel) -> None:
    mlp()
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run([*COMMAND, *arguments], stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_names_cannot_command_the_terminal(sparseflow: Sparseflow) -> None:
    assert sparseflow("inspect", "evil\x1b[2J.onnx").error == r"evil\x1b[2J.onnx does not exist."


def test_a_reader_that_has_had_enough(process: Sparseflow, mlp: MakeModel) -> None:
    path = mlp()
    for arguments in (f"inspect --json {path}", f"inspect {path}"):
        command = f"{sys.executable} -m sparseflow_trt.cli.main {arguments} | true"
        ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert ended.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_takes_nothing(process: Sparseflow, mlp: MakeModel) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "sparseflow_trt.cli.main", "inspect", "--json", str(mlp())],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: reading or writing failed: No space left on device.\n")
    assert "Traceback" not in ended.stderr


def test_a_closed_output_does_not_hide_an_error(process: Sparseflow) -> None:
    command = f"{sys.executable} -u -m sparseflow_trt.cli.main inspect no.onnx --json | true"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.stderr == "error: no.onnx does not exist.\nhint:  Check the path.\n"


def test_a_locale_without_the_signs(process: Sparseflow) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    ended = process("policy", "list", env=environment)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.isascii()
    assert process("policy", "list", "--json", env=environment).json
