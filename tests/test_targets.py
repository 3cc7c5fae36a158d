"""What SLIPWAY_TARGET may say, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipway import packages, targets
from slipway.errors import Problem, heard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a server and what belongs to it."""
    (tmp_path / "bot.py").write_text("mcp = 1\n")
    (tmp_path / "mcp.json").write_text('{"mcpServers": {"a": {"command": "sh", "args": ["${WORD}"]}}}')
    return tmp_path


def test_a_python_file_with_and_without_an_object(folder: Path) -> None:
    plain, named = targets.parse("bot.py", folder, {}), targets.parse(f"{folder}/bot.py:make", Path("/"), {})
    assert (plain.kind, plain.path, plain.name) == ("python", folder / "bot.py", "")
    assert (named.kind, named.path, named.name) == ("python", folder / "bot.py", "make")
    assert not plain.why_not_in_docker()
    assert plain.files() == [folder / "bot.py"]


def test_a_command_keeps_its_quotes_and_watches_the_files_it_names(folder: Path) -> None:
    target = targets.parse("sh -c 'cat bot.py' ./bot.py", folder, {})
    assert target.command == ("sh", "-c", "cat bot.py", "./bot.py")
    assert target.folder == folder
    assert "runs on this machine" in target.why_not_in_docker()
    assert [path.resolve() for path in target.files()] == [folder / "bot.py"]


@pytest.mark.parametrize(
    ("url", "tied"),
    [("https://mcp.example.com/mcp", False), ("http://localhost:9/mcp", True), ("http://[::1]/", True)],
)
def test_a_url_is_served_from_a_container_unless_it_is_on_loopback(url: str, tied: bool) -> None:
    target = targets.parse(url, Path(), {"K": "s3cret"}, '{"X-Key": "${K}", "X-Team": "${T:-blue}"}')
    assert (target.kind, target.headers) == ("url", {"X-Key": "s3cret", "X-Team": "blue"})
    assert bool(target.why_not_in_docker()) == tied
    assert "s3cret" not in repr(target)


def test_the_old_transport_is_recognised_by_its_path() -> None:
    assert targets.parse("https://mcp.example.com/sse", Path(), {}).sse


def test_an_mcp_json_has_a_part_for_each_server(folder: Path) -> None:
    servers = {
        "files": {"command": "sh", "args": ["-c", "${WORD}"], "env": {"A": "${B:-c}"}, "cwd": "."},
        "web_site": {"type": "http", "url": "https://x.example/mcp", "headers": {"Authorization": "Bearer ${KEY}"}},
        "old": {"type": "sse", "url": "https://x.example/events"},
    }
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    parts = targets.parse("mcp.json", folder, {"WORD": "w", "KEY": "k"}).parts
    assert parts["files"].command == ("sh", "-c", "w")
    assert parts["files"].environment == {"A": "c"}
    assert parts["files"].folder == folder
    assert parts["web_site"].headers == {"Authorization": "Bearer k"}
    assert (parts["web_site"].sse, parts["old"].sse) == (False, True)


def test_a_fastmcp_json_names_the_file_and_what_it_needs(folder: Path) -> None:
    (folder / "req.txt").write_text("# a comment\nhumanize==4.9  # why\n-r more.txt\n")
    environment = {"dependencies": ["rich>=13", "fastmcp>=2", "mcp[cli]"], "requirements": "req.txt"}
    (folder / "fastmcp.json").write_text(
        json.dumps({"source": {"path": "bot.py", "entrypoint": "x"}, "environment": environment})
    )
    target = targets.parse("fastmcp.json", folder, {})
    assert (target.kind, target.path, target.name) == ("python", folder / "bot.py", "x")
    assert target.packages == ("rich>=13", "humanize==4.9")
    assert targets.parse("bot.py", folder, {}).packages == target.packages


def test_inline_metadata_names_what_a_file_needs(folder: Path) -> None:
    (folder / "bot.py").write_text('# /// script\n# dependencies = ["humanize", "fastmcp"]\n# ///\nmcp = 1\n')
    assert targets.parse("bot.py", folder, {}).packages == ("humanize",)


def test_packages_without_an_installer_are_a_sentence_with_the_cure(folder: Path) -> None:
    (folder / "fastmcp.json").write_text(
        json.dumps({"source": {"path": "bot.py"}, "environment": {"dependencies": ["rich"]}})
    )
    with pytest.raises(Problem, match=r"bot.py needs packages[\s\S]*docs.astral.sh/uv") as caught:
        packages.install(targets.parse("fastmcp.json", folder, {}), folder, folder, lambda _: None, "")
    assert caught.value.exit_code == targets.NO_PACKAGES


