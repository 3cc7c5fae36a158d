"""Profile observe in real containers: Prometheus finds every replica by itself, and all of it ends with the rest.

Where the official image cannot be pulled, Debian's Prometheus stands in for it under the same tag.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from slipway import compose
from tests.conftest import ROOT, copy_of_the_tree, free_ports, wait_until
from tests.docker.test_compose import Containers

pytestmark = [pytest.mark.docker, pytest.mark.slow]

STAND_IN = """
FROM python:3.13-slim-trixie
RUN apt-get -q update && apt-get -q install -y --no-install-recommends prometheus wget
ENTRYPOINT ["/usr/bin/prometheus"]
"""
# two replicas cannot have one port
REPLICAS = "services: {server: {ports: !reset []}}\n"


def docker(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, **more)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image of Prometheus that docker-compose.yml names, or what stands in for it."""
    if missing := compose.missing():
        if os.environ.get("CI"):
            pytest.fail(f"CI needs Docker: {missing}")
        pytest.skip(missing)
    found = re.search(r"image: (prom/\S+)", (ROOT / "docker-compose.yml").read_text())
    assert found
    tag = found.group(1)
    if docker("image", "inspect", tag).returncode == 0 or docker("pull", tag).returncode == 0:
        yield tag
        return
    built = docker("build", "--tag", tag, "-", input=STAND_IN)
    assert built.returncode == 0, built.stderr
    yield tag
    docker("rmi", tag)


@pytest.fixture
def project(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """A project of its own, removed with its image at the end."""
    made = Containers(copy_of_the_tree(tmp_path_factory.mktemp("observe") / "slipway"))
    grafana, prometheus = free_ports(2)
    made.environment |= {"GRAFANA_PORT": str(grafana), "PROMETHEUS_PORT": str(prometheus)}
    try:
        yield made
    finally:
        made.compose("--profile", "*", "down", "--rmi", "local", "--remove-orphans", "--volumes", ok=False)


async def test_prometheus_scrapes_every_replica_and_ends_with_the_rest(project: Containers) -> None:
    project.up()
    project.environment |= {"REDIS_URL": "redis://redis:6379/0"}  # two servers on the same files are refused
    (project.root / "replicas.yml").write_text(REPLICAS)
    files = ("-f", "docker-compose.yml", "-f", "replicas.yml", "--profile", "observe", "--profile", "scale")
    project.compose(
        *files,
        "up",
        "--detach",
        "--wait",
        "--no-deps",
        "--no-build",
        "--scale",
        "server=2",
        "redis",
        "server",
        "prometheus",
    )
    url = f"http://127.0.0.1:{project.environment['PROMETHEUS_PORT']}/api/v1/query"

    def query(text: str) -> float:
        found = httpx2.get(url, params={"query": text}).json()["data"]["result"]
        return float(found[0]["value"][1]) if found else 0

    wait_until(lambda: query('count(up{job="slipway"} == 1)') == 2, 60, "two replicas")
    wait_until(lambda: query("count(slipway_build_info)") == 2, 60, "their numbers")
    async with project.client() as client:
        await client.call_tool("add", {"a": 1, "b": 2})
    wait_until(lambda: query('sum(slipway_calls_total{tool="add"})') == 1, 60, "the call")
    found = project.inspect("prometheus")
    assert found["HostConfig"]["ReadonlyRootfs"] is True and found["Config"]["User"].split(":")[0] not in ("", "0")
    bindings = [each for several in found["NetworkSettings"]["Ports"].values() for each in several or []]
    assert {each["HostIp"] for each in bindings} == {"127.0.0.1"}
    project.run(".venv/bin/python", "-m", "slipway.stack", "down")
    label = f"label=com.docker.compose.project={project.environment['COMPOSE_PROJECT_NAME']}"
    assert docker("ps", "-aq", "--filter", label).stdout == ""


def test_the_profiles_files_can_be_read_by_whom_the_containers_run_as() -> None:
    for path in (ROOT / "deploy" / "observe").rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path
    assert not [path for path in Path(ROOT / "deploy").rglob("*") if path.is_symlink()]
