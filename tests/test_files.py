"""Small files that others read while they change: whole or not at all, of their mode, never in the place of a device."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from slipway import app, compose, files, opening, settings, tunnels
from slipway.doctor import examine, report
from slipway.doctor.hops import Hop
from slipway.errors import Problem


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def careful() -> Iterator[None]:
    """A user whose files nobody else may read."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def bundle(path: Path) -> None:
    hop = Hop("url", "http://127.0.0.1:1/mcp")
    report.write_bundle(examine.Report([hop], [{}], {}), path, path.parent, path.parent)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a value": lambda path: files.write(path, "x"),
    "what a container is told of a target": lambda path: compose._of_target(None, path.parent / ".env", path),
    "the doctor's bundle": bundle,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_could_read_is_closed_to_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o644)
    WRITERS[name](path)
    assert mode(path) == 0o600
    assert path.read_text()


def test_a_bundle_is_no_substitute_for_a_device_and_goes_through_a_link(tmp_path: Path) -> None:
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(Problem, match="no file"):
        bundle(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    target.touch()
    link.symlink_to(target)
    bundle(link)
    assert link.is_symlink() and target.read_text()


def test_the_public_url_is_never_half_written_and_the_container_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel, tell = SimpleNamespace(public_url="https://one.example"), []

    @contextlib.contextmanager
    def open_tunnel(_: object, on_event: Any) -> Iterator[SimpleNamespace]:
        tell.append(on_event)
        yield tunnel

    monkeypatch.setattr(tunnels, "open_tunnel", open_tunnel)
    config = settings.Settings(ngrok_authtoken=SecretStr("a" * 30))
    (tmp_path / config.state / "run").mkdir(parents=True)
    note = tmp_path / config.public_url_file
    with opening.opened(config, tmp_path, url="", public=True, say=lambda _: None):
        assert mode(note) == 0o644
        with note.open() as before:
            tunnel.public_url = "https://another.example"
            tell[0]("moved", "")
            assert before.read() == "https://one.example\n", "whoever reads it at this moment reads the whole of it"
        assert note.read_text() == "https://another.example\n"


def test_a_public_url_that_moved_within_a_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    config = settings.Settings(state=tmp_path)
    config.public_url_file.parent.mkdir()
    hosts = app._Hosts(config, lambda: None)
    for url in ("https://one.example", "https://another.example"):
        files.write(config.public_url_file, url)
        os.utime(config.public_url_file, ns=(10**18, 10**18))
        assert hosts.public_url() == url
