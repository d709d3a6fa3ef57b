"""Options that several commands share, each named once; `option_values` makes values of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.sections import SECTION
from sparseflow_trt.errors import ModelError

_COMPARISON = "Comparison with FP32"
_MOST_WORKSPACE = 1 << 24  # MiB: 16 TiB
_F = TypeVar("_F", bound=Callable[..., Any])


class ModelFile(click.Path):
    """A model to read, seen to be there when the command line is read: its readers take long to import.

    A text with a colon is left to the command: it may be FILE.py:FUNCTION.
    """

    def __init__(self, path_type: type[str | Path] = Path) -> None:
        super().__init__(path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as it was given.

        Raises:
            ModelError: Nothing is there.
        """
        with contextlib.suppress(OSError):  # of a path that cannot be followed: its reader says why
            if ":" not in str(value) and not Path(value).exists():
                raise ModelError(f"{value} does not exist.", "Check the path.")
        return super().convert(value, param, ctx)


model_argument = click.argument("model", type=ModelFile())


class PluginLibrary(click.Path):
    """A file that is seen to be the plugin's library when the command line is read, before any work."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as it was given.

        Raises:
            NotInstalledError: It is none.
            click.BadParameter: It is the next option: unlike that of `estimate`, this one takes a value.
        """
        from sparseflow_trt.engines.plugin.library import check_library

        if str(value).startswith("--"):
            self.fail(
                f"it takes the library's file, not {value}; `estimate --plugin` needs none.", param, ctx
            )
        check_library(Path(value))
        return super().convert(value, param, ctx)


class OutputFile(click.Path):
    """A file to write at the end of long work, seen to be writable when the command line is read."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as it was given.

        Raises:
            ArtifactError: It cannot be written.
        """
        from sparseflow_trt._files import check_file

        check_file(Path(value))
        return super().convert(value, param, ctx)


class PlotFile(OutputFile):
    """Such a file for a drawing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as it was given.

        Raises:
            ArtifactError: It cannot be written.
            InputError: It is neither .png nor .svg.
            NotInstalledError: Matplotlib, which would draw it.
        """
        from sparseflow_trt._deps import require
        from sparseflow_trt.report.plots import check_plot_name

        check_plot_name(Path(value))
        path = super().convert(value, param, ctx)
        require("matplotlib", "plots")
        return path


def common_options(function: _F) -> _F:
    """--json and --debug, which every command has."""

    @functools.wraps(function)
    def command(*arguments: Any, as_json: bool, **options: Any) -> Any:
        with console.json_alone() if as_json else contextlib.nullcontext():
            return function(*arguments, as_json=as_json, **options)

    json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
    debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
    return debug(json(cast(_F, command)))


def plan_options(function: _F) -> _F:
    """The options a plan is made from."""
    shapes = [
        click.option(
            "--dim", "dims", multiple=True, metavar="AXIS=MIN,OPT,MAX",
            help="The range of a dynamic axis, by its name in the model: --dim batch=1,8,32.",
        ),
        click.option(
            "--shapes", multiple=True, metavar="INPUT:MIN,OPT,MAX",
            help="The shapes of one input: --shapes input_ids:1x8,8x128,32x256.",
        ),
        click.option(
            "--profile", "profiles", multiple=True, metavar="NAME:AXIS=MIN,OPT,MAX[:AXIS=…]",
            help="An optimization profile; repeat for more: "
            "--profile prefill:batch=1,8,32:seq=128,512,1024. "
            "--dim and --shapes give what a profile leaves out; alone they make one named 'default'.",
        ),
        click.option(
            "--shapes-file", type=click.Path(path_type=Path), metavar="FILE",
            help="More profiles, as YAML: a list of {name, axes: {batch: [1, 8, 32]}, "
            "shapes: {INPUT: {min, opt, max}}}.",
        ),
        click.option(
            "--split", metavar="AXIS",
            help="Split the profile along AXIS where the policy's layers change between sparse and dense: "
            "into 4 at most, and only where a cut gains something.",
        ),
        click.option(
            "--traffic", type=click.Path(path_type=Path), metavar="FILE",
            help="With --split: how often each M (the rows of the layers' products) occurs, as CSV "
            '(m,weight) or JSON ({"512": 10}). It weighs the cuts and gives each profile its opt.',
        ),
    ]  # fmt: skip
    decisions = [
        click.option(
            "--policy", metavar="NAME|FILE",
            help="Where sparse wins. Default: the shipped policy for this machine's GPU. --sparsity force "
            "and plugin go before it: it then says which times to expect, and which layers the plugin joins.",
        ),
        click.option(
            "--precision", type=click.Choice(["fp32", "fp16", "bf16", "keep", "auto"]),
            help="Precision of every layer outside the FP32 islands. Default: fp16, or keep for a model that "
            "computes in half precision. auto measures each layer and takes as few as needed out of FP16.",
        ),
        click.option(
            "--sparsity", type=click.Choice(["policy", "force", "off", "plugin"]), default="policy",
            show_default=True,
            help="policy: sparse where the policy says so. force: wherever weights are 2:4 (an error if none "
            "are). off: nowhere. plugin: in the plugin wherever it can run.",
        ),
        click.option(
            "--plugin", type=PluginLibrary(), metavar="LIB",
            help="The 2:4 plugin's library, as `plugin build` makes it: layers may then run in it, and a "
            "build copies it into the artifact.",
        ),
    ]  # fmt: skip
    return _add("Shapes", shapes, _add("Precision and sparsity", decisions, function))


