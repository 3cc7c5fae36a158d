"""What only a session can do: the server asks the client back (elicitation)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastmcp import Client

from slipway import settings, tokens
from tests.conftest import ROOT, clean_environment, free_ports, wait_until

pytestmark = pytest.mark.slow

SERVED = """
from fastmcp import Context, FastMCP
from slipway.serving import serve

mcp = FastMCP("asks-back")

@mcp.tool
async def greet(ctx: Context) -> str:
    answer = await ctx.elicit("your name?", response_type=str)
    return f"hello {answer.data}"

@mcp.custom_route("/readyz-free", methods=["GET"])
async def free(request):
    from starlette.responses import PlainTextResponse
    return PlainTextResponse("free")

serve(mcp)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Serve a server of somebody else by slipway.serving.serve. Yields: its URL and a token."""
    (tmp_path / "served.py").write_text(SERVED)
    port = str(free_ports(1)[0])
    environment = clean_environment(
        tmp_path, SERVER_PORT=port, SLIPWAY_STATE=str(tmp_path / "state"), PYTHONPATH=str(ROOT),
        SLIPWAY_SECRET_FILE=str(tmp_path / "state" / "secret"),
    )  # fmt: skip
    secret = tokens.ensure_secret(settings.load(environment, None).secret_file)
    with (tmp_path / "out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, tmp_path / "served.py"], env=environment, stdout=output, stderr=output
        )

    def ready() -> bool:
        assert process.poll() is None, (tmp_path / "out").read_text()
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    try:
        wait_until(ready, 30)
        yield f"http://127.0.0.1:{port}/mcp", tokens.mint(secret, subject="ana", scope="tool:*", ttl=60).token
    finally:
        process.terminate()
        process.wait(15)


async def test_a_server_may_ask_its_client_back_in_a_session(served: tuple[str, str]) -> None:
    async def elicit(message: str, response_type: type, params: object, context: object) -> object:
        return response_type(value="ana")

    url, token = served
    async with Client(url, auth=token, mode="legacy", elicitation_handler=elicit, timeout=20) as client:
        assert (await client.call_tool("greet")).data == "hello ana"


def test_a_route_of_the_served_server_answers_beside_ours(served: tuple[str, str]) -> None:
    url, _ = served
    assert httpx2.get(url.replace("/mcp", "/readyz-free")).text == "free"
    assert httpx2.get(url.replace("/mcp", "/nowhere")).status_code == 404
