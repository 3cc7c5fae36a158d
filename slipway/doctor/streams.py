"""Checks of event streams: does anything hold them back, compress them, cut them, or lose the way back into them?"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from typing import Any

from slipway.doctor.checks import Checks
from slipway.doctor.hops import HANDSHAKE, HELLO, Finding, Hop, NotApplicable, failure, ok, warning
from slipway.doctor.wire import Answer, Event, shown

check = Checks()

# tools that stream and change nothing, with arguments for LASTING seconds from the first event to the last
KNOWN: dict[str, dict[str, Any]] = {
    "countdown": {"n": 4, "seconds": 0.4},
    "trigger-long-running-operation": {"duration": 2, "steps": 5},
}
LASTING = 1.6
IDLE = 4.0  # seconds in which an idle stream must show its head
RETRIES = 3
SILENT = 25.0  # seconds: an idle stream with fewer signs of life runs into the timer of some proxy
_BUFFER = (
    "Switch buffering off for this path (nginx: proxy_buffering off; cloudflared: quick tunnels hold streams back; "
    "Caddy: flush_interval -1)"
)


async def _call(hop: Hop, *, newest: bool, headers: dict[str, str] | None = None, **how: Any) -> Answer:
    """Call a tool that streams.

    Raises:
        NotApplicable: there is none that is known to be harmless.
    """
    offered = {str(tool.get("name")): tool for tool in await hop.tools()}
    name = next((each for each in KNOWN if each in offered and _fits(offered[each], KNOWN[each])), "")
    if not name:
        raise NotApplicable("no tool that streams and is known to be harmless")
    params = {"name": name, "arguments": KNOWN[name], "_meta": {"progressToken": "doctor"}}
    if newest:
        return await hop.post_newest("tools/call", params, headers=headers, **how)
    return await hop.post("tools/call", params, headers={**await hop.in_session(), **(headers or {})}, **how)


def _fits(tool: dict[str, Any], arguments: dict[str, Any]) -> bool:
    schema = tool.get("inputSchema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return isinstance(properties, dict) and set(arguments) <= set(properties)


def _progress(answer: Answer) -> list[Event]:
    return [event for event in answer.events if '"notifications/progress"' in event.data]


@check("post-stream")
async def post_stream(hop: Hop) -> Finding:
    """Call a tool that reports progress, in both eras, as programs and as browsers do, and look when events come."""
    await hop.admitted()
    calls: list[Awaitable[Answer]] = [_call(hop, newest=False), _call(hop, newest=True)]
    if hop.secure:
        calls.append(_call(hop, newest=False, http2=True))
    answers = await asyncio.gather(*calls)
    findings = [_paced(each) for each in answers if each.streams]
    if not findings:
        raise NotApplicable(f"the call was not answered as a stream but with {answers[0].status}")
    return max(findings, key=lambda each: ("ok", "warning", "failure").index(each.verdict))


def _paced(answer: Answer) -> Finding:
    steps = _progress(answer)
    if not answer.message() and answer.left:
        return warning(
            f"not over in {answer.seconds:.0f} s", "It was left before its end, so nothing is known of that.",
            "Ask again when the server has less to do; look at its log",
        )  # fmt: skip
    if not answer.message():
        return failure(
            f"cut after {answer.seconds:.1f} s", "The stream ended before the result came.",
            "Raise the proxy's read timeout (nginx: proxy_read_timeout 1h)",
        )  # fmt: skip
    if len(steps) < 3:
        return ok("no progress was sent")
    spread = steps[-1].at - steps[0].at
    saw = f"{len(steps)} events over {spread:.1f} s, the first after {steps[0].at * 1000:.0f} ms"
    if spread < 0.4 * LASTING:
        return failure(
            f"{len(steps)} events in one lump after {steps[0].at:.1f} s",
            "Something holds the stream back until it ends or a buffer is full: no progress, no logs.", _BUFFER,
        )  # fmt: skip
    if answer.to_head > 0.6 * LASTING:
        return failure(f"head after {answer.to_head:.1f} s", "The head of the answer is held back.", _BUFFER)
    return ok(saw)


async def _idle(hop: Hop, seconds: float, *, first: bool) -> Answer:
    """Open the GET stream of a session of its own, for some seconds or until its first byte."""
    session = (await hop.post("initialize", HELLO)).header("mcp-session-id")[:256]
    headers = {"accept": "text/event-stream", "mcp-protocol-version": HANDSHAKE, "mcp-session-id": session}
    try:
        return await hop.ask("GET", headers=headers, seconds=seconds, until=(lambda _: True) if first else None)
    finally:
        if session:
            await hop.ask("DELETE", headers={"mcp-session-id": session}, seconds=3)


@check("get-stream")
async def get_stream(hop: Hop) -> Finding:
    """Open the stream on which a server speaks first, and wait for its head and its first byte."""
    if not await hop.session():
        raise NotApplicable("without a session there is no GET stream")
    answer = await _idle(hop, IDLE, first=True)
    if answer.status == 405:
        raise NotApplicable("the server offers none (405)")
    if answer.status and (answer.status != 200 or not answer.streams):
        return warning(answer.said(), "The GET stream is not opened: no messages from the server.", "See challenge")
    if not answer.status:
        return failure(
            f"no head in {IDLE:.0f} s" if "no answer" in answer.error else answer.error,
            "The head of the answer is held back until an event comes: clients give up before.", _BUFFER,
        )  # fmt: skip
    saw = f"head after {answer.to_head * 1000:.0f} ms, "
    if answer.to_byte is not None:
        return ok(f"{saw}first byte after {answer.to_byte * 1000:.0f} ms")
    if await hop.well_before("get-stream") or hop.ours:
        return failure(
            f"{saw}no byte in {IDLE:.0f} s", "One hop before, the first byte comes at once: this one holds it back.",
            _BUFFER,
        )  # fmt: skip
    return ok(f"{saw}nothing sent in {IDLE:.0f} s")


@check("listen")
async def listen(hop: Hop) -> Finding:
    """Subscribe to list changes in the newest era; the acknowledgement is the first event."""
    await hop.admitted()
    params = {"notifications": {"toolsListChanged": True}}
    answer = await hop.post_newest("subscriptions/listen", params, seconds=IDLE, until=lambda seen: bool(seen.events))
    if answer.status == 200 and answer.streams:
        if answer.events:
            return ok(f"acknowledged after {answer.events[0].at * 1000:.0f} ms")
        return failure(
            f"no event in {IDLE:.0f} s", "The acknowledgement is held back: so will be every message.", _BUFFER
        )
    if not answer.status and await hop.well_before("listen"):
        return failure(f"no head in {IDLE:.0f} s", "The stream is held back until it ends.", _BUFFER)
    raise NotApplicable("the server offers none")


@check("compression")
async def compression(hop: Hop) -> Finding:
    """Offer gzip, as browsers do, and see whether a stream comes compressed."""
    await hop.admitted()
    answer = await _call(hop, newest=False, headers={"accept-encoding": "gzip, deflate, br"})
    if not answer.streams:
        raise NotApplicable("no stream to look at")
    encoding = answer.header("content-encoding")
    if not encoding:
        return ok("none")
    moments = [event.at for event in _progress(answer)] or answer.bytes_at or [0.0]
    held = moments[-1] - moments[0] < 0.4 * LASTING
    found = failure if held else warning
    return found(
        f"{shown(encoding, 20)}, {len(answer.bytes_at)} pieces",
        "A compressor collects events until its buffer is full." if held else "A compressor sits on the stream.",
        "Leave text/event-stream out of compression (Caddy: encode only other types; nginx: gzip_types)",
    )


@check("resume")
async def resume(hop: Hop) -> Finding:
    """Leave in the middle of a call, and ask for the rest with Last-Event-ID."""
    if not await hop.session():
        raise NotApplicable("without a session nothing is kept")
    answer = await _call(hop, newest=False, until=lambda seen: len(_progress(seen)) >= 2)
    numbered = [event for event in answer.events if event.id]
    if not numbered:
        raise NotApplicable("the server numbers no events")
    if (await asyncio.shield(hop.found["get-stream"])).verdict == "failure":
        raise NotApplicable("see get-stream")
    headers, rest = {"accept": "text/event-stream", "last-event-id": numbered[-1].id}, Answer()
    for _ in range(RETRIES):
        # the SDK's server ends a replay that comes before it noticed that we left, and may lose an event between
        # replay and live tail; the next replay has it
        rest = await hop.ask(
            "GET", headers=headers | await hop.in_session(), seconds=2.5, until=lambda seen: bool(seen.message())
        )
        if rest.message():
            return ok(f"{len(rest.events)} missed events, the result among them")
        if rest.status != 200:
            break
        await asyncio.sleep(0.5)
    saw = rest.said() if rest.status != 200 else "the result did not come"
    if await hop.well_before("resume"):
        return failure(
            saw, "One hop before, it works: this one loses Last-Event-ID or the session.", "Let the proxy pass it on"
        )
    return warning(
        saw, "A client whose stream is cut loses the result.", "Keep events on the server (an event store)"
    )


@check("idle")
async def idle(hop: Hop) -> Finding:
    """Hold an idle stream for --soak seconds."""
    if not hop.soak:
        raise NotApplicable("takes its time: ask for it with --soak 150")
    if not await hop.session():
        raise NotApplicable("without a session there is no GET stream")
    answer = await _idle(hop, float(hop.soak), first=False)
    if answer.status != 200 or not answer.streams:
        raise NotApplicable(f"the GET stream answers {answer.status or answer.error}")
    if not answer.left or answer.error:
        return failure(
            f"cut after {answer.seconds:.0f} s", "An idle stream is cut: the client must reconnect again and again.",
            "Raise the proxy's idle or read timeout, or send a ping more often than it (15 s is common)",
        )  # fmt: skip
    moments = [0.0, *answer.bytes_at, float(hop.soak)]
    longest = max(later - sooner for sooner, later in itertools.pairwise(moments))
    if longest > SILENT:
        return warning(
            f"silent for {longest:.0f} s", "Tunnels cut what is silent for long (Cloudflare 125 s, ngrok 5 min).",
            "Send a ping every 15 s",
        )  # fmt: skip
    return ok(f"{hop.soak} s, never silent for more than {longest:.0f} s")
