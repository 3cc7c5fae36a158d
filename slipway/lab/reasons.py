"""Why a request was refused: what the board says of it, and what the instructor says aloud. A row is a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slipway.knocks import Knock, printable

# why a request was refused → what the board says, what the instructor says aloud; the first that fits
REASONS: Sequence[tuple[Callable[[Knock], bool], str, str]] = (
    (lambda knock: knock.code == "token_expired", "token expired",
     "Open the join page again and type the same code: you get a fresh token."),
    (lambda knock: knock.code == "token_revoked", "token revoked",
     "This token was stopped. Open the join page again, with the code that I give you now."),
    (lambda knock: knock.code == "no_token", "401 no token",
     "Your client sends no token. Paste the whole configuration, headers too."),
    (lambda knock: knock.status == 401, "401 token not accepted",
     "Copy the whole token again, without quotes or a line break, after the word Bearer."),
    (lambda knock: knock.code in ("scope", "no_tool_scope"), "403 tool not allowed",
     "This tool is not part of the lab. List the tools, and call one of those."),
    (lambda knock: knock.code == "origin", "403 origin",
     "Your page's origin is not allowed. Serve it from http://localhost, or tell me the origin."),
    (lambda knock: knock.code == "host" or knock.status == 421, "421 wrong host",
     "Copy the URL again from the join page."),
    (lambda knock: knock.status == 404 and not is_mcp(knock), "404 wrong URL",
     "The URL ends in /mcp, and nothing after it."),
    (lambda knock: knock.status == 404, "404 session forgotten", "Start your client again: it opens a new session."),
    (lambda knock: knock.status == 405, "405 method",
     "MCP is POST. A GET needs Accept: text/event-stream and a session."),
    (lambda knock: knock.status == 406, "406 Accept",
     "Send the header Accept: application/json, text/event-stream."),
    (lambda knock: knock.status == 415, "415 content type", "Send the header Content-Type: application/json."),
    (lambda knock: knock.status == 413, "413 too large", "The body is too large. Send less."),
    (lambda knock: knock.limit == "answer", "result too large",
     "The tool's result is larger than this server lets through. Ask the tool for less."),
    (lambda knock: knock.status == 408, "408 body too slow",
     "Your request did not arrive in time. Look at your network, then send it again."),
    (lambda knock: knock.status == 400, "400 bad request",
     "The body is no JSON-RPC message. Compare it with the lab's."),
    (lambda knock: knock.outcome == "limited" or knock.status == 429, "limit hit",
     "Wait a minute, and let your agent call less often: the limit is for one seat, nobody else notices."),
    (lambda knock: knock.status >= 500, "server away", "Wait some seconds, then try again."),
)  # fmt: skip
NEVER_KNOCKED = ("never knocked", "Paste the configuration into your client, restart it, and list the tools.")


def why(knock: Knock) -> tuple[str, str]:
    """Return what the board says of a refusal, and what the instructor says aloud, if anything helps."""
    found = ((what, cure) for fits, what, cure in REASONS if fits(knock))
    return next(found, (f"{knock.status} {printable(knock.reason, 80)}".strip(), ""))


def is_mcp(knock: Knock) -> bool:
    """Tell whether a request was for the MCP endpoint."""
    return knock.path.rstrip("/") == "/mcp"
