"""Checks of MCP itself: both protocol eras, the session and its end."""

from __future__ import annotations

from slipway.doctor.checks import Checks
from slipway.doctor.hops import HELLO, Finding, Hop, NotApplicable, failure, ok, plural, warning
from slipway.doctor.wire import shown

check = Checks()


@check("handshake")
async def handshake(hop: Hop) -> Finding:
    """Initialize, say so, list the tools."""
    answer = await hop.reached()
    if answer.status in (401, 403):
        await hop.admitted()
    if "text/html" in answer.header("content-type"):
        return failure(answer.said(), "A web page answers here, no MCP endpoint.", "Check the path: most end in /mcp")
    if answer.status in (404, 405):
        return failure(answer.said(), "There is no MCP endpoint at this path.", "Check the path: most end in /mcp")
    result = answer.result()
    if answer.status != 200 or not isinstance(result.get("protocolVersion"), str):
        error = answer.message().get("error")
        what = shown(str(error.get("message", ""))) if isinstance(error, dict) else answer.said()
        return failure(what or "no result", "The server does not answer initialize as MCP asks.", "Check the URL")
    tools = await hop.tools()
    info = result.get("serverInfo")
    who = shown(str(info.get("name", "")), 30) if isinstance(info, dict) else "a server"
    return ok(f"{who}, {shown(str(result['protocolVersion']), 12)}, {plural(len(tools), 'tool')}")


@check("newest")
async def newest(hop: Hop) -> Finding:
    """Discover and list the tools, without a session."""
    await hop.admitted()
    answer = await hop.post_newest("server/discover")
    if answer.status == 200 and isinstance(answer.result().get("capabilities"), dict):
        listed = await hop.post_newest("tools/list")
        tools = listed.result().get("tools")
        return ok(plural(len(tools) if isinstance(tools, list) else 0, "tool"))
    error = answer.message().get("error")
    said = shown(str(error.get("message", ""))) if isinstance(error, dict) else answer.said()
    if await hop.well_before("newest"):
        return failure(
            said, "One hop before, the newest era works: this one loses the Mcp-* headers of the request.",
            "Let the proxy pass Mcp-Method, Mcp-Name, Mcp-Param-* and MCP-Protocol-Version on",
        )  # fmt: skip
    if answer.status not in (400, 404, 405, 406, 200):
        return failure(said, "The newest era is not answered.", "See what the server logs")
    raise NotApplicable("the server speaks the handshake era only")


@check("session")
async def session(hop: Hop) -> Finding:
    """Use the session of the handshake, then end another."""
    found = await hop.session()
    if not found:
        if hop.before and await hop.before.session():
            return failure(
                "no Mcp-Session-Id", f"{hop.before.name} gives a session id, here it is lost.",
                "Let the proxy pass the Mcp-Session-Id header on, both ways",
            )  # fmt: skip
        raise NotApplicable("the server keeps no sessions")
    answer = await hop.post("ping", headers=await hop.in_session())
    if answer.status != 200:
        return failure(answer.said(), "The session that was just opened is not known.", "One replica only, or sticky")
    second = (await hop.post("initialize", HELLO)).header("mcp-session-id")[:256]
    ended = await hop.ask("DELETE", headers={"mcp-session-id": second})
    if ended.status in (200, 202, 204):
        return ok(f"opened, used, ended ({ended.status})")
    if ended.status == 405 and not await hop.well_before("session"):
        return ok("opened and used; the server lets nobody end one")
    return warning(
        f"DELETE: {ended.said()}", "Sessions cannot be ended: they stay until their idle time is over.",
        "Let DELETE through to the server",
    )  # fmt: skip