def export_options(function: _F) -> _F:
    """How a PyTorch module or a Hugging Face folder becomes ONNX."""
    from sparseflow_trt.pytorch.hf_tasks import TASKS

    options = [
        click.option(
            "--task", type=click.Choice(TASKS),
            help="Task of a Hugging Face folder: sets inputs and outputs. Default: its configuration's.",
        ),
        click.option(
            "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]),
            help="Type of the weights. Default: the checkpoint's.",
        ),
        click.option("--random-weights", is_flag=True, help="Draw random weights for the configuration."),
        click.option(
            "--model-class", default="", metavar="CLASS",
            help="A class of transformers (AutoModel, BertForMaskedLM). Default: the one for the task.",
        ),
        click.option(
            "--trust-remote-code", is_flag=True, help="Run Python code from the Hugging Face folder."
        ),
        click.option("--opset", type=click.IntRange(18, 23), help="ONNX opset. Default: 20."),
    ]  # fmt: skip
    return _add("Export, if MODEL is not an ONNX file", options, function)


def input_options(function: _F) -> _F:
    """On which inputs outputs are compared, and how far they may differ."""
    options = [
        click.option(
            "--inputs", metavar="FILE",
            help="Real inputs: an .npz, a Polygraphy JSON or loader.py:function. Default: seeded random.",
        ),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random inputs."
        ),
        click.option(
            "--tolerance", "tolerances", multiple=True, metavar="[OUTPUT:]KEY=VALUE,…",
            help="How far outputs may differ: --tolerance logits:atol=1e-2,rtol=1e-2,cosine=0.999.",
        ),
    ]  # fmt: skip
    return _add(_COMPARISON, options, function)


def dense_model_option(function: _F) -> _F:
    """The model before it was pruned."""
    option = click.option(
        "--dense-model", type=ModelFile(), metavar="FILE",
        help="The model before pruning: the error from pruning is reported, too. `build` and `refit` give "
        "layers planned dense these unpruned weights, and --precision auto searches with them.",
    )  # fmt: skip
    return _add(_COMPARISON, [option], function)


backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="The backend that builds the engine; --precision auto uses BF16 only if that supports it.",
)


def validation_options(function: _F) -> _F:
    """The options of a comparison with the reference."""
    per_layer = click.option(
        "--per-layer", is_flag=True, help="Split the error of each step among the layers, too."
    )
    return input_options(dense_model_option(_add(_COMPARISON, [per_layer], function)))


metric_options = click.option(
    "--metric", "metrics", multiple=True, metavar="FILE.py:FUNCTION",
    help="Score outputs with your own Python, too (or MODULE:FUNCTION): it takes the outputs and the inputs, "
    "each a list of {name: array}, and returns a number; higher is better.",
)  # fmt: skip


def engine_options(function: _F) -> _F:
    """The options of TensorRT's builder. Each default is TensorRT's own."""
    options = [
        click.option(
            "--workspace", type=click.IntRange(1, _MOST_WORKSPACE), metavar="MIB",
            help="The most device memory for a kernel's scratch space. Default: all there is.",
        ),
        click.option(
            "--optimization-level", type=click.IntRange(0, 5),
            help="0 builds soonest, 5 tries most. Default: TensorRT's own.",
        ),
        click.option(
            "--timing-cache", type=click.Path(path_type=Path), metavar="FILE",
            help="Timings of earlier builds: read as a hint, written after the build. A cache is valid for "
            "one TensorRT, GPU and driver; one from another is not read, and is replaced.",
        ),
        click.option("--version-compatible", is_flag=True, help="Let later TensorRT releases load it."),
        click.option("--hardware-compatible", is_flag=True, help="Let other GPUs run it, Ampere or later."),
        click.option("--refit", is_flag=True, help="Let `refit` give it other weights later."),
        click.option(
            "--strip-plan", is_flag=True,
            help="Leave the weights out of the engine: it reads them from the artifact's model.onnx when "
            "it is loaded.",
        ),
        click.option(
            "--like", type=click.Path(path_type=Path), metavar="ARTIFACT",
            help="Ask for the tactics of an earlier build by the same TensorRT on the same GPU and driver; "
            "differences are reported.",
        ),
        click.option(
            "--tf32", is_flag=True,
            help="FP32 products may run in TF32, which rounds as FP16 does: outputs may differ as much.",
        ),
    ]  # fmt: skip
    return _add("TensorRT's builder", options, function)


def module_options(default_dtype: str) -> Callable[[_F], _F]:
    """Adds --batch, --seq and --dtype of the module and the inputs that a configuration gives."""

    def add(function: _F) -> _F:
        options = (
            click.option(
                "--batch", type=click.IntRange(1), help="Rows of a configuration's inputs. Default: 1."
            ),
            click.option(
                "--seq", type=click.IntRange(1),
                help="Tokens in each row of a configuration's inputs. Default: 128.",
            ),
            click.option(
                "--dtype", type=click.Choice(["fp16", "bf16", "fp32"]),
                help=f"Type of a configuration's module. Default: {default_dtype}.",
            ),
        )  # fmt: skip
        for option in reversed(options):
            function = option(function)
        return function

    return add


def _add(section: str, options: list[Callable[[Any], Any]], function: _F) -> _F:
    for option in reversed(options):  # click lists the one that was put on last first
        function = option(function)
        setattr(cast(Any, function).__click_params__[-1], SECTION, section)
    return function
