"""Checks of CORS: what a page of another origin may send and read (WHATWG Fetch, 3.3). The console runs the same."""

from __future__ import annotations

import functools

from slipway.doctor.checks import Checks
from slipway.doctor.hops import Finding, Hop, NotApplicable, failure, ok, warning
from slipway.doctor.wire import Answer, shown

check = Checks()

FOREIGN = "https://not-allowed.example"
_COMMON = "authorization, content-type, accept, mcp-protocol-version"
ASKED = {  # to begin, to resume a stream, in the newest era, for a tool's argument, past ngrok's page
    "preflight-handshake": f"{_COMMON}, mcp-session-id",
    "preflight-resume": f"{_COMMON}, mcp-session-id, last-event-id",
    "preflight-newest": f"{_COMMON}, mcp-method, mcp-name",
    "preflight-param": f"{_COMMON}, mcp-method, mcp-name, mcp-param-city",
    "preflight-ngrok": f"{_COMMON}, ngrok-skip-browser-warning",
}


def _pages(hop: Hop) -> None:
    """Raises: NotApplicable where no page talks to this hop."""
    if not hop.cors:
        raise NotApplicable("CORS is the edge's")


def _bad(hop: Hop, saw: str, cause: str, cure: str) -> Finding:
    """A failure of ours; of a foreign server that never promised CORS, a warning."""
    return (failure if hop.ours or hop.strict else warning)(saw, cause, cure)


def _allow(hop: Hop) -> str:
    return (
        f"Add {hop.origin} to SLIPWAY_ALLOWED_ORIGINS in .env" if hop.ours
        else f"Answer Access-Control-Allow-Origin: {hop.origin}"
    )  # fmt: skip


def _readable(hop: Hop, answer: Answer, what: str) -> Finding | None:
    """Say why a page could not read this answer, or None if it could."""
    origins = answer.all("access-control-allow-origin")
    if len(origins) > 1:
        return _bad(
            hop, f"{len(origins)} times Access-Control-Allow-Origin: {shown(' and '.join(origins), 60)}",
            "Two hops add CORS headers, and browsers refuse an answer with two.",
            "Let one hop alone write them: remove them from the app or from the proxy",
        )  # fmt: skip
    if not origins:
        return _bad(hop, f"{what}: no Access-Control-Allow-Origin", "A page cannot read this answer.", _allow(hop))
    if origins[0] not in ("*", hop.origin):
        return _bad(hop, f"{what}: for {shown(origins[0], 50)} only", "It is for another origin.", _allow(hop))
    return None


def _reads(hop: Hop, answer: Answer, what: str, header: str, cause: str) -> Finding:
    """Say whether a page could read this answer, and the header if it has it."""
    if unreadable := _readable(hop, answer, what):
        return unreadable
    exposed = {name.strip().lower() for name in answer.header("access-control-expose-headers").split(",")}
    if answer.header(header.lower()) and not {header.lower(), "*"} & exposed:
        return _bad(
            hop, f"{header} is not exposed", cause,
            "Access-Control-Expose-Headers: Mcp-Session-Id, WWW-Authenticate, Retry-After",
        )  # fmt: skip
    return ok("readable")


async def _options(hop: Hop, asked: str, *, method: str = "POST", origin: str = "") -> Answer:
    """Send a preflight as browsers do: without a token and without ngrok's header, which they only ask for."""
    headers = {
        "origin": origin or hop.origin, "access-control-request-method": method,
        "access-control-request-headers": asked, "ngrok-skip-browser-warning": "",
    }  # fmt: skip
    return await hop.ask("OPTIONS", token=False, headers=headers, http2=True)


async def _preflight(hop: Hop, asked: str) -> Finding:
    """Ask leave for headers, as a browser does before it sends them."""
    _pages(hop)
    await hop.reached()
    answer = await _options(hop, asked)
    if not 200 <= answer.status < 300:
        cause = "Browsers send the preflight without a token, and give up on any answer but 2xx."
        if answer.status == 403:
            return _bad(hop, f"OPTIONS: {answer.said()}", f"The origin {hop.origin} is refused.", _allow(hop))
        if answer.status == 401:
            cause = "Something asks the preflight for a token, which browsers never send along."
        return _bad(hop, f"OPTIONS: {answer.said()}", cause, "Answer OPTIONS before anything asks for a token")
    if unreadable := _readable(hop, answer, "OPTIONS"):
        return unreadable
    allowed = {name.strip().lower() for name in answer.header("access-control-allow-headers").split(",")}
    wanted = {name.strip() for name in asked.split(",")} - {"accept"}
    # a star does not stand for Authorization (Fetch, CORS-preflight fetch 19)
    missing = sorted(wanted - allowed - (wanted - {"authorization"} if "*" in allowed else set()))
    if missing:
        return _bad(
            hop, f"not allowed: {shown(', '.join(missing), 70)}", "The browser never sends the request itself.",
            f"Access-Control-Allow-Headers must name {', '.join(missing)}; Mcp-Param-* cannot be listed: reflect "
            "what is asked for",
        )  # fmt: skip
    return ok(f"{answer.status}, all {len(wanted)} headers allowed")


