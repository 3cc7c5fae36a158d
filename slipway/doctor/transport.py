"""Checks of the way to the server: name, TLS, trust, redirects, Host, headers, sizes."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import ssl
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

from slipway import ngrok_errors
from slipway.doctor.checks import Checks
from slipway.doctor.hops import HELLO, Finding, Hop, NotApplicable, failure, ok, warning
from slipway.doctor.wire import Answer, shown

check = Checks()

BROWSER = "Mozilla/5.0 (slipway-check/doctor)"
START = "./scripts/up"
# each may stand once: clients join doubled ones with a comma, or refuse them
SINGLE = ("access-control-allow-origin", "content-type", "mcp-session-id", "mcp-protocol-version", "cache-control",
          "content-length", "location", "retry-after")  # fmt: skip
# what hops may add, lose or change without harm
HARMLESS = {"date", "server", "via", "connection", "keep-alive", "transfer-encoding", "content-length", "alt-svc",
            "x-request-id", "mcp-session-id", "vary", "etag", "strict-transport-security"}  # fmt: skip
QUOTA = ("ERR_NGROK_725", "ERR_NGROK_727")
SMALL, LARGE = 100_000, 1_500_000  # bytes
NODE = """const s=require("tls").connect({host:process.argv[1],port:+process.argv[2],servername:process.argv[1]},
()=>{console.log("trusted");s.end()});s.on("error",e=>{console.log(e.code||e.message);process.exit(1)});
setTimeout(()=>process.exit(2),5000).unref()"""


@check("name")
async def name(hop: Hop) -> Finding:
    """Look the name up."""
    if hop.loopback or hop.host.replace(".", "").isdigit() or ":" in hop.host:
        raise NotApplicable("an address of this machine" if hop.loopback else "an address, no name")
    try:
        async with asyncio.timeout(5):
            found = await asyncio.get_running_loop().getaddrinfo(hop.host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return failure(
            "no address", f"{hop.host} is unknown to this machine's DNS: the tunnel is closed, or a typo.",
            f"Open it ({START}), or check the name: getent hosts {shlex.quote(hop.host)}",
        )  # fmt: skip
    return ok(", ".join(sorted({str(each[4][0]) for each in found})[:3]))


@check("reach")
async def reach(hop: Hop) -> Finding:
    """Ask once, and name what stands between."""
    answer = await hop.hello()
    if answer.status == 0:
        cure = START if hop.ours else "Check URL and port, and that the server runs"
        if "certificate" in answer.error:
            cure = "See tls below"
        elif "nothing listens" not in answer.error and hop.secure:
            cure = f"Is it plain HTTP? Try http://{hop.host}… instead"
        return failure(answer.error, "No HTTP answer came back.", cure)
    code = answer.header("ngrok-error-code")
    if code:
        cause, cure, _ = ngrok_errors.ROWS.get(
            code, ("ngrok refused it.", f"Read ngrok.com/docs/errors/{shown(code, 20)}", 1)
        )
        return failure(f"{answer.status} {shown(code, 20)}", str(cause), str(cure))
    if answer.status >= 500:
        return failure(
            answer.said(), "A proxy answers, but the server behind it does not.",
            START if hop.ours else "Start the server behind the proxy, or mend the proxy's upstream address",
        )  # fmt: skip
    return ok(f"{answer.http} {answer.status} in {answer.to_head * 1000:.0f} ms")


@check("tls")
async def tls(hop: Hop) -> Finding:
    """Look at the certificate: who vouches for it, for which name, until when."""
    if not hop.secure:
        raise NotApplicable("plain HTTP")
    port = urlsplit(hop.url).port or 443

    def handshake(context: ssl.SSLContext) -> tuple[dict[str, Any], str, str]:
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection((hop.host, port), 5) as raw,
            context.wrap_socket(raw, server_hostname=hop.host) as s,
        ):
            return dict(s.getpeercert() or {}), s.version() or "", s.selected_alpn_protocol() or "http/1.1"

    try:
        certificate, version, protocol = await asyncio.to_thread(handshake, hop.trust())
    except ssl.SSLCertVerificationError as error:
        what = shown(error.verify_message)
        return failure(what, *_untrusted(hop, what))
    except (OSError, ValueError) as error:
        return failure(shown(str(error)), "No TLS connection could be made.", "Is it plain HTTP? Try http://")
    left = ssl.cert_time_to_seconds(str(certificate.get("notAfter"))) - time.time()
    saw = f"{version}, {protocol}, {left / 86400:.0f} d left" if left > 172_800 else f"{version}, {protocol}"
    if left < 7 * 86400 and not hop.loopback:
        return warning(saw, f"The certificate ends in {left / 86400:.1f} days.", "Renew it")
    return ok(saw)


def _untrusted(hop: Hop, what: str) -> tuple[str, str]:
    if "expired" in what:
        return "The certificate has expired.", START if hop.ours else "Renew it"
    if "match" in what:
        return f"The certificate is for another name than {hop.host}.", "Use the name that it was made for"
    cure = START if hop.ours else "Trust its authority: SSL_CERT_FILE=/path/to/ca.pem, then the command again"
    return "The certificate comes from an authority that is not trusted here.", cure


@check("trust")
async def trust(hop: Hop) -> Finding:
    """Connect as clients do: Python with SSL_CERT_FILE, Node with NODE_EXTRA_CA_CERTS."""
    if not hop.secure:
        raise NotApplicable("plain HTTP")
    await hop.reached()
    node = shutil.which("node")
    said = [f"SSL_CERT_FILE=…/{hop.ca.name}"] if hop.ca else ["Python: system roots"]
    if node:
        environment = {**os.environ, **({"NODE_EXTRA_CA_CERTS": str(hop.ca)} if hop.ca else {})}
        port = str(urlsplit(hop.url).port or 443)
        run = await asyncio.create_subprocess_exec(
            node, "-e", NODE, hop.host, port, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(10):
                heard = (await run.communicate())[0].decode(errors="replace").strip()
        except TimeoutError:
            run.kill()
            heard = "no answer"
        if run.returncode or heard != "trusted":
            return failure(
                f"Node: {shown(heard, 60)}", "Node clients will not trust the certificate.",
                "Start them with NODE_EXTRA_CA_CERTS=/path/to/ca.pem in their environment (.env has no effect)",
            )  # fmt: skip
        said.append(f"NODE_EXTRA_CA_CERTS=…/{hop.ca.name}" if hop.ca else "Node: its own roots")
    return ok(", ".join(said) + ("" if node else "; there is no node here to ask"))


@check("redirect")
async def redirect(hop: Hop) -> Finding:
    """See whether the endpoint sends clients elsewhere: most lose the token or the body on the way."""
    answer = await hop.hello()
    if not answer.status:
        raise NotApplicable("nothing answers")
    if not 300 <= answer.status < 400:
        return ok("none")
    target = urljoin(hop.url, answer.header("location"))
    cause = "Clients lose the token or the body on a redirect, and curl shows nothing at all."
    if hop.secure and urlsplit(target).scheme == "http":
        cause = "It leads from https to http: clients drop the token, browsers refuse it."
    cure = f"Use {shown(target)} as the URL; on a server of yours, serve /mcp and /mcp/ both, without a redirect"
    return failure(f"{answer.status} → {shown(target)}", cause, cure)


@check("slash")
async def slash(hop: Hop) -> Finding:
    """Ask at the other spelling of the path."""
    await hop.reached()
    other = hop.path.rstrip("/") if hop.path.endswith("/") else hop.path + "/"
    if not other:
        raise NotApplicable("the endpoint is the root")
    first = await hop.hello()
    second = await hop.post("initialize", HELLO, path=other)
    if session := second.header("mcp-session-id"):
        await hop.ask("DELETE", path=other, headers={"mcp-session-id": session[:256]}, seconds=3)
    if second.status == first.status:
        return ok(f"both {first.status}")
    cause = f"{other} answers {second.status or second.error}: a client that spells it so gets nothing."
    if 300 <= second.status < 400:
        cause = f"{other} redirects ({second.status}): the token or the body is lost on the way."
    return warning(f"{first.status} and {second.status or 'none'}", cause, "Serve both spellings, without a redirect")


@check("interstitial")
async def interstitial(hop: Hop) -> Finding:
    """Send a GET as a browser's fetch() does, without the header that skips ngrok's page."""
    await hop.reached()
    path = "/.well-known/oauth-protected-resource" + hop.path
    headers = {"user-agent": BROWSER, "ngrok-skip-browser-warning": "", "accept": "application/json"}
    answer = await hop.ask("GET", path=path, headers=headers)
    plain = await hop.ask("GET", path=path, headers={"accept": "application/json"})
    code, html = answer.header("ngrok-error-code"), "text/html"
    if code or (html in answer.header("content-type") and html not in plain.header("content-type")):
        return warning(
            f"{answer.status} {shown(code or 'text/html', 40)}",
            "Browsers get a page of the tunnel's instead of our answer to a GET: a GET stream and the OAuth "
            "metadata fail in web clients, as a CORS error.",
            "Send the header ngrok-skip-browser-warning: 1 from web clients (the console does), or use a paid domain",
        )  # fmt: skip
    return ok("none")


@check("host")
async def host(hop: Hop) -> Finding:
    """See whether a guard refuses the Host, and which one the server takes itself to be called by."""
    answer = await hop.hello()
    if not answer.status:
        raise NotApplicable("nothing answers")
    guarded = answer.status == 421 or (answer.status == 403 and "host" in answer.text.lower()[:300])
    if guarded:
        return failure(
            answer.said(), "A guard against foreign hosts refuses the Host header that arrives.",
            "Let the proxy keep the Host header; for a name of your own: SLIPWAY_ALLOWED_HOSTS=… in .env"
            if hop.ours else f"Add {hop.host} to the server's allowed hosts",
        )  # fmt: skip
    seen = (await hop.stranger()).resource_metadata()
    if not seen:
        raise NotApplicable("the server does not tell which it saw")
    # the agent's side talks plain HTTP to the edge under the public name, so only the name is compared
    if (urlsplit(seen).hostname or "") != hop.host:
        return failure(
            f"the server saw {shown(urlsplit(seen).netloc, 60)}", "A proxy replaces the Host header.",
            "Let the proxy keep it (nginx: proxy_set_header Host $http_host)",
        )  # fmt: skip
    return ok(urlsplit(seen).netloc)


@check("headers")
async def headers(hop: Hop) -> Finding:
    """Compare the headers of two answers with those of the hop before, and look for doubled ones."""
    answers = [await hop.reached(), await hop.stranger()]
    doubled = sorted({name for each in answers for name in SINGLE if len(each.all(name)) > 1})
    if doubled:
        return failure(
            f"twice: {', '.join(doubled)}", "Two hops write the same header: browsers and clients refuse the pair.",
            "Let one of them write it; behind Slipway's edge nothing else may add CORS headers",
        )  # fmt: skip
    if hop.before is None:
        return ok("none doubled")
    try:
        former = [await hop.before.reached(), await hop.before.stranger()]
    except NotApplicable:
        return ok("none doubled")
    pairs = [(a, b) for a, b in zip(former, answers, strict=True) if a.status == b.status]
    here, there = {n for _, b in pairs for n, _ in b.headers}, {n for a, _ in pairs for n, _ in a.headers}
    lost = {n for n in there - here if n not in HARMLESS and n.startswith(("mcp-", "www-", "access-", "retry-"))}
    for kept in ("mcp-session-id", "www-authenticate"):
        if any(a.header(kept) and not b.header(kept) for a, b in pairs):
            lost.add(kept)
    added = sorted(name for name in here - there if name not in HARMLESS and not name.startswith("access-control-"))
    if lost:
        return failure(
            f"lost: {shown(', '.join(sorted(lost)))}", f"Between {hop.before.name} and here these headers get lost.",
            "Let the proxy pass them on",
        )  # fmt: skip
    kept = "no-transform"
    if any(kept in a.header("cache-control") and kept not in b.header("cache-control") for a, b in pairs):
        return warning("changed: cache-control", "Without no-transform a proxy may compress streams.", "Keep it")
    return ok(f"added: {shown(', '.join(added), 60)}" if added else "unchanged")


@check("body-limit")
async def body_limit(hop: Hop) -> Finding:
    """Send a ping of 100 KB, which must pass, and one of 1.5 MB, which may be refused."""
    where = await hop.in_session()
    small, large = await _padded(hop, SMALL, where), await _padded(hop, LARGE, where)
    if small.status in (0, 413):
        return failure(
            f"100 KB: {small.said()}", "Calls with larger arguments (files, images, long texts) are refused.",
            "Raise the proxy's limit (nginx: client_max_body_size 4m; Slipway: SLIPWAY_MAX_BODY in .env)",
        )  # fmt: skip
    if large.status == 0:
        # an answer that comes before the body was sent may get lost with the connection (RFC 9112 §9.6)
        return ok("1.5 MB: refused, the connection was cut")
    return ok("413 over the limit" if large.status == 413 else f"1.5 MB: {large.status}")


async def _padded(hop: Hop, size: int, headers: dict[str, str]) -> Answer:
    body = (
        b'{"jsonrpc":"2.0","id":"%d","method":"ping","params":{"_meta":{"pad":"' % size + b"x" * (size - 85) + b'"}}}'
    )
    sent = {"content-type": "application/json", "accept": "application/json, text/event-stream", **headers}
    return await hop.ask("POST", content=body, headers=sent)


@check("arrived")
async def arrived(hop: Hop) -> Finding:
    """Look for a request of ours in the logs of our own edge and server."""
    if not hop.ours:
        raise NotApplicable("not served by this checkout")
    answer = await hop.hello()
    line = await asyncio.to_thread(hop.logged, answer.request_id)
    if line:
        return ok(f"{line['by']}: {line.get('status', '')} {shown(str(line.get('reason') or ''), 60)}".strip())
    return failure(
        "nothing", "The request reached neither our edge nor our server: something in front answered it.",
        "See the first failure above",
    )  # fmt: skip


@check("quota")
async def quota(hop: Hop) -> Finding:
    """Say what is known of the account's quota: ngrok tells it only once it is used up."""
    if ".ngrok" not in hop.host:
        raise NotApplicable("no ngrok address")
    code = (await hop.hello()).header("ngrok-error-code")
    if code in QUOTA:
        return failure(code, *ngrok_errors.ROWS[code][:2])
    raise NotApplicable("only dashboard.ngrok.com/usage knows it (free: 20,000 requests, 1 GB a month)")
