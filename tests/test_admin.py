"""/admin on the running server: what it does, for whom it does not exist, and the commands that use it."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import pytest
from fastmcp import Client

from slipway import commandline, operator, tokens
from tests.conftest import Stack, clean_environment, wait_until
from tests.test_ledger import SECRET

pytestmark = pytest.mark.slow

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


def admin_token(stack: Stack, **more: Any) -> str:
    how = {"subject": "operator", "scope": "admin", "ttl": 60, "audience": tokens.ADMIN_AUDIENCE} | more
    return tokens.mint(stack.secret, **how).token


def ask(stack: Stack, method: str, path: str, content: Any = None, url: str = "", **headers: str) -> httpx2.Response:
    base = url or f"http://127.0.0.1:{stack.config.server_port}"
    given = {"authorization": f"Bearer {admin_token(stack)}"} | headers
    with httpx2.Client(timeout=20, verify=stack.trust()) as client:
        # ours, not httpx2's: it cannot write a lone surrogate, and an attacker can
        body = None if content is None else json.dumps(content)
        return client.request(method, f"{base}/admin{path}", content=body, headers=given)


def status(stack: Stack, token: str, url: str = "") -> int:
    """Return what a call with this token gets."""
    headers = stack.bearer() | {"authorization": f"Bearer {token}"}
    with httpx2.Client(timeout=20, verify=stack.trust()) as client:
        return client.post(url or stack.server_url, headers=headers, json=LIST).status_code


def mint(stack: Stack, **asked: Any) -> dict[str, Any]:
    answer = ask(stack, "POST", "/tokens", {"subject": "ana", "tools": "add", "ttl": "10m", **asked})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


async def test_a_token_is_minted_by_the_server_and_opens_what_it_says(shared_stack: Stack) -> None:
    minted = mint(shared_stack, purpose="a demo", subject="zoe")
    async with Client(shared_stack.server_url, auth=minted["token"]) as client:
        assert [tool.name for tool in await client.list_tools()] == ["add"]
        assert (minted["subject"], minted["via"], minted["purpose"]) == ("zoe", "minted", "a demo")
    listed = {one["jti"]: one for one in ask(shared_stack, "GET", "/tokens").json()["tokens"]}
    assert listed[minted["jti"]]["state"] == "good"
    assert minted["token"] not in ask(shared_stack, "GET", "/tokens").text


@pytest.mark.parametrize("door", ["server", "tls"])
@pytest.mark.parametrize("how", ["id", "subject", "all"])
def test_revoking_holds_from_the_next_request_on_and_over_a_restart(
    make_stack: Callable[..., Stack], how: str, door: str
) -> None:
    stack = make_stack()
    url = {"server": stack.server_url, "tls": stack.tls_url}[door]
    minted, pasted, other = mint(stack)["token"], stack.token(), mint(stack, subject="bo")["token"]
    assert [status(stack, token, url) for token in (minted, pasted, other)] == [200] * 3
    if how == "id":
        for token in (minted, pasted):
            jti = tokens.verify(stack.secret, token)["jti"]
            assert ask(stack, "DELETE", f"/tokens/{jti}").json()["known"] is True
    else:
        asked = {"subject": "ana"} if how == "subject" else {"all": True}
        assert ask(stack, "POST", "/tokens/revoke", asked).json()["revoked"] == (2 if how == "subject" else 3)
    expected = [401, 401, 401 if how == "all" else 200]
    assert [status(stack, token, url) for token in (minted, pasted, other)] == expected
    wait_until(lambda: any("revoked by the operator" in str(line.get("reason")) for line in stack.log("server")), 5)
    stack.kill("server")
    stack.start("server")
    assert [status(stack, token, url) for token in (minted, pasted, other)] == expected
    assert status(stack, mint(stack)["token"], url) == 200


async def test_a_revoked_token_ends_a_running_session(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    minted = mint(stack)
    async with Client(stack.tls_url, auth=minted["token"], verify=stack.trust(), mode="legacy") as client:
        assert (await client.call_tool("add", {"a": 1, "b": 1})).data == 2
        ask(stack, "DELETE", f"/tokens/{minted['jti']}")
        with pytest.raises(Exception, match=r"401|error response"):
            await client.call_tool("add", {"a": 1, "b": 1})


def test_an_expired_token_that_is_extended_works_again(shared_stack: Stack) -> None:
    minted = mint(shared_stack, ttl="1s")
    wait_until(lambda: status(shared_stack, minted["token"]) == 401, 10, "its end")
    answer = ask(shared_stack, "POST", f"/tokens/{minted['jti']}/extend", {"ttl": "5m"})
    assert answer.json()["state"] == "good"
    assert answer.json()["ends_at"] > time.time() + 200
    assert status(shared_stack, minted["token"]) == 200
    ask(shared_stack, "DELETE", f"/tokens/{minted['jti']}")
    assert status(shared_stack, minted["token"]) == 401
    refused = ask(shared_stack, "POST", f"/tokens/{minted['jti']}/extend", {"ttl": "5m"})
    assert (refused.status_code, "cannot be taken back" in refused.text) == (400, True)


def test_a_token_that_a_cutoff_refuses_is_not_extended(shared_stack: Stack) -> None:
    minted = mint(shared_stack, subject="cut-off")
    ask(shared_stack, "POST", "/tokens/revoke", {"subject": "cut-off"})
    refused = ask(shared_stack, "POST", f"/tokens/{minted['jti']}/extend", {"ttl": "5m"})
    assert (refused.status_code, "with all of cut-off; that cannot be taken back" in refused.text) == (400, True)


# --- for whom it does not exist


@pytest.mark.parametrize("path", ["/tokens", "/tokens/x", "/invites", "", "/"])
def test_the_edge_knows_no_admin(shared_stack: Stack, path: str) -> None:
    for base in (shared_stack.edge_url, shared_stack.tls_url):
        answer = ask(shared_stack, "GET", path, url=base.removesuffix("/mcp"))
        assert answer.status_code == 404
        assert "tokens" not in answer.text
    for trick in (
        "/mcp/../admin/tokens",
        "/%61dmin/tokens",
        "//admin/tokens",
        "/ADMIN/tokens",
        "/mcp/..%2fadmin/tokens",
    ):
        with httpx2.Client(timeout=10) as client:
            url = httpx2.URL(shared_stack.edge_url.removesuffix("/mcp"))
            request = client.build_request(
                "GET", url, headers={"authorization": f"Bearer {admin_token(shared_stack)}"}
            )
            request.url = request.url.copy_with(raw_path=trick.encode())
            assert client.send(request).status_code in (400, 404), trick


@pytest.mark.parametrize(
    "header", [{"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=203.0.113.9"}, {"via": "1.1 x"}]
)
def test_what_came_over_a_proxy_finds_nothing(shared_stack: Stack, header: dict[str, str]) -> None:
    assert ask(shared_stack, "GET", "/tokens").status_code == 200
    assert ask(shared_stack, "GET", "/tokens", **header).status_code == 404


def test_the_host_of_the_tunnel_finds_nothing(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_ALLOWED_HOSTS="demo.example.com")
    assert ask(stack, "GET", "/tokens", host="demo.example.com").status_code == 404


def test_only_an_admin_token_opens_it_and_it_opens_nothing_else(shared_stack: Stack) -> None:
    old = admin_token(shared_stack, ttl=-5)
    other = tokens.mint(
        tokens.Secret("f" * 10 + "0123456789abcdef" * 2),
        subject="x",
        scope="admin",
        ttl=60,
        audience=tokens.ADMIN_AUDIENCE,
    )
    for bad in (
        "",
        "Basic eDp5",
        f"Bearer {shared_stack.token()}",
        f"Bearer {old}",
        f"Bearer {other.token}",
        "Bearer x",
    ):
        assert ask(shared_stack, "GET", "/tokens", authorization=bad).status_code == 401, bad
    assert status(shared_stack, admin_token(shared_stack)) == 401


@pytest.mark.parametrize(
    ("method", "path", "content", "code"),
    [
        ("POST", "/tokens", {"ttl": "31d"}, 400),
        ("POST", "/tokens", {"ttl": "x"}, 400),
        ("POST", "/tokens", {"ttl": 5}, 400),
        ("POST", "/tokens", {"subject": ""}, 400),
        ("POST", "/tokens", {"subject": "*"}, 400),
        ("POST", "/tokens", {"tools": "a b"}, 400),
        ("POST", "/tokens", ["x"], 400),
        ("POST", "/tokens", {"purpose": "\ud800"}, 400),
        ("POST", "/tokens", {"purpose": "\x1b[2J"}, 400),
        ("POST", "/tokens", {"ttl": "9" * 5000 + "d"}, 400),
        ("POST", "/tokens/revoke", {"subject": "\ud800"}, 400),
        ("POST", "/invites", {"name": "\ud800"}, 400),
        ("DELETE", f"/tokens/{'%F0%90%90%80' * 128}", None, 400),
        ("POST", "/tokens/nothing/extend", {"ttl": "1h"}, 404),
        ("GET", "/tokens/nothing", None, 404),
        ("DELETE", "/tokens/..", None, 404),
        ("POST", "/tokens/revoke", {}, 400),
        ("POST", "/tokens/revoke", {"all": "yes"}, 400),
        ("POST", "/invites", {"uses": 0}, 400),
        ("POST", "/invites", {"uses": True}, 400),
        ("POST", "/invites", {"ttl": "400d"}, 400),
        ("DELETE", "/invites/nothing", None, 404),
    ],
)
def test_nonsense_is_answered_in_words(shared_stack: Stack, method: str, path: str, content: Any, code: int) -> None:
    answer = ask(shared_stack, method, path, content)
    assert answer.status_code == code, answer.text
    assert "Traceback" not in answer.text
    if code in (400, 404) and ".." not in path:
        assert set(answer.json()) == {"error", "cure"}


def test_a_name_that_a_program_gave_itself_commands_no_terminal() -> None:
    record = {
        "subject": "ana",
        "purpose": "\x1b]0;owned\x07 app",
        "jti": "a",
        "scope": "tool:*",
        "ends_at": 0,
        "via": "oauth",
    }
    heads = ["id", "subject", "scope", "ends", "via", "state"]
    table = commandline.table(heads, [operator._row(record | {"state": "good"})])
    assert "ana (]0;owned app)" in table
    assert all(char.isprintable() or char == "\n" for char in table)


@pytest.mark.parametrize("given", ["ACDE 3479", "ACDE\u20113479", "a/b", "?x#y"])
def test_what_is_typed_for_an_id_is_one_part_of_the_path(given: str) -> None:
    paths: list[str] = []

    class Server(operator.Server):
        def __init__(self) -> None:
            pass

        def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
            paths.append(path)
            return {}

    operator._invites(Server(), argparse.Namespace(verb="revoke", id=given), SECRET)
    operator._tokens(Server(), argparse.Namespace(verb="show", id=given), SECRET)
    for path in paths:
        assert path.isascii() and path.isprintable()
        assert urlsplit(f"http://127.0.0.1{path}").path == path
        assert unquote(path.rsplit("/", 1)[1]) == given


def test_no_log_holds_what_was_minted(shared_stack: Stack) -> None:
    minted = mint(shared_stack)["token"]
    code = ask(shared_stack, "POST", "/invites", {}).json()["code"]
    texts = shared_stack.text("server") + (shared_stack.config.state / "log" / "server.jsonl").read_text()
    assert minted not in texts
    assert code not in texts


# --- the commands


def test_the_commands_work_on_the_running_server(checkout: Path) -> None:
    environment = clean_environment(checkout)

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [checkout / "scripts" / words[0], *words[1:]],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    up = subprocess.run(
        [checkout / ".venv/bin/python", "-m", "slipway.stack", "up", "--local"],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert up.returncode == 0, up.stderr
    token = run("tokens", "mint", "--subject", "ana", "--tools", "add", "--purpose", "class").strip()
    assert token.count(".") == 2
    table = run("tokens", "list")
    assert "ana (class)" in table
    assert max(map(len, table.splitlines())) <= 100
    jti = json.loads(run("tokens", "list", "--json"))["tokens"][0]["jti"]
    assert jti in run("tokens", "extend", jti, "--ttl", "3h")
    assert "subject:" in run("tokens", "show", token)
    assert "is refused from now on" in run("tokens", "revoke", token)
    assert "revoked by the operator" in run("tokens", "list")
    assert "Name a token's id" in run("tokens", "revoke", code=2)
    assert "no token of ours" in run("tokens", "revoke", "a.b.c", code=2)
    assert "longer than a token may live" in run("tokens", "mint", "--ttl", "300d", code=1)
    assert "every token of everybody" in run("tokens", "revoke", "--all")
    code = run("invite", "new", "--uses", "30", "--name", "MCP 101").strip()
    assert "0 of 30" in run("invite", "list")
    assert "refused" in run("invite", "revoke", code)
    assert "revoked" in run("invite", "list")
    subprocess.run([checkout / "scripts" / "down"], env=environment, capture_output=True, check=True)
    assert "./scripts/up starts it" in run("tokens", "list", code=3)