for _name, _asked in ASKED.items():
    check(_name)(functools.partial(_preflight, asked=_asked))


@check("preflight-delete")
async def preflight_delete(hop: Hop) -> Finding:
    """Ask leave to end a session."""
    _pages(hop)
    await hop.reached()
    answer = await _options(hop, "authorization, mcp-session-id", method="DELETE")
    methods = answer.header("access-control-allow-methods").upper().replace(" ", "").split(",")
    if not 200 <= answer.status < 300 or not answer.header("access-control-allow-origin"):
        raise NotApplicable("see preflight-handshake")
    if not {"DELETE", "*"} & {*methods}:
        return _bad(
            hop, f"methods: {shown(', '.join(methods), 40)}", "Pages cannot end their sessions.",
            "Access-Control-Allow-Methods: GET, POST, DELETE, OPTIONS",
        )  # fmt: skip
    return ok(f"{answer.status}")


@check("allow-origin-once")
async def allow_origin_once(hop: Hop) -> Finding:
    """Look at the answer itself, not at the preflight's."""
    _pages(hop)
    answer = await hop.page()
    return _readable(hop, answer, "POST") or ok(answer.header("access-control-allow-origin"))


@check("session-readable")
async def session_readable(hop: Hop) -> Finding:
    """See whether the session id is exposed."""
    _pages(hop)
    await hop.admitted()
    answer = await hop.page()
    if not answer.header("mcp-session-id"):
        raise NotApplicable("there is no session id")
    cause = "A page of the handshake era loses its session after initialize."
    return _reads(hop, answer, "POST", "Mcp-Session-Id", cause)


@check("401-readable")
async def refusal_readable(hop: Hop) -> Finding:
    """See whether a page learns that it must sign in, and where."""
    _pages(hop)
    answer = await hop.stranger(page=True)
    if answer.status != 401:
        raise NotApplicable(f"without a token it answers {answer.status}")
    return _reads(hop, answer, "401", "WWW-Authenticate", "A page cannot learn where to sign in.")


@check("404-readable")
async def missing_readable(hop: Hop) -> Finding:
    """Ask for what does not exist."""
    _pages(hop)
    await hop.reached()
    answer = await hop.ask("GET", path="/.well-known/nothing", headers={"origin": hop.origin}, http2=True)
    if answer.status != 404:
        raise NotApplicable(f"an unknown path answers {answer.status}")
    return _readable(hop, answer, "404") or ok("readable")


@check("429-readable")
async def limit_readable(hop: Hop) -> Finding:
    """Look at a refusal for too many calls, if this run met one; none is provoked."""
    _pages(hop)
    await hop.hello()
    if not hop.limited:
        raise NotApplicable("nothing was limited, and none is provoked")
    answer = hop.limited[0]
    said = f"429, Retry-After: {shown(answer.header('retry-after'), 20) or 'not said'}"
    if unreadable := _readable(hop, answer, "429"):
        return failure(said, unreadable.cause, unreadable.cure)
    if not answer.header("retry-after"):
        return warning(said, "Clients do not learn when to come back.", "Send Retry-After")
    return warning(said, "There were too many calls in a short time.", "Wait, then run the doctor again")


@check("foreign-refused")
async def foreign_refused(hop: Hop) -> Finding:
    """Ask as a page that was never allowed."""
    _pages(hop)
    await hop.reached()
    answers = [
        await _options(hop, "authorization, content-type", origin=FOREIGN),
        await hop.post("ping", headers={"origin": FOREIGN}, token=False),
    ]
    allowed = [value for each in answers for value in each.all("access-control-allow-origin")]
    if any(value in ("*", FOREIGN) for value in allowed):
        return warning(
            f"allowed: {shown(allowed[0], 40)}", "Any page on the web may call with a token that it got hold of.",
            "Name the origins in SLIPWAY_ALLOWED_ORIGINS" if hop.ours else "Name the origins that may call",
        )  # fmt: skip
    return ok("refused" if answers[1].status == 403 else "no header for it")


@check("well-known")
async def well_known(hop: Hop) -> Finding:
    """Fetch the OAuth metadata as a web client does."""
    _pages(hop)
    await hop.reached()
    path = "/.well-known/oauth-protected-resource" + hop.path.rstrip("/")
    answer = await hop.ask("GET", path=path, token=False, headers={"origin": hop.origin}, http2=True)
    if answer.status != 200:
        raise NotApplicable(f"it answers {answer.status}")
    return _readable(hop, answer, "metadata") or ok("readable")


@check("origin")
async def origin(hop: Hop) -> Finding:
    """Send a real call with the Origin header, over HTTP/2 where there is TLS, as browsers do."""
    _pages(hop)
    await hop.admitted()
    headers = {"origin": hop.origin, **await hop.in_session()}
    answer = await hop.post("ping", headers=headers, http2=True)
    if answer.status == 403:
        return _bad(hop, answer.said(), f"Calls from {hop.origin} are refused.", _allow(hop))
    return ok(f"{answer.http} {answer.status}")
