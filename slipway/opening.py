"""The URL that a run hands out: a tunnel opened and kept, one that is open already, or the local address."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slipway import edge, files, processes, tunnels
from slipway.errors import Problem
from slipway.settings import Settings


@dataclass(frozen=True)
class Opening:
    """Where clients connect."""

    url: str
    public: bool


@contextlib.contextmanager
def opened(config: Settings, root: Path, *, url: str, public: bool, say: Callable[[str], None]) -> Iterator[Opening]:
    """Open what was asked for, and close it however the block ends.

    Args:
        config: ports, authtoken and the state folder.
        root: the checkout.
        url: the user's own domain, or "" for the account's.
        public: False opens nothing.
        say: told what happens to the tunnel while it is open.
    Raises:
        Problem: the tunnel cannot be opened; its exit code tells which error of ngrok it was.
    """
    token = config.ngrok_authtoken.get_secret_value() or tunnels.users_authtoken()
    if not public or not token:
        if url and public:
            cure = (
                "Put NGROK_AUTHTOKEN=… into .env (dashboard.ngrok.com/get-started/your-authtoken), then ./scripts/up"
            )
            raise Problem("A public URL was asked for, but there is no ngrok authtoken.", cure, 10)
        yield Opening(edge.local_url(config), public=False)
        return
    record, note = root / config.state / "run" / "tunnel.json", root / config.public_url_file
    if found := processes.running(record):
        number = int(found["process"][0])
        if not note.exists():
            cure = "Wait for it, or stop it: ./scripts/down"
            raise Problem(f"Another tunnel.py (process {number}) is just opening a tunnel.", cure, 11)
        present = note.read_text(encoding="utf-8").strip()
        if url and url.rstrip("/") != present:
            raise Problem(f"A tunnel is open already, at {present}.", "Stop it first: ./scripts/down", 11)
        say(f"the tunnel is open already (process {number}); this one only prints and watches")
        yield Opening(present + "/mcp", public=True)
        return

    def publish() -> None:
        # the server accepts this Host from now on, and no longer when the tunnel is gone
        files.write(note, tunnel.public_url + "\n", 0o644)  # the container's user must read it

    def on_event(kind: str, message: str) -> None:
        if kind == "moved":
            publish()
        say(f"tunnel {kind}: {message}")

    processes.write(record, {"process": processes.identity(os.getpid())})
    try:
        options = tunnels.TunnelOptions(
            upstream=f"http://127.0.0.1:{config.edge_port}",
            url=url or None,
            authtoken=token,
            config_dir=root / config.state / "ngrok",
        )
        with tunnels.open_tunnel(options, on_event) as tunnel:
            publish()
            yield Opening(tunnel.public_url + "/mcp", public=True)
    finally:
        note.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
