"""What the official conformance suite asks of a server: over stdio, or over HTTP on the port that is its argument."""

import asyncio
import base64
import sys
from typing import Any

import mcp_types as mt
import uvicorn
from fastmcp import Context, FastMCP
from fastmcp.prompts import Message
from fastmcp.server.event_store import EventStore
from fastmcp.tools import Tool, ToolResult

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SILENCE = base64.b64encode(
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\0\0\0\0"
).decode()

mcp: FastMCP[Any] = FastMCP("conformance", version="1.0", dereference_schemas=False)


def text(words: str) -> mt.TextContent:
    return mt.TextContent(type="text", text=words)


def embedded(uri: str, words: str, kind: str = "text/plain") -> mt.EmbeddedResource:
    contents = mt.TextResourceContents(uri=uri, mime_type=kind, text=words)
    return mt.EmbeddedResource(type="resource", resource=contents)


IMAGE = mt.ImageContent(type="image", data=PIXEL, mime_type="image/png")


@mcp.tool
async def test_simple_text() -> str:
    """Test simple text."""
    return "This is a simple text response for testing."


@mcp.tool
async def test_image_content() -> ToolResult:
    """Test image content."""
    return ToolResult(content=[IMAGE])


@mcp.tool
async def test_audio_content() -> ToolResult:
    """Test audio content."""
    return ToolResult(content=[mt.AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")])


@mcp.tool
async def test_embedded_resource() -> ToolResult:
    """Test embedded resource."""
    return ToolResult(content=[embedded("test://embedded-resource", "This is an embedded resource content.")])


@mcp.tool
async def test_multiple_content_types() -> ToolResult:
    """Test multiple content types."""
    mixed = embedded("test://mixed-content-resource", '{"test":"data","value":123}', "application/json")
    return ToolResult(content=[text("Multiple content types test:"), IMAGE, mixed])


@mcp.tool
async def test_tool_with_logging(ctx: Context) -> str:
    """Test tool with logging."""
    for step in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(step)
        await asyncio.sleep(0.05)
    return "logged"


@mcp.tool
async def test_tool_with_progress(ctx: Context) -> str:
    """Test tool with progress."""
    for step in (0, 50, 100):
        await ctx.report_progress(step, 100)
        await asyncio.sleep(0.05)
    return "progressed"


@mcp.tool
async def test_error_handling() -> str:
    """Test error handling."""
    raise RuntimeError("This tool intentionally returns an error for testing")


@mcp.tool
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Test sampling."""
    question = mt.SamplingMessage(role="user", content=text(prompt))
    result = await ctx.session.create_message([question], max_tokens=100, related_request_id=ctx.request_id)
    return f"LLM response: {result.content.text}"


async def elicit(ctx: Context, message: str, properties: dict[str, Any]) -> str:
    schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    result = await ctx.session.elicit_form(message, schema, ctx.request_id)
    return f"action={result.action}, content={result.content}"


@mcp.tool
async def test_elicitation(message: str, ctx: Context) -> str:
    """Test elicitation."""
    fields = {"username": {"type": "string", "description": "User's response"}, "email": {"type": "string"}}
    return await elicit(ctx, message, fields)


@mcp.tool
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Test elicitation sep1034 defaults."""
    fields = {
        "name": {"type": "string", "default": "John Doe"}, "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5}, "verified": {"type": "boolean", "default": True},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    }  # fmt: skip
    return await elicit(ctx, "Please review the defaults", fields)


@mcp.tool
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Test elicitation sep1330 enums."""
    titled = [
        {"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"), 1)
    ]
    options = ["option1", "option2", "option3"]
    fields = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return await elicit(ctx, "Please choose", fields)


@mcp.tool
async def test_reconnection(ctx: Context) -> str:
    """Test reconnection."""
    await ctx.info("before")
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    await ctx.info("after")
    return "Reconnection test completed successfully."


async def json_schema_2020_12_tool(name: str = "", address: dict[str, Any] | None = None) -> str:
    return f"{name} {address}"


schema_tool = Tool.from_function(json_schema_2020_12_tool, description="A tool with a JSON Schema 2020-12 schema")
schema_tool.parameters = {
    "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": False,
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
}  # fmt: skip
mcp.add_tool(schema_tool)


@mcp.resource("test://static-text", mime_type="text/plain")
async def static_text() -> str:
    """Static text."""
    return "This is the content of the static text resource."


@mcp.resource("test://static-binary", mime_type="image/png")
async def static_binary() -> bytes:
    """Static binary."""
    return base64.b64decode(PIXEL)


@mcp.resource("test://watched-resource", mime_type="text/plain")
async def watched() -> str:
    """Watched."""
    return "Watched resource content"


@mcp.resource("test://template/{id}/data", mime_type="application/json")
async def template(id: str) -> dict[str, Any]:
    """Template."""
    return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


@mcp.prompt
async def test_simple_prompt() -> str:
    """Test simple prompt."""
    return "This is a simple prompt for testing."


@mcp.prompt
async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """Test prompt with arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@mcp.prompt
async def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:
    """Test prompt with embedded resource."""
    shown = embedded(resourceUri, "Embedded resource content for testing.")
    return [Message(shown), Message("Please process the embedded resource above.")]


@mcp.prompt
async def test_prompt_with_image() -> list[Message]:
    """Test prompt with image."""
    return [Message(IMAGE), Message("Please analyze the image above.")]


@mcp.completion
async def complete(ref: Any, argument: Any, context: Any) -> list[str]:
    return ["paris", "park", "party"]


async def subscribed(ctx: Any, params: Any) -> mt.EmptyResult:
    if ctx.method == "resources/subscribe":
        await ctx.session.send_resource_updated(params.uri)
    return mt.EmptyResult()


mcp._mcp_server.add_request_handler("resources/subscribe", mt.SubscribeRequestParams, subscribed)
mcp._mcp_server.add_request_handler("resources/unsubscribe", mt.UnsubscribeRequestParams, subscribed)

if __name__ == "__main__":
    if sys.argv[1:]:
        app = mcp.http_app(event_store=EventStore(), retry_interval=500, host_origin_protection="auto")
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
    else:
        mcp.run(show_banner=False)
