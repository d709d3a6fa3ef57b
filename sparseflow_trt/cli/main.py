"""The command group, and the one place where an error becomes a red line, a hint and an exit code."""

from __future__ import annotations

import importlib
import sys

import click

from sparseflow_trt import __version__
from sparseflow_trt.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, SparseflowError

# Imported when called, so that --help does not wait for ONNX.
_COMMANDS = {
    "inspect": ("inspect_layers", "Which layers are 2:4, which are not, and why."),
    "prune": ("prune", "Prune an ONNX model 2:4 by magnitude."),
    "plan": ("plan", "Decide precision and sparsity per layer; write the plan as YAML."),
    "build": ("build", "Build an engine, validate it, write an artifact."),
    "validate": ("validate", "Compare an artifact with its FP32 reference again."),
    "policy": ("policy", "List and show policies: from which M on sparse wins."),
    "doctor": ("doctor", "What this machine can do, and what to install."),
}


class _LazyGroup(click.Group):
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
    context_settings={"help_option_names": ["-h", "--help"]},
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
    debug = "--debug" in sys.argv
    try:
        code = group.main(standalone_mode=False, prog_name="sparseflow-trt")
        sys.exit(code if isinstance(code, int) else EXIT_OK)
    except SparseflowError as error:
        if debug:
            raise
        _complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if debug:
            raise
        _complain("interrupted; nothing was written.", "")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 - the edge: whatever it is, it is said in one line
        if debug:
            raise
        _complain(
            f"this is a fault of sparseflow-trt, not of your input: {type(error).__name__}: {error}",
            "Run it again with --debug and report what it prints.",
        )
        sys.exit(EXIT_FAILED)


def _complain(message: str, hint: str) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    if hint:
        click.echo(click.style("hint:  ", bold=True) + hint, err=True)


if __name__ == "__main__":
    main()
