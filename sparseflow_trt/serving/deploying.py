"""From artifacts to a model repository that Triton serves as it is."""

from __future__ import annotations

from pathlib import Path

from sparseflow_trt._files import alone_in
from sparseflow_trt._paths import AnyPath
from sparseflow_trt.exporters.triton.repository import plugins_in
from sparseflow_trt.serving.deployment import Deployed, DeployOptions, write_planned
from sparseflow_trt.serving.engine_deployment import plan_engine
from sparseflow_trt.serving.router_deployment import deploy_router, refuse_part
from sparseflow_trt.serving.served_artifact import model_name, read_artifact


def deploy(artifact: AnyPath, options: DeployOptions) -> tuple[Deployed, ...]:
    """Writes an artifact into a repository: one model, or three where batches are routed between two engines.

    Of several at a time each waits for the one before, so that each gets a version of its own.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or the disk is full or not writable.
        DeployError: The target would not load the engine, Triton could not serve it, a configuration that
            was edited does not fit it, or its clients would break.
        NotInstalledError: tritonclient is missing.
    """
    artifact = Path(artifact)
    name = model_name(artifact, options.name)
    given = (options.sparse_from, options.delay_us, options.max_batch_size)
    read = read_artifact(artifact, *given)
    dense = read_artifact(options.dense, *given) if options.dense else None
    with alone_in(options.repository):
        if dense is None:
            refuse_part(name, options.repository)
            planned = plan_engine(name, read, options, plugins_in(options.repository))
            return (write_planned(planned, options),)
        return deploy_router(name, read, dense, options)
