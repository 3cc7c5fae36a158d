"""What ngrok says and what it means: a row per error with its cause, its cure and its exit code. Pure."""

from __future__ import annotations

import re

from slipway.errors import Problem


class TunnelError(Problem):
    """The tunnel cannot be opened or used; `code` is ngrok's own, as in "ERR_NGROK_334", or ""."""

    def __init__(self, cause: str, cure: str, exit_code: int, code: str = "") -> None:
        super().__init__(f"{cause} ({code})" if code else cause, cure, exit_code)
        self.code = code


_AGAIN = "then ./scripts/up"
_DASHBOARD = "dashboard.ngrok.com/get-started/your-authtoken"

Row = tuple[str, str, int]  # cause, cure, exit code
SILENT: Row = (
    "The ngrok agent started but never got ready.",
    "Check the network, and that the agent is 3.30 or newer (.venv/bin/ngrok update), " + _AGAIN,
    37,
)
NO_AGENT: Row = (
    "There is no ngrok agent here, and it could not be downloaded.",
    "Install it (ngrok.com/download) and set PYNGROK_NGROK_PATH to it, " + _AGAIN,
    38,
)
# by its code, or a pattern of the message where ngrok gives no code; pyngrok's begins with the kind of its error
ROWS: dict[str, Row] = {
    "ERR_NGROK_4018": (
        "ngrok wants an authtoken of a verified account.",
        f"Put NGROK_AUTHTOKEN into .env ({_DASHBOARD}), {_AGAIN}",
        20,
    ),
    "ERR_NGROK_105": (
        "NGROK_AUTHTOKEN does not look like an authtoken.",
        f"Copy it whole from {_DASHBOARD} (an API key is another thing), {_AGAIN}",
        21,
    ),
    "ERR_NGROK_107": (
        "The authtoken is well formed but not valid: reset, revoked, or of another account.",
        f"Copy the present one from {_DASHBOARD} into .env, {_AGAIN}",
        22,
    ),
    "ERR_NGROK_108": (
        "The account has as many agents online as its plan allows.",
        "Stop the others (dashboard.ngrok.com/agents; here: ./scripts/down), " + _AGAIN,
        23,
    ),
    "ERR_NGROK_334": (
        "The public URL is online already, from another agent.",
        "Stop that one (dashboard.ngrok.com/endpoints; here: ./scripts/down), or take another --url, " + _AGAIN,
        24,
    ),
    "ERR_NGROK_121": ("The ngrok agent is too old for the service.", "Update it: .venv/bin/ngrok update", 25),
    "ERR_NGROK_324": (
        "The account has as many endpoints online as its plan allows.",
        "Stop some (dashboard.ngrok.com/endpoints), " + _AGAIN,
        26,
    ),
    "ERR_NGROK_314": (
        "This plan has no custom host names.",
        "Leave --url and SLIPWAY_PUBLIC_URL out: every account has one domain of its own",
        27,
    ),
    "ERR_NGROK_320": (
        "The domain is not reserved by this account.",
        "Reserve it (dashboard.ngrok.com/domains), or leave --url and SLIPWAY_PUBLIC_URL out",
        28,
    ),
    "ERR_NGROK_725": (
        "The account's bandwidth of this month is used up.",
        "Upgrade or wait (dashboard.ngrok.com/usage); locally all works: --no-public",
        29,
    ),
    "ERR_NGROK_727": (
        "The account's requests of this month are used up.",
        "Upgrade or wait (dashboard.ngrok.com/usage); locally all works: --no-public",
        30,
    ),
    "ERR_NGROK_9009": (
        "This plan's agent may not go through an HTTP proxy.",
        "Unset http_proxy and https_proxy, " + _AGAIN,
        31,
    ),
    "ERR_NGROK_8012": (
        "The tunnel is open, but the edge behind it refuses connections.",
        "Start the edge: ./scripts/up",
        32,
    ),
    "ERR_NGROK_3200": ("The public URL is offline: no agent serves it.", "Open it again: ./scripts/up", 33),
    r"bind: address already in use|web_addr": (
        "The port of the agent's own web interface is taken.",
        "Run the command again: it picks another",
        34,
    ),
    r'"?status_code"?:\s*400|invalid tunnel configuration': (
        "ngrok does not take these options for an endpoint.",
        "Check --url (https://name.ngrok-free.app, without a path), " + _AGAIN,
        35,
    ),
    r"^(TimeoutError|PyngrokNgrokURLError)": (
        "The ngrok agent runs, but its local interface does not answer.",
        "Run the command again; a firewall or proxy on loopback stops it too (no_proxy=127.0.0.1,localhost)",
        36,
    ),
    "^PyngrokNgrokInstallError": NO_AGENT,
    "unable to start": (
        "The ngrok agent ended before it was ready.",
        "Run it by hand to see why: PYNGROK_NGROK_PATH (or .venv/bin/ngrok) with the argument version",
        41,
    ),
    r"no records|no such host|failed to reconnect|network is unreachable|i/o timeout|dial tcp": (
        "The ngrok agent cannot reach ngrok's service.",
        "Check the network (some venues block tunnels); locally all works: --no-public",
        39,
    ),
}
UNKNOWN = ("ngrok failed: {text}", "Read ngrok.com/docs/errors, or go without: --no-public", 40)


def redact(text: str, secret: str) -> str:
    """Return the text without the authtoken, also where ngrok echoes a malformed one."""
    if secret:
        text = text.replace(secret, "(authtoken)")
    return re.sub(r"(authtoken:?\s*\S*?[:=]\s*)\S+", r"\1(authtoken)", text, flags=re.I)


def explain(text: str, secret: str = "") -> TunnelError:
    """Turn ngrok's words into cause, cure and exit code.

    Args:
        text: all that was said: the exception, its body, the log's error.
        secret: the authtoken, which never appears in the result.
    """
    # what is dropped first cannot hide a piece of the authtoken from the redaction
    text = "".join(char for char in text if char.isprintable() or char.isspace())
    codes = re.findall(r"ERR_NGROK_[0-9]{1,5}", text)
    for code in codes:
        if code in ROWS:
            return TunnelError(*ROWS[code], code=code)
    for pattern, row in ROWS.items():
        if not pattern.startswith("ERR_") and re.search(pattern, text, re.I):
            return TunnelError(*row, code=codes[0] if codes else "")
    cause, cure, exit_code = UNKNOWN
    said = " ".join(redact(text, secret).split())
    return TunnelError(cause.format(text=said[:200]), cure, exit_code, codes[0] if codes else "")
