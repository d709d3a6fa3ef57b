"""The command group, and the one place where an error becomes a red line, a hint and an exit code.

With --json it is an object on standard output, too: {"error": {"message", "hint", "exit_code"}}.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from sparseflow_trt._version import __version__
from sparseflow_trt.errors import (
    EXIT_FAILED,
    EXIT_HUNG_UP,
    EXIT_INTERRUPTED,
    EXIT_NOT_READ,
    EXIT_OK,
    EXIT_TERMINATED,
    SparseflowError,
)

# Imported when called, so that --help does not wait for ONNX.
_COMMANDS = {
    "export": ("export_model", "Export a PyTorch module or a Hugging Face folder to ONNX, checked."),
    "inspect": ("inspect_layers", "Show which layers are 2:4, which are not, and why."),
    "prune": ("prune", "Prune 2:4: an ONNX model by magnitude, a PyTorch module with calibration."),
    "unpack": ("unpack", "Write another tool's 2:4 checkpoint as plain weights, masks verified."),
    "plan": ("plan", "Decide precision and sparsity per layer; write the plan as YAML."),
    "build": ("build", "Build an engine, validate it, write an artifact."),
    "refit": ("refit", "Give an artifact's engine another model's weights."),
    "validate": ("validate", "Compare an artifact with its FP32 reference again."),
    "baseline": ("baseline", "Record an accepted build's results in a file for version control."),
    "check": ("check", "Check a new build against a baseline, in CI."),
    "deploy": ("deploy", "Serve artifacts with Triton: write a repository, verify it, roll back."),
    "bench": ("bench", "Time an artifact on this machine's GPU, alone or against another."),
    "profile": ("profile_model", "Show where a model's GPU time goes, and the ceiling for its speedup."),
    "policy": ("policy", "List, show, draw, ask, import and learn policies: at which M sparse wins."),
    "autotune": ("autotune", "Measure where sparse wins on this machine's GPU; write a policy."),
    "estimate": ("estimate", "Estimate what 2:4 weights would gain on a GPU, before pruning; no GPU needed."),
    "roi": ("roi", "Compare GPUs and monthly cost, dense and sparse."),
    "plugin": ("plugin", "Compile the TensorRT plugin that runs 2:4 layers on cuSPARSELt."),
    "doctor": ("doctor", "Show what this machine can do, and what to install."),
}


class _NotReadError(Exception):
    """Nobody reads what is printed."""


@contextlib.contextmanager
def _not_read_told_apart() -> Iterator[None]:
    """Of a pipe that is closed click and rich make an exit with 1, as of a failure."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            raise _NotReadError from error
        raise


class _LazyGroup(click.Group):
    def make_context(self, *arguments: Any, **more: Any) -> click.Context:  # which prints a help
        with _not_read_told_apart():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _not_read_told_apart():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"sparseflow_trt.cli.{_COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not 2:4, 4 outputs differ, 5 evidence differs from the "
    "plan, 6 something is not installed.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.version_option(__version__, prog_name="sparseflow-trt")
def group() -> None:
    """2:4-sparse models to TensorRT engines: which layers are sparse, why or why not, measured.

    Start with: sparseflow-trt build model.onnx
    """


def main() -> None:
    """The console script: runs a command, and turns what goes wrong into words."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # "×" in a locale that has none is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    for number, handler in ((signal.SIGTERM, _terminate), (signal.SIGHUP, _hang_up)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, handler)
    try:
        result = group.main(standalone_mode=False, prog_name="sparseflow-trt")
        sys.stdout.flush()  # here, where it can still be said that the disk is full
        code = result if isinstance(result, int) else EXIT_OK
    except (BrokenPipeError, _NotReadError):
        code = EXIT_NOT_READ  # as of SIGPIPE: whoever read the output has had enough of it
        _give_up_stdout()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge: whatever it is, it is said in one line
        if "--debug" in sys.argv:
            traceback.print_exc()
        code = _explain(error)
        _give_up_stdout()
    sys.exit(code)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came: what Ctrl-C would clean up, a job that is cancelled cleans up, too."""


class _HungUpError(_TerminatedError):
    """SIGHUP came: so does a terminal or a connection that is gone."""


def _terminate(number: int, frame: object) -> None:
    raise _TerminatedError


def _hang_up(number: int, frame: object) -> None:
    raise _HungUpError


def _explain(error: BaseException) -> int:
    """Says what went wrong, and returns the exit code for it."""
    if isinstance(error, SparseflowError):
        return _complain(error.message, error.hint, error.exit_code)
    if isinstance(error, click.ClickException):
        if type(error).__name__ == "NoArgsIsHelpError":  # the help; click before 8.2 prints it as no error
            error.show()
            return error.exit_code
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help lists its arguments and options." if context else ""
        return _complain(error.format_message(), hint, error.exit_code)
    stopped = error.__cause__ if isinstance(error, click.Abort) else error  # click makes its Abort of it
    if isinstance(stopped, _TerminatedError):
        code = EXIT_HUNG_UP if isinstance(stopped, _HungUpError) else EXIT_TERMINATED
        with contextlib.suppress(OSError):  # a terminal that is gone takes no words
            _complain("terminated; nothing unfinished was written.", "", code)
        return code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _complain("interrupted; nothing unfinished was written.", "", EXIT_INTERRUPTED)
    if isinstance(error, MemoryError):
        return _complain("there is not enough memory.", "Use a machine with more memory, or smaller shapes.")
    if isinstance(error, OSError) and error.strerror:
        where = error.filename if isinstance(error.filename, str) else "reading or writing failed"
        return _complain(f"{where}: {error.strerror}.", "Check the path, its permissions and the free space.")
    return _complain(
        f"this is a bug in sparseflow-trt, not in your input: {type(error).__name__}: {error}",
        "Run it again with --debug and report what it prints.",
    )


def _complain(message: str, hint: str, code: int = EXIT_FAILED) -> int:
    click.echo(click.style("error: ", fg="red", bold=True) + _printable(message), err=True)
    if hint:
        click.echo(click.style("hint:  ", bold=True) + _printable(hint), err=True)
    if "--json" in sys.argv:
        with contextlib.suppress(OSError):  # a standard output that takes nothing has been complained of
            print(json.dumps({"error": {"message": message, "hint": hint, "exit_code": code}}, indent=2))
    return code


def _printable(text: str) -> str:
    """Text without control characters, which a name in a model may hold to command the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _give_up_stdout() -> None:
    """Sends what is still buffered nowhere: Python would try to write it at its exit, and complain."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
