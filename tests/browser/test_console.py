"""The console in real Chromium, through real Caddy, from another origin: a client that works, and checks that are right."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import misbehaving, node_clients
from tests.browser.conftest import SCREENS, Watched
from tests.conftest import Stack
from tests.stack.test_doctor import diseased

# with the Docker tests on one worker: a container that starts changes the networks, and Chromium drops its requests
pytestmark = [pytest.mark.slow]

PREFLIGHTS = {f"preflight-{name}" for name in ("handshake", "resume", "newest", "param", "ngrok")}
STREAMS = {"post-stream", "post-stream-newest"}
# disease → the checks that are not well; the rest must be silent
NAMED: dict[str, set[str]] = {
    "none": set(),
    "buffer-sse": STREAMS | {"get-stream"},
    "buffer-get": {"get-stream"},
    "hold-headers": {"get-stream"},
    "gzip-stream": STREAMS | {"get-stream"},
    "cut": STREAMS,
    "drop-expose": {"session-readable", "401-readable"},
    "double-origin": {"allow-origin-once"},
    "no-cors-on-errors": {"401-readable", "404-readable"},
    "old-cors-list": PREFLIGHTS - {"preflight-handshake"},
    "foreign-allowed": {"foreign-refused"},
    "auth-preflight": PREFLIGHTS,
    "redirect-http": {"redirect"},
    "strip-authorization": {"token"},
    "strip-mcp-headers": {"newest", "delete"},
    "strip-last-event-id": {"resume"},
    "drop-session": {"session-readable"},
    "no-challenge": {"401-readable"},
    "rewrite-host": {"host"},
    "interstitial": {"interstitial"},
    "wrong-metadata": {"well-known"},
    "rate-limit": PREFLIGHTS,
    "small-bodies": {"body-limit"},
    "expired-token": {"token"},
}


def link(stack: Stack, url: str = "", token: str = "") -> str:
    """Return the link that `up` prints."""
    given = f"url={quote(url or stack.tls_url, safe='')}&token={token or stack.token()}"
    return f"http://localhost:{stack.config.console_port}/#{given}"


def connected(seen: Watched, stack: Stack, url: str = "", era: str = "auto") -> Page:
    """Open the link, and connect again where an era is asked for."""
    page = seen.page
    page.goto(link(stack, url))
    expect(page.locator("#status")).to_have_text("Connected to slipway.")
    if era != "auto":
        page.get_by_label("Protocol era").select_option(era)
        page.get_by_role("button", name="Connect", exact=True).click()
        expect(page.locator("#server")).to_contain_text({"newest": "2026-07-28", "handshake": "2025-11-25"}[era])
    expect(page.get_by_role("tab", name="Tools (12)")).to_be_visible()
    return page


def opened(page: Page, title: str) -> Any:
    """Unfold an item of the list and return it."""
    item = page.locator("details.item").filter(has=page.locator("summary", has_text=re.compile(rf"^{title}")))
    item.locator("> summary").click()
    return item


@pytest.mark.parametrize("screen", SCREENS)
def test_the_link_connects_and_leaves_no_token_behind(shared_stack: Stack, chromium: Browser, screen: str) -> None:
    seen = Watched(chromium, screen)
    page = connected(seen, shared_stack)
    assert page.url == f"http://localhost:{shared_stack.config.console_port}/"
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    page.go_back() if page.evaluate("history.length") > 2 else None
    for tab in ("Tools", "Resources", "Prompts", "Checks", "Wire"):
        page.get_by_role("tab", name=tab).click()
        assert seen.fits(), tab
    assert seen.complaints == []
    seen.context.close()


@pytest.mark.parametrize("era", ["newest", "handshake"])
@pytest.mark.parametrize("door", ["edge_url", "tls_url"])
def test_a_call_shows_progress_and_logs_as_they_come(
    shared_stack: Stack, chromium: Browser, era: str, door: str
) -> None:
    seen = Watched(chromium, "desktop")
    page = connected(seen, shared_stack, getattr(shared_stack, door), era)
    item = opened(page, "Countdown")
    item.get_by_label("n *").fill("4")
    item.get_by_label("seconds").fill("0.3")
    item.get_by_role("button", name="Call").click()
    # in the middle: some of it is there, and the result is not
    expect(item.locator(".logs")).to_contain_text("3…")
    assert "liftoff" not in item.locator(".result").inner_text()
    expect(item.locator("progress")).to_have_attribute("max", "4")
    expect(item.locator(".result")).to_contain_text("liftoff")
    assert item.locator(".logs").inner_text().count("…") == 4
    assert seen.complaints == []
    seen.context.close()


@pytest.mark.parametrize("era", ["newest", "handshake"])
def test_cancel_ends_the_call_on_the_server_too(shared_stack: Stack, chromium: Browser, era: str) -> None:
    seen = Watched(chromium, "desktop")
    page = connected(seen, shared_stack, era=era)
    before = shared_stack.text("server").count("countdown(77) was cancelled")
    item = opened(page, "Countdown")
    item.get_by_label("n *").fill("77")
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".logs")).to_contain_text("77…")
    item.get_by_role("button", name="Cancel").click()
    expect(item.locator(".result")).to_contain_text("Cancelled.")
    from tests.conftest import wait_until

    wait_until(lambda: shared_stack.text("server").count("countdown(77) was cancelled") > before)
    seen.context.close()


def test_what_is_missing_or_wrong_is_said_before_anything_is_sent(shared_stack: Stack, chromium: Browser) -> None:
    seen = Watched(chromium, "desktop")
    page = connected(seen, shared_stack)
    item = opened(page, "Add")
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".problem")).to_have_text("a: is required")
    assert item.get_by_label("a *").evaluate("node => node === document.activeElement")
    item.get_by_label("raw JSON").check()
    item.get_by_label("Arguments as JSON").fill('{"a": 2, "b": "three"}')
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".result")).to_contain_text("error")
    item.get_by_label("Arguments as JSON").fill("[1")
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".problem").last).to_contain_text("JSON")
    item.get_by_label("Arguments as JSON").fill('{"a": 2, "b": 3}')
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".result > pre")).to_have_text(["", "5"])
    seen.context.close()


def test_a_nested_argument_has_a_form(shared_stack: Stack, chromium: Browser) -> None:
    seen = Watched(chromium, "desktop")
    page = connected(seen, shared_stack)
    item = opened(page, "Summarize Alert")
    item.get_by_label("alert_id *").fill("A-1")
    item.get_by_label("customer *").fill("Ana")
    item.get_by_label("amount *").fill("1200.5")
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".result")).to_contain_text("A-1")
    seen.context.close()


def test_forms_follow_the_schema(shared_stack: Stack, chromium: Browser) -> None:
    page = Watched(chromium, "desktop").page
    page.goto(f"http://localhost:{shared_stack.config.console_port}/")
    schema = {
        "$defs": {"city": {"type": "object", "properties": {"zip": {"type": "string", "minLength": 5}}, "required": ["zip"]}},
        "properties": {
            "size": {"enum": ["s", "m", 3], "default": "m"},
            "kind": {"const": "fixed"},
            "flag": {"type": "boolean"},
            "maybe": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
            "either": {"type": ["string", "number"]},
            "city": {"$ref": "#/$defs/city"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "self": {"$ref": "#"},
        },
        "required": ["size", "kind", "city", "tags"],
    }  # fmt: skip
    value = page.evaluate(
        """async (schema) => {
          const { argumentsForm } = await import('/form.js');
          const form = argumentsForm(schema);
          document.body.append(form.node);
          const set = (label, value) => {
            const found = [...form.node.querySelectorAll('label')].find((each) => each.textContent.startsWith(label));
            document.getElementById(found.htmlFor).value = value;
          };
          const errors = [];
          const attempt = () => { try { return form.read(); } catch (error) { errors.push(error.message); } };
          attempt();
          set('zip', '123');
          set('tags 1', 'a'); set('tags 2', 'b'); set('maybe', '0');
          attempt();
          set('maybe', '7'); set('zip', '12345'); set('flag', 'true'); set('either', '"text"'); set('size', '3');
          return { value: attempt(), errors };
        }""",
        schema,
    )
    assert value["value"] == {
        "size": 3, "kind": "fixed", "flag": True, "maybe": 7, "either": "text", "city": {"zip": "12345"}, "tags": ["a", "b"],
    }  # fmt: skip
    assert len(value["errors"]) == 2
    assert value["errors"][0].startswith("zip: is required")
    page.context.close()


def test_resources_templates_and_prompts_are_read(shared_stack: Stack, chromium: Browser) -> None:
    seen = Watched(chromium, "desktop")
    page = connected(seen, shared_stack)
    page.get_by_role("tab", name="Resources").click()
    item = opened(page, "about")
    item.get_by_role("button", name="Read").click()
    expect(item.locator(".result")).to_contain_text("from a laptop to a public URL")
    page.get_by_role("tab", name="Prompts").click()
    item = opened(page, "introduce")
    item.get_by_label("name").fill("Ada")
    item.get_by_role("button", name="Get").click()
    expect(item.locator(".result")).to_contain_text("Say hello to Ada")
    assert seen.complaints == []
    seen.context.close()


def test_an_exchange_is_shown_and_its_curl_command_does_the_same(
    shared_stack: Stack, chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Watched(chromium, "desktop", permissions=["clipboard-read", "clipboard-write"])
    token = shared_stack.token()
    page = seen.page
    page.goto(link(shared_stack, shared_stack.edge_url, token))
    expect(page.get_by_role("tab", name="Tools (12)")).to_be_visible()
    page.get_by_role("tab", name="Wire").click()
    row = page.locator(".exchange").filter(has_text="tools/list").first
    row.locator("summary").click()
    expect(row).to_contain_text("Bearer …")
    expect(row).to_contain_text("x-request-id")
    assert token not in page.locator("body").inner_text()
    row.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert token not in command
    done = subprocess.run(["bash", "-c", command], env={"TOKEN": token, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=20)  # fmt: skip
    assert '"name":"countdown"' in done.stdout, done.stderr
    page.get_by_label("curl with the token").check()
    row.get_by_role("button", name="Copy").click()
    assert token in page.evaluate("navigator.clipboard.readText()")
    seen.context.close()


def test_the_console_is_used_by_keyboard_and_every_field_has_a_name(shared_stack: Stack, chromium: Browser) -> None:
    seen = Watched(chromium, "desktop")
    page = connected(seen, shared_stack)
    page.get_by_role("tab", name="Tools").focus()
    for expected in ("Resources", "Prompts", "Checks", "Wire", "Tools"):
        page.keyboard.press("ArrowRight")
        focused = page.evaluate("document.activeElement.textContent")
        assert focused.startswith(expected)
        expect(page.get_by_role("tabpanel")).to_have_count(1)
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.id") == "tab-wire"
    page.keyboard.press("Home")
    for summary in page.locator("details.item > summary").all()[:6]:
        summary.focus()
        page.keyboard.press("Enter")
    nameless = page.evaluate(
        """[...document.querySelectorAll('input,select,textarea,button')].filter((each) => !(
             each.labels?.length || each.getAttribute('aria-label') || each.textContent.trim())).map((each) => each.outerHTML)"""
    )
    assert nameless == []
    duplicate = page.evaluate(
        "[...document.querySelectorAll('[id]')].map((each) => each.id).filter((id, at, all) => all.indexOf(id) !== at)"
    )
    assert duplicate == []
    seen.context.close()


# the checks


def run_checks(seen: Watched, stack: Stack, url: str, token: str = "") -> dict[str, tuple[str, str]]:
    """Run the bench against a URL. Returns: {check: (verdict, text)}."""
    page = seen.page
    page.goto(f"http://localhost:{stack.config.console_port}/")
    page.get_by_label("Endpoint").fill(url)
    page.locator("#token").fill(token or stack.token())
    page.get_by_role("tab", name="Checks").click()
    page.get_by_role("button", name="Run all checks").click()
    expect(page.locator("#panel-checks [role=status]")).to_contain_text("Done.", timeout=90_000)
    rows = page.locator(".check-row").all()
    return {
        (row.get_attribute("id") or "")[6:]: (row.get_attribute("data-verdict") or "", row.inner_text())
        for row in rows
    }


def test_the_list_of_diseases_is_complete() -> None:
    assert set(NAMED) == set(misbehaving.DISEASES)


@pytest.mark.parametrize("name", NAMED)
def test_the_checks_name_each_disease_and_nothing_else(shared_stack: Stack, chromium: Browser, name: str) -> None:
    seen = Watched(chromium, "desktop")
    with diseased(shared_stack, name) as url:
        found = run_checks(seen, shared_stack, url)
    bad = {check for check, (verdict, _) in found.items() if verdict in ("failure", "warning")}
    assert bad == NAMED[name]
    for check in bad:
        assert "→" in found[check][1], "no cure"
    if name == "none":
        assert {check for check, (verdict, _) in found.items() if verdict != "ok"} == {"429-readable"}
    seen.context.close()


def test_a_healthy_stack_passes_over_tls_and_a_phone_shows_it(shared_stack: Stack, chromium: Browser) -> None:
    seen = Watched(chromium, "phone")
    found = run_checks(seen, shared_stack, shared_stack.tls_url)
    assert {check for check, (verdict, _) in found.items() if verdict != "ok"} == {"429-readable"}
    assert seen.fits()
    # what the browser itself logs of refusals that the checks provoke; nothing of the page's own
    expected = re.compile(r"Failed to load resource|blocked by CORS policy")
    assert [text for text in seen.complaints if not expected.search(text)] == []
    seen.context.close()


def test_a_certificate_that_the_browser_does_not_trust_is_named(shared_stack: Stack, chromium: Browser) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(link(shared_stack))
    expect(page.locator("#status")).to_contain_text("not reachable, or CORS refuses", timeout=15_000)
    page.get_by_role("tab", name="Checks").click()
    page.locator("#check-reach > summary").click()
    page.get_by_role("button", name="Run Something answers").click()
    expect(page.locator("#check-reach")).to_contain_text("does not trust the local certificate")
    context.close()


@contextlib.contextmanager
def answering(content: str, kind: str = "application/json") -> Iterator[str]:
    """A server that gives one body to everything, readable for every page. Yields: its URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(200)
            for name, value in {
                "content-type": kind, "content-length": str(len(content.encode())), "access-control-allow-origin": "*",
                "access-control-allow-headers": self.headers.get("access-control-request-headers", "*"),
                "access-control-allow-methods": "*",
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.encode())

        do_GET = do_POST = do_OPTIONS = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}/mcp"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def test_what_a_hostile_server_says_is_text_and_nothing_else(shared_stack: Stack, chromium: Browser) -> None:
    tool = {
        "name": EVIL,
        "description": EVIL,
        "inputSchema": {"properties": {EVIL: {"type": "string", "description": EVIL}}},
    }
    result = {
        "protocolVersion": "2025-11-25", "capabilities": {EVIL: {}}, "serverInfo": {"name": EVIL, "version": EVIL},
        "instructions": EVIL, "tools": [tool, 7, None], "content": [{"type": "text", "text": EVIL}, {"type": "image", "mimeType": EVIL, "data": EVIL}, 3],
        "resources": [{"uri": "javascript:alert(1)", "name": EVIL}], "prompts": [{"name": EVIL, "arguments": [{"name": EVIL}]}],
    }  # fmt: skip
    seen = Watched(chromium, "desktop")
    page = seen.page
    for number in range(1, 8):
        result[f"x{number}"] = EVIL * 1000
    with answering(json.dumps({"jsonrpc": "2.0", "id": 1, "result": result})) as url:
        # the ids of an answer must be those of the request: only the first one connects
        page.goto(link(shared_stack, url, "t"))
        page.get_by_role("tab", name="Wire").click()
        page.locator(".exchange summary").first.click()
        page.wait_for_timeout(300)
        assert page.title() == "Slipway console"
        assert page.locator("main img, main script, main a").count() == 0
    seen.context.close()


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        ("<!doctype html><title>x</title>", "text/html", "web page, not an MCP server"),
        ("{}", "application/json", "not JSON-RPC"),
        ("[" * 100_000, "application/json", "not JSON"),
        ('{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}', "application/json", "JSON-RPC -32000"),
        (": only\r\n\r\ndata: {\r\n\r\n", "text/event-stream", "without the result"),
    ],
)
def test_a_server_that_is_none_is_told(
    shared_stack: Stack, chromium: Browser, content: str, kind: str, says: str
) -> None:
    seen = Watched(chromium, "desktop")
    with answering(content, kind) as url:
        seen.page.goto(link(shared_stack, url, "t"))
        expect(seen.page.locator("#status")).to_contain_text(says)
    assert [text for text in seen.complaints if "Uncaught" in text] == []
    seen.context.close()


