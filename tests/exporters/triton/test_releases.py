"""The table of releases, and which engines a release takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.releases import check_tensorrt, probe_script, read_releases, tensorrt_of


def test_every_known_tensorrt_has_its_source() -> None:
    releases = read_releases()
    assert [r.container for r in releases] == sorted({r.container for r in releases})
    for release in releases:
        assert bool(release.tensorrt) == bool(release.source), release
    assert sum(r.tensorrt is not None for r in releases) >= 12


def test_a_container_is_found_by_its_tag() -> None:
    assert tensorrt_of("26.05-py3").tensorrt == "10.16.1.11"
    with pytest.raises(DeployError, match=r"the TensorRT of container 26\.01 is unknown"):
        tensorrt_of("26.01")
    with pytest.raises(DeployError, match=r"container '30\.01' is not in the table") as caught:
        tensorrt_of("30.01")
    # `--with docker`, which writes the script, does not take such a release either
    command = caught.value.hint.partition("docker run ")[2]
    assert "tritonserver:30.01-py3 -c " in command
    script = probe_script("nvcr.io/nvidia/tritonserver:30.01-py3")
    assert command.replace("nvcr.io/nvidia/tritonserver:30.01-py3", '"$IMAGE"') in script


@pytest.mark.parametrize(
    ("built", "target"),
    [("10.16.1.11", "10.16.1.12"), ("10.16.1.11", "10.14"), ("8.6.0", "10.0.0"), ("", "10.1")],
)
def test_another_release_does_not_load_the_engine(built: str, target: str) -> None:
    with pytest.raises(DeployError, match="it would not load the engine"):
        check_tensorrt(built, target, "the server", version_compatible=False)


def test_fewer_numbers_leave_something_open() -> None:
    assert check_tensorrt("10.16.1.11", "10.16.1.11", "the server", False) == ""
    assert "only 10.16 is known" in check_tensorrt("10.16.1.11", "10.16", "the server", False)


@pytest.mark.parametrize("target", ["10.16.1.11", "10.17.0.1", "10.17"])
def test_later_releases_load_a_version_compatible_engine(target: str) -> None:
    assert check_tensorrt("10.16.1.11", target, "the server", version_compatible=True) == ""


@pytest.mark.parametrize("target", ["10.14.1.48", "11.0.0"])
def test_earlier_ones_and_the_next_major_one_do_not(target: str) -> None:
    with pytest.raises(DeployError):
        check_tensorrt("10.16.1.11", target, "the server", version_compatible=True)


def test_the_probe_asks_the_image(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nprintf "%s|" "$@"\n', encoding="utf-8")
    docker.chmod(0o755)
    script = tmp_path / "probe.sh"
    script.write_text(probe_script("image:1"), encoding="utf-8")
    done = subprocess.run(
        ["sh", str(script)],
        env={"PATH": f"{tmp_path}:/bin:/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("run|--rm|--entrypoint|sh|image:1|-c|")
    inside = done.stdout.split("|-c|")[1]
    assert "TRT_VERSION" in inside and 'grep -E "libnvinfer[0-9]+ "' in inside
