"""Every client's configuration, held by golden files; UPDATE_GOLDEN=1 rewrites them."""

from __future__ import annotations

import ast
import base64
import json
import os
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from slipway import clients
from slipway.clients import CLIENTS, Endpoint, deeplink, render

GOLDEN = Path(__file__).parent / "golden"
PUBLIC = Endpoint("slipway", "https://example.ngrok-free.app/mcp", "TOKEN")
LOCAL = Endpoint("slipway", "https://localhost:8443/mcp", "TOKEN", "/home/ana/slipway/ca.crt")
HOSTILE = Endpoint(
    'a"b $(x)\n', "https://h.example/mcp?x='\"$(y)`\\😀\x7f\x85\u2028", "T\"'$(z)\\n\n", "/home/a'n\"a/ca $(x).crt"
)
GOLDENS = {"": PUBLIC, ".local": LOCAL}
NAMES = ["slipway", 'a"b', "a b", "$(x)", "-rf", "a.b]\n[c", "é", ""]
LINKED = [name for name, client in CLIENTS.items() if client.link]


def strings(tree: Any) -> list[str]:
    """Every string in a parsed configuration, keys included."""
    if isinstance(tree, dict):
        return [text for pair in tree.items() for part in pair for text in strings(part)]
    if isinstance(tree, list):
        return [text for part in tree for text in strings(part)]
    return [tree] if isinstance(tree, str) else []


def parsed(kind: str, text: str) -> list[str]:
    """What the reader of this kind of text sees: the strings, without their quoting."""
    if kind == "shell":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        words = shlex.split(text)
        return words + [part for word in words if word[:1] == "{" for part in strings(json.loads(word))]
    if kind == "python":
        compile(text, "snippet", "exec")
        return [str(node.value) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    readers: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    return strings(readers[kind](text))


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("suffix", GOLDENS, ids=["public", "local"])
def test_a_configuration_is_exactly_its_golden_file(name: str, suffix: str) -> None:
    snippet = render(name, GOLDENS[suffix])
    path = GOLDEN / f"{name}{suffix}.txt"
    text = f"{snippet.kind} | {snippet.path} | {snippet.note}\n{snippet.text}"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_client_has_its_golden_files_and_none_is_left_over() -> None:
    expected = {f"{name}{suffix}.txt" for name in CLIENTS for suffix in GOLDENS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("name", [name for name, row in CLIENTS.items() if row.kind not in ("text", "typescript")])
@pytest.mark.parametrize("endpoint", [PUBLIC, LOCAL, HOSTILE], ids=["public", "local", "hostile"])
def test_a_configuration_parses_to_the_very_url_and_token(name: str, endpoint: Endpoint) -> None:
    snippet = render(name, endpoint)
    seen = parsed(snippet.kind, snippet.text)
    assert endpoint.url in seen
    assert any(word.endswith(endpoint.token) for word in seen)
    assert snippet.text.endswith("\n") and not snippet.text.endswith("\n\n")


def test_a_typescript_string_is_a_json_string_on_one_line() -> None:
    text = render("typescript", HOSTILE).text
    literal = text.split("new URL(")[1].split("), {")[0]
    assert json.loads(literal) == HOSTILE.url
    assert len(text.splitlines()) == len(render("typescript", PUBLIC).text.splitlines())


@pytest.mark.parametrize("server", NAMES)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_hostile_server_name_ends_up_as_plain_letters(name: str, server: str) -> None:
    given, plain = (render(name, Endpoint(n, PUBLIC.url, "TOKEN")) for n in (server, "NAME"))
    slug = Endpoint(server, "", "").slug
    assert slug.replace("-", "").isalnum() and slug.isascii() and slug[0] != "-"
    assert given.text in (plain.text.replace("NAME", slug), plain.text.replace("NAME", slug.replace("-", "_")))


@pytest.mark.parametrize("name", CLIENTS)
def test_the_token_is_once_in_the_text_and_never_in_path_or_note(name: str) -> None:
    for endpoint in (PUBLIC, LOCAL):
        snippet = render(name, endpoint)
        assert snippet.text.count("TOKEN") == CLIENTS[name].bearer
        assert "TOKEN" not in snippet.path + snippet.note


def test_a_client_that_takes_no_bearer_says_so_and_what_to_do() -> None:
    snippet = render("chatgpt", Endpoint("slipway", PUBLIC.url, "TOKEN", invite="ACDE-3479"))
    assert "takes no bearer token" in snippet.note
    assert PUBLIC.url in snippet.text and "ACDE-3479" in snippet.text


@pytest.mark.parametrize("name", CLIENTS)
def test_a_local_configuration_names_the_ca_or_says_that_it_is_out_of_reach(name: str) -> None:
    local, public = render(name, LOCAL), render(name, PUBLIC)
    told = "cannot reach this local URL" if CLIENTS[name].trust == "remote" else str(LOCAL.ca_file)
    assert told in local.text + local.note
    assert told not in public.text + public.note


@pytest.mark.parametrize("host", ["localhost:8443", "127.0.0.1", "[::1]:8443"])
def test_a_remote_client_is_out_of_reach_of_every_loopback_address(host: str) -> None:
    assert "cannot reach" in render("claude-ai", Endpoint("slipway", f"https://{host}/mcp", "TOKEN")).note


@pytest.mark.parametrize("use", [render, deeplink])
def test_an_unknown_client_is_told_with_the_close_names(use: Any) -> None:
    with pytest.raises(clients.UnknownClient, match=r"cursor[\s\S]*tunnel.py --list-clients"):
        use("curser", PUBLIC)


@pytest.mark.parametrize("name", LINKED)
def test_a_deeplink_is_one_ascii_word_that_holds_url_and_token(name: str) -> None:
    link = deeplink(name, HOSTILE) or ""
    assert link.split() == [link] and link.isascii()
    query = urlsplit(link).query
    fields = parse_qs(query)
    if name == "vscode":
        found = strings(json.loads(unquote(query)))
    elif name == "goose":
        found = [*fields["url"], fields["header"][0].removeprefix("Authorization=")]
    else:
        config = fields["config"][0]
        found = strings(json.loads(config if name == "kiro" else base64.b64decode(config)))
    assert {HOSTILE.url, HOSTILE.bearer} <= set(found)


def test_these_clients_have_a_deeplink_or_are_in_the_short_choice() -> None:
    assert {name for name in CLIENTS if deeplink(name, PUBLIC)} == {"cursor", "vscode", "lm-studio", "kiro", "goose"}
    assert clients.DEFAULT_CHOICE == ("claude-code", "cursor", "vscode", "codex", "json")
