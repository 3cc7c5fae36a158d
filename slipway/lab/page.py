"""/board: the page on which the instructor sees every seat. It holds no data: it reads /admin/lab/events."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slipway.guards import from_this_machine
from slipway.identity import pages


def routes() -> list[Route]:
    """Return the routes."""
    style = pages.STYLE + _text("board.css")
    # the console's module and ours become one script: a page whose policy names a hash loads no other file
    script = _text("console/sse.js").replace("\nexport ", "\n") + _text("board.js")
    page = pages.template("board.html").substitute(style=style, script=script)

    async def board(request: Request) -> Response:
        if not from_this_machine(request):
            return JSONResponse({"error": "not found"}, 404)
        return pages.closed(page, form_action="'none'", script=script, style=style)

    return [Route("/board", board, methods=["GET"])]


def _text(name: str) -> str:
    return (pages.WEB / name).read_text(encoding="utf-8")
