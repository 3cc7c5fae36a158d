"""Which client takes which configuration: one row per client, rendered to the exact text to paste. Pure."""

from __future__ import annotations

import base64
import difflib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from slipway.errors import Problem

LATEST_REMOTE = "mcp-remote@latest"


class UnknownClient(Problem):
    """A name that is no row; the close ones are named, and the command that lists all."""

    def __init__(self, name: str) -> None:
        close = difflib.get_close_matches(name, [*CLIENTS, "all"], n=3, cutoff=0.4)
        meant = f" Did you mean {', '.join(close)}?" if close else ""
        super().__init__(f"There is no client {name!r}.{meant}", "List them: python tunnel.py --list-clients", 2)


@dataclass(frozen=True)
class Endpoint:
    """What a client connects to.

    Attributes:
        name: of the server in the configuration.
        url: https://…/mcp.
        token: the bearer token.
        ca_file: root certificate of a local CA, or None where the system trusts the URL's certificate.
        invite: a code with which a person signs in where no token can be pasted, or "" for whichever they have.
    """

    name: str
    url: str
    token: str
    ca_file: str | None = None
    invite: str = ""

    @property
    def bearer(self) -> str:
        """The value of the Authorization header."""
        return f"Bearer {self.token}"

    @property
    def slug(self) -> str:
        """The name as hosts take it that allow letters, digits, - and _ only."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", self.name).strip("-") or "slipway"

    @property
    def snake(self) -> str:
        """The name for hosts that allow no - either."""
        return self.slug.replace("-", "_")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the URL."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Snippet:
    """One configuration: what kind of text, where it goes, the text itself, and a note to read aloud."""

    kind: str
    path: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Client:
    """A row: a client, where its configuration goes, how it is rendered, and what it can do.

    Attributes:
        title: as its makers write it.
        kind: json, toml, yaml, shell, python, typescript or text.
        path: file or place for the text; {slug} stands for the server's name.
        render: Endpoint → text.
        trust: how the client learns to trust a local CA, a key of TRUST.
        bearer: whether it takes a bearer token at all.
        default: whether it is in the short choice.
        note: what its user should know.
        link: Endpoint → a link that installs the server, or None where there is no such link.
    """

    title: str
    kind: str
    path: str
    render: Callable[[Endpoint], str]
    trust: str = "node"
    bearer: bool = True
    default: bool = False
    note: str = ""
    link: Callable[[Endpoint], str] | None = None


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _quoted(text: str) -> str:
    """Quote for TOML, YAML, Python and JavaScript alike: JSON's form is valid in all of them.

    Left as they are: letters beyond 16 bits, which JSON would write as surrogates and TOML refuses. Escaped: what
    JSON leaves alone and TOML refuses, YAML folds or JavaScript takes for the end of a line.
    """
    plain = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", plain)


def _headers(e: Endpoint) -> dict[str, Any]:
    return {"headers": {"Authorization": e.bearer}}


def _servers(**first: Any) -> Callable[[Endpoint], str]:
    """Return a renderer of mcpServers.{name} = {first…, url, headers}."""
    return lambda e: _json({"mcpServers": {e.slug: {**first, "url": e.url, **_headers(e)}}})


def _bridge(e: Endpoint) -> dict[str, Any]:
    """mcp-remote as a stdio server. No space after the colon: npx on Windows splits arguments at spaces."""
    arguments = ["-y", LATEST_REMOTE, e.url, "--transport", "http-only", "--header", "Authorization:${AUTH_HEADER}"]
    environment = {"AUTH_HEADER": e.bearer}
    if e.ca_file:
        environment["NODE_EXTRA_CA_CERTS"] = e.ca_file
    return {"command": "npx", "args": arguments, "env": environment}


def _command(*words: str, node: bool = True, environment: dict[str, str] | None = None) -> Callable[[Endpoint], str]:
    """Return a renderer of one shell line; {url}, {bearer}, {token}, {slug}, {snake} are filled in and quoted."""

    def render(e: Endpoint) -> str:
        facts = {"url": e.url, "bearer": e.bearer, "token": e.token, "slug": e.slug, "snake": e.snake}
        line = [f"{name}={shlex.quote(value.format(**facts))}" for name, value in (environment or {}).items()]
        if e.ca_file:
            line.insert(0, f"{'NODE_EXTRA_CA_CERTS' if node else 'SSL_CERT_FILE'}={shlex.quote(e.ca_file)}")
        return " ".join([*line, *(shlex.quote(word.format(**facts)) for word in words)]) + "\n"

    return render


def _vscode(e: Endpoint) -> str:
    return _json({"servers": {e.slug: {"type": "http", "url": e.url, **_headers(e)}}})


def _codex(e: Endpoint) -> str:
    header = f'http_headers = {{ "Authorization" = {_quoted(e.bearer)} }}'
    return f"[mcp_servers.{e.snake}]\nurl = {_quoted(e.url)}\n{header}\n"


def _continue(e: Endpoint) -> str:
    return (
        f"name: {_quoted(e.slug)}\nversion: 0.0.1\nschema: v1\nmcpServers:\n  - name: {_quoted(e.slug)}\n"
        f"    type: streamable-http\n    url: {_quoted(e.url)}\n    requestOptions:\n      headers:\n"
        f"        Authorization: {_quoted(e.bearer)}\n"
    )


def _goose(e: Endpoint) -> str:
    return (
        f"extensions:\n  {_quoted(e.slug)}:\n    enabled: true\n    type: streamable_http\n"
        f"    name: {_quoted(e.slug)}\n    description: MCP server served by Slipway\n"
        f"    uri: {_quoted(e.url)}\n    headers:\n      Authorization: {_quoted(e.bearer)}\n    timeout: 300\n"
    )


def _signing_in(e: Endpoint) -> str:
    return (
        f"  Sign in  with the invite code {e.invite} and a name"
        if e.invite
        else ("  Sign in  with your invite code and your name")
    )


def _claude_ai(e: Endpoint) -> str:
    return (
        "Settings → Connectors → Add custom connector\n"
        f"  Name     {e.slug}\n  URL      {e.url}\n{_signing_in(e)}\n"
        f"Or without signing in, under Request headers:\n  Authorization: {e.bearer}\n"
    )


def _chatgpt(e: Endpoint) -> str:
    return (
        "Settings → Apps & Connectors → Advanced: developer mode → Create\n"
        f"  Name     {e.slug}\n  URL      {e.url}\n  Authentication  OAuth\n{_signing_in(e)}\n"
    )


def _openai(e: Endpoint) -> str:
    tool = {"type": "mcp", "server_label": e.snake, "server_url": e.url, "authorization": e.token}
    return _json({"tools": [{**tool, "require_approval": "always"}]})


def _anthropic(e: Endpoint) -> str:
    server = {"type": "url", "name": e.slug, "url": e.url, "authorization_token": e.token}
    return _json({"mcp_servers": [server], "tools": [{"type": "mcp_toolset", "mcp_server_name": e.slug}]})


def _curl(e: Endpoint) -> str:
    words = ["curl", "-sS", "-N", *(["--cacert", e.ca_file] if e.ca_file else []), e.url]
    for header in (f"Authorization: {e.bearer}", "Accept: application/json, text/event-stream",
                   "Content-Type: application/json"):  # fmt: skip
        words += ["-H", header]
    words += ["-d", '{"jsonrpc":"2.0","id":1,"method":"tools/list"}']
    return " ".join(shlex.quote(word) for word in words) + "\n"


def _trusting(e: Endpoint) -> tuple[str, str, str]:
    """Return what a script needs to trust a local CA: an import, a line before the call, an argument."""
    if not e.ca_file:
        return "", "", ""
    context = f"    trust = ssl.create_default_context(cafile={_quoted(e.ca_file)})\n"
    return "import ssl\n", context, ", verify=trust"


def _python(e: Endpoint) -> str:
    imports, context, verify = _trusting(e)
    return (
        f"import asyncio\n{imports}\nfrom fastmcp import Client\n\n\nasync def main():\n{context}"
        f"    async with Client({_quoted(e.url)}, auth={_quoted(e.token)}{verify}) as client:\n"
        "        print(await client.list_tools())\n\n\nasyncio.run(main())\n"
    )


def _python_sdk(e: Endpoint) -> str:
    imports, context, verify = _trusting(e)
    return (
        f"import asyncio\n{imports}\nimport httpx2\nfrom mcp import Client\n"
        f"from mcp.client.streamable_http import streamable_http_client\n\n\nasync def main():\n{context}"
        f'    headers = {{"Authorization": {_quoted(e.bearer)}}}\n    timeout = httpx2.Timeout(30, read=300)\n'
        f"    async with httpx2.AsyncClient(headers=headers, timeout=timeout{verify}) as http:\n"
        f"        async with Client(streamable_http_client({_quoted(e.url)}, http_client=http)) as client:\n"
        "            print(await client.list_tools())\n\n\nasyncio.run(main())\n"
    )


def _typescript(e: Endpoint) -> str:
    return (
        'import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";\n\n'
        f"const transport = new StreamableHTTPClientTransport(new URL({_quoted(e.url)}), {{\n"
        f"  requestInit: {{ headers: {{ Authorization: {_quoted(e.bearer)} }} }},\n}});\n"
        'const client = new Client({ name: "my-client", version: "1.0.0" });\nawait client.connect(transport);\n'
        "console.log(await client.listTools());\nawait client.close();\n"
    )


def _config_link(prefix: str, *, encoded: bool = True) -> Callable[[Endpoint], str]:
    """Return a renderer of prefix + name and config: the inner JSON, in base64 or plain, percent-encoded."""

    def render(e: Endpoint) -> str:
        inner = json.dumps({"url": e.url, **_headers(e)})
        config = base64.b64encode(inner.encode()).decode() if encoded else inner
        return f"{prefix}?name={quote(e.slug, safe='')}&config={quote(config, safe='')}"

    return render


def _vscode_link(e: Endpoint) -> str:
    whole = {"name": e.slug, "type": "http", "url": e.url, **_headers(e)}
    return f"vscode:mcp/install?{quote(json.dumps(whole), safe='')}"


def _goose_link(e: Endpoint) -> str:
    name, header = quote(e.slug, safe=""), quote(f"Authorization={e.bearer}", safe="")
    where = f"goose://extension?url={quote(e.url, safe='')}&type=streamable_http"
    return f"{where}&id={name}&name={name}&description=Slipway&timeout=300&header={header}"


_INSPECT = ("--transport", "http", "--header", "Authorization: {bearer}", "--method", "tools/list")
_KEEP = "The file holds the token: keep it out of git."

CLIENTS: dict[str, Client] = {
    "claude-code": Client("Claude Code", "json", ".mcp.json", _servers(type="http"), default=True, note=_KEEP),
    "claude-code-cli": Client("Claude Code, by command", "shell", "terminal", _command(
        "claude", "mcp", "add", "--transport", "http", "--scope", "project", "{slug}", "{url}",
        "--header", "Authorization: {bearer}"),
        note="It writes .mcp.json, which holds the token: keep it out of git."),
    "claude-desktop": Client("Claude Desktop", "json", "claude_desktop_config.json",
        lambda e: _json({"mcpServers": {e.slug: _bridge(e)}}), "given",
        note="Needs Node; restart Claude Desktop after the edit (a plain url entry does not work there)."),
    "claude-ai": Client("claude.ai", "text", "web UI → Settings → Connectors", _claude_ai, "remote",
        note="It signs in with an invite code; request headers need a Pro, Max or Team plan."),
    "chatgpt": Client("ChatGPT", "text", "web UI → Settings → Apps & Connectors", _chatgpt, "remote", bearer=False,
        note="It takes no bearer token: it signs in with an invite code (scripts/invite new makes one)."),
    "cursor": Client("Cursor", "json", "~/.cursor/mcp.json", _servers(), default=True,
        link=_config_link("cursor://anysphere.cursor-deeplink/mcp/install")),
    "vscode": Client("VS Code", "json", ".vscode/mcp.json", _vscode, default=True, note=_KEEP, link=_vscode_link),
    "vscode-cli": Client("VS Code, by command", "shell", "terminal", lambda e: shlex.join(
        ["code", "--add-mcp", json.dumps({"name": e.slug, "type": "http", "url": e.url, **_headers(e)})]) + "\n"),
    "windsurf": Client("Windsurf / Devin Desktop", "json", "~/.codeium/windsurf/mcp_config.json",
        lambda e: _json({"mcpServers": {e.slug: {"serverUrl": e.url, **_headers(e)}}}), "system"),
    "zed": Client("Zed", "json", "~/.config/zed/settings.json",
        lambda e: _json({"context_servers": {e.slug: {"url": e.url, **_headers(e)}}}), "system"),
    "cline": Client("Cline", "json", "~/.cline/data/settings/cline_mcp_settings.json", lambda e: _json(
        {"mcpServers": {e.slug: {"transport": {"type": "streamableHttp", "url": e.url, **_headers(e)}}}})),
    "cline-cli": Client("Cline, by command", "shell", "terminal", _command(
        "cline", "mcp", "add", "{slug}", "{url}", "--transport", "streamableHttp",
        "--header", "Authorization: {bearer}", "--yes")),
    "roo": Client("Roo Code", "json", ".roo/mcp.json", _servers(type="streamable-http"), note=_KEEP),
    "continue": Client("Continue", "yaml", ".continue/mcpServers/{slug}.yaml", _continue, note=_KEEP),
    "goose": Client("Goose", "yaml", "~/.config/goose/config.yaml", _goose, "system", link=_goose_link),
    "gemini": Client("Gemini CLI", "json", ".gemini/settings.json",
        lambda e: _json({"mcpServers": {e.slug: {"url": e.url, "type": "http", **_headers(e)}}}),
        note=f"{_KEEP} Gemini CLI reads it in folders that it trusts."),
    "gemini-cli": Client("Gemini CLI, by command", "shell", "terminal", _command(
        "gemini", "mcp", "add", "-s", "user", "-t", "http", "-H", "Authorization: {bearer}", "{slug}", "{url}")),
    "codex": Client("Codex CLI", "toml", "~/.codex/config.toml", _codex, "codex", default=True),
    "opencode": Client("opencode", "json", "opencode.json", note=_KEEP, render=lambda e: _json(
        {"$schema": "https://opencode.ai/config.json",
         "mcp": {e.slug: {"type": "remote", "url": e.url, "enabled": True, **_headers(e)}}})),
    "opencode-cli": Client("opencode, by command", "shell", "terminal", _command(
        "opencode", "mcp", "add", "{slug}", "--url", "{url}", "--header", "Authorization={bearer}")),
    "kiro": Client("Kiro", "json", "~/.kiro/settings/mcp.json", _servers(),
        link=_config_link("https://kiro.dev/launch/mcp/add", encoded=False)),
    "jetbrains": Client("JetBrains AI Assistant", "json", "Settings → Tools → AI Assistant → MCP → Add → As JSON",
        lambda e: _json({"mcpServers": {e.slug: _bridge(e)}}), "given", note="Through mcp-remote, which needs Node."),
    "lm-studio": Client("LM Studio", "json", "~/.lmstudio/mcp.json", _servers(), link=_config_link("lmstudio://add_mcp")),
    "openai-api": Client("OpenAI Responses API", "json", "request body", _openai, "remote",
        note="Add model and input."),
    "anthropic-api": Client("Anthropic Messages API", "json", "request body", _anthropic, "remote",
        note="Add model, max_tokens and messages; send the header anthropic-beta: mcp-client-2025-11-20."),
    "inspector": Client("MCP Inspector", "shell", "terminal", _command(
        "npx", "-y", "@modelcontextprotocol/inspector@latest", "--cli", "{url}", *_INSPECT), "given",
        note="Needs Node 22.19 or newer."),
    "mcp-remote": Client("mcp-remote", "shell", "terminal", _command(
        "npx", "-y", LATEST_REMOTE, "{url}", "--transport", "http-only", "--header", "Authorization:${{AUTH_HEADER}}",
        environment={"AUTH_HEADER": "{bearer}"}), "given"),
    "json": Client("any other client", "json", "where it keeps mcpServers", _servers(type="http"), "any",
        default=True),
    "curl": Client("curl", "shell", "terminal", _curl, "given"),
    "python": Client("Python, fastmcp", "python", "a script", _python, "given"),
    "python-sdk": Client("Python, official SDK", "python", "a script", _python_sdk, "given"),
    "typescript": Client("TypeScript SDK", "typescript", "a module", _typescript),
    "fastmcp": Client("fastmcp's command line", "shell", "terminal",
        _command("fastmcp", "list", "{url}", "--auth", "{token}", node=False), "given"),
}  # fmt: skip

DEFAULT_CHOICE: tuple[str, ...] = tuple(name for name, client in CLIENTS.items() if client.default)

# what a local CA asks for: as a note, and as what the client works with; {ca} is its path, quoted for the shell
TRUST: dict[str, tuple[str, str]] = {
    "node": ("Start it with NODE_EXTRA_CA_CERTS={ca} in its environment (a .env file has no effect), or it will not "
        "trust the local certificate.", "NODE_EXTRA_CA_CERTS={ca} in its environment"),
    # adds to the system's roots, where SSL_CERT_FILE may replace them
    "codex": ("Start it with CODEX_CA_CERTIFICATE={ca} in its environment, to trust the local CA.",
        "CODEX_CA_CERTIFICATE={ca} in its environment"),
    "any": ("Start it with NODE_EXTRA_CA_CERTS={ca} (Node) or SSL_CERT_FILE={ca} (most others) in its environment, "
        "to trust the local CA.",
        "NODE_EXTRA_CA_CERTS={ca} (Node) or SSL_CERT_FILE={ca} (others) in its environment"),
    "system": ("Add {ca} to the system's trusted roots, then restart it: it may not read NODE_EXTRA_CA_CERTS.",
        "{ca} among the system's trusted roots"),
    "given": ("", ""),
    "remote": ("", ""),
}  # fmt: skip
_OUT_OF_REACH = "It runs elsewhere and cannot reach this local URL: open a public one first."


def _row(name: str) -> Client:
    client = CLIENTS.get(name)
    if client is None:
        raise UnknownClient(name)
    return client


def render(name: str, endpoint: Endpoint) -> Snippet:
    """Render one client's configuration.

    Raises:
        UnknownClient: with the close matches.
    """
    client, trust = _row(name), ""
    if client.trust == "remote":
        trust = _OUT_OF_REACH if endpoint.local or endpoint.ca_file else ""
    elif endpoint.ca_file:
        trust = TRUST[client.trust][0].format(ca=shlex.quote(endpoint.ca_file))
    note = " ".join(filter(None, (trust, client.note)))
    path = client.path.replace("{slug}", endpoint.slug)
    return Snippet(client.kind, path, client.render(endpoint), note)


def deeplink(name: str, endpoint: Endpoint) -> str | None:
    """Return a link that installs the server in this client, or None. It carries the token into histories: say so.

    Raises:
        UnknownClient: with the close matches.
    """
    link = _row(name).link
    return link(endpoint) if link else None
