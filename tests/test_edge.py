"""What tunnel.py says of an edge or a URL that does not serve: each case one cause and one cure."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slipway import edge, settings
from slipway.errors import Problem
from tests.conftest import Stack, free_ports


@pytest.fixture
def stranger() -> Iterator[Callable[..., int]]:
    """Start other programs that answer every request alike."""
    servers = []

    def start(status: int = 200, body: bytes = b"hello", **headers: str) -> int:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def config(port: int) -> settings.Settings:
    return settings.load({"EDGE_PORT": str(port)}, None)


def test_no_edge_names_the_command_that_starts_it() -> None:
    with pytest.raises(Problem, match=r"Nothing listens[\s\S]*scripts/up") as caught:
        edge.check(config(free_ports(1)[0]))
    assert caught.value.exit_code == 4


def test_another_program_on_the_port_is_recognised(stranger: Callable[..., int]) -> None:
    with pytest.raises(Problem, match="belongs to another program") as caught:
        edge.check(config(stranger()))
    assert caught.value.exit_code == 3


def test_an_edge_without_its_server_is_told_apart(stranger: Callable[..., int]) -> None:
    with pytest.raises(Problem, match="server behind it does not"):
        edge.check(config(stranger(502, X_Request_Id="a")))


@pytest.mark.parametrize(
    ("answer", "exit_code", "told"),
    [
        ({"status": 502, "Ngrok_Error_Code": "ERR_NGROK_8012"}, 32, "edge behind it refuses"),
        ({"status": 404, "Ngrok_Error_Code": "ERR_NGROK_3200"}, 33, "offline"),
        ({"status": 500, "Ngrok_Error_Code": "ERR_NGROK_9999"}, 5, "ERR_NGROK_9999"),
        ({"status": 401, "body": b"\x1b[2Jno"}, 5, "401"),
        ({"body": b"<html>"}, 5, "no MCP endpoint"),
        ({"body": b'{"result": {"tools": [1]}}'}, 5, "no MCP endpoint"),
        ({"body": b"event: x\n\n", "Content_Type": "text/event-stream"}, 5, "no MCP endpoint"),
    ],
)
def test_a_url_that_serves_no_mcp_is_explained(
    stranger: Callable[..., int], answer: dict, exit_code: int, told: str
) -> None:
    with pytest.raises(Problem, match=told) as caught:
        edge.verify(f"http://127.0.0.1:{stranger(**answer)}/mcp", "token", None)
    assert caught.value.exit_code == exit_code
    assert "\x1b" not in str(caught.value)


def test_a_missing_local_authority_is_told(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot be read"):
        edge.verify("https://localhost:1/mcp", "token", tmp_path / "root.crt")


@pytest.mark.slow
def test_a_certificate_that_nobody_trusts_names_the_variable(shared_stack: Stack) -> None:
    with pytest.raises(Problem, match=r"SSL_CERT_FILE"):
        edge.verify(shared_stack.tls_url, shared_stack.token(), None)
    assert edge.verify(shared_stack.tls_url, shared_stack.token("add"), shared_stack.ca_file) == ["add"]
