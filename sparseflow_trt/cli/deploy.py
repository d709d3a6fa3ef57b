"""sparseflow-trt deploy: artifacts to Triton Inference Server, verified there, and rolled back."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.deployments import model_json, print_load, print_model, print_verified
from sparseflow_trt.cli.numbers import LARGEST_INT, FiniteRange
from sparseflow_trt.cli.option_values import read_validation_options
from sparseflow_trt.cli.options import ModelFile, common_options, input_options
from sparseflow_trt.cli.verdicts import exit_code_of
from sparseflow_trt.errors import EXIT_FAILED, EXIT_OK

_WITH = ("docker", "k8s")
_LACKS = (
    "Triton's own image lacks what these models need: with `--with docker --container YY.MM` a Dockerfile is "
    "written that adds it."
)


@click.group("deploy")
def command() -> None:
    """Serve artifacts with Triton Inference Server: write a repository, verify it on a server, roll back."""


_repository_option = click.option(
    "--repository",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Triton's repository.",
)
_sparse_from_option = click.option(
    "--sparse-from",
    type=click.IntRange(1),
    metavar="M",
    help="The M from which sparse wins, if no policy says so.",
)


def _whole_numbers(text: str) -> list[int]:
    """Numbers from 0 to LARGEST_INT, with commas between them.

    Raises:
        ValueError: One is none.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) <= LARGEST_INT for word in words):
        raise ValueError(text)
    return [int(word) for word in words]


