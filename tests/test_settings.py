"""Settings: defaults, precedence, and mistakes that are told instead of passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway import settings
from slipway.errors import Problem

ROOT = Path(__file__).resolve().parent.parent


def env(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".env"
    path.write_text(text)
    return path


def test_a_setting_of_fastmcps_in_env_is_refused_since_every_target_here_would_read_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FASTMCP_TRANSPORT=http\n")
    with pytest.raises(Problem, match="FASTMCP_TRANSPORT"):
        settings.load({}, tmp_path / ".env")


def test_every_setting_stands_in_env_example_with_its_default() -> None:
    listed = settings.read_env_file(ROOT / ".env.example")
    assert set(listed) == set(settings.names())
    assert settings.load({}, ROOT / ".env.example") == settings.load({}, None)


def test_the_environment_wins_over_the_file_and_empty_means_default(tmp_path: Path) -> None:
    path = env(tmp_path, "SERVER_PORT=9000\nEDGE_PORT=9001\nTLS_PORT=\n")
    config = settings.load({"SERVER_PORT": "9002"}, path)
    assert (config.server_port, config.edge_port, config.tls_port) == (9002, 9001, 8443)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SLIPWAY_SESSION=auto\n", "did you mean SLIPWAY_SESSIONS"),
        ("NGROK_AUTHTOKN=x\n", "did you mean NGROK_AUTHTOKEN"),
        ("SERVER_PROT=1\n", "did you mean SERVER_PORT"),
        ("SLIPWAY_NONSENSE=1\n", "no such setting"),
        ("A=1\nthis is no line\n", "line 2"),
        ("SERVER_PORT\n", "line 1"),
        ("SERVER_PORT=abc\n", "SERVER_PORT"),
        ("SERVER_PORT=70000\n", "SERVER_PORT"),
        ("SLIPWAY_SESSIONS=sticky\n", "SLIPWAY_SESSIONS"),
        ("SLIPWAY_ALLOWED_ORIGINS=example.com\n", "no origin"),
        ("SLIPWAY_ALLOWED_ORIGINS=https://a.example/path\n", "no origin"),
        ("SLIPWAY_ALLOWED_ORIGINS=https://a*.example\n", "no origin"),
        ("SLIPWAY_ALLOWED_HOSTS=https://a.example\n", "no host name"),
        # Caddy reads no other digits, and no page's origin has them
        ("SLIPWAY_ALLOWED_ORIGINS=http://a.example:٣\n", "no origin"),
        ("SLIPWAY_ALLOWED_HOSTS=\u212aelvin.example\n", "no host name"),
        ("SLIPWAY_MAX_BODY=lots\n", "SLIPWAY_MAX_BODY"),
        ("SLIPWAY_MAX_BODY=٣MB\n", "SLIPWAY_MAX_BODY"),
        ("SLIPWAY_STATE=\0\n", "SLIPWAY_STATE holds a NUL"),
        ("SLIPWAY_MAX_TTL=0d\n", "366 days at most"),
        ("SLIPWAY_MAX_TTL=999d\n", "366 days at most"),
        ("SLIPWAY_SESSION_IDLE=0s\n", "SLIPWAY_SESSION_IDLE: .*366 days at most"),
        ("SLIPWAY_SESSION_IDLE=0\n", "SLIPWAY_SESSION_IDLE: .*366 days at most"),
        ("SLIPWAY_TOOL_TIMEOUT=0s\n", "SLIPWAY_TOOL_TIMEOUT: .*366 days at most"),
        ("SLIPWAY_TOOL_TIMEOUT=999d\n", "SLIPWAY_TOOL_TIMEOUT: .*366 days at most"),
        ('SLIPWAY_TOOL_LIMITS={"add": {"timeout": "999d"}}\n', "SLIPWAY_TOOL_LIMITS: at 'add': it is a JSON object"),
        ("SLIPWAY_REDIS_AWAY=wait\n", "SLIPWAY_REDIS_AWAY"),
        ("SLIPWAY_PUBLIC_URL=http://a.example\n", "SLIPWAY_PUBLIC_URL"),
        ("SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS=perhaps\n", "SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(Problem, match=told) as caught:
        settings.load({}, env(tmp_path, text))
    assert caught.value.exit_code == 2
    assert caught.value.cure


def test_other_programs_names_are_left_alone(tmp_path: Path) -> None:
    settings.load({}, env(tmp_path, "OPENSANCTIONS_API_KEY=x\nCOMPOSE_PROJECT_NAME=y\nDEBUG='a b' # why\n"))


def test_a_binary_file_is_told(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00A")
    with pytest.raises(Problem, match="cannot be read"):
        settings.load({}, tmp_path / ".env")


def test_a_byte_order_mark_and_quotes_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfSERVER_PORT='9000'\r\nexport EDGE_PORT=\"9001\"\r\n")
    config = settings.load({}, tmp_path / ".env")
    assert (config.server_port, config.edge_port) == (9000, 9001)


def test_the_authtoken_has_no_printable_form_and_reaches_no_child() -> None:
    config = settings.load({"NGROK_AUTHTOKEN": "s3cr3t"}, None)
    assert "s3cr3t" not in repr(config) + str(config)
    assert "s3cr3t" not in str(settings.environment(config, ROOT))


def test_a_bad_secret_value_is_not_echoed() -> None:
    with pytest.raises(Problem) as caught:
        settings.load({"SERVER_PORT": "hunter2"}, None)
    assert "hunter2" not in str(caught.value)


def test_every_setting_of_the_server_reaches_its_container() -> None:
    ours = {
        "SLIPWAY_TARGET_FOLDER",
        "SLIPWAY_TARGET_PROCESSES",
        "NGROK_AUTHTOKEN",
        "SLIPWAY_PUBLIC_URL",
    }  # of this machine alone: where a target is, commands (which run here), and the tunnel
    text = (ROOT / "docker-compose.yml").read_text()
    assert not [name for name in settings.names() if name not in ours and name not in text]
