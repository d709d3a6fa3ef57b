"""What is said of an engine with plugin nodes when it is deployed."""

from __future__ import annotations

import pytest

from sparseflow_trt.artifacts.manifest import PluginRecord
from sparseflow_trt.errors import DeployError
from sparseflow_trt.serving.served_artifact import plugin_notes

PLUGIN = PluginRecord(file="plugin.so", sha256="a" * 64, versions={"cuSPARSELt": "0.9.1"})


@pytest.mark.parametrize("route", ["tensorrt_plan", "python"])
def test_it_is_said_what_the_server_needs_and_what_a_new_size_costs(route: str) -> None:
    built, sizes, *_ = plugin_notes("mlp", PLUGIN, route, {})  # type: ignore[arg-type]
    assert "cuSPARSELt 0.9.1: the server has to find it" in built
    assert "Each number of rows that is new" in sizes


def test_a_server_that_runs_has_to_be_started_again_for_another_library() -> None:
    again = "restart a server that is already running"
    assert again in plugin_notes("mlp", PLUGIN, "tensorrt_plan", {})[-1]
    assert again not in plugin_notes("mlp", PLUGIN, "tensorrt_plan", {"mlp": PLUGIN.sha256})[-1]
    assert again not in plugin_notes("mlp", PLUGIN, "python", {})[-1]


def test_two_libraries_in_one_server_are_refused() -> None:
    with pytest.raises(
        DeployError, match="'mlp' needs a different build of the plugin's library from 'other'"
    ):
        plugin_notes("mlp", PLUGIN, "tensorrt_plan", {"other": "b" * 64})
    assert plugin_notes("mlp", PLUGIN, "python", {"other": "b" * 64})