@pytest.mark.parametrize(
    ("text", "content", "code", "told"),
    [
        ("bto.py", "", 50, "Did you mean"),
        ("none/at/all.py:mcp", "", 50, "There is no file"),
        ("nosuchprogram --x", "", 53, "neither a file nor a program"),
        ("uvx_ some-server", "", 53, "Install it"),
        ("sh -c 'open", "", 53, "quotes"),
        ("https:///mcp", "", 2, "no URL"),
        ("https://ana:pw@x.example/mcp", "", 2, "SLIPWAY_TARGET_HEADERS"),  # pragma: allowlist secret
        ("~nobody-of-this-name/server.py", "", 50, "no path"),
        ("server\0.py", "", 2, "characters"),
        ("sh -c \x1b[2J", "", 2, "characters"),
        ("c.json", "", 50, "There is no file"),
        ("mcp.json", "[" * 100_000, 56, "cannot be read"),
        ("mcp.json", '{"source": {"path": "a\\u0000.py"}}', 50, "no path"),
        ("mcp.json", '{"mcpServers": {"a": {"command": "sh", "cwd": "\\u0000"}}}', 50, "no path"),
        ("mcp.json", '{"mcpServers": {"a": {"command": "sh", "env": {"A": "\\u0000"}}}}', 2, "NUL"),
        (
            "mcp.json",
            '{"mcpServers": {"a": {"url": "https://x.example", "headers": {"A": "1\\r\\nB: 2"}}}}',
            2,
            "value of A",
        ),
        ("mcp.json", "{}", 56, "holds no server"),
        ("mcp.json", "[]", 56, "holds no server"),
        ("mcp.json", '{"mcpServers": {}}', 56, "holds no server"),
        ("mcp.json", '{"mcpServers": {"a": ', 56, "cannot be read"),
        ("mcp.json", '{"mcpServers": {"a": {}}}', 56, "neither a command nor a url"),
        ("mcp.json", '{"mcpServers": {"a b": {"command": "sh"}}}', 56, "prefix"),
        ("mcp.json", '{"mcpServers": {"a": {"command": "sh", "args": "x"}}}', 56, "no list"),
        ("mcp.json", '{"mcpServers": {"a": {"command": "sh", "args": ["${NOT_SET}"]}}}', 2, "Put NOT_SET"),
        ("bot.py", '{"environment": {"project": "."}}', 57, "uv run fastmcp run"),
    ],
)
def test_what_cannot_be_served_is_said_with_a_cure(
    folder: Path, text: str, content: str, code: int, told: str
) -> None:
    if content:
        (folder / ("fastmcp.json" if text == "bot.py" else text)).write_text(content)
    with pytest.raises(Problem) as caught:
        targets.parse(text, folder, {})
    assert caught.value.exit_code == code
    assert told in str(caught.value)
    assert caught.value.cure


def test_variables_are_read_as_every_host_writes_them(folder: Path) -> None:
    entry = {"command": "sh", "args": ["${NAME}", "${env:NAME}", "${OTHER:-else}"], "env": {"KEY": "${env:NAME}"}}
    (folder / "env.json").write_text(json.dumps({"mcpServers": {"one": entry}}))
    part = targets.parse("env.json", folder, {"NAME": "value"}).parts["one"]
    assert part.command == ("sh", "value", "value", "else")
    assert part.environment == {"KEY": "value"}


@pytest.mark.parametrize(
    ("text", "label", "shown"),
    [
        ("https://u.example:8443/mcp?api_key=s3cret#x", "u.example", "https://u.example:8443/mcp"),
        ("sh -c true", "sh -c true", "sh -c true"),
    ],
)
def test_a_key_in_a_url_is_in_no_name_of_it(folder: Path, text: str, label: str, shown: str) -> None:
    target = targets.parse(text, folder, {})
    assert (target.label, target.shown) == (label, shown)


def test_broken_headers_are_not_repeated(folder: Path) -> None:
    for text in (
        "Bearer s3cret",
        "[" * 100_000 + "s3cret",
        '{"X": "s3cret\\r\\nHost: other"}',
        '{"X": "s3cret \\ud800"}',
    ):
        with pytest.raises(Problem) as caught:
            targets.parse("https://x.example/mcp", folder, {}, text)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("entry", ['"command": "${KEY}"', '"url": "${KEY}"', '"url": "http://${KEY}:0"'])
def test_what_a_variable_brought_is_not_repeated(folder: Path, entry: str) -> None:
    (folder / "mcp.json").write_text('{"mcpServers": {"a": {' + entry + "}}}")
    with pytest.raises(Problem) as caught:
        targets.parse("mcp.json", folder, {"KEY": "s3cret-in-the-env"})
    assert "s3cret" not in str(caught.value)
    assert "${KEY}" in caught.value.cause


def test_a_word_longer_than_the_name_of_a_file_may_be_is_a_word_of_a_command(folder: Path) -> None:
    long = "sh -c " + "x" * 300 + ".py"
    target = targets.parse(long, folder, {})
    assert target.kind == "command"
    assert target.files() == []


def test_a_targets_process_gets_nothing_of_ours_and_little_of_the_shells() -> None:
    ours = {
        "SLIPWAY_SECRET_FILE": "x", "NGROK_AUTHTOKEN": "x", "FASTMCP_TRANSPORT": "sse", "REDIS_URL": "x",
        "AWS_SECRET_ACCESS_KEY": "x", "GITHUB_TOKEN": "x", "UV_PUBLISH_TOKEN": "x", "PYTHONPATH": "x",
    }  # fmt: skip
    kept = {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "https_proxy": "p", "npm_config_registry": "r"}
    own = {"OPENSANCTIONS_API_KEY": "mine"}  # pragma: allowlist secret
    assert targets.clean_environment(ours | kept, own | {"FASTMCP_LOG_LEVEL": "DEBUG"}) == kept | own


def test_a_problem_of_another_process_is_heard_without_its_log() -> None:
    said = '2026-11-20 10:00:00,1 INFO x: y\n{"time":1}\nIt broke:\n  line 2\n  → Mend it\n'
    problem = heard(said, 51)
    assert problem
    assert (problem.cause, problem.cure, problem.exit_code) == ("It broke:\n  line 2", "Mend it", 51)
    assert heard("Killed", 51) is None
