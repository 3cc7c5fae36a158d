"""Stands in for the ngrok agent, whose service cannot be reached from a test: unmodified pyngrok drives it.

It speaks the agent's command line, log lines and local web interface, and really forwards TLS traffic to the
upstream, unbuffered. STANDIN_FAULT chooses an error of the real one; STANDIN_STATE is the folder that stands for
the account: agents of one folder see each other's sessions and endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

STATE = Path(os.environ.get("STANDIN_STATE", "/tmp/standin"))
FAULT = os.environ.get("STANDIN_FAULT", "")
MAX_SESSIONS = int(os.environ.get("STANDIN_MAX_SESSIONS", "3"))
OUTAGE = float(os.environ.get("STANDIN_OUTAGE", "1"))  # seconds that SIGUSR1 takes the session away
BROWSER_WARNING = os.environ.get("STANDIN_BROWSER_WARNING") == "1"


def write_executable(path: Path) -> Path:
    """Write a program that runs this file under the present Python; for PYNGROK_NGROK_PATH."""
    path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({__file__!r}, run_name='__main__')\n")
    path.chmod(0o700)
    return path


def log(level: str, msg: str, **fields: object) -> None:
    rest = "".join(f" {name}={json.dumps(str(value))}" for name, value in fields.items())
    print(f"t=2026-11-20T00:00:00+0000 lvl={level} msg={json.dumps(msg)}{rest}", flush=True)


def die(code: str, text: str) -> None:
    """End as the agent does when the service refuses its session."""
    err = f"authentication failed: {text}\r\n\r\n{code}\r\n" if code else text
    log("eror", "session closing", obj="tunnels.session", err=err)
    log("eror", "terminating with error", obj="app", err=err)
    log("crit", "command failed", err=err)
    print(f"ERROR:  {text}\nERROR:  {code}", file=sys.stderr, flush=True)
    sys.exit(1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def live(folder: str) -> list[dict]:
    """Return the entries of a registry whose agents still run."""
    (STATE / folder).mkdir(parents=True, exist_ok=True)
    entries = []
    for path in (STATE / folder).iterdir():
        with contextlib.suppress(ValueError, OSError):
            entry = json.loads(path.read_text())
            if alive(entry["pid"]):
                entries.append(entry)
            else:
                path.unlink()
    return entries


class Agent:
    def __init__(self, config: dict, authtoken: str) -> None:
        self.token = authtoken or config.get("agent", {}).get("authtoken") or config.get("authtoken") or ""
        self.web_addr = config.get("agent", {}).get("web_addr", "127.0.0.1:4040")
        self.endpoints: dict[str, dict] = {}
        self.edge: asyncio.Server | None = None

    def authenticate(self) -> None:
        if FAULT == "network":
            die("", "dial tcp: lookup connect.ngrok-agent.com: no such host")
        if FAULT == "9009":
            die("ERR_NGROK_9009", "Running the agent with an http/s proxy is an enterprise feature.")
        if FAULT in ("121", "725", "727"):
            die(f"ERR_NGROK_{FAULT}", "refused by the service")
        if not self.token:
            die("ERR_NGROK_4018", "Usage of ngrok requires a verified account and authtoken.")
        if len(self.token) < 20 or not self.token.replace("_", "").isalnum():
            die("ERR_NGROK_105", f"The authtoken does not look like one.\nYour authtoken: {self.token}")
        if self.token.startswith("revoked"):
            die("ERR_NGROK_107", f"properly formed, but it is invalid.\nYour authtoken: {self.token}")
        if len(live("sessions")) >= MAX_SESSIONS:
            die("ERR_NGROK_108", f"Your account is limited to {MAX_SESSIONS} simultaneous ngrok agent sessions.")
        (STATE / "sessions" / str(os.getpid())).write_text(json.dumps({"pid": os.getpid()}))

    async def run(self) -> None:
        if FAULT == "silent":
            await asyncio.Event().wait()
        if FAULT == "web_addr":
            die("", f"listen tcp {self.web_addr}: bind: address already in use")
        self.authenticate()
        host, _, port = self.web_addr.rpartition(":")
        try:
            web = await asyncio.start_server(self.answer_api, host, int(port))
        except OSError:
            die("", f"listen tcp {self.web_addr}: bind: address already in use")
        log("info", "starting web service", obj="web", addr=self.web_addr, allow_hosts="[]")
        log("info", "client session established", obj="tunnels.session")
        log("info", "tunnel session started", obj="tunnels.session")
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(self, "outage", loop.create_task(self.drop())))
        await stopping.wait()
        web.close()

    async def drop(self) -> None:
        log("eror", "heartbeat timeout, terminating session", obj="tunnels.session")
        log("eror", "session closed, starting reconnect loop", obj="tunnels.session")
        assert self.edge
        self.edge.close()
        await asyncio.sleep(OUTAGE)  # the clock is the fault here
        await self.open_edge()
        log("info", "client session established", obj="tunnels.session")
        log("info", "tunnel session started", obj="tunnels.session")

    async def open_edge(self) -> int:
        """Listen as the service's edge would; the account's one address is the same every time."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(os.environ["STANDIN_CERT"], os.environ["STANDIN_KEY"])
        kept = STATE / "edge_port"
        port = int(kept.read_text()) if kept.exists() else 0
        self.edge = await asyncio.start_server(self.forward, "127.0.0.1", port, ssl=context)
        port = self.edge.sockets[0].getsockname()[1]
        kept.write_text(str(port))
        return port

    # --- the local web interface

    async def answer_api(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            length = next((int(x[15:]) for x in head.lower().split("\r\n") if x.startswith("content-length:")), 0)
            body = json.loads(await reader.readexactly(length) or "{}") if length else {}
            if FAULT == "slow-api" and method == "POST":
                await asyncio.Event().wait()
            status, answer = await self.api(method, path.rstrip("/"), body)
            content = b"" if answer is None else json.dumps(answer).encode()
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + content
            )
            await writer.drain()
            died = STATE / "died"
            if FAULT == "exit-after-open" and status == 201 and not died.exists():
                died.touch()
                os._exit(1)  # once per account
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def api(self, method: str, path: str, body: dict) -> tuple[int, dict | None]:
        kind = path.split("/")[2] if path.count("/") > 1 else ""
        if FAULT == "no-api" or kind not in ("endpoints", "tunnels", "status"):
            return 404, {"status_code": 404, "msg": "Not Found", "details": {"path": path}}
        if kind == "status":
            return 200, {"status": "online", "agent_version": "3.39.0", "session": {"legs": []}, "uri": path}
        name = path.split("/")[3] if path.count("/") > 2 else ""
        if method == "GET":
            return 200, {kind: list(self.endpoints.values()), "uri": path}
        if method == "DELETE":
            gone = self.endpoints.pop(name, None)
            (STATE / "endpoints" / str(os.getpid())).unlink(missing_ok=True)
            return (204, None) if gone else (404, {"error_code": 100, "status_code": 404, "msg": "not found"})
        refused = {"error_code": 103, "status_code": 502, "msg": "failed to start tunnel"}
        if FAULT in ("314", "320", "324"):
            return 502, {**refused, "details": {"err": f"refused.\r\n\r\nERR_NGROK_{FAULT}\r\n"}}
        url = body.get("url") or ""
        upstream = body.get("upstream", {}).get("url") or body.get("addr", "")
        if urlsplit(upstream).scheme not in ("http", "https") or ":" in urlsplit(upstream).netloc.rpartition(":")[0] \
                or (url and urlsplit(url).path.strip("/")):  # fmt: skip
            return 400, {"error_code": 102, "status_code": 400, "msg": "invalid tunnel configuration"}
        kept = STATE / "edge_port"
        wanted = url or (f"https://localhost:{kept.read_text()}" if kept.exists() else "")
        if any(entry["url"] == wanted for entry in live("endpoints")):
            text = f"failed to start tunnel: The endpoint '{wanted}' is already online.\r\n\r\nERR_NGROK_334\r\n"
            return 502, {**refused, "details": {"err": text}}
        if not self.edge:
            await self.open_edge()
        url = url or f"https://localhost:{kept.read_text()}"
        entry = {"pid": os.getpid(), "url": url}
        (STATE / "endpoints" / str(os.getpid())).write_text(json.dumps(entry))
        self.endpoints[body["name"]] = {
            "name": body["name"], "ID": body["name"], "uri": f"/api/{kind}/{body['name']}", "url": url,
            "public_url": url, "proto": "https", "upstream": {"url": upstream, "protocol": "http1"},
            "config": {"addr": upstream, "inspect": body.get("inspect", True)}, "inspect": body.get("inspect", True),
            "metrics": {},
        }  # fmt: skip
        log("info", "started tunnel", obj="tunnels", name=body["name"], addr=upstream, url=url)
        return 201, self.endpoints[body["name"]]

    # --- the service's edge

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *headers = head.rstrip("\r\n").split("\r\n")
            given = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in headers}
            if not self.endpoints:
                return await page(writer, 404, "ERR_NGROK_3200", "The endpoint is offline.")
            if BROWSER_WARNING and first.startswith("GET") and "Mozilla" in given.get("user-agent", "") \
                    and "ngrok-skip-browser-warning" not in given:  # fmt: skip
                return await page(writer, 200, "ERR_NGROK_6024", "You are about to visit …")
            upstream = urlsplit(next(iter(self.endpoints.values()))["upstream"]["url"])
            loop = asyncio.get_running_loop()
            # a bare socket: asyncio's streams forget what came as soon as a write fails
            up = socket.socket()
            up.setblocking(False)
            try:
                await loop.sock_connect(up, (upstream.hostname, upstream.port))
            except OSError:
                return await page(writer, 502, "ERR_NGROK_8012", "The upstream refused the connection.")
            kept = [line for line in headers if line.split(":", 1)[0].lower() not in
                    ("connection", "x-forwarded-for", "x-forwarded-proto")]  # fmt: skip
            peer = writer.get_extra_info("peername")[0]
            chain = ", ".join(filter(None, (given.get("x-forwarded-for"), peer)))
            proto = ", ".join(filter(None, (given.get("x-forwarded-proto"), "https")))
            kept += [f"X-Forwarded-For: {chain}", f"X-Forwarded-Proto: {proto}", "Connection: close"]
            await loop.sock_sendall(up, "\r\n".join([first, *kept, "", ""]).encode("latin-1"))
            out = asyncio.create_task(downward(up, writer))
            sent = asyncio.create_task(upward(reader, up))
            # either side's end is the end: a client that leaves must be noticed upstream
            done, _ = await asyncio.wait({out, sent}, return_when=asyncio.FIRST_COMPLETED)
            if sent in done and not sent.result():
                # the edge answered before the whole body was read: the answer still goes to the client
                await asyncio.wait({out})
            if not sent.done() or sent.cancelled() or not sent.result():
                sent.cancel()
                await asyncio.wait({sent})
                # a close before the client has sent all would take the answer back
                await drain(reader, 0.3)
            out.cancel()
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            if up:
                up.close()
            writer.close()


