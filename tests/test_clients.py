"""Every client's configuration, held by golden files; UPDATE_GOLDEN=1 rewrites them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from slipway import clients
from slipway.clients import CLIENTS, Endpoint, render

GOLDEN = Path(__file__).parent / "golden"
PUBLIC = Endpoint("slipway", "https://example.ngrok-free.app/mcp", "TOKEN")
LOCAL = Endpoint("slipway", "https://localhost:8443/mcp", "TOKEN", "/home/ana/slipway/ca.crt")
HOSTILE = Endpoint('a"b $(x)\n', "https://h.example/mcp?x='\"$(y)", "T\"'$(z)", "/home/a'n\"a/ca $(x).crt")


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize(("where", "endpoint"), [("public", PUBLIC), ("local", LOCAL)])
def test_a_configuration_is_exactly_its_golden_file(name: str, where: str, endpoint: Endpoint) -> None:
    snippet = render(name, endpoint)
    path = GOLDEN / f"{name}.{where}.txt"
    text = f"{snippet.kind} | {snippet.path} | {snippet.note}\n{snippet.text}"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.name.split(".")[0] for path in GOLDEN.iterdir()} == set(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("endpoint", [PUBLIC, LOCAL, HOSTILE], ids=["public", "local", "hostile"])
def test_a_configuration_parses_as_what_it_says_it_is(name: str, endpoint: Endpoint) -> None:
    snippet = render(name, endpoint)
    match snippet.kind:
        case "json":
            assert endpoint.url in json.dumps(json.loads(snippet.text), ensure_ascii=False).replace('\\"', '"')
        case "toml":
            assert next(iter(tomllib.loads(snippet.text)["mcp_servers"].values()))["url"] == endpoint.url
        case "yaml":
            assert endpoint.bearer in str(yaml.safe_load(snippet.text)).replace("\\'", "'")
        case "python":
            compile(snippet.text, name, "exec")
        case "shell":
            subprocess.run(["bash", "-n"], input=snippet.text, text=True, check=True)
            words = shlex.split(snippet.text)
            assert any(endpoint.url in word.replace('\\"', '"') for word in words)
        case kind:
            assert kind in ("text", "typescript")
    assert snippet.text.endswith("\n")


@pytest.mark.parametrize("name", CLIENTS)
def test_the_token_is_in_the_text_and_never_in_the_note(name: str) -> None:
    snippet = render(name, PUBLIC)
    assert ("TOKEN" in snippet.text) == CLIENTS[name].bearer
    assert "TOKEN" not in snippet.note


def test_a_client_that_takes_no_bearer_says_so_and_what_to_do() -> None:
    snippet = render("chatgpt", PUBLIC)
    assert "no field for a bearer token" in snippet.text
    assert "--client openai-api" in snippet.text


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.trust != "remote"])
def test_a_local_configuration_names_the_ca_where_the_client_needs_it(name: str) -> None:
    snippet = render(name, LOCAL)
    assert LOCAL.ca_file in snippet.text + snippet.note


def test_an_unknown_client_is_told_with_the_close_names() -> None:
    with pytest.raises(clients.UnknownClient, match=r"cursor[\s\S]*--list-clients"):
        render("curser", PUBLIC)


@pytest.mark.parametrize("name", ["cursor", "vscode", "lm-studio", "kiro", "goose"])
def test_a_deeplink_is_one_word_without_a_space(name: str) -> None:
    link = clients.deeplink(name, HOSTILE)
    assert link is not None
    assert link.split() == [link]
    assert link.isascii()


def test_the_short_choice_is_of_known_clients() -> None:
    assert set(clients.DEFAULT_CHOICE) <= set(CLIENTS)
