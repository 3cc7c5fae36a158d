"""Servers that nobody here wrote, fetched as a user would with npx and uvx, behind the whole stack in both eras."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client

from tests.conftest import Stack, program

pytestmark = [pytest.mark.slow, pytest.mark.node, pytest.mark.timeout(300)]

Call = tuple[str, dict[str, Any], str]
ANA = {"entities": [{"name": "Ana", "entityType": "person", "observations": ["sails"]}]}
THOUGHT = {"thought": "x", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1}
# name of the package → its arguments, then calls: tool, arguments, what the answer says
NPM: dict[str, tuple[str, list[Call]]] = {
    "everything@2026.8.31": ("", [("echo", {"message": "hi"}, "Echo: hi"), ("get-sum", {"a": 2, "b": 3}, "is 5")]),
    "memory@2026.8.31": ("", [("create_entities", ANA, "["), ("search_nodes", {"query": "sails"}, "Ana")]),
    "sequential-thinking@2026.8.31": ("", [("sequentialthinking", THOUGHT, "thoughtHistoryLength")]),
    "filesystem@2026.8.31": ("FOLDER", [("list_directory", {"path": "FOLDER"}, "seen.txt")]),
}
PYPI: dict[str, tuple[str, list[Call]]] = {
    "mcp-server-time@2026.10.19": ("", [("get_current_time", {"timezone": "Europe/Madrid"}, "Europe/Madrid")]),
    "mcp-server-fetch@2026.10.24": ("", [("fetch", {"url": "http://127.0.0.1:9/"}, "")]),
    "mcp-server-git@2026.10.19": ("--repository FOLDER", [("git_status", {"repo_path": "FOLDER"}, "seen.txt")]),
}


@pytest.mark.parametrize("package", [*NPM, *PYPI])
async def test_a_reference_server_works_as_it_is(
    make_stack: Callable[..., Stack], tmp_path: Path, package: str
) -> None:
    folder = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    (folder / "seen.txt").write_text("seen")
    arguments, calls = (NPM | PYPI)[package]
    runner = f"{program('npx')} -y @modelcontextprotocol/server-" if package in NPM else f"{program('uvx')} "
    target = f"{runner}{package} {arguments}".strip().replace("FOLDER", str(folder))
    stack = make_stack(SLIPWAY_TARGET=target, SLIPWAY_TARGET_FOLDER=str(folder))
    for mode in ("legacy", "auto"):
        steps: list[float] = []

        async def on_progress(progress: float, *_: Any, steps: list[float] = steps) -> None:
            steps.append(progress)

        async with Client(stack.tls_url, auth=stack.token(), verify=stack.trust(), mode=mode, timeout=60) as client:
            names = {tool.name for tool in await client.list_tools()}
            for tool, given, said in calls:
                assert tool in names
                given = json.loads(json.dumps(given).replace("FOLDER", str(folder)))
                answer = await client.call_tool(tool, given, raise_on_error=False)
                assert said in answer.content[0].text
                # fetch refuses loopback by itself, and its own words come through
                assert answer.is_error == (tool == "fetch"), answer.content
            if "trigger-long-running-operation" in names:
                slow = {"duration": 1, "steps": 3}
                await client.call_tool("trigger-long-running-operation", slow, progress_handler=on_progress)
                assert steps == [1, 2, 3]
                assert await client.list_prompts()
                assert await client.list_resource_templates()