async def upward(reader: asyncio.StreamReader, up: socket.socket) -> bool:
    """Pass what the client sends on. Returns: whether the client ended, not the upstream."""
    while True:
        try:
            data = await reader.read(65536)
        except OSError:
            return True
        if not data:
            return True
        try:
            await asyncio.get_running_loop().sock_sendall(up, data)
        except OSError:
            return False


async def downward(up: socket.socket, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await asyncio.get_running_loop().sock_recv(up, 65536):
            writer.write(data)
            await writer.drain()


async def drain(reader: asyncio.StreamReader, seconds: float) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            while await reader.read(65536):
                pass


async def page(writer: asyncio.StreamWriter, status: int, code: str, text: str) -> None:
    body = f"<html><body>{text} {code}</body></html>".encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: text/html\r\nNgrok-Error-Code: {code}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


def main(argv: list[str]) -> None:
    def option(name: str) -> str:
        return argv[argv.index(name) + 1] if name in argv else ""

    if argv[:1] == ["version"] or "--version" in argv:
        print("ngrok version 3.39.0")
    elif argv[:2] == ["config", "add-authtoken"]:
        print("Authtoken saved to configuration file")
    elif argv[:1] == ["start"]:
        if FAULT == "exit":
            sys.exit(1)
        path = Path(option("--config") or os.devnull)
        if path.exists() and path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            print("stand-in: the configuration with the authtoken is readable by others", file=sys.stderr)
        config = yaml.safe_load(path.read_text()) or {} if path.is_file() else {}
        log("info", "open config file", path=path, err="<nil>")
        asyncio.run(Agent(config, option("--authtoken")).run())
    else:
        sys.exit(f"stand-in: no such command: {argv}")


if __name__ == "__main__":
    main(sys.argv[1:])
