"""Asks the edge and a public URL whether they really serve MCP, and says in words what is wrong when they do not."""

from __future__ import annotations

import json
import secrets
import ssl
import time
from pathlib import Path
from typing import Any

import httpx2

from slipway import knocks, ngrok_errors
from slipway.errors import Problem
from slipway.settings import Settings

USER_AGENT = "slipway-check"
_START = "Start server and edge: ./scripts/up (or without Docker: ./scripts/up --local)"


def ca_file(config: Settings, root: Path) -> Path:
    """Return the path of the local CA's root certificate; Caddy makes it at its first start."""
    return (root / config.state / "caddy" / "pki" / "authorities" / "local" / "root.crt").resolve()


def local_url(config: Settings) -> str:
    """Return the MCP URL for clients on this machine."""
    return f"https://localhost:{config.tls_port}/mcp"


def check(config: Settings) -> None:
    """Check that our edge answers on EDGE_PORT and has a living server behind it.

    Raises:
        Problem: nothing listens, something else listens, or the server behind is down.
    """
    port = config.edge_port
    try:
        # a proxy from the environment has no business on loopback
        with httpx2.Client(trust_env=False, timeout=6, headers={"user-agent": USER_AGENT}) as client:
            answer = client.get(f"http://127.0.0.1:{port}/healthz")
    except httpx2.ConnectError:
        raise Problem(f"Nothing listens on 127.0.0.1:{port}, the edge's port.", _START, 4) from None
    except httpx2.HTTPError as error:
        cure = f"See what holds the port (ss -ltnp 'sport = :{port}'), or set EDGE_PORT in .env"
        raise Problem(f"What listens on 127.0.0.1:{port} gave no answer ({type(error).__name__}).", cure, 4) from None
    if "x-request-id" not in answer.headers:
        raise Problem(
            f"Port {port} belongs to another program: it answered {answer.status_code} without our mark.",
            f"Stop it (ss -ltnp 'sport = :{port}' names it), or set EDGE_PORT in .env, then ./scripts/up",
            3,
        )
    if answer.status_code != 200:
        raise Problem(f"The edge answers, but the server behind it does not ({answer.status_code}).", _START, 4)


def verify(url: str, token: str, ca: Path | None, *, patience: float = 0.0, mark: str = "slipway") -> list[str]:
    """Call tools/list at an MCP URL as a client would.

    Args:
        url: the endpoint, https://…/mcp.
        token: a bearer token.
        ca: trust this root certificate; None trusts the system's (SSL_CERT_FILE is honoured).
        patience: seconds to try again while the answer is an error; a new name may need a moment.
        mark: what our request ids begin with.
    Returns: the names of the tools that the token may call.
    Raises:
        Problem: with the status, and the tunnel's error code where there is one.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return _list_tools(url, token, _trust(ca), mark)
        except Problem:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.3)  # the far end has no event for us


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca)) if ca else ssl.create_default_context()
    except OSError as error:
        cure = "Start the edge once, it makes its authority: ./scripts/up"
        raise Problem(f"The local authority's certificate {ca} cannot be read: {error.strerror}.", cure, 4) from None


def _list_tools(url: str, token: str, trust: ssl.SSLContext, mark: str) -> list[str]:
    headers = {
        "authorization": f"Bearer {token}", "accept": "application/json, text/event-stream",
        "user-agent": USER_AGENT, "ngrok-skip-browser-warning": "1",
        "x-request-id": f"{mark}-{secrets.token_hex(8)}",
    }  # fmt: skip
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    try:
        with httpx2.Client(verify=trust, timeout=10, headers=headers) as client:
            answer = client.post(url, json=message)
    except httpx2.HTTPError as error:
        text = str(error) or type(error).__name__
        cure = "Try again in a moment"
        if "CERTIFICATE_VERIFY" in text.upper():
            cure = "Trust its authority: SSL_CERT_FILE=/path/to/ca.pem, then the command again"
        raise Problem(f"{url} cannot be reached: {text[:200]}.", cure, 5) from None
    if answer.status_code != 200:
        code = answer.headers.get("ngrok-error-code", "")
        if code in ngrok_errors.ROWS:
            raise ngrok_errors.TunnelError(*ngrok_errors.ROWS[code], code=code)
        what = f"{answer.status_code} {code}".strip()
        said = knocks.printable(answer.text, 160) or "nothing"
        cure = f"Read ngrok.com/docs/errors/{code.lower()}" if code else f"It said: {said}"
        raise Problem(f"{url} answers {what} to a tools/list with a good token.", cure, 5)
    try:
        return [str(tool["name"]) for tool in _message(answer)["result"]["tools"]]
    except (ValueError, LookupError, TypeError):
        raise Problem(f"{url} is no MCP endpoint: its answer is no tools/list.", "Check the URL", 5) from None


def _message(answer: httpx2.Response) -> Any:
    """Return the JSON-RPC message of a JSON answer, or of the first event with data."""
    if "text/event-stream" not in answer.headers.get("content-type", ""):
        return answer.json()
    data = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
    return json.loads(data[0])