def test_events_are_read_at_whatever_boundaries_they_come(shared_stack: Stack, chromium: Browser) -> None:
    page = Watched(chromium, "desktop").page
    page.goto(f"http://localhost:{shared_stack.config.console_port}/")
    found = page.evaluate(
        """async () => {
          const { EventStreamParser } = await import('/sse.js');
          const text = ': open\\n\\nid: 1\\r\\ndata: {"a":\\r\\ndata: "ö€😀"}\\r\\n\\r\\nevent: x\\rdata:2\\r\\r';
          const bytes = new TextEncoder().encode(text + '\\n');
          const runs = [];
          for (const size of [1, 2, 3, 7, 1000]) {
            const parser = new EventStreamParser();
            const events = [];
            for (let at = 0; at < bytes.length; at += size) events.push(...parser.push(bytes.slice(at, at + size)));
            runs.push(events.filter((event) => event.comment === undefined).map(({ data, id, event }) => [data, id ?? '', event ?? '']));
          }
          return runs;
        }"""
    )
    assert found == [[['{"a":\n"ö€😀"}', "1", ""], ["2", "", "x"]]] * 5
    page.context.close()


def test_a_server_that_dies_in_a_call_is_told_and_its_return_is_used(make_stack: Any, chromium: Browser) -> None:
    stack = make_stack()
    seen = Watched(chromium, "desktop")
    page = connected(seen, stack)
    item = opened(page, "Countdown")
    item.get_by_label("n *").fill("50")
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".logs")).to_contain_text("50…")
    stack.kill("server")
    expect(item.locator(".problem")).to_contain_text("before the result", timeout=15_000)
    stack.start("server")
    item.get_by_label("n *").fill("1")
    item.get_by_label("seconds").fill("0")
    item.get_by_role("button", name="Call").click()
    expect(item.locator(".result")).to_contain_text("liftoff")
    seen.context.close()


# another client in the browser


@pytest.mark.node
@pytest.mark.parametrize("era", ["handshake", "newest"])
def test_the_typescript_sdk_works_in_a_page_of_another_origin(
    shared_stack: Stack, chromium: Browser, tmp_path: Path, era: str
) -> None:

    folder = node_clients.installed()
    bundle = tmp_path / "bundle.js"
    subprocess.run(
        [str(folder / "node_modules" / ".bin" / "esbuild"), str(folder / "browser.mjs"), "--bundle", "--format=esm", f"--outfile={bundle}"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    seen = Watched(chromium, "desktop")
    page = seen.page
    # a page of an allowed origin that Slipway does not serve
    with answering('<!doctype html><link rel="icon" href="data:,"><title>app</title>', "text/html") as url:
        page.goto(url)
        page.add_script_tag(path=bundle, type="module")
        page.wait_for_function("Boolean(window.useSdk)")
        given = [shared_stack.tls_url, shared_stack.token(), era]
        found = page.evaluate("([url, token, era]) => useSdk(url, token, era)", given)
    assert "countdown" in found["tools"] and found["done"] == "liftoff"
    assert found["steps"] == 4
    assert found["spread"] > 300, "the events came in one lump"
    assert seen.complaints == []
    seen.context.close()