@command.command("triton")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@_repository_option
@click.option("--name", help="The model's name; only for one artifact. Default: its folder's.")
@click.option(
    "--route", type=click.Choice(["auto", "tensorrt_plan", "python"]), default="auto", show_default=True,
    help="Triton's own TensorRT backend, or a generated model.py.",
)  # fmt: skip
@click.option(
    "--container", metavar="YY.MM", help="The release of Triton's container: 26.05. Its TensorRT is checked."
)
@click.option(
    "--tensorrt", metavar="VERSION",
    help="The server's TensorRT, if you know it: 10.16.1. With --route python, the one in its Python.",
)  # fmt: skip
@click.option("--gpus", default="0", show_default=True, metavar="N,…", help="GPUs to run instances on.")
@click.option(
    "--instances",
    type=click.IntRange(1, LARGEST_INT),
    default=1,
    show_default=True,
    help="Instances per GPU.",
)
@click.option(
    "--threads", type=click.IntRange(1, LARGEST_INT), default=1, show_default=True,
    help="CPU threads for ONNX Runtime.",
)  # fmt: skip
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=True,
    show_default=True,
    help="Use CUDA graphs at each profile's opt.",
)
@click.option("--cache", is_flag=True, help="Cache responses; the server is started with the flag for it.")
@click.option(
    "--max-batch-size", type=click.IntRange(0), metavar="N",
    help="The largest batch that requests share; 0 if the first dimension is not a batch. Default: what the "
    "profiles accept, or 0 if the model says so.",
)  # fmt: skip
@click.option(
    "--queue-delay", type=click.IntRange(0, LARGEST_INT), metavar="µs",
    help="How long a request may wait to be batched.",
)  # fmt: skip
@_sparse_from_option
@click.option(
    "--dense", type=click.Path(path_type=Path), metavar="ARTIFACT",
    help="A dense artifact of the same model: a router gives it the batches below the sparse threshold.",
)  # fmt: skip
@click.option(
    "--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="The library of a plugin."
)
@click.option(
    "--with", "wanted", metavar="docker,k8s", default="", help="Write a compose file, Kubernetes manifests."
)
@click.option(
    "--image", metavar="NAME:TAG",
    help="The image those files run: a mirror of Triton's, or your name for the Dockerfile's.",
)  # fmt: skip
@click.option(
    "--keep", type=click.IntRange(2), default=3, show_default=True, help="How many versions to keep."
)
@common_options
def deploy_triton(
    artifacts: tuple[Path, ...],
    repository: Path,
    name: str | None,
    gpus: str,
    instances: int,
    queue_delay: int | None,
    plugins: tuple[Path, ...],
    wanted: str,
    image: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Write ARTIFACTS into a repository, as new versions.

    Your edits to a configuration are kept: what differs from the fresh one is shown.
    """
    from sparseflow_trt._files import alone_in, check_folder_of_files
    from sparseflow_trt.exporters.triton.manifests import start_script
    from sparseflow_trt.serving.deploying import deploy
    from sparseflow_trt.serving.deployment import DeployOptions
    from sparseflow_trt.serving.deployment_files import (
        check_plugins,
        check_wanted,
        deployment_folder,
        plan_server,
        write_deployment_files,
    )
    from sparseflow_trt.serving.served_artifact import model_name

    if name and len(artifacts) > 1:
        raise click.UsageError("--name takes a single artifact.")
    if options["dense"] and len(artifacts) > 1:
        raise click.UsageError("--dense takes a single artifact.")
    files = [word for word in wanted.split(",") if word]
    if unknown := [word for word in files if word not in _WITH]:
        raise click.BadParameter(f"'{unknown[0]}' is not one of {', '.join(_WITH)}", param_hint="--with")
    try:
        chosen = tuple(_whole_numbers(gpus))
    except ValueError:
        raise click.BadParameter(f"'{gpus}' is not a list of GPUs", param_hint="--gpus") from None
    names = [model_name(artifact, name) for artifact in artifacts]
    if twice := [known for known in names if names.count(known) > 1]:
        raise click.UsageError(
            f"two artifacts would both be named '{twice[0]}': give them one by one, with --name."
        )
    check_plugins(plugins)
    check_wanted(files, options["container"], image)
    check_folder_of_files(deployment_folder(repository))
    if repository.is_dir():  # what its other models say wrongly is told before one is written
        plan_server(repository, plugins, options["container"])
    asked = DeployOptions(repository, name, gpus=chosen, count=instances, delay_us=queue_delay, **options)
    deployed = [model for artifact in artifacts for model in deploy(artifact, asked)]
    with alone_in(repository):  # the files are of all models that are there by now
        plan = plan_server(repository, plugins, options["container"], image)
        written = write_deployment_files(repository, plan, plugins, files)
    notes = [*plan.notes, *([_LACKS] if plan.dockerfile and not files else [])]
    if as_json:
        console.print_json(
            {
                "models": [model_json(model) for model in deployed],
                "files": [str(file) for file in written],
                "start": start_script(plan),
                "notes": notes,
            }
        )
        return EXIT_OK
    out = console.out()
    for model in deployed:
        print_model(model)
    if any(model.written.version > 1 and not model.written.unchanged for model in deployed):
        print_load([model.name for model in deployed])
    seen = f"{repository} at /models"
    if plan.plugins:
        seen += f" and {written[0].parent / 'plugins'} at /plugins"
    out.print(f"\nIn Triton's container, which sees {seen}, {written[0]} serves it:\n")
    out.print("\n".join(start_script(plan).splitlines()[1:]).removeprefix("exec "))
    for file in written[1:]:
        out.print(f"Written: {file}")
    for note in notes:
        out.print(console.styled(note, "yellow"))
    if files:
        out.print(f"They run {plan.image}{', which the Dockerfile makes' if plan.dockerfile else ''}.")
    return EXIT_OK


@command.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@_repository_option
@click.option("--name", help="The model's name. Default: the artifact's folder's.")
@click.option(
    "--reference", type=ModelFile(),
    help="The ONNX model that it was built from. Default: the artifact's typed one, in FP32.",
)  # fmt: skip
@click.option("--http", metavar="HOST:PORT", help="A running server's HTTP address. Default: start one.")
@click.option("--grpc", metavar="HOST:PORT", help="Its gRPC address.")
@click.option(
    "--server", type=click.Path(path_type=Path),
    help="The server to start: an environment with nvidia-pytriton, or a program.",
)  # fmt: skip
@click.option(
    "--concurrency", default="1,2,4,8,16", show_default=True, metavar="N,…",
    help="How many concurrent clients to measure with; 0: do not measure.",
)  # fmt: skip
@click.option(
    "--seconds",
    type=FiniteRange(0.1),
    default=2.0,
    show_default=True,
    help="Length of each measurement.",
)
@click.option(
    "--perf-analyzer/--no-perf-analyzer", default=True, help="Measure with perf_analyzer if it is found."
)
@_sparse_from_option
@click.option(
    "--timeout",
    type=FiniteRange(1),
    default=120.0,
    show_default=True,
    help="How long the server may take to be ready.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder for load.csv and load.svg.")
@input_options
@common_options
def verify_deployment(
    artifact: Path,
    http: str | None,
    grpc: str | None,
    concurrency: str,
    perf_analyzer: bool,
    output: Path | None,
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Prove that a repository serves ARTIFACT.

    Its outputs over HTTP and gRPC, of whole batches and item by item, are compared with the reference's. Then
    clients send as fast as they are answered, at each concurrency: throughput, latency, and the batches that
    the server formed. A server that is started here is gone afterwards, whatever happens.

    Exits with 4 if the outputs differ more than allowed.
    """
    from sparseflow_trt._files import check_folder_of_files
    from sparseflow_trt.engines.triton.server import Addresses
    from sparseflow_trt.serving.verify import VerifyOptions, verify
    from sparseflow_trt.validation.triton_load import write_csv

    if bool(http) != bool(grpc):
        raise click.UsageError("--http and --grpc go together.")
    for option, address in (("--http", http), ("--grpc", grpc)):
        if address and not re.fullmatch(r"[^/\s]+:\d+", address):
            raise click.BadParameter(f"'{address}' is not HOST:PORT", param_hint=option)
    try:
        counts = [count for count in _whole_numbers(concurrency) if count]
    except ValueError:
        raise click.BadParameter(
            f"'{concurrency}' is not a list of numbers", param_hint="--concurrency"
        ) from None
    asked = VerifyOptions(
        addresses=Addresses(http, grpc) if http and grpc else None,
        validation=read_validation_options(inputs, seed, tolerances),
        concurrencies=counts,
        perf_analyzer=perf_analyzer,
        **options,
    )
    if output:
        check_folder_of_files(output)
    with console.progress_bar() as show:
        found = verify(artifact, asked, lambda p: show(p.step, p.done, p.total))
    files: list[Path] = []
    if output and found.load:
        from sparseflow_trt._deps import version_of
        from sparseflow_trt.report.load_plot import plot_load

        output.mkdir(parents=True, exist_ok=True)
        write_csv(found.load, output / "load.csv")
        files.append(output / "load.csv")
        if version_of("matplotlib"):
            plot_load(f"{found.model}, version {found.version}", found.load, output / "load.svg")
            files.append(output / "load.svg")
    failed = sum(step.failed for step in found.load)
    code = exit_code_of(found.validation) or (EXIT_FAILED if failed else EXIT_OK)
    if as_json:
        console.print_json(
            {
                "model": found.model,
                "version": found.version,
                "validation": found.validation.model_dump(mode="json"),
                "load": [step.model_dump(mode="json") for step in found.load],
                "sparse_batch": found.sparse_batch,
                "notes": list(found.notes),
                "files": [str(file) for file in files],
            }
        )
        return code
    print_verified(found)
    for file in files:
        console.out().print(f"Written: {file}")
    return code


@command.command("rollback")
@_repository_option
@click.option("--name", required=True, help="The model's name.")
@common_options
def roll_back_model(repository: Path, name: str, as_json: bool) -> int:
    """Withdraw a model's newest version, and serve the one before.

    That version's configuration comes back with it; your edits stay.

    Make a running server load it with POST /v2/repository/models/NAME/load.
    """
    from sparseflow_trt._files import alone_in
    from sparseflow_trt.exporters.triton.repository import check_name
    from sparseflow_trt.exporters.triton.rollback import roll_back
    from sparseflow_trt.exporters.triton.version import read_record

    folder = repository / check_name(name)
    with alone_in(repository) if repository.is_dir() else contextlib.nullcontext():
        withdrawn, serves = roll_back(folder)
    if as_json:
        console.print_json({"name": name, "withdrawn": withdrawn, "version": serves})
        return EXIT_OK
    out = console.out()
    out.print(f"{name}: version {withdrawn} is withdrawn, {serves} is the newest.")
    record = read_record(folder, serves)
    print_load([*(record.parts if record else ()), name])
    return EXIT_OK
