"""The audit log: one line for each call and refusal, by whatever door, and scripts/audit that reads it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from tests.conftest import ROOT, Stack, wait_until

pytestmark = pytest.mark.slow

ERAS = {"handshake": "legacy", "newest": "auto"}
STUBBORN = str(ROOT / "tests" / "servers" / "stubborn.py")


def calls(stack: Stack) -> list[dict[str, Any]]:
    return [line for line in stack.log("server") if line.get("method") == "tools/call"]


def audit(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **stack.environment}
    command = [ROOT / "scripts" / "audit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("payloads", [False, True])
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_is_one_line_that_says_who_what_how_and_no_more(
    make_stack: Callable[..., Stack], era: str, payloads: bool
) -> None:
    running = make_stack(SLIPWAY_TARGET=STUBBORN, SLIPWAY_AUDIT_PAYLOADS=str(payloads).lower())
    token = running.token()
    async with Client(running.tls_url, auth=token, verify=running.trust(), mode=ERAS[era]) as me:
        assert (await me.call_tool("add", {"a": 471100000117, "b": 1})).data == 471100000118
        with pytest.raises(ToolError):
            await me.call_tool("crash")
    async with Client(running.tls_url, auth=running.token("add"), verify=running.trust(), mode=ERAS[era]) as me:
        with pytest.raises(ToolError):
            await me.call_tool("crash")
    wait_until(lambda: len(calls(running)) == 3)
    good, bad, ugly = calls(running)
    assert (ugly["outcome"], ugly["code"], ugly["subject"]) == ("forbidden", "scope", "ana")
    assert (good["tool"], good["subject"], good["outcome"], good["status"]) == ("add", "ana", "ok", 200)
    assert good["jti"] and good["request_id"] and good["era"] and good["client"]
    assert good["ms"] > 0 and good["bytes_in"] > 0 and good["bytes_out"] > 0
    assert (bad["tool"], bad["outcome"]) == ("crash", "error")
    text = json.dumps(running.log("server"))
    assert token not in text
    assert ("471100000117" in text, "471100000118" in text) == (payloads, payloads)


def test_every_refusal_is_a_line_with_its_reason(shared_stack: Stack) -> None:
    with httpx2.Client(timeout=20) as http:
        ids = {}
        for name, url, headers in (
            ("no token", shared_stack.server_url, {}),
            ("token refused", shared_stack.edge_url, {"authorization": "Bearer x.y.z"}),
            ("Host", shared_stack.server_url, {"host": "evil.example"}),
            ("no such public path", shared_stack.edge_url.replace("/mcp", "/admin/tokens"), {}),
        ):
            answer = http.post(url, headers=headers, json={})
            assert answer.status_code >= 400
            ids[answer.headers["x-request-id"]] = name

    def lines() -> dict[str, str]:
        done = audit(shared_stack, "--outcome", "refused", "--json", "--all")
        return {line["request_id"]: line["reason"] for line in map(json.loads, done.stdout.splitlines())}

    wait_until(lambda: ids.keys() <= lines().keys())
    found = lines()
    assert all(name in found[number] for number, name in ids.items())


def _found(stack: Stack, number: str) -> bool:
    return audit(stack, "--request", number).returncode == 0


def test_the_log_is_filtered_added_up_and_followed(shared_stack: Stack) -> None:
    token = shared_stack.token(subject="auditee")
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "add", "arguments": {"a": 1, "b": 2}},
    }
    headers = shared_stack.bearer() | {"authorization": f"Bearer {token}"}
    environment = {**os.environ, **shared_stack.environment, "PYTHONUNBUFFERED": "1"}
    following = subprocess.Popen(
        [ROOT / "scripts" / "audit", "--follow", "--last", "0", "--subject", "auditee", "--json"],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert following.stdout
        # until it looks, it misses what comes
        lines: list[str] = []
        while not lines:
            number = httpx2.post(shared_stack.server_url, headers=headers, json=call, timeout=20).headers[
                "x-request-id"
            ]
            os.set_blocking(following.stdout.fileno(), False)
            wait_until(partial(_found, shared_stack, number))
            lines = following.stdout.readlines()
        assert json.loads(lines[0])["tool"] == "add"
    finally:
        following.terminate()
        following.wait(10)
        if following.stdout:
            following.stdout.close()
    shown = audit(shared_stack, "--subject", "auditee", "--tool", "add", "--calls", "--since", "10m").stdout
    assert "tools/call add" in shown and "auditee" in shown
    summed = audit(shared_stack, "--subject", "auditee", "--count", "tool,outcome").stdout.split()
    assert summed[:3] == ["calls", "tool", "outcome"]
    assert summed[4:6] == ["add", "ok"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--count", "secret"], 2, "no field secret"),
        (["--since", "soon"], 2, "no time to live"),
        (["--subject", "nobody-at-all"], 1, "Nothing was found"),
    ],
)
def test_what_cannot_be_found_is_said(shared_stack: Stack, arguments: list[str], code: int, told: str) -> None:
    done = audit(shared_stack, *arguments)
    assert done.returncode == code
    assert told in done.stderr


def test_without_a_log_the_next_command_is_named(tmp_path: Any) -> None:
    environment = {**os.environ, "SLIPWAY_STATE": str(tmp_path)}
    done = subprocess.run([ROOT / "scripts" / "audit"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "./scripts/up" in done.stderr
